//! The records that are passed through, and their numbers.
//!
//! All arms read the same topic: valid PipeDocs of exactly 1 KiB with the headers
//! that an earlier step has written, so that what an arm writes differs from what
//! the others write in nothing but its code. Each record is one version of one of
//! a few thousand documents; key and version together are its number, by which it
//! is known again in the output.

use pipedoc_model::headers;
use pipedoc_proto::PipeDoc;
use prost::Message as _;

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

/// A record to be written.
#[derive(Debug, Clone)]
pub struct Numbered {
    /// Its key, the document's id.
    pub id: String,
    /// Its value.
    pub value: Vec<u8>,
    version: u64,
    number: u64,
}

impl Records {
    /// Number of a record by its key and its version header; none for one that is
    /// not of ours.
    pub fn number(&self, key: Option<&[u8]>, version: Option<&[u8]>) -> Option<u64> {
        let text = |bytes: Option<&[u8]>| bytes.and_then(|bytes| std::str::from_utf8(bytes).ok().map(str::to_owned));
        let document: u64 = text(key)?.strip_prefix("document-")?.parse().ok()?;
        let version: u64 = text(version)?.parse().ok()?;
        let number = (version.checked_sub(1)?).checked_mul(self.keys)?.checked_add(document)?;
        (document < self.keys && number < self.count).then_some(number)
    }

    /// All of them, in the order of their numbers; the same in each run.
    pub fn all(self) -> impl Iterator<Item = Numbered> {
        let mut text = Text::default();
        (0..self.count).map(move |number| {
            let (document, version) = (number % self.keys, number / self.keys + 1);
            let id = format!("document-{document:06}");
            let value = document_of(&id, version, &mut text);
            Numbered { id, value, version, number }
        })
    }
}

impl Numbered {
    /// The headers that an earlier step would have written.
    pub fn headers(&self) -> [(&'static str, String); 10] {
        let number = self.number;
        [
            (headers::STREAM_ID, format!("019a0000-0000-7000-8000-{number:012x}")),
            (headers::EVENT_TIME, "2026-11-21T08:30:00.000Z".to_owned()),
            (headers::DOCUMENT_ID, self.id.clone()),
            (headers::VERSION, self.version.to_string()),
            (headers::SOURCE_TOPIC, "bench.earlier.step".to_owned()),
            (headers::SOURCE_PARTITION, "0".to_owned()),
            (headers::SOURCE_OFFSET, number.to_string()),
            (headers::SOURCE_CONSUMER_GROUP, "bench.earlier.step".to_owned()),
            (headers::HOP, "1".to_owned()),
            (headers::TRACEPARENT, format!("00-4bf92f3577b34da6a3ce929d{:08x}-{number:016x}-01", number / 500)),
        ]
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
        let number = |key: &str, version: &str| records.number(Some(key.as_bytes()), Some(version.as_bytes()));
        assert_eq!(number("document-000007", "1"), Some(7));
        assert_eq!(number("document-000007", "3"), Some(2007));
        assert_eq!(number("document-000999", "3"), None);
        assert_eq!(number("document-001000", "1"), None);
        assert_eq!(number("else", "1"), None);
        assert_eq!(records.number(Some(b"document-000007"), None), None);
        for (wanted, record) in (0..).zip(records.all().take(1500)) {
            let headers = record.headers();
            let version = &headers.iter().find(|(name, _)| *name == headers::VERSION).unwrap().1;
            assert_eq!(number(&record.id, version), Some(wanted));
        }
    }
}
