//! The headers that a record carries from hop to hop.
//!
//! Sets ours, leaves all others as they are and where they are.

use pipedoc_model::headers::{self, Headers, Value};
use pipedoc_transport::log::{Record, TopicPartition};

/// How many headers of ours a step may add.
const OURS: usize = 10;

/// Separates a parent's id from a part's number.
const PART: char = '#';

/// Id of the whole document: an id up to its first `#`.
pub(crate) fn root_id(id: &str) -> &str {
    id.split(PART).next().unwrap_or(id)
}

/// Whose record it is: by its header, else by its key. `None` when neither says.
pub(crate) fn document_id(record: &Record) -> Option<String> {
    if let Some(id) = record.headers.get_str(headers::DOCUMENT_ID).filter(|id| !id.is_empty()) {
        return Some(id.to_owned());
    }
    let key = record.key.as_ref().filter(|key| !key.is_empty())?;
    std::str::from_utf8(key).ok().map(str::to_owned)
}

/// The document's version, as its record says; 0 when it does not.
pub(crate) fn version(record: &Record) -> i64 {
    record.headers.get_i64(headers::VERSION).unwrap_or(0)
}

/// How many steps the record has made.
pub(crate) fn hops(record: &Record) -> i64 {
    record.headers.get_i64(headers::HOP).unwrap_or(0)
}

/// Where records come from, in the form in which headers say so.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    topic: Value,
    partition: Value,
    group: Value,
}

impl Source {
    pub(crate) fn new(place: &TopicPartition, group: &str) -> Self {
        Self { topic: place.topic.as_str().into(), partition: i64::from(place.partition).into(), group: group.into() }
    }

    /// Says that a record was piped from here; earlier ones of these headers must
    /// have been removed.
    fn append(&self, target: &mut Headers, offset: i64) {
        target.append_ours(headers::SOURCE_TOPIC, self.topic.clone());
        target.append_ours(headers::SOURCE_PARTITION, self.partition.clone());
        target.append_ours(headers::SOURCE_OFFSET, offset);
        target.append_ours(headers::SOURCE_CONSUMER_GROUP, self.group.clone());
    }
}

/// Headers of what a step sends on for a record: foreign ones as they are and in
/// order, then ours.
pub(crate) fn next(record: &Record, source: &Source) -> Headers {
    next_and_whether_named(record, source).0
}

/// The same for a record that is piped on as it is: where no header says whose it is,
/// its key does.
pub(crate) fn piped(record: &Record, source: &Source) -> Headers {
    let (mut next, named) = next_and_whether_named(record, source);
    if !named && let Some(key) = record.key.as_ref().filter(|key| is_text(key)) {
        next.append_ours(headers::DOCUMENT_ID, key.clone());
    }
    next
}

fn is_text(key: &[u8]) -> bool {
    !key.is_empty() && std::str::from_utf8(key).is_ok()
}

/// In one pass, as every record takes it.
fn next_and_whether_named(record: &Record, source: &Source) -> (Headers, bool) {
    let (mut hop, mut stream, mut event_time, mut named) = (0, false, false, false);
    let mut next = record.headers.copy_of(OURS, |header| {
        match header.name() {
            headers::SOURCE_TOPIC
            | headers::SOURCE_PARTITION
            | headers::SOURCE_OFFSET
            | headers::SOURCE_CONSUMER_GROUP => return false,
            headers::HOP => {
                // The last one counts, even where it cannot be read.
                hop = header.text().and_then(|text| text.parse().ok()).unwrap_or(0);
                return false;
            }
            headers::STREAM_ID => stream = header.value().is_some(),
            headers::EVENT_TIME => event_time = header.value().is_some(),
            headers::DOCUMENT_ID => named = true,
            _ => {}
        }
        true
    });
    source.append(&mut next, record.offset);
    next.append_ours(headers::HOP, i64::saturating_add(hop, 1));
    if !stream {
        next.set(headers::STREAM_ID, new_stream());
    }
    if !event_time {
        next.set(headers::EVENT_TIME, headers::format_time(record.timestamp));
    }
    (next, named)
}

/// Headers of a document that comes in from outside at `now`, in milliseconds.
pub(crate) fn first(now: i64) -> Headers {
    let mut first = Headers::with_capacity(8);
    first.set(headers::HOP, "1");
    first.set(headers::STREAM_ID, new_stream());
    first.set(headers::EVENT_TIME, headers::format_time(now));
    first
}

/// Says where a record was piped from.
pub(crate) fn set_source(target: &mut Headers, record: &Record, source: &Source) {
    for name in
        [headers::SOURCE_TOPIC, headers::SOURCE_PARTITION, headers::SOURCE_OFFSET, headers::SOURCE_CONSUMER_GROUP]
    {
        target.remove(name);
    }
    source.append(target, record.offset);
}

/// Says whose record it is. A version of 0 is unknown and leaves no header.
pub(crate) fn set_identity(target: &mut Headers, id: &str, version: i64) {
    target.set(headers::DOCUMENT_ID, id);
    if version == 0 {
        target.remove(headers::VERSION);
    } else {
        target.set(headers::VERSION, version);
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn new_stream() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pipedoc_model::names::Topic;

    use super::*;

    #[test]
    fn a_hop_replaces_ours_and_leaves_foreign_headers_in_order() {
        let mut headers = Headers::new();
        headers.append("b", Some(Bytes::from_static(&[0xff])));
        headers.append(headers::SOURCE_TOPIC, Some("old".into()));
        headers.append(headers::HOP, Some("3".into()));
        headers.append("a", None);
        headers.append("b", Some("again".into()));
        let record = Record { offset: 42, timestamp: 0, key: None, value: None, headers };
        let source = TopicPartition::new(Topic::new("local.p.s").unwrap(), 3);
        let next = next(&record, &Source::new(&source, "local.p.s"));
        let foreign: Vec<_> = next.iter().filter(|header| header.name().len() == 1).collect();
        let before: Vec<_> = record.headers.iter().filter(|header| header.name().len() == 1).collect();
        assert_eq!(foreign, before);
        assert_eq!(next.get_str(headers::SOURCE_TOPIC), Some("local.p.s"));
        assert_eq!(next.get_i64(headers::SOURCE_PARTITION), Some(3));
        assert_eq!(next.get_i64(headers::SOURCE_OFFSET), Some(42));
        assert_eq!(next.get_i64(headers::HOP), Some(4));
        assert_eq!(next.get_str(headers::EVENT_TIME), Some("1970-01-01T00:00:00.000Z"));
        assert!(next.get_str(headers::STREAM_ID).is_some());
    }

    #[test]
    fn parts_are_known_by_their_root() {
        assert_eq!(root_id("a/b#3#1"), "a/b");
        assert_eq!(root_id("a%23b"), "a%23b");
    }
}
