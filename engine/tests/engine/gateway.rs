//! Assignments to attached instances.

use std::time::Duration;

use pipedoc_model::assignment::list_hash;
use pipedoc_model::step::{InputSource, StepPlan};
use pipedoc_proto::v1;
use tonic::Code;

use crate::bed::{Bed, SHELF, instance, steps};

#[tokio::test]
async fn an_instance_is_told_the_steps_of_its_module_with_their_bodies() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    let assignment = parser.assignment("an assignment", |assignment| !assignment.steps.is_empty()).await;
    assert_eq!(steps(&assignment), ["shelf/parse"]);
    assert_eq!(assignment.cluster, "local");
    assert_eq!(assignment.bodies.len(), 1);
    let body = &assignment.bodies[0];
    assert_eq!(body.hash, assignment.steps[0].hash);
    assert_eq!(pipedoc_model::plan::hash_of(&body.json), body.hash);
    let plan: StepPlan = serde_json::from_str(&body.json).unwrap();
    assert!(matches!(&plan.inputs[0].source, InputSource::Topic(topic) if topic.as_str() == "local.shelf.parse"));
    assert_eq!(plan.outputs[0].topic.as_str(), "local.shelf.store");
}

#[tokio::test]
async fn only_bodies_that_the_instance_lacks_travel() {
    let bed = Bed::new();
    let two = SHELF
        .replace("steps:\n", "steps:\n  - {name: clean, type: PIPELINE, module: parser, outputs: [{to: parse}]}\n");
    bed.write("shelf.yaml", &two);
    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    let first = parser.assignment("both steps", |assignment| assignment.bodies.len() == 2).await;
    parser.take(&first).await;
    engine
        .wait_for_status("the report came", |status| status.instances.iter().any(|i| i.generation == first.generation))
        .await;

    bed.write("shelf.yaml", &two.replace("name: parse,", "name: parse, concurrency: 7,"));
    let changed =
        |assignment: &v1::Assignment| assignment.generation > first.generation && assignment.steps != first.steps;
    let second = parser.assignment("the edit", changed).await;
    assert_eq!(steps(&second), ["shelf/clean", "shelf/parse"], "it is whole");
    assert_eq!(second.bodies.len(), 1, "one body travels");
    assert!(second.bodies[0].json.contains("\"concurrency\":7"));
    assert_eq!(second.steps[0].hash, first.steps[0].hash);
}

#[tokio::test]
async fn an_instance_that_holds_nothing_any_more_is_sent_the_bodies_again() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    let first = parser.assignment("an assignment", |assignment| !assignment.bodies.is_empty()).await;
    parser.report.lacking_hashes = vec![first.bodies[0].hash.clone()];
    parser.report().await;
    let again = parser.assignment("it comes again", |assignment| !assignment.bodies.is_empty()).await;
    assert_eq!(again.bodies, first.bodies);
    // One that refuses is not plied with it.
    parser.report.refusals = vec!["no".into()];
    for _ in 0..8 {
        parser.report().await;
        // A newer generation of the same steps may come.
        let news = parser.assignment_within(Duration::from_millis(100)).await;
        assert!(news.is_none_or(|assignment| assignment.bodies.is_empty()));
    }
}

#[tokio::test]
async fn who_comes_with_a_list_is_told_what_is_new_to_it() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let with = |id, list_hash: &str| v1::InstanceReport { list_hash: list_hash.into(), ..instance(id, "parser") };
    let nothing = list_hash([]);
    let mut new = engine.attach(with("p1", &nothing)).await;
    let first = new.assignment("an assignment", |assignment| !assignment.steps.is_empty()).await;
    assert_eq!((first.bodies.len(), &first.base_hash), (1, &nothing));

    let mut back = engine.attach(with("p2", &first.list_hash)).await;
    let told = back.assignment("the same list", |_| true).await;
    assert_eq!((told.steps.len(), told.bodies.len(), &told.base_hash), (0, 0, &first.list_hash));

    // One that holds a list that nobody here knows says what it lacks of ours.
    let mut stranger = engine.attach(with("p3", &"0".repeat(64))).await;
    let told = stranger.assignment("the list", |_| true).await;
    assert_eq!((&told.steps, told.bodies.len(), told.base_hash.as_str()), (&first.steps, 0, ""));
    stranger.report.lacking_hashes = vec![first.steps[0].hash.clone()];
    stranger.report().await;
    let bodies = stranger.assignment("the body", |assignment| !assignment.bodies.is_empty()).await;
    assert_eq!(bodies.bodies, first.bodies);
}

