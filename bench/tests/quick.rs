//! The benches themselves, each in its quick form, so that they cannot rot. Their
//! figures mean nothing here and are not looked at, but that all records arrive is
//! checked by the benches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what helps a test fails with it")]

use std::process::{Command, Stdio};

use pipedoc_tests::bed::{consul, missing};
use serde_json::Value;

/// Runs a bench; gives its report.
fn quick(bench: &str) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipedoc-bench"));
    command.args(["--quick", "--output", "json", bench]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{bench} ended with {}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of the arms of a comparison, the baseline first.
fn arms(report: &Value) -> Vec<&str> {
    let comparison = &report["comparison"];
    let others = comparison["arms"].as_array().unwrap().iter();
    std::iter::once(&comparison["baseline"]).chain(others).map(|arm| arm["arm"].as_str().unwrap()).collect()
}

#[test]
fn sqlite_compares_the_step_to_raw_rusqlite() {
    let report = quick("sqlite");
    assert_eq!(arms(&report), ["raw", "raw 8 MiB", "bare log", "echo", "echo, exactly once"], "{report:#}");
    assert_eq!(report["comparison"]["pairs"], 1);
}

#[test]
fn pipeline_compares_the_command_to_a_plain_loop() {
    let report = quick("pipeline");
    assert_eq!(arms(&report), ["plain loop", "pipedoc run"], "{report:#}");
}

#[test]
fn latency_is_measured_over_three_processes() {
    let report = quick("latency");
    let figures = report["figures"].as_array().unwrap();
    assert!(figures.iter().all(|figure| figure["value"].as_f64().unwrap() > 0.0), "{report:#}");
    assert_eq!(report["targets"].as_array().unwrap().len(), 1, "{report:#}");
}

#[test]
fn idle_tells_what_a_further_step_costs() {
    let report = quick("idle");
    let names: Vec<_> = report["figures"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    for name in ["engine: CPU", "module, 1 step: resident", "module, 5 steps: threads", "a further step: resident"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
}

#[test]
fn control_confirms_changes_and_rests() {
    if let Err(reason) = consul::binary() {
        return missing("control_confirms_changes_and_rests", &reason);
    }
    let report = quick("control");
    let figures = report["figures"].as_array().unwrap();
    let value = |name: &str| {
        let found = figures.iter().find(|figure| figure["name"].as_str().unwrap().contains(name));
        found.unwrap_or_else(|| panic!("{name} is not in {report:#}"))["value"].as_f64().unwrap()
    };
    assert!(value("change confirmed by all affected, median") > 0.0, "{report:#}");
    assert!(value("restart of an engine: all instances attached to it again") > 0.0, "{report:#}");
    // An engine that asks for each of 100 steps, or again and again, is found here too.
    let targets = report["targets"].as_array().unwrap();
    let asked = targets.iter().find(|target| target["what"].as_str().unwrap().contains("requests")).unwrap();
    assert!(asked["found"].as_f64().unwrap() < 10.0, "{report:#}");
}
