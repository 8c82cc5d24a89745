//! What the splitter promises of the parts that it makes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use pipedoc_sdk::output::Content;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::{Blob, Chunk, Data, blob, data};
use pipedoc_sdk::serde_json::{self, Value, json};
use pipedoc_sdk::testing;
use pipedoc_splitter::{Config, Splitter, split};
use prost_types::value::Kind;

fn config(value: Value) -> Config {
    serde_json::from_value::<Config>(value).unwrap().checked().unwrap()
}

/// One rule, and what comes of a document.
fn parts(rule: Value, doc: &PipeDoc) -> Vec<PipeDoc> {
    documents(split(doc, &config(json!({"rules": [rule]}))).unwrap())
}

fn documents(output: Output) -> Vec<PipeDoc> {
    let documents = output.items.into_iter().filter_map(|item| match item.content {
        Content::Document(doc) => Some(doc),
        Content::Deletion(_) | Content::Outdated(_) => None,
    });
    documents.collect()
}

/// Where everything goes, as text.
fn targets(output: &Output) -> Vec<String> {
    let what = |content: &Content| match content {
        Content::Document(doc) => doc.id.clone(),
        Content::Deletion(id) => format!("deletion of {id}"),
        Content::Outdated(id) => format!("older than {id}"),
    };
    output.items.iter().map(|item| format!("{} to {:?}", what(&item.content), item.to.as_deref())).collect()
}

fn doc() -> PipeDoc {
    PipeDoc { id: "a".into(), version: 7, title: "All".into(), authors: vec!["Ada".into()], ..PipeDoc::default() }
}

fn data(text: &str) -> PipeDoc {
    PipeDoc { data: Some(Data { kind: Some(data::Kind::Json(text.into())) }), ..doc() }
}

fn json_of(doc: &PipeDoc) -> &str {
    match &doc.data {
        Some(Data { kind: Some(data::Kind::Json(text)) }) => text,
        other => panic!("no JSON but {other:?}"),
    }
}

fn metadata<'a>(doc: &'a PipeDoc, name: &str) -> Option<&'a Kind> {
    doc.metadata.as_ref()?.fields.get(name)?.kind.as_ref()
}

fn blob(name: &str, mime: &str, bytes: &'static str) -> Blob {
    let content = Some(blob::Content::Inline(bytes.into()));
    Blob { name: name.into(), mime_type: mime.into(), size: bytes.len() as u64, content, ..Blob::default() }
}

