//! Records of other systems as documents, and back: JSON texts and plain bytes.
//!
//! A JSON text becomes the `data` of a document, byte for byte; bytes become its one
//! blob. What a record is, its topic says, or a header that a dead letter has brought
//! with it. Knows no claims, and no outputs.

use bytes::Bytes;
use pipedoc_model::claim;
use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_model::step::{Format, InputSource, StepPlan};
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Blob, Data, blob, data};
use pipedoc_transport::log::{Record, TopicPartition};
use rustc_hash::FxHashMap;
use serde::de::IgnoredAny;

use super::hop;
use crate::error::{Error, Result, ResultExt};

/// What a step's topics hold.
#[derive(Debug, Default)]
pub(crate) struct Formats {
    named: FxHashMap<Topic, Format>,
    patterns: Vec<(regex::Regex, Format)>,
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) format: Format,
    /// Whether a header said so, which then must not travel on with what is made of it.
    pub(crate) by_header: bool,
}

impl Formats {
    /// The formats of a step's inputs.
    ///
    /// # Errors
    /// Permanent: a pattern that is none.
    pub(crate) fn new(plan: &StepPlan) -> Result<Self> {
        if plan.inputs.iter().all(|input| input.format == Format::Pipedoc) {
            return Ok(Self::default());
        }
        let mut formats = Self::default();
        for input in &plan.inputs {
            match &input.source {
                InputSource::Topic(topic) => drop(formats.named.insert(topic.clone(), input.format)),
                InputSource::Pattern(pattern) => {
                    let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).permanent();
                    formats.patterns.push((pattern.context("an input's pattern is wrong")?, input.format));
                }
            }
        }
        Ok(formats)
    }

    /// What a record of a topic is: as its header says, else as the input that names
    /// the topic, else as the first one that it matches.
    pub(crate) fn of(&self, topic: &Topic, record: &Record) -> Told {
        if let Some(format) = record.headers.get_str(headers::FORMAT).and_then(Format::named) {
            return Told { format, by_header: true };
        }
        let matched = || self.patterns.iter().find(|(pattern, _)| pattern.is_match(topic.as_str()));
        let format = self.named.get(topic).copied().or_else(|| matched().map(|(_, format)| *format));
        Told { format: format.unwrap_or_default(), by_header: false }
    }
}

/// Which document a record of another system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: String,
    /// It has no key and no header that says so: it is called after its place.
    pub(crate) by_place: bool,
}

/// Which document a record is: as its header says, else by its key, else by its place,
/// which stays the same when it comes again.
pub(crate) fn identity(record: &Record, source: &TopicPartition) -> Identity {
    if let Some(id) = record.headers.get_str(headers::DOCUMENT_ID).filter(|id| !id.is_empty()) {
        return Identity { id: id.to_owned(), by_place: false };
    }
    match record.key.as_deref().filter(|key| !key.is_empty()) {
        Some(key) => Identity { id: id_of_key(key), by_place: false },
        None => {
            let id = format!("{}/{}/{}", source.topic, source.partition, record.offset);
            Identity { id, by_place: true }
        }
    }
}

/// The id that a key of another system stands for: as it is, but `%`, `#` and what is
/// no UTF-8 percent-encoded.
fn id_of_key(key: &[u8]) -> String {
    let mut id = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '%' => id.push_str("%25"),
                '#' => id.push_str("%23"),
                character => id.push(character),
            }
        }
        for byte in chunk.invalid() {
            id.push_str(&format!("%{byte:02X}"));
        }
    }
    id
}

/// The key that an id stands for in topics of other systems: what was encoded to make
/// it an id is decoded, and nothing else.
pub(crate) fn key_of_id(id: &str) -> Bytes {
    let mut key = Vec::with_capacity(id.len());
    let mut rest = id.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let encoded = others.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let encoded = encoded.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match encoded.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte == b'%' || byte == b'#' || !byte.is_ascii() => {
                key.push(byte);
                rest = &others[2..];
            }
            _ => {
                key.push(*first);
                rest = others;
            }
        }
    }
    key.into()
}