#[tokio::test]
async fn instances_narrowed_to_steps_are_told_only_those() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    bed.write("other.yaml", &SHELF.replace("shelf", "other"));
    let engine = bed.engine().await;
    let mut narrow =
        engine.attach(v1::InstanceReport { serve: vec!["other/parse".into()], ..instance("p1", "parser") }).await;
    let mut wide = engine.attach(instance("p2", "parser")).await;
    let told = narrow.assignment("one step", |assignment| assignment.steps.len() == 1).await;
    assert_eq!(steps(&told), ["other/parse"]);
    let told = wide.assignment("both steps", |assignment| assignment.steps.len() == 2).await;
    assert_eq!(steps(&told), ["other/parse", "shelf/parse"]);
}

#[tokio::test]
async fn a_removed_pipeline_leaves_an_empty_assignment_and_none_at_all_is_no_news() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    assert_eq!(parser.assignment_within(Duration::from_millis(700)).await, None, "there is no head yet");
    bed.write("shelf.yaml", SHELF);
    let first = parser.assignment("the step", |assignment| assignment.steps.len() == 1).await;
    parser.take(&first).await;
    std::fs::remove_file(bed.file("shelf.yaml")).unwrap();
    let last = parser.assignment("nothing to do", |assignment| assignment.steps.is_empty()).await;
    assert!(last.generation > first.generation);
}

#[tokio::test]
async fn generation_and_assignment_survive_the_engine() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.generation == 1).await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    parser.assignment("an assignment", |assignment| !assignment.steps.is_empty()).await;
    // The module's registration is a change of its own.
    let stable = engine.wait_for_status("registered", |status| status.generation >= 2).await;
    drop(parser);
    engine.stop().await;

    let engine = bed.engine().await;
    let mut parser = engine.attach(instance("p1", "parser")).await;
    let told = parser.assignment("the same again", |assignment| !assignment.steps.is_empty()).await;
    assert_eq!(told.generation, stable.generation);
    assert_eq!(steps(&told), ["shelf/parse"]);
}

#[tokio::test]
async fn a_lost_store_goes_on_above_what_instances_remember() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let mut parser = engine.attach(v1::InstanceReport { generation: 41, ..instance("p1", "parser") }).await;
    let told = parser.assignment("a newer generation", |assignment| assignment.generation > 41).await;
    assert_eq!(steps(&told), ["shelf/parse"]);
}

#[tokio::test]
async fn a_registration_judges_what_was_applied_before() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let text = SHELF.replace("module: object-sink", "module: object-sink, config: {url: 7}");
    assert!(engine.apply(&text).await.accepted, "an unknown module is no reason to refuse");
    let mut sink = instance("s1", "object-sink");
    if let Some(registration) = &mut sink.registration {
        registration.config_schema = r#"{"type": "object", "properties": {"url": {"type": "string"}}}"#.into();
    }
    let mut sink = engine.attach(sink).await;
    let status = engine.wait_for_status("the mistake is shown", |status| !status.problems.is_empty()).await;
    assert!(status.problems[0].field.contains("url"), "{:?}", status.problems);
    assert!(
        !sink.assignment("what was applied runs", |assignment| !assignment.steps.is_empty()).await.bodies.is_empty()
    );
    let answer = engine.apply(&text.replace("partitions: 3", "partitions: 4")).await;
    assert!(!answer.accepted, "now it is known to be wrong");
}

#[tokio::test]
async fn an_older_version_of_a_module_does_not_take_the_newer_ones_place() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.generation == 1).await;
    let _new = engine.attach(instance("p1", "parser")).await;
    let before = engine.wait_for_status("registered", |status| status.generation >= 2).await;
    let mut old = instance("p2", "parser");
    if let Some(registration) = &mut old.registration {
        registration.version = "0.9.0".into();
    }
    let mut old = engine.attach(old).await;
    let told = old.assignment("an assignment", |assignment| !assignment.steps.is_empty()).await;
    assert_eq!(told.generation, before.generation);
}

#[tokio::test]
async fn a_first_report_that_names_nobody_is_refused_with_every_reason() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let mut report = instance("", "Parser!");
    if let Some(registration) = &mut report.registration {
        registration.config_schema = "{".into();
        registration.step_types = vec![9];
    }
    let mut client = v1::module_gateway_client::ModuleGatewayClient::new(engine.channel.clone());
    let status = client.attach(tokio_stream::iter([report])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for reason in ["instance_id", "registration.module", "registration.config_schema", "registration.step_types"] {
        assert!(status.message().contains(reason), "{reason} in {}", status.message());
    }
}
