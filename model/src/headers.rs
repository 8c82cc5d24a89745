//! Record headers: ordered names with values, repeated names allowed, as in Kafka.
//!
//! All metadata of PipeDoc lives in headers, so that a record can be piped on
//! without decoding its value. Headers that are not ours travel on untouched.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

mod value;

pub use value::Value;

/// Topic that the record was piped from; on dead letters, the record's own topic.
pub const SOURCE_TOPIC: &str = "source_topic";
/// Partition that the record was piped from.
pub const SOURCE_PARTITION: &str = "source_partition";
/// Offset that the record was piped from.
pub const SOURCE_OFFSET: &str = "source_offset";
/// Consumer group that piped the record.
pub const SOURCE_CONSUMER_GROUP: &str = "source_consumer_group";
/// How many attempts were made before the record became a dead letter.
pub const SOURCE_ATTEMPTS: &str = "source_attempts";
/// Kind of the error that made the record a dead letter.
pub const ERROR_TYPE: &str = "error_type";
/// Whole chain of that error, at most 16 KiB.
pub const ERROR_MESSAGE: &str = "error_message";
/// Step in which it happened (`pipeline/step`).
pub const ERROR_STEP: &str = "error_step";
/// When it happened.
pub const FAILED_AT: &str = "failed_at";
/// The five headers that only dead letters carry; redrive removes them.
pub const DEAD_LETTER_ONLY: [&str; 5] = [SOURCE_ATTEMPTS, ERROR_TYPE, ERROR_MESSAGE, ERROR_STEP, FAILED_AT];
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// W3C trace state.
pub const TRACESTATE: &str = "tracestate";
/// Id of the document's journey from when it came in.
pub const STREAM_ID: &str = "pipedoc_stream_id";
/// How many steps the journey has made.
pub const HOP: &str = "pipedoc_hop";
/// When the journey began.
pub const EVENT_TIME: &str = "pipedoc_event_time";
/// Whose record it is, also on tombstones.
pub const DOCUMENT_ID: &str = "pipedoc_document_id";
/// Version of that document.
pub const VERSION: &str = "pipedoc_version";
/// A claim that the value refers to; once for each.
pub const CLAIM: &str = "pipedoc_claim";
/// On dead letters that are not PipeDocs: `JSON` or `RAW`.
pub const FORMAT: &str = "pipedoc_format";

/// Names that are ours and that records carry on every hop: known by their place
/// here, they need no memory.
const OURS: [&str; 11] = [
    SOURCE_TOPIC,
    SOURCE_PARTITION,
    SOURCE_OFFSET,
    SOURCE_CONSUMER_GROUP,
    TRACEPARENT,
    TRACESTATE,
    STREAM_ID,
    HOP,
    EVENT_TIME,
    DOCUMENT_ID,
    VERSION,
];

fn ours(name: &[u8]) -> Option<Name> {
    // Asked of each header of each record; hardly any two have names of the same length.
    let is_it = |at: &u8| OURS.get(usize::from(*at)).is_some_and(|ours| ours.as_bytes() == name);
    BY_LENGTH.get(name.len())?.iter().copied().find(is_it).map(Name::Ours)
}

const LONGEST: usize = SOURCE_CONSUMER_GROUP.len();
/// So many of our names have the same length, at most.
const ALIKE: usize = 2;
/// Places in [`OURS`], by the length of the name; `u8::MAX` where there is none.
const BY_LENGTH: [[u8; ALIKE]; LONGEST + 1] = by_length();

const fn by_length() -> [[u8; ALIKE]; LONGEST + 1] {
    let mut table = [[u8::MAX; ALIKE]; LONGEST + 1];
    let mut at = 0;
    while at < OURS.len() {
        let alike = &mut table[OURS[at].len()];
        let mut free = 0;
        // A name too long, or too many of one length, do not compile.
        while alike[free] != u8::MAX {
            free += 1;
        }
        alike[free] = at as u8;
        at += 1;
    }
    table
}

/// A name to look for, so that each header costs a comparison of places where it can.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    name: &'a [u8],
    place: Option<u8>,
}

impl<'a> Wanted<'a> {
    fn new(name: &'a str) -> Self {
        let place = match ours(name.as_bytes()) {
            Some(Name::Ours(place)) => Some(place),
            Some(Name::At(_)) | None => None,
        };
        Self { name: name.as_bytes(), place }
    }
}

/// One header, lent by the record's [`Headers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    name: &'a str,
    value: Option<&'a [u8]>,
}

impl<'a> Header<'a> {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The value; a header may have none, which is not the same as an empty one.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// The value as UTF-8 text; one that cannot be read counts as missing.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        self.value.and_then(|value| std::str::from_utf8(value).ok())
    }
}