/// The document that a value is. A document knows its version only where a header
/// says it.
///
/// # Errors
/// Permanent: the value is not what it is said to be.
pub(crate) fn decode(format: Format, value: &Bytes, id: String, record: &Record) -> Result<PipeDoc> {
    let mut doc = PipeDoc { id, version: hop::version(record), ..PipeDoc::default() };
    match format {
        Format::Json => {
            let text = json_text(value).context("the value is no JSON").map_err(|error| error.with_kind("decode"))?;
            "application/json".clone_into(&mut doc.mime_type);
            doc.data = Some(Data { kind: Some(data::Kind::Json(text.to_owned())) });
        }
        Format::Raw | Format::Pipedoc => {
            let content = Some(blob::Content::Inline(value.clone()));
            doc.blobs = vec![Blob { size: value.len() as u64, content, ..Blob::default() }];
        }
    }
    Ok(doc)
}

/// What is written of a document as JSON: its `data`, as it is; of a document without
/// JSON in it, the whole document in the proto3 mapping.
///
/// # Errors
/// Permanent: its data is no JSON, or the document has no JSON form.
pub(crate) fn json(doc: &PipeDoc) -> Result<Bytes> {
    is_whole(doc)?;
    let encoded = match data_of(doc) {
        Some(text) => json_text(text.as_bytes()).map(|text| Bytes::copy_from_slice(text.as_bytes())),
        None => pipedoc_proto::json::to_json(doc).permanent().map(|json| Bytes::from(json.to_string())),
    };
    encoded.map_err(|error| error.context(format!("{} cannot be written as JSON", doc.id)).with_kind("encode"))
}

