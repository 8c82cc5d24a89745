//! A partition that stands still because a document was given up on, as its operator
//! sees it and lets it go on: the same on both logs.

use std::fs;
use std::process::Output;
use std::time::Duration;

use pipedoc_tests::bed::{kafka, pipedoc, wait_for};
use serde_json::Value;

use super::kafka_place::Place;

const PATIENCE: Duration = Duration::from_secs(90);

/// Every second attempt fails for good.
const PIPELINE: &str = "
pipeline: shelf
defaults: {partitions: 1}
steps:
  - name: echo
    type: PIPELINE
    module: echo
    config: {fail: {every: 2}}
    on_exhausted: PAUSE
    outputs: [{topic: CLUSTER-out}]
";

#[test]
fn a_paused_partition_is_shown_and_resumed_on_the_embedded_log() {
    is_shown_and_resumed(&Place::on_folder(None));
}

#[test]
fn a_paused_partition_is_shown_and_resumed_on_kafka() {
    let Some(kafka) = kafka::shared("a_paused_partition_is_shown_and_resumed_on_kafka") else { return };
    is_shown_and_resumed(&Place::on_folder(Some(&kafka.bootstrap())));
}

fn is_shown_and_resumed(place: &Place) {
    place.write("pipelines/shelf.yaml", PIPELINE);
    let _engine = place.engine();
    let _echo = place.module("echo", "echo");
    let running = |step: &Value| step["state"] == "STEP_STATE_RUNNING";
    wait_for("the step runs", PATIENCE, || place.step("shelf", "echo").filter(running));
    submit(place, "a.txt");
    wait_for("the first is done", PATIENCE, || place.step("shelf", "echo").filter(|step| step["done"] == "1"));
    submit(place, "b.txt");

    let step = wait_for("the second stops its partition", PATIENCE, || {
        place.step("shelf", "echo").filter(|step| step["paused"].as_array().is_some_and(|paused| !paused.is_empty()))
    });
    let paused = &step["paused"][0];
    let partition = format!("{}.shelf.echo[0]", place.cluster());
    assert_eq!(paused["partition"], partition, "{step}");
    assert_eq!((&paused["reason"], &paused["document"]), (&"PAUSE_REASON_EXHAUSTED".into(), &"b.txt".into()), "{step}");
    assert!(paused["error"].as_str().unwrap().contains("made to fail"), "{step}");
    assert!(paused["since"].is_string() && paused["offset"].is_string(), "{step}");
    assert_eq!(step["state"], "STEP_STATE_RUNNING", "others would go on");
    let table = text(&command(place, &["status", "shelf"]));
    for words in ["pipedoc resume shelf", partition.as_str(), "EXHAUSTED", "b.txt", "made to fail"] {
        assert!(table.contains(words), "it does not say {words:?}: {table}");
    }

    let refused = command(place, &["resume", "shelf", "ech"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("there are: echo"), "{}", text(&refused));

    let told = command(place, &["resume", "shelf", "echo"]);
    assert_eq!(told.status.code(), Some(0), "{}", text(&told));
    assert!(text(&told).contains(&format!("echo: one instance was told; {partition}")), "{}", text(&told));
    wait_for("the second is done", PATIENCE, || {
        let step = place.step("shelf", "echo")?;
        let lag = step["lag"].as_str().unwrap_or("0");
        (step["done"] == "2" && lag == "0" && step["paused"].as_array().is_none_or(Vec::is_empty)).then_some(())
    });
    let again = command(place, &["resume", "shelf", "--output", "json"]);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&again["steps"][0]["step"], &again["steps"][0]["instances"]), (&"echo".into(), &1.into()), "{again}");
}

fn submit(place: &Place, name: &str) {
    let file = place.path().join(name);
    fs::write(&file, "words").unwrap();
    let output = command(place, &["submit", "--pipeline", "shelf", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
}

fn command(place: &Place, arguments: &[&str]) -> Output {
    let address = place.address(0);
    pipedoc::command(arguments.iter().copied().chain(["--engine", &address])).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