/// Headers of one record, in order.
///
/// Those that were read lie in one piece of memory, which is shared as a whole;
/// those that were set lie in another. A copy costs two allocations, however many there
/// are, and mostly one count of owners. Together they hold 4 GiB at most, thousands
/// of times what a record may: a value beyond is left out.
#[derive(Clone, Default)]
pub struct Headers {
    memory: Bytes,
    own: Vec<u8>,
    entries: Vec<Entry>,
    /// Of all names and values.
    bytes: usize,
}

/// Headers being read, while the memory that they will lie in is still written.
#[derive(Default)]
pub struct Reading {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Reading {
    /// None yet, with room for `n`.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Self { entries: Vec::with_capacity(n), bytes: 0 }
    }

    /// Adds a header: what is not known by heart is copied to the end of the memory.
    pub fn push(&mut self, name: &str, value: Option<&[u8]>, memory: &mut BytesMut) {
        let mut copied = |bytes: &[u8]| {
            let start = memory.len();
            memory.extend_from_slice(bytes);
            Place::within(&(start..memory.len()))
        };
        let name = ours(name.as_bytes()).unwrap_or_else(|| Name::At(copied(name.as_bytes()).unwrap_or_default()));
        let entry = Entry { name, value: value.and_then(copied) };
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }

    /// The headers, where `memory` is what it was that they were copied to.
    #[must_use]
    pub fn within(self, memory: Bytes) -> Headers {
        Headers { memory, own: Vec::new(), entries: self.entries, bytes: self.bytes }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    name: Name,
    value: Option<Place>,
}

#[derive(Clone, Copy)]
enum Name {
    /// A place in [`OURS`].
    Ours(u8),
    /// UTF-8, which was checked when it was made.
    At(Place),
}

/// Where bytes lie: in the memory that was read, or in that of what was set.
#[derive(Clone, Copy, Default)]
struct Place {
    is_own: bool,
    start: u32,
    length: u32,
}

impl Place {
    fn within(range: &Range<usize>) -> Option<Self> {
        Some(Self { is_own: false, start: u32::try_from(range.start).ok()?, length: u32::try_from(range.len()).ok()? })
    }

    fn own(range: &Range<usize>) -> Option<Self> {
        Some(Self { is_own: true, ..Self::within(range)? })
    }

    fn length(self) -> usize {
        self.length as usize
    }
}

impl Entry {
    /// Bytes of its name and value.
    fn bytes(self) -> usize {
        let name = match self.name {
            Name::Ours(at) => OURS.get(usize::from(at)).map_or(0, |name| name.len()),
            Name::At(place) => place.length(),
        };
        name + self.value.map_or(0, Place::length)
    }
}

impl Headers {
    /// No headers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No headers, with room for `n`.
    #[must_use]
    pub fn with_capacity(n: usize) -> Self {
        Self::within(Bytes::new(), n)
    }

    /// No headers, with room for `n` that lie in this memory.
    #[must_use]
    pub fn within(memory: Bytes, n: usize) -> Self {
        Self { memory, own: Vec::new(), entries: Vec::with_capacity(n), bytes: 0 }
    }

    /// A copy of those that `keep` is true of, with room for `more` that are to be added.
    #[must_use]
    pub fn copy_of(&self, more: usize, mut keep: impl FnMut(Header<'_>) -> bool) -> Self {
        /// What ours take, about.
        const VALUE: usize = 24;
        /// So many bytes are copied: an owner more of memory that other records lie in
        /// costs more.
        const FEW: usize = 512;
        let entries = Vec::with_capacity(self.entries.len() + more);
        let kept = self.entries.iter().filter(|entry| keep(self.lend(entry)));
        if self.bytes <= FEW {
            let own = Vec::with_capacity(self.bytes + more * VALUE);
            let mut copy = Self { memory: Bytes::new(), own, entries, bytes: 0 };
            kept.for_each(|entry| copy.push_from(self, *entry));
            return copy;
        }
        let mut own = Vec::with_capacity(self.own.len() + more * VALUE);
        own.extend_from_slice(&self.own);
        let mut copy = Self { memory: self.memory.clone(), own, entries, bytes: 0 };
        kept.for_each(|entry| copy.push(*entry));
        copy
    }

    /// The last value of a name, as Kafka's `lastHeader`; `None` when the name
    /// is missing or its last header has no value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let wanted = Wanted::new(name);
        let found = self.entries.iter().rev().find(|entry| self.is(entry, wanted))?;
        found.value.map(|place| self.at(place))
    }

    /// Whether an entry has the name. Names of ours are always known by their place.
    fn is(&self, entry: &Entry, wanted: Wanted<'_>) -> bool {
        match (entry.name, wanted.place) {
            (Name::Ours(place), Some(wanted)) => place == wanted,
            (Name::At(place), None) => self.at(place) == wanted.name,
            (Name::Ours(_), None) | (Name::At(_), Some(_)) => false,
        }
    }