/// What is written of a document as bytes: the content of its one blob; without blobs
/// its JSON data, else its body.
///
/// # Errors
/// Permanent: there is nothing of that, or more than one blob.
pub(crate) fn raw(doc: &PipeDoc) -> Result<Bytes> {
    is_whole(doc)?;
    let refused = |reason: String| {
        let error = Error::permanent(reason).with_kind("encode");
        Err(error.context(format!("{} cannot be written as RAW", doc.id)))
    };
    match (doc.blobs.as_slice(), data_of(doc)) {
        ([blob], _) => match &blob.content {
            Some(blob::Content::Inline(bytes)) => Ok(bytes.clone()),
            None => Ok(Bytes::new()),
            Some(blob::Content::Claim(_)) => refused(NOT_READ_BACK.to_owned()),
        },
        ([], Some(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        ([], None) if !doc.body.is_empty() => Ok(Bytes::copy_from_slice(doc.body.as_bytes())),
        ([], None) => refused("it has no blob, no JSON data and no body".to_owned()),
        (blobs, _) => refused(format!("it has {} blobs, and a record holds one", blobs.len())),
    }
}

const NOT_READ_BACK: &str = "its content lies in the object store; give the step `hydration: EAGER`";

fn is_whole(doc: &PipeDoc) -> Result<()> {
    if claim::is_stub(doc) {
        let error = Error::permanent(NOT_READ_BACK).with_kind("encode");
        return Err(error.context(format!("{} cannot be written", doc.id)));
    }
    Ok(())
}

fn data_of(doc: &PipeDoc) -> Option<&str> {
    match &doc.data {
        Some(Data { kind: Some(data::Kind::Json(text)) }) => Some(text),
        _ => None,
    }
}

/// A JSON text, which is looked through but not taken apart: however deep it is.
fn json_text(value: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(value).permanent()?;
    serde_json::from_str::<IgnoredAny>(text).permanent()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use pipedoc_model::headers::Headers;

    use super::*;

    fn record(key: Option<&'static [u8]>, value: &'static [u8]) -> Record {
        let (key, value) = (key.map(Bytes::from_static), Some(Bytes::from_static(value)));
        Record { offset: 42, timestamp: 7, key, value, headers: Headers::new() }
    }

    #[test]
    fn keys_become_ids_and_ids_keys_again() {
        for (key, id) in [
            (&b"order-1"[..], "order-1"),
            (b"50% #1", "50%25 %231"),
            ("grün/界".as_bytes(), "grün/界"),
            (&[0xff, b'a', 0xc3, b'%'], "%FFa%C3%25"),
            (&[0, 0, 0, 7], "\0\0\0\u{7}"),
        ] {
            assert_eq!(id_of_key(key), id);
            assert_eq!(key_of_id(id), key);
        }
        // What no key is encoded as stays as it is.
        for id in ["a%2Fb", "100%", "%", "%2", "%zz", "%+5"] {
            assert_eq!(key_of_id(id), id.as_bytes());
        }
    }

    #[test]
    fn a_record_without_key_is_called_after_its_place() {
        let source = TopicPartition::new(Topic::new("orders").unwrap(), 3);
        let by_place = Identity { id: "orders/3/42".into(), by_place: true };
        assert_eq!(identity(&record(None, b""), &source), by_place);
        assert_eq!(identity(&record(Some(b""), b""), &source), by_place);
        let mut named = record(Some(b"key"), b"");
        assert_eq!(identity(&named, &source).id, "key");
        named.headers.set(headers::DOCUMENT_ID, "a#3");
        assert_eq!(identity(&named, &source), Identity { id: "a#3".into(), by_place: false });
    }

    #[test]
    fn json_comes_back_byte_for_byte() {
        let texts: [&'static str; 6] = [
            "{\"z\": 9007199254740993, \"a\":1.10,\n\"z\":\"\\u00e4/\\/\"}",
            "[1e400, -0, 0.0]",
            " null ",
            "\"text\"",
            "12345678901234567890123456789012345678901234567890",
            "{}",
        ];
        for text in texts {
            let record = record(None, text.as_bytes());
            let doc = decode(Format::Json, &Bytes::from_static(text.as_bytes()), "a".into(), &record).unwrap();
            assert_eq!(json(&doc).unwrap(), text.as_bytes());
            assert_eq!(raw(&doc).unwrap(), text.as_bytes());
        }
        let deep = Bytes::from("[".repeat(100_000) + &"]".repeat(100_000));
        let doc = decode(Format::Json, &deep, "a".into(), &record(None, b"")).unwrap();
        assert_eq!(json(&doc).unwrap(), deep);
    }

    #[test]
    fn what_is_no_json_is_refused_with_the_reason() {
        for (value, reason) in [
            (&b""[..], "EOF while parsing"),
            (b"{\"a\":}", "expected value at line 1 column 6"),
            (b"{} {}", "trailing characters"),
            (b"\"\xff\"", "invalid utf-8"),
            (b"\xef\xbb\xbf{}", "expected value"),
        ] {
            let refused = decode(Format::Json, &Bytes::from_static(value), "a".into(), &record(None, b""));
            let error = refused.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), ("decode", false));
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn bytes_are_the_one_blob_else_data_else_body() {
        let bytes = Bytes::from_static(&[0, 0xff, 7]);
        let doc = decode(Format::Raw, &bytes, "a".into(), &record(None, b"")).unwrap();
        assert_eq!((doc.blobs.len(), doc.blobs[0].size, raw(&doc).unwrap()), (1, 3, bytes));
        let empty = decode(Format::Raw, &Bytes::new(), "a".into(), &record(None, b"")).unwrap();
        assert_eq!(raw(&empty).unwrap(), "");
        let text = PipeDoc { body: "text".into(), ..PipeDoc::default() };
        assert_eq!(raw(&text).unwrap(), "text");
        assert_eq!(raw(&PipeDoc::default()).unwrap_err().kind(), "encode");
        let two = PipeDoc { blobs: vec![Blob::default(), Blob::default()], ..text };
        assert!(raw(&two).unwrap_err().to_string().contains("it has 2 blobs"));
    }

    #[test]
    fn a_document_without_data_is_written_whole() {
        let doc = PipeDoc { id: "a".into(), version: 5, body: "text".into(), ..PipeDoc::default() };
        assert_eq!(json(&doc).unwrap(), r#"{"id":"a","version":"5","body":"text"}"#);
        let wrong = PipeDoc { data: Some(Data { kind: Some(data::Kind::Json("{".into())) }), ..doc };
        assert!(json(&wrong).unwrap_err().to_string().contains("a cannot be written as JSON"));
    }
}
