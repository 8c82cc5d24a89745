//! What expressions see, and what is refused before any document comes.

use pipedoc_proto::v1::{Blob, Chunk, Data, blob, data};
use prost_types::value::Kind;

use super::*;
use crate::names::{PipelineName, StepName};

fn document() -> PipeDoc {
    let text = |text: &str| prost_types::Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let number = |number| prost_types::Value { kind: Some(Kind::NumberValue(number)) };
    let tags = prost_types::ListValue { values: vec![text("a"), text("b")] };
    PipeDoc {
        id: "doc-1".to_owned(),
        version: 7,
        title: "A title".to_owned(),
        mime_type: "application/pdf".to_owned(),
        body: "Some text".to_owned(),
        authors: vec!["Ada".to_owned(), "Bob".to_owned()],
        created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 }),
        metadata: Some(prost_types::Struct {
            fields: [
                ("lang".to_owned(), text("en")),
                ("pages".to_owned(), number(12.0)),
                ("tags".to_owned(), prost_types::Value { kind: Some(Kind::ListValue(tags)) }),
            ]
            .into(),
        }),
        blobs: vec![Blob {
            name: "a.pdf".to_owned(),
            size: 2048,
            content: Some(blob::Content::Inline("x".into())),
            ..Blob::default()
        }],
        chunks: vec![Chunk { text: "Some".to_owned(), page: 2, ..Chunk::default() }],
        data: Some(Data { kind: Some(data::Kind::Json(r#"{"n": 5, "deep": {"list": [1.5, null]}}"#.to_owned())) }),
        ..PipeDoc::default()
    }
}

fn with<T>(doc: Option<&PipeDoc>, key: Option<&[u8]>, use_it: impl FnOnce(&Scope<'_>) -> T) -> T {
    let mut headers = Headers::new();
    headers.append("kind", Some("old".into()));
    headers.append("kind", Some("new".into()));
    headers.append("binary", Some(Bytes::from_static(&[0xff])));
    let step = StepId::new(PipelineName::new("library").unwrap(), StepName::new("parse").unwrap());
    use_it(&Scope { doc, headers: &headers, key, step: &step })
}

fn holds(expression: &str) -> Result<bool, Error> {
    let condition = Condition::compile(expression).unwrap_or_else(|errors| panic!("{expression}: {errors}"));
    with(Some(&document()), Some(b"doc-1"), |scope| condition.holds(scope))
}

#[test]
fn every_part_of_a_record_can_be_asked_for() {
    for expression in [
        "true",
        "doc.body != ''",
        "doc.id == 'doc-1' && doc.version == 7 && doc.part == 0",
        "doc['title'].startsWith('A')",
        "doc.mime_type in ['application/pdf', 'text/html']",
        "doc.title.matches('^A [a-z]+$')",
        "size(doc.authors) == 2 && doc.authors[1] == 'Bob' && 'Ada' in doc.authors",
        "doc.authors.exists(a, a == 'Ada') && !doc.authors.all(a, a == 'Ada')",
        "doc.created_at == '2023-11-14T22:13:20.123Z' && doc.modified_at == ''",
        "doc.created_at > '2023-01-01'",
        "doc.metadata.lang == 'en' && doc.metadata['pages'] > 10.0 && doc.metadata.pages > 10",
        "'b' in doc.metadata.tags && !('x' in doc.metadata)",
        "has(doc.metadata.lang) && !has(doc.metadata.nothing)",
        "has(doc.title) && !has(doc.language) && !has(doc.modified_at) && has(doc.data) && has(doc.blobs)",
        "!has(doc.keywords) && has(doc.version) && !has(doc.parent_id) && !has(doc.chunks[0].span)",
        "doc.blobs[0].size == 2048 && doc.blobs.exists(b, b.name.endsWith('.pdf') && b.size > 1000)",
        "doc.chunks.map(c, c.text)[0] == 'Some' && doc.chunks.filter(c, has(c.page)).size() == 1",
        "doc.data.n == 5 && doc.data.deep.list[0] == 1.5 && doc.data.deep.list[1] == null",
        "headers.kind == 'new' && 'kind' in headers && !('other' in headers) && !has(headers.other)",
        "!('binary' in headers)",
        "key == 'doc-1' && step.pipeline == 'library' && step.step == 'parse'",
        "type(doc.version) == int && string(doc.version) == '7'",
        "doc.title == 'x' ? doc.metadata.nothing == 1 : true",
    ] {
        assert_eq!(holds(expression), Ok(true), "{expression}");
    }
}

#[test]
fn what_is_missing_is_an_error_that_says_so() {
    let all: Vec<_> = [
        "doc.metadata.nothing == 'x'",
        "headers.other == 'x'",
        "doc.authors[7] == 'x'",
        "doc.data.deep.nothing",
        "doc.title",
        "doc.metadata.lang > 5",
        "key + 1 == 2",
    ]
    .iter()
    .map(|expression| holds(expression).unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn errors_do_not_carry_whole_documents() {
    let doc = PipeDoc { body: "x".repeat(1 << 20), ..PipeDoc::default() };
    let condition = Condition::compile("doc.body + 1 == 'x'").unwrap();
    let error = with(Some(&doc), None, |scope| condition.holds(scope)).unwrap_err();
    assert!(error.to_string().len() < 1000);
}

#[test]
fn deletions_have_no_document_to_read() {
    let reads = Condition::compile("doc.title == ''").unwrap();
    assert!(reads.reads_doc());
    let error = with(None, Some(b"k"), |scope| reads.holds(scope)).unwrap_err();
    assert!(error.to_string().contains("the record is a deletion"), "{error}");
    let blind = Condition::compile("headers.kind == 'new' && key == 'k'").unwrap();
    assert!(!blind.reads_doc());
    assert_eq!(with(None, Some(b"k"), |scope| blind.holds(scope)), Ok(true));
}

fn with_data(kind: Option<data::Kind>) -> PipeDoc {
    PipeDoc { data: Some(Data { kind }), title: "T".to_owned(), ..PipeDoc::default() }
}

fn holds_of(doc: &PipeDoc, expression: &str) -> Result<bool, Error> {
    let condition = Condition::compile(expression).unwrap_or_else(|errors| panic!("{expression}: {errors}"));
    with(Some(doc), None, |scope| condition.holds(scope))
}

#[test]
fn no_data_is_null() {
    for kind in [Some(data::Kind::Json("null".to_owned())), None] {
        assert_eq!(holds_of(&with_data(kind), "doc.data == null && !has(doc.data)"), Ok(true));
    }
}

#[test]
fn data_that_cannot_be_read_is_an_error_that_says_why() {
    let json = |text: &str| with_data(Some(data::Kind::Json(text.to_owned())));
    let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
    let docs = [
        (json(&deep), "recursion limit exceeded at line 1 column 128"),
        (json(r#"{"n": "\ud800"}"#), "end of hex escape at line 1 column 14"),
        (json("{"), "EOF while parsing"),
    ];
    for (doc, why) in &docs {
        for expression in [
            "doc.data == null",
            "doc.data != null",
            "doc['data'] == null",
            "has(doc.data.n)",
            "doc.data.n == 5",
            "doc.data[0] == 1",
            "doc.title == 'T' && doc.data.n == 5",
            "doc.data.n == 5 || doc.title == 'x'",
            "doc.title == 'T' ? doc.data == null : true",
            "doc.data.list.exists(x, x == 1)",
            "'n' in doc.data",
            "size(doc.data) == 0",
            "type(doc.data) == null_type",
        ] {
            let error = holds_of(doc, expression).map_err(|error| error.to_string());
            let error = error.expect_err(expression);
            assert!(error.contains("the document's data cannot be read: ") && error.contains(why), "{error}");
            assert!(!error.contains("function"), "{error}");
        }
        let key = KeyExpr::compile("doc.data.sku").unwrap();
        assert!(with(Some(doc), None, |scope| key.evaluate(scope)).is_err());
        for expression in ["doc.title == 'T'", "doc.title == 'T' || doc.data.n == 5", "has(doc.data)"] {
            assert_eq!(holds_of(doc, expression), Ok(true), "{expression}");
        }
    }
}

#[test]
fn data_is_read_down_to_127_levels() {
    let deep = format!("{}1{}", "[".repeat(127), "]".repeat(127));
    assert_eq!(holds_of(&with_data(Some(data::Kind::Json(deep))), "size(doc.data) == 1"), Ok(true));
}

#[test]
fn mistakes_are_found_before_any_document_comes() {
    let all: Vec<_> = [
        "",
        "doc.bdy != ''",
        "doc.mimeType == 'x' || docs.title == 'y'",
        "doc",
        "headers",
        "doc.blobs[0].inline == b''",
        "doc.blobs.all(b, b.nam == '') && doc.chunks[0].spam",
        "doc.authors.first == 'x'",
        "doc.title.name",
        "step.stepp == 'x'",
        "headers.all(h, true)",
        "has(doc.titel)",
        "doc.title.matches('(')",
        "lenght(doc.title) > 1",
        "doc.title == 'x' &&",
        "doc.title = 'x'",
        "doc.title == 'x",
        "timestamp('2026-01-01T00:00:00Z') > doc.created_at",
        "Foo{a: 1}.a",
        "[1, 2].map(x, y)",
        "doc.chunks[doc.part].id[0].x",
    ]
    .iter()
    .map(|expression| match Condition::compile(expression) {
        Ok(_) => panic!("taken: {expression}"),
        Err(errors) => {
            format!("{expression}\n    {}", errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n    "))
        }
    })
    .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn keys_are_texts_bytes_whole_numbers_or_none() {
    let key = |expression: &str| {
        let key = KeyExpr::compile(expression).unwrap();
        with(Some(&document()), None, |scope| key.evaluate(scope))
    };
    assert_eq!(key("doc.metadata.lang + '/' + doc.id"), Ok(Some("en/doc-1".into())));
    assert_eq!(key("doc.version"), Ok(Some("7".into())));
    assert_eq!(key("b'\\xff'"), Ok(Some(Bytes::from_static(&[0xff]))));
    assert_eq!(key("key"), Ok(None));
    assert!(key("doc.authors").unwrap_err().to_string().contains("expected a text, bytes, a whole number or null"));
    assert!(KeyExpr::compile("doc.id").unwrap().reads_doc());
}

#[test]
fn expressions_of_any_depth_are_taken_or_refused_without_a_crash() {
    let times = |text: &str, n: usize| text.repeat(n);
    let taken = [
        format!("1{} > 0", times(" + 1", 50)),
        format!("{}true{}", times("(", 20), times(")", 20)),
        format!("true{}", times(" && doc.title != 'x'", 40)),
    ];
    for expression in taken {
        assert_eq!(holds(&expression), Ok(true), "{expression}");
    }
    let refused = [
        format!("1{} > 0", times(" + 1", 2000)),
        format!("1{} > 0", times(" + 1", 100_000)),
        format!("{}true{}", times("(", 2000), times(")", 2000)),
        format!("{}1{} == 1", times("[", 2000), times("]", 2000)),
        format!("doc.metadata{}", times(".a", 3000)),
        format!("doc.metadata{}", times("[0]", 3000)),
        format!("true{}", times(" && true", 50_000)),
        format!("true{}", times(" ? true : true", 3000)),
    ];
    for expression in refused {
        assert!(Condition::compile(&expression).is_err(), "{}", &expression[..40]);
    }
}

#[test]
fn conditions_go_to_other_threads() {
    fn check<T: Send + Sync + Clone + 'static>() {}
    check::<Condition>();
    check::<KeyExpr>();
}

#[test]
fn draws_are_fair_and_always_the_same() {
    let weights = [1, 0, 3];
    let mut drawn = [0_u32; 3];
    for n in 0..4000 {
        let key = format!("key-{n}");
        let first = weighted(key.as_bytes(), "step", &weights).unwrap();
        assert_eq!(weighted(key.as_bytes(), "step", &weights), Some(first));
        drawn[first] += 1;
    }
    assert_eq!(drawn[1], 0);
    assert!((900..1100).contains(&drawn[0]), "{drawn:?}");
    assert_eq!((weighted(b"k", "step", &[]), weighted(b"k", "step", &[0, 0])), (None, None));
    // Other steps draw otherwise, and partitions are not followed.
    let differs = (0..100).filter(|n: &u8| weighted(&[*n], "a", &[1, 1]) != weighted(&[*n], "b", &[1, 1])).count();
    assert!((30..70).contains(&differs), "{differs}");
    // Fixed for ever: other implementations draw the same.
    assert_eq!(
        (0..8).map(|n: u8| weighted(&[n], "parse", &[1, 1, 1]).unwrap()).collect::<Vec<_>>(),
        [1, 1, 2, 2, 1, 0, 0, 1]
    );
}
