//! The whole runtime against a simple model, on scenarios from a printed seed:
//! delays, failures, panics, timeouts, lost acknowledgements and memberships,
//! crashes, rebalances, pauses, changes of plan.
//!
//! What must hold whatever happens: no commit passes an open record or names one
//! as done; no lane is at work twice in one instance; nothing is lost; keys keep
//! their order, in outputs and dead letters; no more is open than the window allows.
//! Exactly once: nothing is there twice, and each commit names exactly what is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;
mod model;

use model::scenario::{exact_scenario, play_in_memory, play_on_sqlite, scenario};
use model::seeded::explore;

#[test]
fn whatever_happens_nothing_is_lost_and_no_commit_passes_an_open_record() {
    explore("runtime_model", 60, 200, &scenario(), play_in_memory);
}

#[test]
fn the_same_holds_on_sqlite_in_real_time() {
    explore("runtime_model_on_sqlite", 5, 0, &scenario(), play_on_sqlite);
}

#[test]
fn exactly_once_whatever_happens_everything_is_there_once() {
    explore("runtime_model_exactly_once", 60, 200, &exact_scenario(), play_in_memory);
}

#[test]
fn exactly_once_holds_on_sqlite_in_real_time() {
    explore("runtime_model_exactly_once_on_sqlite", 4, 0, &exact_scenario(), play_on_sqlite);
}
