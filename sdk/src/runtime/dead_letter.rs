//! Makes the dead letter of a record: value, key and foreign headers byte for
//! byte, and the reason beside them. One that is too large for its topic even without
//! its value cannot be made: whoever asked for it says what becomes of the record.
//!
//! Knows nothing of when one is due.

use std::fmt::Display;

use bytes::Bytes;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::names::Topic;
use pipedoc_model::step::Format;
use pipedoc_proto::PipeDoc;
use pipedoc_transport::log::{self, OutgoingRecord, Record, TopicPartition};
use pipedoc_transport::size;

use super::format::{self, Identity};
use super::hop;
use super::work::Workshop;
use crate::error::{Error, Result};

/// The reason is cut to so many bytes.
const MESSAGE_BYTES: usize = 16 << 10;
/// And to so many where it would not fit.
const SHORT_MESSAGE_BYTES: usize = 256;
/// A name that is shown is cut to so many.
const NAME_BYTES: usize = 256;
/// Says that something was cut away.
const CUT: &str = " […]";
/// Kind of the error that no dead letter can be written.
const UNWRITABLE: &str = "dead-letter-too-large";

/// Why a record is given up on.
#[derive(Debug, Clone)]
pub(crate) struct Reason {
    pub(crate) kind: &'static str,
    /// The whole chain.
    pub(crate) message: String,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// Milliseconds since the Unix epoch.
    pub(crate) failed_at: i64,
}

impl Reason {
    pub(crate) fn new(error: &Error, attempts: u32) -> Self {
        Self { kind: error.kind(), message: error.to_string(), attempts, failed_at: hop::now_millis() }
    }
}

/// The dead letter of a record. One that is too large for its topic has its
/// reason cut first; then its value becomes a claim.
///
/// # Errors
/// [`is_unwritable`], when it is too large even so; others may pass.
pub(crate) async fn of_record(
    shop: &Workshop,
    record: &Record,
    source: &TopicPartition,
    reason: &Reason,
) -> Result<OutgoingRecord> {
    let mut base = record.headers.clone();
    hop::set_source(&mut base, record, &hop::Source::new(source, &shop.plan.group));
    let format = shop.formats.of(&source.topic, record).format;
    if format != Format::Pipedoc {
        base.set(headers::FORMAT, format.name());
        let Identity { id, by_place } = format::identity(record, source);
        if by_place {
            // Elsewhere its place is another: redriven, it is the same document.
            base.set(headers::DOCUMENT_ID, id);
        }
    }
    let who = format!("{source}@{}", record.offset);
    of_parts(shop, &who, record.key.clone(), record.value.clone(), base, reason).await
}

/// The dead letter of a document that a connector could not read: a tombstone
/// would mean a deletion, so its value is a document with nothing but identity.
pub(crate) async fn of_unreadable(shop: &Workshop, id: &str, version: i64, reason: &Reason) -> Result<OutgoingRecord> {
    let mut base = hop::first(hop::now_millis());
    hop::set_identity(&mut base, id, version);
    let key = Bytes::copy_from_slice(id.as_bytes());
    let stub = PipeDoc { id: id.to_owned(), version, ..PipeDoc::default() };
    let value = Bytes::from(prost::Message::encode_to_vec(&stub));
    of_parts(shop, &format!("document {}", name(id)), Some(key), Some(value), base, reason).await
}

/// The dead letter of a document that a connector gave and that cannot be sent.
pub(crate) async fn of_document(shop: &Workshop, doc: &PipeDoc, reason: &Reason) -> Result<OutgoingRecord> {
    let mut base = hop::first(hop::now_millis());
    hop::set_identity(&mut base, &doc.id, doc.version);
    let key = Bytes::copy_from_slice(doc.id.as_bytes());
    let value = Bytes::from(prost::Message::encode_to_vec(doc));
    of_parts(shop, &format!("document {}", name(&doc.id)), Some(key), Some(value), base, reason).await
}

/// Whether an error says that a dead letter can never be written while its topic takes
/// no more.
pub(crate) fn is_unwritable(error: &Error) -> bool {
    error.kind() == UNWRITABLE
}

