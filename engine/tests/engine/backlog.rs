//! Steps for which records wait are not removed.

use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{self, SubmitRequest};
use pipedoc_transport::log::{Commit, Log, TopicPartition};

use crate::bed::{Bed, Running, SHELF};

/// The pipeline without its first step.
const SHORT: &str = "pipeline: shelf
defaults: {partitions: 3}
steps:
  - {name: store, type: SINK, module: object-sink}
";

async fn submit(engine: &Running, count: usize) {
    let documents = (0..count).map(|n| PipeDoc { id: n.to_string(), ..PipeDoc::default() }).collect();
    let request =
        SubmitRequest { pipeline: "shelf".into(), step: "parse".into(), documents, ..SubmitRequest::default() };
    let reports = engine.intake().submit(request).await.unwrap().into_inner().reports;
    assert!(reports.iter().all(|report| report.error.is_empty()), "{reports:?}");
}

/// As a step commits that has worked everything off.
async fn work_off(bed: &Bed) {
    let topic = Topic::new("local.shelf.parse").unwrap();
    let ends = bed.log.ends(&topic).await.unwrap();
    let commits: Vec<_> = (0..)
        .zip(ends)
        .map(|(partition, ends)| Commit {
            source: TopicPartition::new(topic.clone(), partition),
            offset: ends.end,
            metadata: String::new(),
        })
        .collect();
    bed.log.set_group_offsets("local.shelf.parse", &commits).await.unwrap();
}

#[tokio::test]
async fn a_step_with_a_backlog_is_not_removed_unless_it_is_abandoned() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    assert!(engine.apply(SHELF).await.accepted);
    submit(&engine, 10).await;
    for dry_run in [true, false] {
        let request = v1::ApplyRequest { text: SHORT.into(), dry_run, ..Default::default() };
        let answer = engine.control().apply(request).await.unwrap().into_inner();
        assert!(!answer.accepted && answer.errors.len() == 1, "{answer:?}");
        let message = &answer.errors[0].message;
        assert!(message.contains("shelf/parse") && message.contains("10 records"), "{message}");
        assert!(message.contains("--abandon"), "{message}");
    }
    let deleted = engine.delete("shelf", false).await.unwrap();
    assert!(!deleted.accepted && deleted.errors.len() == 1, "{deleted:?}");
    assert_eq!(engine.get("shelf").await.unwrap().revision, 1);

    let request = v1::ApplyRequest { text: SHORT.into(), abandon: true, ..Default::default() };
    assert!(engine.control().apply(request).await.unwrap().into_inner().accepted);
    // They are still there for a step of that name.
    assert!(engine.rollback("shelf", Some(1)).await.unwrap().accepted);
    let status = engine.wait_for_status("it is back", |status| status.pipelines[0].steps.len() == 2).await;
    assert_eq!(status.pipelines[0].steps[0].lag, 10);
    // A rollback removes steps as well.
    let back = engine.rollback("shelf", Some(2)).await.unwrap();
    assert!(!back.accepted && back.errors[0].message.contains("10 records"), "{back:?}");
    assert!(engine.delete("shelf", true).await.unwrap().accepted);
}

#[tokio::test]
async fn a_step_that_is_done_goes_at_once() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    assert!(engine.apply(SHELF).await.accepted);
    submit(&engine, 5).await;
    work_off(&bed).await;
    assert!(engine.apply(SHORT).await.accepted);
    assert!(engine.delete("shelf", false).await.unwrap().accepted);
}

#[tokio::test]
async fn an_edit_that_removes_a_step_waits_for_its_backlog() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    submit(&engine, 3).await;
    bed.write("shelf.yaml", SHORT);
    let status = engine.wait_for_status("the rule is shown", |status| !status.problems.is_empty()).await;
    let problem = &status.problems[0];
    assert!(problem.message.contains("3 records") && problem.file.ends_with("shelf.yaml"), "{problem:?}");
    assert_eq!(status.pipelines[0].revision, 1);
    work_off(&bed).await;
    let status = engine.wait_for_status("the edit runs", |status| status.pipelines[0].revision == 2).await;
    assert_eq!(status.pipelines[0].steps.len(), 1);
    engine.wait_for_status("the problem is gone", |status| status.problems.is_empty()).await;
}

#[tokio::test]
async fn a_removed_file_waits_for_its_backlog() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    submit(&engine, 3).await;
    std::fs::remove_file(bed.file("shelf.yaml")).unwrap();
    let told =
        |status: &v1::StatusResponse| status.problems.iter().any(|problem| problem.message.contains("3 records"));
    let status = engine.wait_for_status("the rule is shown", told).await;
    assert!(status.problems[0].message.contains("pipedoc delete shelf --abandon"), "{:?}", status.problems);
    // It stays so, though the pass is made again and again.
    let status = crate::bed::wait_for("three seconds", Duration::from_secs(20), {
        let since = std::time::Instant::now();
        let engine = &engine;
        move || async move {
            let status = engine.status().await;
            assert!(told(&status) && status.pipelines.len() == 1, "{status:#?}");
            if since.elapsed() > Duration::from_secs(3) { Ok(status) } else { Err("not yet".to_owned()) }
        }
    })
    .await;
    assert_eq!(status.pipelines[0].revision, 1);
    work_off(&bed).await;
    let status = engine.wait_for_status("it is removed", |status| status.pipelines.is_empty()).await;
    assert!(status.generation > 1);
    engine.wait_for_status("the problem is gone", |status| status.problems.is_empty()).await;
}
