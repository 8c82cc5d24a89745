//! The records that are passed through, and their numbers.
//!
//! All arms read the same topic: valid PipeDocs of exactly 1 KiB with the headers
//! that an earlier step has written, so that what an arm writes differs from what
//! the others write in nothing but its code. Each record is one version of one of
//! a few thousand documents; key and version together are its number, by which it
//! is known again in the output.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use pipedoc_model::headers;
use pipedoc_proto::PipeDoc;
use prost::Message as _;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};

use super::settings;

/// Size of a record's value.
pub const VALUE_BYTES: usize = 1024;

/// What the records of a run are.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    /// How many there are.
    pub count: u64,
    /// How many keys they have: record `n` is version `n / keys + 1` of document `n % keys`.
    pub keys: u64,
}

impl Records {
    /// Number of a record by its key and its version header; none for a record
    /// that is not of ours.
    pub fn number(&self, record: &impl Message) -> Option<u64> {
        let key = std::str::from_utf8(record.key()?).ok()?;
        let document: u64 = key.strip_prefix("document-")?.parse().ok()?;
        let headers = record.headers()?;
        let version = headers.iter().filter(|header| header.key == headers::VERSION).last()?.value?;
        let version: u64 = std::str::from_utf8(version).ok()?.parse().ok()?;
        let number = (version.checked_sub(1)?).checked_mul(self.keys)?.checked_add(document)?;
        (document < self.keys && number < self.count).then_some(number)
    }

    /// Writes them all to a topic, in the order of their numbers.
    ///
    /// # Errors
    /// When one could not be written.
    pub fn write(&self, bootstrap: &str, topic: &str) -> anyhow::Result<()> {
        let delivered = Delivered::default();
        let producer: ThreadedProducer<Delivered> =
            settings::producer(bootstrap).create_with_context(delivered.clone()).context("making a producer")?;
        let mut text = Text::default();
        for number in 0..self.count {
            let (document, version) = (number % self.keys, number / self.keys + 1);
            let id = format!("document-{document:06}");
            let value = document_of(&id, version, &mut text);
            let mut record = BaseRecord::to(topic).key(&id).payload(&value).headers(headers_of(&id, version, number));
            // The queue bounds how far we are ahead of the broker.
            while let Err((error, back)) = producer.send(record) {
                ensure!(error == KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "writing: {error}");
                record = back;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        producer.flush(Duration::from_secs(120)).context("writing the records")?;
        let delivered = delivered.0.load(Ordering::Acquire);
        ensure!(delivered == self.count, "{delivered} of {} records could be written", self.count);
        Ok(())
    }
}

/// Counts what the broker has acknowledged.
#[derive(Debug, Clone, Default)]
struct Delivered(Arc<AtomicU64>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// A document whose encoding has [`VALUE_BYTES`].
fn document_of(id: &str, version: u64, text: &mut Text) -> Vec<u8> {
    let mut doc = PipeDoc {
        id: id.to_owned(),
        version: i64::try_from(version).unwrap_or(i64::MAX),
        source_uri: format!("bench:///{id}"),
        title: "A document of the bench".to_owned(),
        mime_type: "text/plain".to_owned(),
        body: text.letters(VALUE_BYTES / 2),
        ..PipeDoc::default()
    };
    // The length of the body takes two bytes both before and after.
    let missing = VALUE_BYTES.saturating_sub(doc.encoded_len());
    doc.body.push_str(&text.letters(missing));
    doc.encode_to_vec()
}

/// What an earlier step would have written.
fn headers_of(id: &str, version: u64, number: u64) -> OwnedHeaders {
    let (version, offset) = (version.to_string(), number.to_string());
    let stream = format!("019a0000-0000-7000-8000-{number:012x}");
    let trace = format!("00-4bf92f3577b34da6a3ce929d{:08x}-{number:016x}-01", number / 500);
    let all = [
        (headers::STREAM_ID, stream.as_str()),
        (headers::EVENT_TIME, "2026-11-21T08:30:00.000Z"),
        (headers::DOCUMENT_ID, id),
        (headers::VERSION, &version),
        (headers::SOURCE_TOPIC, "bench.earlier.step"),
        (headers::SOURCE_PARTITION, "0"),
        (headers::SOURCE_OFFSET, &offset),
        (headers::SOURCE_CONSUMER_GROUP, "bench.earlier.step"),
        (headers::HOP, "1"),
        (headers::TRACEPARENT, &trace),
    ];
    let empty = OwnedHeaders::new_with_capacity(all.len());
    all.iter().fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }))
}

/// Text that no compression makes much smaller, the same in each run.
#[derive(Debug)]
struct Text(u64);

impl Default for Text {
    fn default() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }
}

impl Text {
    fn letters(&mut self, count: usize) -> String {
        const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789";
        let mut text = String::with_capacity(count);
        while text.len() < count {
            // xorshift64: enough for text that means nothing.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            for byte in self.0.to_le_bytes().iter().take(count - text.len()) {
                text.push(char::from(LETTERS[usize::from(byte & 63)]));
            }
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may")]
mod tests {
    use rdkafka::message::{OwnedMessage, Timestamp};

    use super::*;

    #[test]
    fn every_document_is_valid_and_has_one_size() {
        let mut text = Text::default();
        for (id, version) in [("document-000000", 1), ("document-009999", 1_000_000), ("document-1234567", 77)] {
            let value = document_of(id, version, &mut text);
            assert_eq!(value.len(), VALUE_BYTES);
            assert_eq!(PipeDoc::decode(value.as_slice()).unwrap().id, id);
        }
    }

    #[test]
    fn a_record_is_known_by_its_key_and_version() {
        let records = Records { count: 2500, keys: 1000 };
        let message = |key: &str, version: u64| {
            let headers = Some(headers_of(key, version, 0));
            OwnedMessage::new(None, Some(key.into()), "t".into(), Timestamp::NotAvailable, 0, 0, headers)
        };
        assert_eq!(records.number(&message("document-000007", 1)), Some(7));
        assert_eq!(records.number(&message("document-000007", 3)), Some(2007));
        assert_eq!(records.number(&message("document-000999", 3)), None);
        assert_eq!(records.number(&message("document-001000", 1)), None);
        assert_eq!(records.number(&message("else", 1)), None);
    }
}
