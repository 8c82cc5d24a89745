//! The bed keeps its own promises: servers start by themselves, and end with the test.

use std::process::Command;
use std::time::Duration;

use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{kafka, wait_for};

fn is_alive(id: u32) -> bool {
    Command::new("kill").args(["-0", &id.to_string()]).output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_shared_broker_answers_kafkas_own_tools() {
    let Some(kafka) = kafka::shared("the_shared_broker_answers_kafkas_own_tools") else { return };
    let topics =
        kafka.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &kafka.bootstrap(), "--list"]);
    assert!(!topics.contains("Error"), "{topics}");
}

#[test]
fn a_process_ends_with_its_guard() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start("sleep", Command::new("sleep").arg("600"), &folder.path().join("log"), None);
    let id = process.id();
    assert!(is_alive(id));
    drop(process);
    wait_for("the process is gone", Duration::from_secs(60), || (!is_alive(id)).then_some(()));
}

#[test]
fn what_a_process_prints_can_be_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut process =
        Process::start("echo", Command::new("sh").args(["-c", "echo ready; exit 3"]), &folder.path().join("log"), None);
    process.wait_for_output("ready", Duration::from_secs(60));
    assert_eq!(process.wait(Duration::from_secs(60)).code(), Some(3));
}
