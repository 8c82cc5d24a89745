//! Documents and other messages keep all they hold in their JSON form.

#![allow(clippy::unwrap_used, reason = "a test says with a panic that it failed")]

use pipedoc_proto::json::{from_json, message_from_json, message_to_json, message_to_whole_json, to_json};
use pipedoc_proto::v1::{
    Blob, ByteSpan, Chunk, Claim, Data, Embedding, ParseWarning, PipeDoc, StatusResponse, SubmitRequest, blob, data,
};
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, Struct, Timestamp};
use serde_json::json;

fn value(kind: Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

fn full() -> PipeDoc {
    let fields = [
        ("", value(Kind::StringValue("\u{0}\u{1f}\u{2028}😀\"\\ä".to_owned()))),
        ("null", value(Kind::NullValue(0))),
        ("tiny", value(Kind::NumberValue(5e-324))),
        ("third", value(Kind::NumberValue(1.0 / 3.0))),
        ("large", value(Kind::NumberValue(1.7976931348623157e308))),
        ("minus zero", value(Kind::NumberValue(-1.5))),
        ("@type", value(Kind::StringValue("type.googleapis.com/google.protobuf.Any".to_owned()))),
        ("list", value(Kind::ListValue(prost_types::ListValue { values: vec![value(Kind::BoolValue(true))] }))),
    ];
    let embedding = Embedding { values: vec![0.1, -0.0, 3.4e38, f32::MIN_POSITIVE, 16_777_217.0] };
    PipeDoc {
        id: "a/b%23c#1".to_owned(),
        version: i64::MIN,
        source_uri: "file:///a%20b".to_owned(),
        title: "\u{202e}title\n".to_owned(),
        created_at: Some(Timestamp { seconds: -62_135_596_800, nanos: 1 }),
        modified_at: Some(Timestamp { seconds: 253_402_300_799, nanos: 999_999_999 }),
        authors: vec![String::new(), "Ada".to_owned()],
        body: "x".repeat(70_000),
        metadata: Some(Struct { fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }),
        blobs: vec![
            Blob {
                name: "in".to_owned(),
                size: u64::MAX,
                content: Some(blob::Content::Inline((0..=255).collect::<Vec<u8>>().into())),
                ..Blob::default()
            },
            Blob { content: Some(blob::Content::Inline(bytes::Bytes::new())), ..Blob::default() },
            Blob {
                content: Some(blob::Content::Claim(Claim { key: "k".to_owned(), ..Claim::default() })),
                ..Blob::default()
            },
        ],
        chunks: vec![Chunk {
            span: Some(ByteSpan { start: 0, end: u64::MAX }),
            embeddings: [("model/1".to_owned(), embedding)].into(),
            ..Chunk::default()
        }],
        data: Some(Data { kind: Some(data::Kind::Json("{\"b\": 1.0,\t\"a\": 1e400, \"b\": 2}".to_owned())) }),
        parse_warnings: vec![ParseWarning { code: "c".to_owned(), ..ParseWarning::default() }],
        parent_id: "a/b%23c".to_owned(),
        part: i32::MAX,
        parts: -1,
        parent_version: i64::MAX,
        ..PipeDoc::default()
    }
}

fn with_any(type_url: &str, value: Vec<u8>) -> PipeDoc {
    let any = Any { type_url: type_url.to_owned(), value };
    PipeDoc { id: "a".to_owned(), data: Some(Data { kind: Some(data::Kind::Any(any)) }), ..PipeDoc::default() }
}

fn survives(doc: &PipeDoc) -> serde_json::Value {
    let json = to_json(doc).unwrap();
    assert_eq!(&from_json(&json.to_string()).unwrap(), doc, "{json}");
    json
}

#[test]
fn every_field_survives() {
    let json = survives(&full());
    assert_eq!(json["version"], json!(i64::MIN.to_string()));
    assert_eq!(json["data"], json!({"json": "{\"b\": 1.0,\t\"a\": 1e400, \"b\": 2}"}));
    assert_eq!(json["parseWarnings"], json!([{"code": "c"}]));
    assert_eq!(json["createdAt"], json!("0001-01-01T00:00:00.000000001Z"));
    assert_eq!(json["blobs"][1], json!({"inline": ""}));
    assert_eq!(to_json(&PipeDoc::default()).unwrap(), json!({}));
}

#[test]
fn an_any_of_known_type_is_written_by_its_fields() {
    let claim = Claim { store: "default".to_owned(), size: 5, ..Claim::default() };
    let json = survives(&with_any("type.googleapis.com/pipedoc.v1.Claim", claim.encode_to_vec()));
    let expected = json!({"any": {"@type": "type.googleapis.com/pipedoc.v1.Claim", "store": "default", "size": "5"}});
    assert_eq!(json["data"], expected);
    let time = Timestamp { seconds: 0, nanos: 0 };
    let json = survives(&with_any("x/google.protobuf.Timestamp", time.encode_to_vec()));
    assert_eq!(json["data"]["any"], json!({"@type": "x/google.protobuf.Timestamp", "value": "1970-01-01T00:00:00Z"}));
}

#[test]
fn an_any_of_unknown_type_keeps_its_bytes() {
    let json = survives(&with_any("example.org/shop.Order", vec![0, 255, 16]));
    assert_eq!(json["data"], json!({"any": {"@type": "example.org/shop.Order", "value": "AP8Q"}}));
    for (url, bytes) in [("example.org/shop.Order", vec![]), ("no slash", vec![1]), ("", vec![7]), ("", vec![])] {
        survives(&with_any(url, bytes));
    }
    // Bytes that are no such message.
    survives(&with_any("type.googleapis.com/pipedoc.v1.Claim", vec![0xff]));
    // The other alphabet, and without padding.
    let text = r#"{"data": {"any": {"@type": "a/b.C", "value": "_-8"}}}"#;
    assert_eq!(from_json(text).unwrap(), PipeDoc { id: String::new(), ..with_any("a/b.C", vec![0xff, 0xef]) });
}

#[test]
fn an_any_within_an_any_and_in_other_messages_survives() {
    let unknown = Any { type_url: "example.org/shop.Order".to_owned(), value: vec![1] };
    let inner = with_any("type.googleapis.com/google.protobuf.Any", unknown.encode_to_vec());
    survives(&inner);
    survives(&with_any("type.googleapis.com/pipedoc.v1.PipeDoc", inner.encode_to_vec()));
    let request =
        SubmitRequest { pipeline: "p".to_owned(), documents: vec![inner, full()], ..SubmitRequest::default() };
    let json = message_to_json("pipedoc.v1.SubmitRequest", &request.encode_to_vec()).unwrap();
    let back = message_from_json("pipedoc.v1.SubmitRequest", &json.to_string()).unwrap();
    assert_eq!(SubmitRequest::decode(back.as_slice()).unwrap(), request);
}

#[test]
fn the_whole_form_has_zeros_and_empty_lists_and_reads_back() {
    let status = StatusResponse { cluster: "c".to_owned(), ..StatusResponse::default() };
    let bytes = status.encode_to_vec();
    let whole = message_to_whole_json("pipedoc.v1.StatusResponse", &bytes).unwrap();
    assert_eq!((&whole["generation"], &whole["problems"]), (&json!("0"), &json!([])));
    let back = message_from_json("pipedoc.v1.StatusResponse", &whole.to_string()).unwrap();
    assert_eq!(back, bytes);
    assert_eq!(message_to_json("pipedoc.v1.StatusResponse", &bytes).unwrap(), json!({"cluster": "c"}));
}

#[test]
fn both_spellings_and_every_number_are_read() {
    let doc = from_json(r#"{"source_uri": "a", "mimeType": "b", "version": 7, "part": 1.0,
        "metadata": {"x": 1.10, "y": 100000000000000000000000}, "chunks": [{"embeddings": {"m": {"values": [1.50, 1e-3]}}}],
        "data": null, "authors": []}"#)
    .unwrap();
    assert_eq!((doc.source_uri.as_str(), doc.mime_type.as_str(), doc.version, doc.part), ("a", "b", 7, 1));
    assert_eq!(doc.metadata.unwrap().fields["y"], value(Kind::NumberValue(1e23)));
    assert_eq!(doc.chunks[0].embeddings["m"].values, [1.5, 0.001]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    for (text, said) in [
        ("", "no JSON"),
        ("[]", "PipeDoc"),
        (r#"{"bodyy": ""}"#, "bodyy"),
        (r#"{"version": "x"}"#, "PipeDoc"),
        (r#"{"data": {"json": "1", "any": {}}}"#, "PipeDoc.data.any"),
        (r#"{"data": {"any": 5}}"#, "PipeDoc.data.any"),
        (r#"{"data": {"any": {"@type": "a/b.C", "value": "!"}}}"#, "base64"),
        (r#"{"data": {"any": {"@type": "a/b.C", "other": 1}}}"#, "not known here"),
        (r#"{"data": {"any": {"value": ""}}}"#, "@type"),
        (r#"{"createdAt": "yesterday"}"#, "PipeDoc"),
    ] {
        let error = from_json(text).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
    let doc = PipeDoc { created_at: Some(Timestamp { seconds: i64::MAX, nanos: 0 }), ..PipeDoc::default() };
    assert!(to_json(&doc).is_err());
    assert!(message_to_json("pipedoc.v1.Nothing", b"").unwrap_err().to_string().contains("pipedoc.v1.Nothing"));
}