    /// The last value of a name as UTF-8 text; one that cannot be read counts as missing.
    #[must_use]
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The last value of a name as an ASCII decimal number; one that cannot be
    /// read counts as missing.
    #[must_use]
    pub fn get_i64(&self, name: &str) -> Option<i64> {
        self.get_str(name).and_then(|text| text.parse().ok())
    }

    /// Whether the name occurs.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let wanted = Wanted::new(name);
        self.entries.iter().any(|entry| self.is(entry, wanted))
    }

    /// Adds one of our own headers at the end; earlier ones of that name are removed.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.remove(name);
        self.append_ours(name, value);
    }

    /// Adds a header at the end, beside earlier ones of that name.
    pub fn append(&mut self, name: &str, value: Option<Bytes>) {
        let name = self.named(name);
        let value = value.and_then(|value| self.keep(&value));
        self.push(Entry { name, value });
    }

    /// As [`append`](Self::append) for one of our names.
    pub fn append_ours(&mut self, name: &'static str, value: impl Into<Value>) {
        let name = self.named(name);
        let value = self.keep(value.into().as_bytes());
        self.push(Entry { name, value });
    }

    /// As [`append`](Self::append) for one that lies in the memory these headers were
    /// made with. A name that is no UTF-8 (which no Kafka client lets in) is replaced
    /// as by [`String::from_utf8_lossy`].
    pub fn append_within(&mut self, name: &Range<usize>, value: Option<&Range<usize>>) {
        let bytes = self.memory.get(name.clone()).unwrap_or_default();
        // Most headers that are read are ours: their names need no place.
        let known = ours(bytes).or_else(|| {
            std::str::from_utf8(bytes).ok()?;
            Place::within(name).map(Name::At)
        });
        let name = match known {
            Some(name) => name,
            None => {
                let name = String::from_utf8_lossy(bytes).into_owned();
                self.named(&name)
            }
        };
        let value = value.and_then(Place::within);
        self.push(Entry { name, value });
    }

    fn named(&mut self, name: &str) -> Name {
        ours(name.as_bytes()).unwrap_or_else(|| Name::At(self.keep(name.as_bytes()).unwrap_or_default()))
    }

    /// Copies bytes to where our own lie; `None` when there is no room.
    fn keep(&mut self, bytes: &[u8]) -> Option<Place> {
        let start = self.own.len();
        let place = Place::own(&(start..start + bytes.len()))?;
        self.own.extend_from_slice(bytes);
        Some(place)
    }

    /// Adds a copy of another's header.
    fn push_from(&mut self, other: &Self, entry: Entry) {
        let name = match entry.name {
            Name::Ours(place) => Name::Ours(place),
            Name::At(place) => Name::At(self.keep(other.at(place)).unwrap_or_default()),
        };
        let value = entry.value.and_then(|place| self.keep(other.at(place)));
        self.push(Entry { name, value });
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push(entry);
    }

    /// Removes all headers of a name.
    pub fn remove(&mut self, name: &str) {
        let wanted = Wanted::new(name);
        if self.entries.iter().any(|entry| self.is(entry, wanted)) {
            self.retain(|header| header.name != name);
        }
    }

    /// Keeps only those that `keep` is true of.
    pub fn retain(&mut self, mut keep: impl FnMut(Header<'_>) -> bool) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| {
            let kept = keep(self.lend(entry));
            if !kept {
                self.bytes -= entry.bytes();
            }
            kept
        });
        self.entries = entries;
    }

    /// All headers, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Header<'_>> {
        self.entries.iter().map(|entry| self.lend(entry))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn lend(&self, entry: &Entry) -> Header<'_> {
        let name = match entry.name {
            Name::Ours(at) => OURS.get(usize::from(at)).copied().unwrap_or_default(),
            Name::At(place) => std::str::from_utf8(self.at(place)).unwrap_or_default(),
        };
        Header { name, value: entry.value.map(|place| self.at(place)) }
    }

    fn at(&self, place: Place) -> &[u8] {
        let memory = if place.is_own { self.own.as_slice() } else { &self.memory };
        let start = place.start as usize;
        memory.get(start..start + place.length()).unwrap_or_default()
    }
}

/// By what they say, wherever it lies.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
impl Eq for Headers {}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |header: Header<'_>| (header.name.to_owned(), header.value.map(Bytes::copy_from_slice));
        f.debug_list().entries(self.iter().map(shown)).finish()
    }
}