/// What is said where the log refuses a dead letter for its size: of what it was, and
/// what was wrong with that at first. None for any other error.
pub(crate) fn unwritable(who: impl Display, error: &log::Error, reason: &Reason) -> Option<Error> {
    let log::Error::RecordTooLarge { topic, .. } = error else { return None };
    Some(cannot_be_written(who, topic, error, reason))
}

fn cannot_be_written(who: impl Display, topic: &Topic, why: impl Display, reason: &Reason) -> Error {
    let at_first = cut(&reason.message, MESSAGE_BYTES);
    Error::permanent(format!(
        "{who} cannot become a dead letter: {why}; raise max.message.bytes of {topic}, or set `on_exhausted: SKIP`, \
         then resume the step. It was given up on for this: {at_first}"
    ))
    .with_kind(UNWRITABLE)
}

/// A name that may be of any length, as it is shown.
pub(crate) fn name(text: &str) -> String {
    cut(text, NAME_BYTES)
}

async fn of_parts(
    shop: &Workshop,
    who: &str,
    key: Option<Bytes>,
    value: Option<Bytes>,
    base: Headers,
    reason: &Reason,
) -> Result<OutgoingRecord> {
    let topic = shop.plan.dead_letters.clone();
    let limit = shop.topics.limit(&topic).await;
    let step = shop.plan.id.to_string();
    let mut letter = OutgoingRecord::new(topic, key, value);
    for bytes in [MESSAGE_BYTES, SHORT_MESSAGE_BYTES] {
        letter.headers = base.clone();
        explain(&mut letter.headers, reason, &step, bytes);
        if size::above(limit, letter.key.as_deref(), letter.value.as_deref(), &letter.headers).is_none() {
            return Ok(letter);
        }
    }
    let value = letter.value.take();
    check_bare(shop, who, &letter, limit, reason).await?;
    if let Some(value) = value {
        let id = base.get_str(headers::DOCUMENT_ID).map(str::to_owned);
        let id = id.or_else(|| letter.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned()));
        let version = base.get_i64(headers::VERSION).unwrap_or(0);
        let stub = PipeDoc { id: id.unwrap_or_default(), version, ..PipeDoc::default() };
        let (value, claim) = shop.claims.shelve(value, stub).await?;
        letter.value = Some(value);
        letter.headers.append(headers::CLAIM, Some(claim.into()));
        check_bare(shop, who, &letter, limit, reason).await?;
    }
    Ok(letter)
}

/// Refuses a dead letter that is too large though its value is none of its own.
async fn check_bare(shop: &Workshop, who: &str, letter: &OutgoingRecord, limit: usize, reason: &Reason) -> Result<()> {
    let above = |limit| size::above(limit, letter.key.as_deref(), letter.value.as_deref(), &letter.headers);
    if above(limit).is_none() {
        return Ok(());
    }
    // What was known may be old: the limit was raised for this very letter, perhaps.
    // Of a topic that is not there, the log speaks when it is written.
    let Some(limit) = shop.topics.limit_now(&letter.topic).await? else { return Ok(()) };
    let Some(size) = above(limit) else { return Ok(()) };
    // When it is tried again, that may have changed.
    shop.topics.forget(&letter.topic);
    let topic = &letter.topic;
    let why = format!("its key and headers alone have {size} bytes, and {topic} takes {limit}");
    Err(cannot_be_written(who, topic, why, reason))
}

fn explain(target: &mut Headers, reason: &Reason, step: &str, bytes: usize) {
    target.set(headers::SOURCE_ATTEMPTS, i64::from(reason.attempts));
    target.set(headers::ERROR_TYPE, reason.kind);
    target.set(headers::ERROR_MESSAGE, cut(&reason.message, bytes));
    target.set(headers::ERROR_STEP, step);
    target.set(headers::FAILED_AT, headers::format_time(reason.failed_at));
}

/// At most `bytes` bytes of a text, cut between characters.
fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes - CUT.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters() {
        assert_eq!(cut("short", 16), "short");
        let long = "ä".repeat(100);
        for bytes in 20..40 {
            let cut = cut(&long, bytes);
            assert!(cut.len() <= bytes && cut.ends_with(CUT), "{cut}");
        }
    }
}
