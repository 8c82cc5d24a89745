//! What `hydration` promises: claims are read back before the module sees a document,
//! when it asks, or never.

#![allow(clippy::unwrap_used, reason = "what helps a test fails with it")]

mod bed;

use std::sync::Arc;
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::step::{Batch, Hydration, StepPlan};
use pipedoc_proto::v1::{Blob, blob};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::memory::MemoryLog;

/// Asks for what the documents refer to whose source says `look`, and tells how much
/// there was.
struct Looker;

impl Module for Looker {
    type Config = Nothing;
    const NAME: &'static str = "looker";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, step: &Step) -> Result<Output> {
        if !doc.source_uri.starts_with("look") {
            return Ok(doc.into());
        }
        let whole = step.hydrate(doc).await?;
        let bytes = whole.blobs.iter().map(|blob| match &blob.content {
            Some(blob::Content::Inline(bytes)) => bytes.len(),
            _ => 0,
        });
        let found = format!("{} {}", whole.body.len(), bytes.sum::<usize>());
        Ok(PipeDoc { id: whole.id, title: found, ..PipeDoc::default() }.into())
    }
}

fn looker(name: &str, hydration: Hydration) -> StepPlan {
    StepPlan {
        module: "looker".parse().unwrap(),
        inputs: vec![input("out")],
        outputs: vec![way(&format!("{name}-out"))],
        hydration,
        ..plan(name)
    }
}

fn large(id: &str, source: &str) -> [PipeDoc; 2] {
    let content = Some(blob::Content::Inline(Bytes::from(vec![7_u8; 100_000])));
    let blob = Blob { name: "x".into(), content, ..Blob::default() };
    let named = |kind: &str| PipeDoc { source_uri: format!("{source}-{kind}"), ..doc(&format!("{id}-{kind}"), "") };
    [PipeDoc { blobs: vec![blob], ..named("blob") }, PipeDoc { body: "long ".repeat(40_000), ..named("body") }]
}

fn value_of(id: &str, read: &[Read]) -> Option<Bytes> {
    read.iter().find(|read| read.key() == id).unwrap().record.value.clone()
}

#[tokio::test]
async fn lazy_reads_back_what_is_asked_for_and_never_reads_nothing() {
    let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::module::<Looker>()], Layers::new());
    let mut batch = looker("batch", Hydration::Lazy);
    batch.batch = Some(Batch { records: 10, bytes: 1 << 20, wait: Duration::from_millis(50) });
    bed.run(&[plan("s"), looker("lazy", Hydration::Lazy), looker("never", Hydration::Never), batch]).await;
    bed.send("in", large("a", "look").into_iter().chain(large("b", "pass"))).await;
    let between = bed.await_records("out", 4).await;
    for name in ["lazy-out", "batch-out"] {
        let read = bed.await_records(name, 4).await;
        let found = |id: &str| read.iter().find(|read| read.key() == id).unwrap().doc().title;
        assert_eq!((found("a-body").as_str(), found("a-blob").as_str()), ("200000 0", "0 100000"), "{name}");
        for id in ["b-body", "b-blob"] {
            assert_eq!(value_of(id, &read), value_of(id, &between), "{name}: {id} goes on by claim as it came");
        }
        let claims = read.iter().filter(|read| read.header(headers::CLAIM).is_some()).count();
        assert_eq!(claims, 2, "{name}: those that still refer to the store say so");
    }
    let read = bed.await_records("never-out", 2).await;
    for id in ["b-body", "b-blob"] {
        assert_eq!(value_of(id, &read), value_of(id, &between));
    }
    let refused = bed.await_records("test.p.never.dlq", 2).await;
    assert!(refused.iter().all(|letter| letter.header(headers::ERROR_TYPE) == Some("not-hydrated")));
}

#[tokio::test]
async fn what_nobody_asks_for_need_not_be_there() {
    let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::module::<Looker>()], Layers::new());
    bed.run(&[plan("s")]).await;
    bed.send("in", large("a", "look").into_iter().chain(large("b", "pass"))).await;
    bed.await_records("out", 4).await;
    std::fs::remove_dir_all(bed.data.path().join("objects")).unwrap();
    bed.run(&[plan("s"), looker("lazy", Hydration::Lazy), looker("eager", Hydration::Eager)]).await;
    let read = bed.await_records("lazy-out", 2).await;
    assert!(read.iter().all(|read| read.key().starts_with('b')));
    for (step, count) in [("lazy", 2), ("eager", 4)] {
        let letters = bed.await_records(&format!("test.p.{step}.dlq"), count).await;
        assert!(letters.iter().all(|letter| letter.header(headers::ERROR_TYPE) == Some("claim")), "{step}");
        assert_eq!(letters.len() as i64, count);
    }
}
