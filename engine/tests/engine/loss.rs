//! A store that lost something, or that a newer version has written.

use pipedoc_engine::store::{Expected, Key, Store};
use pipedoc_proto::v1::{self, StepState};
use tonic::Code;

use crate::bed::{Bed, SHELF, instance};

/// Everything that engines have written, at once, as a Consul without a disk loses it.
fn lose_all(bed: &Bed) {
    let control = rusqlite::Connection::open(bed.data().join("control.db")).unwrap();
    control.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    control.execute("DELETE FROM entries", []).unwrap();
    std::fs::write(bed.data().join("control.bell"), b"\0").unwrap();
}

#[tokio::test]
async fn a_deleted_head_is_made_anew_with_what_ran() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    engine.apply(&SHELF.replace("partitions: 3", "partitions: 4")).await;
    engine.apply(&SHELF.replace("shelf", "other")).await;
    engine.wait_for_status("the files are written", |_| bed.file("other.yaml").exists()).await;
    // The last good text runs, whatever stands in the file.
    bed.write("shelf.yaml", "pipeline: shelf\nsteps: none\n");
    let before = engine.wait_for_status("the mistake is shown", |status| !status.problems.is_empty()).await;

    bed.store().await.remove(&Key::new(&["head"]), None).await.unwrap();
    let after = engine.wait_for_status("there is a head again", |status| status.generation > before.generation).await;
    let running = |status: &v1::StatusResponse| {
        status.pipelines.iter().map(|pipeline| (pipeline.pipeline.clone(), pipeline.revision)).collect::<Vec<_>>()
    };
    assert_eq!(running(&after), [("other".to_owned(), 1), ("shelf".to_owned(), 2)]);
    assert!(engine.get("shelf").await.unwrap().text.contains("partitions: 4"));
}

#[tokio::test]
async fn a_head_of_a_newer_version_is_left_alone() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    let (store, head) = (bed.store().await, Key::new(&["head"]));
    let newer = r#"{"format": 9, "all": "else"}"#;
    store.put(&head, newer, Expected::Anything, None).await.unwrap();
    let status = engine.wait_for_status("it is shown", |status| !status.problems.is_empty()).await;
    let message = &status.problems[0].message;
    assert!(message.contains("newer version") && message.contains('9'), "{message}");
    assert_eq!(status.pipelines.len(), 1, "what runs goes on");
    let request = v1::ApplyRequest { text: SHELF.replace('3', "4"), ..Default::default() };
    let refused = engine.control().apply(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(store.get(&head).await.unwrap().unwrap().text, newer);
}

#[tokio::test]
async fn after_a_loss_attached_modules_are_known_and_only_what_is_put_there_runs() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    let _sink = engine.attach(instance("s1", "object-sink")).await;
    engine.wait_for_status("both are there", |status| status.instances.len() == 2).await;
    assert!(engine.apply(SHELF).await.accepted);
    assert!(engine.apply(&SHELF.replace("shelf", "other")).await.accepted);
    engine.wait_for_status("the files are written", |_| bed.file("other.yaml").exists()).await;
    let ran = parser.assignment("both pipelines", |assignment| assignment.steps.len() == 2).await;
    parser.report.generation = ran.generation;
    parser.report().await;
    engine.wait_for_status("its report came", |status| status.instances.iter().any(|i| i.generation > 0)).await;

    // As Consul loses all of its data: the inbox, and all that engines wrote.
    for file in ["shelf.yaml", "other.yaml"] {
        std::fs::remove_file(bed.file(file)).unwrap();
    }
    lose_all(&bed);
    let answer = engine.apply(&SHELF.replace("partitions: 3", "partitions: 5")).await;
    let unseen = answer.warnings.iter().filter(|warning| warning.message.contains("module"));
    assert!(answer.accepted && unseen.count() == 0, "{:?}", answer.warnings);
    assert!(answer.warnings.iter().any(|warning| warning.message.contains("has lost its data")), "it is told");
    assert!(answer.generation > ran.generation, "instances take what comes now");
    // Numbers began anew, and the text of now is the one that runs.
    assert!(engine.get("shelf").await.unwrap().text.contains("partitions: 5"));
    let told = parser.assignment("what is there now", |assignment| assignment.generation >= answer.generation).await;
    assert_eq!(crate::bed::steps(&told), ["shelf/parse"]);
    let topics = pipedoc_transport::log::Log::topic(&bed.log, &"local.shelf.parse".parse().unwrap()).await.unwrap();
    assert_eq!(topics.unwrap().partitions, 5);
}

#[tokio::test]
async fn pipelines_that_are_put_back_one_by_one_come_back_together() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let mut parser = engine.attach(v1::InstanceReport { generation: 41, ..instance("p1", "parser") }).await;
    engine.wait_for_status("the loss is told", |status| !status.problems.is_empty()).await;
    // As an operator does it who brings back what was lost.
    for n in 0..3 {
        bed.write(&format!("p{n}.yaml"), &SHELF.replace("shelf", &format!("p{n}")));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let told = parser.assignment("the first assignment", |_| true).await;
    assert_eq!(crate::bed::steps(&told), ["p0/parse", "p1/parse", "p2/parse"]);
    assert!(told.generation > 41);
}

#[tokio::test]
async fn status_says_what_runs_though_the_store_has_lost_it() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let report = |pipeline: &str, state: StepState| v1::StepReport {
        pipeline: pipeline.into(),
        step: "parse".into(),
        state: state.into(),
        done: 7,
        ..Default::default()
    };
    let one = v1::InstanceReport {
        generation: 41,
        steps: vec![report("shelf", StepState::Running)],
        ..instance("p1", "parser")
    };
    let other = v1::InstanceReport {
        generation: 41,
        steps: vec![report("shelf", StepState::Failed), report("another", StepState::Running)],
        ..instance("p2", "parser")
    };
    let (_one, _other) = (engine.attach(one).await, engine.attach(other).await);
    let status = engine.wait_for_status("both are seen", |status| status.instances.len() == 2).await;
    let names: Vec<_> = status.pipelines.iter().map(|p| (p.pipeline.as_str(), p.revision)).collect();
    assert_eq!(names, [("another", 0), ("shelf", 0)]);
    let step = &status.pipelines[1].steps[0];
    assert_eq!((step.step.as_str(), step.module.as_str(), step.instances, step.done), ("parse", "parser", 2, 14));
    assert_eq!(step.state(), StepState::Failed);
    let status = engine.wait_for_status("the loss is told", |status| !status.problems.is_empty()).await;
    assert!(status.problems[0].message.contains("generation 41"), "{:?}", status.problems);
    // Who asks for one of them is told what brings it back; so is who asks for another.
    for (pipeline, said) in [("shelf", "shelf still runs"), ("third", "has lost its data")] {
        let refused = engine.get(pipeline).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains(said) && refused.message().contains("restore"), "{refused:?}");
    }
}
