//! What became of each document of a run: each is counted once.
//!
//! A document is a dead letter if any of its records became one, else delivered if
//! a sink stored anything of it or if any of it went to a topic outside the pipeline,
//! else unchanged if its connector said so, else filtered. Those that no connector of
//! this run found, as they came through a topic, are dead letters or delivered as well.
//! Knows documents by a hash of their ids, so that a million of them take
//! little memory.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;
use pipedoc_model::names::StepId;
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::instance::{PauseReason, PausedPartition};
use serde::Serialize;

/// What is known of one document's fate.
#[derive(Debug, Default, Clone, Copy)]
struct Fate {
    found: bool,
    unchanged: bool,
    delivered: bool,
    dead: bool,
}

/// A dead letter of this run, for the summary.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetter {
    /// The document.
    pub document: String,
    /// The step that gave it up.
    pub step: String,
    /// Kind of the error.
    pub kind: String,
    /// Why, the whole chain.
    pub error: String,
}

/// How many documents ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Documents that connectors found.
    pub found: u64,
    /// Those of which a sink stored something, or that left into a topic of another's,
    /// found or not.
    pub delivered: u64,
    /// Found ones that were sent by an earlier run and have not changed.
    pub unchanged: u64,
    /// Found ones that no output or sink took.
    pub filtered: u64,
    /// Those that were given up on, found or not.
    pub dead_letters: u64,
    /// Documents deleted since the last run, beside the found ones.
    pub deleted: u64,
}

/// Dead letters kept for the summary; more are only counted.
const SHOWN: usize = 1_000;

/// Learns what happens and counts it.
pub struct Ledger {
    sinks: Vec<StepId>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    fates: HashMap<(u64, u64), Fate>,
    deleted: u64,
    /// Dead letters of which no document is known: each counts for one.
    nameless: u64,
    dead: Vec<DeadLetter>,
    trouble: Option<String>,
}

impl Ledger {
    /// A ledger for a pipeline with these sinks.
    pub fn new(sinks: Vec<StepId>) -> Self {
        Self { sinks, state: Mutex::default() }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let state = self.state.lock();
        let mut counts = Counts { deleted: state.deleted, dead_letters: state.nameless, ..Counts::default() };
        for fate in state.fates.values() {
            counts.found += u64::from(fate.found);
            match fate {
                Fate { dead: true, .. } => counts.dead_letters += 1,
                Fate { delivered: true, .. } => counts.delivered += 1,
                Fate { unchanged: true, .. } => counts.unchanged += 1,
                Fate { .. } => counts.filtered += 1,
            }
        }
        counts
    }

    /// The dead letters of this run, at most a thousand.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.state.lock().dead.clone()
    }

    /// Why the run cannot go on, once something happened that only a person can mend:
    /// a full disk, a damaged log, a step that stands still as it was asked to.
    pub fn trouble(&self) -> Option<String> {
        self.state.lock().trouble.clone()
    }
}

/// Two independent 64-bit hashes: with a million documents a collision has a chance
/// of one in 10^26.
fn key(document: &str) -> (u64, u64) {
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, document).hash(&mut hasher);
        hasher.finish()
    };
    (hash(1), hash(2))
}

impl Observer for Ledger {
    fn event(&self, step: &StepId, event: &Event) {
        let mut state = self.state.lock();
        match event {
            Event::Found { document } => state.fates.entry(key(document)).or_default().found = true,
            Event::Unchanged { document } => {
                let fate = state.fates.entry(key(document)).or_default();
                fate.found = true;
                fate.unchanged = true;
            }
            Event::Deleted { .. } => state.deleted += 1,
            Event::StorageFull { error } | Event::LogBroken { error } => state.trouble = Some(error.clone()),
            Event::PartitionPaused(paused) if paused.reason == PauseReason::Exhausted => {
                let PausedPartition { partition, offset, document, error, .. } = paused;
                let place = match offset {
                    Some(offset) => format!("{partition}, offset {offset}"),
                    None => document.clone(),
                };
                state.trouble = Some(format!("step {step} stands still at {place}: {error}"));
            }
            Event::FailureRateReached { reason } => {
                state.trouble = Some(format!("step {step} stands still, as its stop_at_failure_rate asks: {reason}"));
            }
            Event::Done { document, tombstone: false, left, .. } if *left || self.sinks.contains(step) => {
                state.fates.entry(key(document)).or_default().delivered = true;
            }
            Event::DeadLetter { document, kind, error, .. } => {
                if document.is_empty() {
                    state.nameless += 1;
                } else {
                    state.fates.entry(key(document)).or_default().dead = true;
                }
                if state.dead.len() < SHOWN {
                    state.dead.push(DeadLetter {
                        document: document.clone(),
                        step: step.to_string(),
                        kind: kind.clone(),
                        error: error.clone(),
                    });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::names::{PipelineName, StepName};

    use super::*;

    fn step(name: &str) -> StepId {
        StepId::new(PipelineName::new("p").unwrap(), StepName::new(name).unwrap())
    }

    #[test]
    fn each_document_is_counted_once() {
        let ledger = Ledger::new(vec![step("store")]);
        let found = |document: &str| ledger.event(&step("files"), &Event::Found { document: document.into() });
        let told = |name: &str, document: &str, left: bool| {
            let document = document.into();
            ledger.event(&step(name), &Event::Done { document, sent: usize::from(left), left, tombstone: false });
        };
        let done = |document: &str| told("store", document, false);
        let dead = |document: &str| {
            let event = Event::DeadLetter {
                document: document.into(),
                version: 1,
                kind: "damaged".into(),
                error: "cut off".into(),
            };
            ledger.event(&step("parse"), &event);
        };
        for document in ["delivered", "both", "dead", "filtered", "left"] {
            found(document);
        }
        done("delivered");
        done("delivered");
        done("both");
        dead("both");
        dead("dead");
        told("parse", "filtered", false);
        told("parse", "left", true);
        dead("came through a topic");
        done("came through a topic as well");
        dead("");
        dead("");
        ledger.event(&step("files"), &Event::Unchanged { document: "old".into() });
        ledger.event(&step("files"), &Event::Deleted { document: "gone".into() });
        ledger.event(&step("store"), &Event::Done { document: "gone".into(), sent: 0, left: false, tombstone: true });
        let counts = ledger.counts();
        assert_eq!(counts, Counts { found: 6, delivered: 3, unchanged: 1, filtered: 1, dead_letters: 5, deleted: 1 });
        assert_eq!(ledger.dead_letters().len(), 5);
    }
}
