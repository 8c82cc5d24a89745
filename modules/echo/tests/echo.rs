//! What the echo module promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that meets the unexpected must end.

use std::path::Path;
use std::time::Duration;

use pipedoc_echo::Echo;
use pipedoc_sdk::output::Content;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::testing;
use serde_json::{Value, json};

async fn echo(config: Value) -> (Echo, Step) {
    let (step, _) = testing::step(StepType::Pipeline, Path::new("unused"));
    (Echo::open(serde_json::from_value(config).unwrap(), &step).await.unwrap(), step)
}

fn doc(id: &str) -> PipeDoc {
    PipeDoc { id: id.into(), version: 3, body: "text".into(), ..PipeDoc::default() }
}

#[tokio::test]
async fn documents_pass_as_they_are() {
    let (echo, step) = echo(json!({})).await;
    let output = echo.process(doc("a"), &step).await.unwrap();
    let [item] = output.items.as_slice() else { panic!("{output:?}") };
    assert!(matches!(&item.content, Content::Document(sent) if *sent == doc("a")));
    assert!(item.to.is_none());
}

#[tokio::test]
async fn deletions_pass_too() {
    let (echo, step) = echo(json!({})).await;
    let output = echo.deleted(Deletion { id: "a".into(), version: 4 }, &step).await.unwrap();
    assert!(matches!(&output.items[0].content, Content::Deletion(id) if id == "a"));
}

#[tokio::test]
async fn a_delay_holds_each_document_back() {
    let (echo, step) = echo(json!({"delay": "20ms"})).await;
    let start = std::time::Instant::now();
    echo.process(doc("a"), &step).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[tokio::test]
async fn every_third_attempt_fails_as_told() {
    let (echo, step) = echo(json!({"fail": {"every": 3, "kind": "RETRYABLE"}})).await;
    for attempt in 1..=9 {
        let result = echo.process(doc("a"), &step).await;
        assert_eq!(result.is_err(), attempt % 3 == 0, "{attempt}");
        assert!(result.err().is_none_or(|error| error.is_retryable()));
    }
}
