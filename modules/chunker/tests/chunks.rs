//! What the chunker promises of the chunks it makes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use pipedoc_chunker::config::Config;
use pipedoc_chunker::split::{Shape, split};
use pipedoc_chunker::{Chunker, Unit};
use pipedoc_sdk::model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::Chunk;
use proptest::prelude::*;

const MARKDOWN: &str = "# Shelving\n\nA book stands where a reader looks first.\n\n## Oversize\n\nAtlases lie flat.\n";

fn span(chunk: &Chunk) -> (usize, usize) {
    let span = chunk.span.unwrap();
    (span.start as usize, span.end as usize)
}

/// Spans index exactly, on character boundaries, in order; without overlap they
/// share nothing; nothing but white space is left out; and no chunk is too large.
fn check(body: &str, markdown: bool, config: &Config) {
    let chunks = split(body, &Shape { markdown, pages: Vec::new() }, config).unwrap();
    let mut last = (0, 0);
    let mut covered = vec![false; body.len()];
    for (number, chunk) in chunks.iter().enumerate() {
        let (start, end) = span(chunk);
        assert!(
            start < end && body.is_char_boundary(start) && body.is_char_boundary(end),
            "{start}..{end} of {body:?}"
        );
        assert_eq!(chunk.text, body[start..end]);
        assert_eq!(chunk.id, number.to_string());
        if number > 0 {
            assert!(start > last.0 && end > last.1, "{start}..{end} after {last:?} in {body:?}");
            assert!(config.overlap > 0 || start >= last.1, "{start}..{end} overlaps {last:?} in {body:?}");
        }
        if config.unit == Unit::Characters {
            assert!(chunk.text.chars().count() <= config.size, "{chunk:?} is larger than {}", config.size);
        }
        covered[start..end].fill(true);
        last = (start, end);
    }
    for (at, character) in body.char_indices() {
        assert!(covered[at] || character.is_whitespace(), "{character:?} at {at} of {body:?} is in no chunk");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spans_index_the_body_exactly(
        body in "([a-zA-Zäß界👩‍👧 .,#*`_>-]|\\n|\\r\\n|\\t|\u{301}){0,300}",
        size in 1_usize..40,
        overlap in 0_usize..40,
        markdown: bool,
        tokens: bool,
        trim: bool,
    ) {
        let unit = if tokens { Unit::Tokens } else { Unit::Characters };
        check(&body, markdown, &Config { size, unit, overlap: overlap % size, trim });
    }

    #[test]
    fn any_text_at_all_is_cut(body: String, size in 1_usize..20, markdown: bool) {
        check(&body, markdown, &Config { size, ..Config::default() });
    }
}

#[test]
fn markdown_chunks_know_their_headings() {
    let shape = Shape { markdown: true, pages: Vec::new() };
    let chunks = split(MARKDOWN, &shape, &Config { size: 60, ..Config::default() }).unwrap();
    let paths: Vec<_> = chunks.iter().map(|chunk| chunk.heading_path.join(" / ")).collect();
    assert_eq!(paths, ["Shelving", "Shelving / Oversize"]);
}

#[test]
fn chunks_know_the_page_they_begin_on() {
    let body = "first page\n\nsecond page\n\nfourth page";
    // The third page is empty, so it begins where the fourth does.
    let second = body.find("second").unwrap();
    let fourth = body.find("fourth").unwrap();
    let shape = Shape { markdown: false, pages: vec![0, second, fourth, fourth] };
    let chunks = split(body, &shape, &Config { size: 12, ..Config::default() }).unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.page).collect::<Vec<_>>(), [1, 2, 4]);
    let chunks = split(body, &Shape::default(), &Config::default()).unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.page).collect::<Vec<_>>(), [0]);
}

fn step() -> Step {
    let id = StepId::new(PipelineName::new("p").unwrap(), StepName::new("chunk").unwrap());
    Step::new(ClusterName::new("c").unwrap(), id, StepType::Pipeline, "unused".into(), Default::default())
}

async fn run(config: Config, doc: PipeDoc) -> Result<PipeDoc> {
    let output = Chunker::open(config, &step()).await?.process(doc, &step()).await?;
    match output.items.into_iter().next().map(|item| item.content) {
        Some(pipedoc_sdk::output::Content::Document(doc)) => Ok(doc),
        other => panic!("no document but {other:?}"),
    }
}

#[tokio::test]
async fn a_document_without_body_passes_without_chunks() {
    let doc = PipeDoc { id: "a".into(), title: "Nothing".into(), ..PipeDoc::default() };
    assert_eq!(run(Config::default(), doc.clone()).await.unwrap(), doc);
}

#[tokio::test]
async fn long_bodies_and_short_ones_are_cut_alike() {
    let body = MARKDOWN.repeat(900);
    let doc = PipeDoc { id: "a".into(), mime_type: "text/markdown".into(), body: body.clone(), ..PipeDoc::default() };
    let chunks = run(Config { size: 60, ..Config::default() }, doc).await.unwrap().chunks;
    let expected =
        split(&body, &Shape { markdown: true, pages: Vec::new() }, &Config { size: 60, ..Config::default() });
    assert_eq!(chunks, expected.unwrap());
    assert!(chunks.len() >= 1800, "{}", chunks.len());
}

#[tokio::test]
async fn old_chunks_are_replaced() {
    let old = Chunk { id: "old".into(), ..Chunk::default() };
    let doc = PipeDoc { id: "a".into(), body: "text".into(), chunks: vec![old], ..PipeDoc::default() };
    let chunks = run(Config::default(), doc).await.unwrap().chunks;
    assert_eq!(chunks.iter().map(|chunk| chunk.text.as_str()).collect::<Vec<_>>(), ["text"]);
}

#[tokio::test]
async fn impossible_settings_are_refused_for_good_with_every_reason() {
    let error = run(Config { size: 0, overlap: 5, ..Config::default() }, PipeDoc::default()).await.unwrap_err();
    assert!(!error.is_retryable());
    assert_eq!(
        error.to_string(),
        "`size` is 0; it must be at least 1; `overlap` is 5; it must be less than `size` (0)"
    );
}

#[test]
fn settings_are_written_as_documented() {
    let config: Config = serde_json::from_str(r#"{"size": 200, "unit": "tokens", "overlap": 20}"#).unwrap();
    assert_eq!(config, Config { size: 200, unit: Unit::Tokens, overlap: 20, trim: true });
    serde_json::from_str::<Config>(r#"{"length": 200}"#).unwrap_err();
}
