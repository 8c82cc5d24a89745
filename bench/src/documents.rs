//! The records that benches move: real documents of a size, with the headers that
//! a step before would have written.
//!
//! The same number gives the same record, on every log and in every run.

use bytes::Bytes;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::names::Topic;
use pipedoc_proto::PipeDoc;
use pipedoc_transport::log::OutgoingRecord;
use prost::Message;

/// When all of it was made: 2026-01-01, in milliseconds.
const MADE_AT: i64 = 1_767_225_600_000;

/// A document whose encoding has `size` bytes, as long as that is at least 256.
#[must_use]
pub fn document(n: usize, size: usize) -> PipeDoc {
    let id = format!("shelf/{n:08}.txt");
    let mut doc = PipeDoc {
        version: MADE_AT * 1000 + n as i64,
        source_uri: format!("file:///in/{id}"),
        title: format!("Page {n} of the ledger"),
        mime_type: "text/plain".into(),
        language: "en".into(),
        id,
        ..PipeDoc::default()
    };
    const TEXT: &str = "The lamp by the window burned low while she counted the returned volumes once more. ";
    // What is left is found in steps: the field's length is encoded in one or more bytes itself.
    while let missing @ 1.. = size.saturating_sub(doc.encoded_len()) {
        let more = if doc.body.is_empty() { missing.saturating_sub(3).max(1) } else { missing };
        doc.body.extend(TEXT.chars().cycle().skip(n % 17).take(more));
    }
    doc
}

/// The record of a document, as a connector or a step before would have sent it.
#[must_use]
pub fn record(topic: &Topic, n: usize, size: usize) -> OutgoingRecord {
    let doc = document(n, size);
    let mut all = Headers::with_capacity(8);
    all.set(headers::HOP, "1");
    all.set(headers::STREAM_ID, format!("019b7000-0000-7000-8000-{n:012x}"));
    all.set(headers::EVENT_TIME, headers::format_time(MADE_AT));
    all.set(headers::TRACEPARENT, format!("00-{:032x}-{:016x}-01", n + 1, n + 1));
    all.set(headers::DOCUMENT_ID, doc.id.clone());
    all.set(headers::VERSION, doc.version.to_string());
    OutgoingRecord {
        topic: topic.clone(),
        partition: None,
        // Now: a record as old as the document would be past its retention.
        timestamp: None,
        key: Some(Bytes::from(doc.id.clone())),
        value: Some(doc.encode_to_vec().into()),
        headers: all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_their_size_and_differ() {
        for size in [256, 300, 1024, 16_384] {
            for n in [0, 1, 99_999] {
                assert_eq!(document(n, size).encoded_len(), size, "{n}");
            }
        }
        assert_ne!(document(1, 1024), document(2, 1024));
    }
}
