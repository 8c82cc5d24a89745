//! The Kafka benches, tried out: every arm moves every record on a real broker,
//! and the report says so. Figures of a debug build mean nothing and are not
//! looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing test may panic")]

use std::process::Command;

use pipedoc_tests::bed::{maven, missing};
use serde_json::Value;

/// The report of a bench; none when the test is to be skipped, which has been said.
fn report(test: &str, arguments: &[&str]) -> Option<Value> {
    if let Err(reason) = maven::java() {
        missing(test, &reason);
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipedoc-bench"));
    let output = command.args(arguments).args(["--quick", "--output", "json"]).output().expect("the bench runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {errors}");
    Some(serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}; it printed: {errors}")))
}

#[test]
fn every_way_through_kafka_moves_every_record_once() {
    // Each arm counts by key and version, and fails the bench when one is missing or comes twice.
    let test = "every_way_through_kafka_moves_every_record_once";
    let Some(report) = report(test, &["kafka", "--records", "6000"]) else { return };
    let comparison = &report["comparison"];
    assert_eq!(comparison["baseline"]["arm"], "raw rdkafka loop");
    let arms: Vec<_> = comparison["arms"].as_array().unwrap().iter().map(|arm| arm["arm"].as_str().unwrap()).collect();
    assert_eq!(arms, ["PipeDoc records", "PipeDoc module", "Kafka Streams", "Kafka Streams, tuned"]);
    for arm in comparison["arms"].as_array().unwrap() {
        assert!(arm["per_second"]["median"].as_f64().unwrap() > 0.0, "{arm}");
        assert!(arm["figures"]["broker CPU µs/record"]["median"].as_f64().is_some(), "{arm}");
    }
}

#[test]
fn keys_stay_in_order_on_both_logs() {
    let Some(report) = report("keys_stay_in_order_on_both_logs", &["kafka-keys"]) else { return };
    let arms: Vec<_> = report["comparison"]["arms"].as_array().unwrap().iter().map(|arm| &arm["arm"]).collect();
    assert_eq!(arms, ["PipeDoc on SQLite", "Parallel Consumer"]);
}

#[test]
fn idle_steps_are_measured_after_documents_went_through_them_all() {
    let test = "idle_steps_are_measured_after_documents_went_through_them_all";
    let Some(report) = report(test, &["kafka-idle"]) else { return };
    let threads = report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == "5 steps: threads");
    assert!(threads.unwrap()["value"].as_f64().unwrap() > 1.0, "{report}");
}
