//! Partitions that instances have paused by themselves: shown, and resumed.

use pipedoc_proto::v1::{self, PauseReason, PausedPartition, StepState};
use tonic::Code;

use crate::bed::{Bed, Running, SHELF, instance};

fn paused(partition: &str, offset: i64) -> PausedPartition {
    PausedPartition {
        partition: partition.into(),
        since: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
        reason: PauseReason::Exhausted.into(),
        offset: Some(offset),
        document: "a.txt".into(),
        error: "no good".into(),
    }
}

fn report(id: &str, module: &str, step: &str, paused: Vec<PausedPartition>) -> v1::InstanceReport {
    let step = v1::StepReport {
        pipeline: "shelf".into(),
        step: step.into(),
        state: StepState::Running.into(),
        paused,
        ..Default::default()
    };
    v1::InstanceReport { steps: vec![step], ..instance(id, module) }
}

async fn resume(engine: &Running, pipeline: &str, step: &str) -> Result<v1::ResumeResponse, tonic::Status> {
    let request = v1::ResumeRequest { pipeline: pipeline.into(), step: step.into() };
    engine.control().resume(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn every_instance_that_runs_a_step_is_told_to_resume_it_and_no_other() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    let mut one = engine.attach(report("p1", "parser", "parse", vec![paused("local.shelf.parse[0]", 3)])).await;
    let mut two = engine.attach(report("p2", "parser", "parse", vec![paused("local.shelf.parse[1]", 5)])).await;
    let mut sink = engine.attach(report("s1", "object-sink", "store", Vec::new())).await;
    let status = engine.wait_for_status("all are seen", |status| status.instances.len() == 3).await;
    let step = &status.pipelines[0].steps[0];
    assert_eq!(step.paused, [paused("local.shelf.parse[0]", 3), paused("local.shelf.parse[1]", 5)]);
    assert_eq!(status.instances.iter().map(|one| one.steps[0].paused.len()).sum::<usize>(), 2);

    let told = resume(&engine, "shelf", "parse").await.unwrap();
    assert_eq!((told.steps.len(), told.steps[0].step.as_str(), told.steps[0].instances), (1, "parse", 2));
    assert_eq!(told.steps[0].paused.len(), 2);
    assert_eq!((one.resumed().await, two.resumed().await), (vec!["shelf/parse".into()], vec!["shelf/parse".into()]));

    // What went on is not shown any more.
    one.report.steps[0].paused.clear();
    one.report().await;
    let goes_on = |status: &v1::StatusResponse| status.pipelines[0].steps[0].paused.len() == 1;
    engine.wait_for_status("one of them goes on", goes_on).await;

    let told = resume(&engine, "shelf", "").await.unwrap();
    assert_eq!(told.steps.iter().map(|step| step.instances).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(sink.resumed().await, ["shelf/store"], "the first was not for it");
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_the_names_there_are() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    for (pipeline, step, words) in [("shelv", "", "there are: shelf"), ("shelf", "pars", "there are: parse, store")] {
        let refused = resume(&engine, pipeline, step).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains(words), "{}", refused.message());
    }
    let nobody = resume(&engine, "shelf", "parse").await.unwrap();
    assert_eq!(nobody.steps[0].instances, 0);
}
