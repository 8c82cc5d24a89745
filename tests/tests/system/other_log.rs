//! Processes of one cluster on two logs: told, instead of nothing happening.

use std::fs;
use std::time::Duration;

use pipedoc_tests::bed::{free_ports, pipedoc, wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn an_instance_on_another_log_than_its_engine_refuses_and_both_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir(path.join("pipelines")).unwrap();
    let pipeline =
        "pipeline: shelf\nsteps:\n- {name: echo, type: PIPELINE, module: echo, output_kafka_topics: [shelf-out]}\n";
    fs::write(path.join("pipelines/shelf.yaml"), pipeline).unwrap();
    let [port] = free_ports();
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let _engine = pipedoc::start("engine", path, ["engine", "--listen", &listen, "--log", "sqlite:one.db"]);
    let module =
        |name: &str, log: &str| pipedoc::start(name, path, ["module", "echo", "--engines", &address, "--log", log]);
    let mut stray = module("stray", "sqlite:other.db");
    let status = || -> Option<Value> {
        let output = pipedoc::command(["status", "--output", "json", "--engine", &address]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    };
    let told = wait_for("status tells of it", PATIENCE, || {
        let status = status()?;
        let problems = status["problems"].as_array()?;
        let mut messages = problems.iter().filter_map(|problem| problem["message"].as_str());
        messages.find(|message| message.contains("refuses its assignment")).map(str::to_owned)
    });
    for words in ["one.db", "other.db", "the same --log"] {
        assert!(told.contains(words), "it does not say {words:?}: {told}");
    }
    let step = |status: &Value| status["pipelines"][0]["steps"][0]["state"].as_str().map(str::to_owned);
    assert_ne!(step(&status().unwrap()).as_deref(), Some("STEP_STATE_RUNNING"), "it counts as at work");
    stray.wait_for_output("assignment refused", PATIENCE);
    stray.signal("TERM");
    stray.wait(PATIENCE);

    // By another path it is the same file.
    let _right = module("right", &format!("sqlite:{}", path.join("one.db").display()));
    wait_for("the step runs", PATIENCE, || (step(&status()?)? == "STEP_STATE_RUNNING").then_some(()));
}