/// A time as headers carry it: RFC 3339, UTC, milliseconds (`2026-11-21T08:30:00.000Z`).
///
/// `millis` are milliseconds since the Unix epoch, as record timestamps are.
/// Times outside the years 0–9999 are written as the epoch.
#[must_use]
pub fn format_time(millis: i64) -> String {
    let nanos = i128::from(millis) * 1_000_000;
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

/// Reads a time as [`format_time`] writes it, or any other RFC 3339 time;
/// milliseconds since the Unix epoch.
#[must_use]
pub fn parse_time(text: &str) -> Option<i64> {
    let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn setting_replaces_and_appending_repeats() {
        let mut headers = Headers::new();
        headers.append("foreign", Some(Bytes::from_static(&[0, 255])));
        headers.append(HOP, Some("1".into()));
        headers.append("foreign", None);
        headers.set(HOP, "2");
        let names: Vec<_> = headers.iter().map(|header| header.name()).collect();
        assert_eq!(names, ["foreign", "foreign", HOP]);
        assert_eq!(headers.get_i64(HOP), Some(2));
        assert_eq!(headers.get("foreign"), None);
    }

    #[test]
    fn each_name_of_ours_is_known_by_its_place() {
        for (at, name) in OURS.iter().enumerate() {
            let found = ours(name.as_bytes());
            assert!(matches!(found, Some(Name::Ours(place)) if usize::from(place) == at), "{name}");
        }
        for foreign in ["", "source_topics", "Source_topic", "pipedoc_hops", "a name that is longer than all of ours"] {
            assert!(ours(foreign.as_bytes()).is_none(), "{foreign}");
        }
    }

    #[test]
    fn a_copy_says_the_same_whatever_its_size_and_outlives_what_it_is_of() {
        for size in [1, 100, 2000] {
            let mut memory = BytesMut::new();
            let mut read = Reading::with_capacity(3);
            read.push("foreign", Some(&vec![7; size]), &mut memory);
            read.push("none", None, &mut memory);
            read.push(HOP, Some(b"3"), &mut memory);
            let mut headers = read.within(memory.freeze());
            headers.set(VERSION, 12);
            let mut copy = headers.copy_of(1, |header| header.name() != HOP);
            drop(headers);
            copy.set(HOP, 4);
            assert_eq!(copy.get("foreign"), Some(vec![7; size].as_slice()), "{size}");
            assert!(copy.contains("none") && copy.get("none").is_none(), "{size}");
            assert_eq!((copy.get_i64(VERSION), copy.get_i64(HOP), copy.len()), (Some(12), Some(4), 4), "{size}");
            let bytes: usize =
                copy.iter().map(|header| header.name().len() + header.value().map_or(0, <[u8]>::len)).sum();
            assert_eq!(copy.bytes(), bytes, "{size}");
        }
    }

    #[test]
    fn times_round_trip_to_the_millisecond() {
        assert_eq!(format_time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(parse_time("2023-11-14T22:13:20.123Z"), Some(1_700_000_000_123));
        assert_eq!(parse_time("2023-11-14T23:13:20.123+01:00"), Some(1_700_000_000_123));
        assert_eq!(parse_time("yesterday"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_time_that_is_written_is_read_back(millis in -62_167_219_200_000_i64..=253_402_300_799_999) {
            prop_assert_eq!(parse_time(&format_time(millis)), Some(millis));
        }

        #[test]
        fn times_that_cannot_be_are_neither_written_nor_read(text in ".{0,30}", millis in any::<i64>()) {
            let _ = parse_time(&text);
            prop_assert!(parse_time(&format_time(millis)).is_some());
        }

        #[test]
        fn later_times_are_later_texts(a in 0_i64..253_402_300_799_999, b in 0_i64..253_402_300_799_999) {
            prop_assert_eq!(a.cmp(&b), format_time(a).cmp(&format_time(b)));
        }

        #[test]
        fn foreign_headers_travel_on_untouched(
            foreign in proptest::collection::vec(("[a-z]{1,3}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..5))), 0..8),
            hops in proptest::collection::vec(any::<i64>(), 0..3),
        ) {
            let mut headers = Headers::new();
            for (n, (name, value)) in foreign.iter().enumerate() {
                headers.append(name, value.clone().map(Bytes::from));
                if let Some(hop) = hops.get(n) {
                    headers.set(HOP, hop.to_string());
                }
            }
            let set = foreign.len().min(hops.len());
            prop_assert_eq!(headers.get_i64(HOP), hops[..set].last().copied());
            prop_assert_eq!(headers.iter().filter(|header| header.name() == HOP).count(), usize::from(set > 0));
            headers.remove(HOP);
            let length = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
            prop_assert_eq!(headers.bytes(), headers.iter().map(|h| h.name().len() + length(h.value())).sum::<usize>());
            let left: Vec<_> = headers.iter().map(|h| (h.name().to_owned(), h.value().map(|value| value.to_vec()))).collect();
            prop_assert_eq!(left, foreign);
        }
    }
}