#[test]
fn elements_of_an_array_become_parts_byte_for_byte() {
    let text = r#"{"order": {"lines": [{"sku": 9007199254740993, "a":1.10}, {"z": "\u00e4", "b": [] }]}}"#;
    let parts = parts(json!({"by": "ARRAY", "at": "/order/lines"}), &data(text));
    let texts: Vec<_> = parts.iter().map(json_of).collect();
    assert_eq!(texts, [r#"{"sku": 9007199254740993, "a":1.10}"#, r#"{"z": "\u00e4", "b": [] }"#]);
    for (part, number) in parts.iter().zip(0..) {
        let named = (part.id.as_str(), part.parent_id.as_str(), part.part, part.parts);
        assert_eq!(named, (["a#0", "a#1"][number as usize], "a", number, 2));
        assert_eq!((part.version, part.parent_version), (7, 7));
        assert_eq!((part.title.as_str(), part.authors.as_slice()), ("All", &["Ada".to_owned()][..]));
        assert_eq!(part.mime_type, "application/json");
    }
}

#[test]
fn pages_become_parts_that_know_their_number() {
    let mut paged = PipeDoc { body: "one\n\nzwölf\n\n".into(), mime_type: "application/pdf".into(), ..doc() };
    let pages = json!({"pages": [0, 5, 13, 13], "page_count": 4, "subject": "x", "body_format": "markdown"});
    let pages: PipeDoc =
        pipedoc_sdk::proto::json::from_json(&json!({"id": "x", "metadata": pages}).to_string()).unwrap();
    paged.metadata = pages.metadata;
    let parts = parts(json!({"by": "PAGES"}), &paged);
    let bodies: Vec<_> = parts.iter().map(|part| part.body.as_str()).collect();
    assert_eq!(bodies, ["one", "zwölf", "", ""]);
    assert_eq!(metadata(&parts[1], "page"), Some(&Kind::NumberValue(2.0)));
    assert_eq!(metadata(&parts[1], "subject"), Some(&Kind::StringValue("x".into())));
    assert_eq!((metadata(&parts[1], "pages"), parts[1].mime_type.as_str()), (None, "text/markdown"));
}

#[test]
fn chunks_become_parts_that_keep_their_embeddings() {
    let embedding = pipedoc_sdk::proto::v1::Embedding { values: vec![0.5] };
    let chunk = |text: &str| Chunk {
        text: text.into(),
        page: 3,
        heading_path: vec!["One".into()],
        embeddings: [("model".to_owned(), embedding.clone())].into(),
        ..Chunk::default()
    };
    let chunked = PipeDoc { chunks: vec![chunk("first"), chunk("second")], body: "first second".into(), ..doc() };
    let parts = parts(json!({"by": "CHUNKS"}), &chunked);
    assert_eq!(parts.iter().map(|part| part.body.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    let kept = &parts[1].chunks[0];
    assert_eq!((kept.text.as_str(), kept.span.unwrap().start, kept.span.unwrap().end), ("second", 0, 6));
    assert_eq!(kept.embeddings["model"].values, [0.5]);
    assert_eq!(metadata(&parts[1], "page"), Some(&Kind::NumberValue(3.0)));
}

#[test]
fn blobs_become_parts_of_their_own_type() {
    let with =
        PipeDoc { blobs: vec![blob("x.png", "image/png", "p"), blob("", "", "q")], body: "text".into(), ..doc() };
    let parts = parts(json!({"by": "ATTACHMENTS"}), &with);
    assert_eq!((parts[0].title.as_str(), parts[0].mime_type.as_str()), ("x.png", "image/png"));
    assert_eq!((parts[1].title.as_str(), &parts[1].blobs[0]), ("All", &with.blobs[1]));
    assert!(parts.iter().all(|part| part.blobs.len() == 1 && part.body.is_empty()));
}

const MAIL: &str = "From: Ada <ada@example.org>\r\n\
Subject: Two things\r\n\
Date: Sat, 21 Nov 2026 10:00:00 +0000\r\n\
MIME-Version: 1.0\r\n\
Content-Type: multipart/mixed; boundary=b\r\n\
\r\n\
--b\r\n\
Content-Type: text/plain; charset=utf-8\r\n\
Content-Transfer-Encoding: quoted-printable\r\n\
\r\n\
Gr=C3=BC=C3=9Fe\r\n\
--b\r\n\
Content-Type: application/pdf; name=\"bill.pdf\"\r\n\
Content-Disposition: attachment; filename=\"bill.pdf\"\r\n\
Content-Transfer-Encoding: base64\r\n\
\r\n\
JVBERg==\r\n\
--b\r\n\
Content-Type: message/rfc822\r\n\
\r\n\
Subject: Within\r\n\
\r\n\
Hello\r\n\
--b--\r\n";

#[test]
fn a_mail_becomes_its_texts_attachments_and_messages() {
    let bare = PipeDoc { id: "a".into(), version: 7, ..PipeDoc::default() };
    let mail = PipeDoc { blobs: vec![blob("mail.eml", "", MAIL)], ..bare };
    let parts = parts(json!({"by": "MAIL"}), &mail);
    let seen: Vec<_> =
        parts.iter().map(|part| (part.mime_type.as_str(), part.title.as_str(), part.body.as_str())).collect();
    let expected =
        [("text/plain", "Two things", "Grüße"), ("application/pdf", "bill.pdf", ""), ("message/rfc822", "Within", "")];
    assert_eq!(seen, expected);
    assert_eq!(parts[1].blobs[0].content, Some(blob::Content::Inline("%PDF".into())));
    assert!(parts.iter().all(|part| part.authors == ["Ada"] && part.created_at.unwrap().seconds == 1_795_255_200));
    // What was within is a mail that can be split again.
    let again = PipeDoc { id: "b".into(), ..parts[2].clone() };
    let within = self::parts(json!({"by": "MAIL"}), &again);
    assert_eq!(within.iter().map(|part| part.body.as_str()).collect::<Vec<_>>(), ["Hello"]);
}

#[test]
fn a_hostile_mail_is_an_error_and_no_more() {
    let nested = "Content-Type: message/rfc822\n\n".repeat(50_000);
    let refused = |bytes: String| {
        let content = Some(blob::Content::Inline(bytes.into()));
        let mail = Blob { name: "x.eml".into(), content, ..Blob::default() };
        let doc = PipeDoc { blobs: vec![mail], ..doc() };
        split(&doc, &config(json!({"rules": [{"by": "MAIL"}]}))).map(documents)
    };
    assert_eq!(refused(nested).unwrap_err().kind(), "too-many-parts");
    assert!(refused("Content-Type: message/rfc822\n\n".repeat(999)).is_ok());
    for nothing in ["", "\n\nno fields"] {
        assert_eq!(refused(nothing.to_owned()).unwrap_err().kind(), "no-mail", "{nothing:?}");
    }
}

#[test]
fn rules_number_their_parts_together_and_name_their_outputs() {
    let rules = json!({
        "rules": [
            {"by": "ARRAY", "at": "/lines", "output": "lines"},
            {"by": "ATTACHMENTS", "output": "files"},
            {"by": "ARRAY", "at": "/notes", "output": "notes"},
        ],
        "whole": "orders",
    });
    let order = PipeDoc { blobs: vec![blob("x", "", "y")], ..data(r#"{"lines": [1, 2], "notes": null}"#) };
    let output = split(&order, &config(rules.clone())).unwrap();
    let expected =
        ["a to Some(\"orders\")", "a#0 to Some(\"lines\")", "a#1 to Some(\"lines\")", "a#2 to Some(\"files\")"];
    assert_eq!(targets(&output), expected);
    assert!(documents(output).iter().skip(1).all(|part| part.parts == 3));
    let none = split(&doc(), &config(rules)).unwrap();
    let over = ["files", "lines", "notes"].map(|name| format!("older than a to Some({name:?})"));
    assert_eq!((&targets(&none)[..3], targets(&none).len()), (&over[..], 4));
}

#[test]
fn data_that_is_not_as_the_rule_says_is_refused() {
    let refused = |text: &str| {
        let rules = config(json!({"rules": [{"by": "ARRAY", "at": "/lines"}]}));
        split(&data(text), &rules).unwrap_err().into_module_error()
    };
    let error = refused(r#"{"lines": {"a": 1}}"#);
    assert_eq!((error.kind(), error.is_retryable()), ("no-array", false));
    assert_eq!(error.to_string(), "\"/lines\" in the data of \"a\" is an object; an array was expected");
    assert_eq!(refused("{no json").kind(), "no-json");
}

#[tokio::test]
async fn a_configuration_is_refused_with_every_reason() {
    let (step, _stop) = testing::step(StepType::Pipeline, std::path::Path::new("unused"));
    let wrong: Config = serde_json::from_value(json!({
        "rules": [
            {"by": "ARRAY", "at": "lines"},
            {"by": "PAGES", "at": "/pages", "output": ""},
            {"by": "ARRAY", "at": "/a~2"},
            {"by": "CHUNKS"},
            {"by": "CHUNKS"},
        ],
        "whole": "",
    }))
    .unwrap();
    let error = Splitter::open(wrong, &step).await.err().unwrap();
    assert!(!error.is_retryable());
    for reason in [
        "`rules[0].at` is \"lines\"; a JSON pointer",
        "`rules[1].at` is for `by: ARRAY`",
        "`rules[1].output` is empty",
        "`rules[2].at` is \"/a~2\"",
        "`rules[4]` is the same as `rules[3]`",
        "`whole` is empty",
    ] {
        assert!(error.to_string().contains(reason), "{reason} is not in {error}");
    }
    let none: Config = serde_json::from_value(json!({"rules": []})).unwrap();
    assert_eq!(none.checked().unwrap_err().to_string(), "`rules` is empty; it needs at least one rule");
}

#[tokio::test]
async fn outputs_that_the_step_does_not_have_are_named_when_it_opens() {
    let (step, _stop) = testing::step(StepType::Pipeline, std::path::Path::new("unused"));
    let config = |rule: &str, whole: &str| -> Config {
        let rules = json!([{"by": "CHUNKS"}, {"by": "PAGES", "output": rule}]);
        serde_json::from_value(json!({"rules": rules, "whole": whole})).unwrap()
    };
    let step = step.with_outputs(&["pages", "lines", "all"]);
    assert!(Splitter::open(config("pages", "all"), &step).await.is_ok());
    let error = Splitter::open(config("pagez", "everything"), &step).await.err().unwrap();
    assert!(!error.is_retryable());
    for reason in [
        "`rules[1].output` is \"pagez\", and the step has the outputs \"pages\", \"lines\" and \"all\"",
        "`whole` is \"everything\", and the step has the outputs",
    ] {
        assert!(error.to_string().contains(reason), "{reason} is not in {error}");
    }
    let error = Splitter::open(config("pages", "all"), &step.with_outputs(&[])).await.err().unwrap();
    assert!(error.to_string().contains("`whole` is \"all\", and the step has no outputs"), "{error}");
}
