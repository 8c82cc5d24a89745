//! Partitions that stand still: `on_exhausted: PAUSE` and `stop_at_failure_rate`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;
mod stops;

use std::collections::BTreeSet;
use std::time::Duration;

use bed::*;
use parking_lot::Mutex;
use pipedoc_model::step::{ControlState, Delivery, FailureRate, OnExhausted, StepPlan};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{PauseReason, StepState};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::OutgoingRecord;
use pipedoc_transport::memory::MemoryLog;

/// Fails for good whatever has `bad` for a title, until it is mended.
struct Mendable;

static MENDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Module for Mendable {
    type Config = Nothing;
    const NAME: &'static str = "mendable";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if doc.title.starts_with("bad") && !MENDED.lock().contains(&doc.title) {
            return Err(Error::permanent(format!("{} is broken", doc.title)));
        }
        Ok(doc.into())
    }
}

async fn bed() -> Bed {
    let bed = Bed::with(std::sync::Arc::new(MemoryLog::new()), vec![Factory::module::<Mendable>()], Layers::new());
    for name in ["in", "out", DEAD] {
        bed.topic(name, 2).await;
    }
    bed
}

fn pausing() -> StepPlan {
    let mut plan = plan("s");
    plan.module = "mendable".parse().unwrap();
    plan.on_exhausted = OnExhausted::Pause;
    plan
}

/// Documents of a partition, each of a key of its own but for those that share one.
fn records(partition: i32, docs: &[(&str, &str, &str)]) -> Vec<OutgoingRecord> {
    let one = |(key, id, title): &(&str, &str, &str)| OutgoingRecord {
        key: Some((*key).to_owned().into()),
        partition: Some(partition),
        ..record("in", &doc(id, title))
    };
    docs.iter().map(one).collect()
}

async fn ids(bed: &Bed) -> Vec<String> {
    let mut ids: Vec<String> = bed.read("out").await.iter().map(|read| read.doc().id).collect();
    ids.sort();
    ids
}

#[tokio::test(start_paused = true)]
async fn a_partition_stands_still_at_a_bad_record_and_others_go_on() {
    let (bed, plan, bad) = (bed().await, pausing(), "bad-a");
    bed.apply(std::slice::from_ref(&plan));
    bed.send_records(records(0, &[("x", "x1", ""), ("k", "k1", bad), ("k", "k2", "")])).await;
    let status = until("the pause", || {
        let status = bed.status("s");
        (!status.paused.is_empty()).then_some(status)
    })
    .await;
    let paused = &status.paused[0];
    assert_eq!((paused.partition.partition, status.state), (0, StepState::Running));
    assert_eq!((paused.reason, paused.offset, paused.document.as_str()), (PauseReason::Exhausted, Some(1), "k1"));
    assert_eq!(paused.error, "bad-a is broken");
    bed.send_records(records(0, &[("y", "y1", "")])).await;
    bed.send_records(records(1, &[("z", "z1", ""), ("z", "z2", "")])).await;
    bed.await_records("out", 3).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(ids(&bed).await, ["x1", "z1", "z2"], "nothing behind the bad one");
    assert_eq!((bed.committed(&plan).await[&0], bed.committed(&plan).await[&1]), (1, 2));
    assert!(!bed.status("s").drained);
    // It is tried again, and stands still again.
    assert!(bed.instance.resume(&plan.id));
    let paused = |event: &Event| matches!(event, Event::PartitionPaused(paused) if paused.document == "k1");
    until("another pause", || (bed.events.count(paused) == 2).then_some(())).await;
    // Mended, an operator's pause and resume does the same.
    MENDED.lock().insert(bad.to_owned());
    let mut rests = plan.clone();
    rests.control = ControlState::Paused;
    bed.apply(&[rests]);
    bed.state("s", StepState::Paused).await;
    bed.apply(std::slice::from_ref(&plan));
    bed.await_records("out", 6).await;
    let status = bed.drained("s").await;
    assert_eq!((status.paused.len(), status.failed), (0, 0));
    assert_eq!(ids(&bed).await, ["k1", "k2", "x1", "y1", "z1", "z2"]);
    assert_eq!(bed.read(DEAD).await.len(), 0);
    assert!(bed.events.count(|event| matches!(event, Event::PartitionResumed { .. })) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_stands_still_moves_at_once_and_what_was_done_behind_stays_done() {
    let (bed, plan) = (bed().await, pausing());
    // The bad one fails after the one behind it is done.
    bed.send_records(records(0, &[("k", "k1", "bad-b"), ("x", "x1", "")])).await;
    bed.apply(std::slice::from_ref(&plan));
    until("the pause", || (bed.status("s").paused.len() == 1).then_some(())).await;
    bed.await_records("out", 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = tokio::time::Instant::now();
    bed.instance.stop(Duration::from_secs(60)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    MENDED.lock().insert("bad-b".to_owned());
    let other = bed.beside("two", vec![Factory::module::<Mendable>()]);
    other.apply(&[plan]);
    other.await_records("out", 2).await;
    other.drained("s").await;
    assert_eq!(ids(&other).await, ["k1", "x1"], "none came twice");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_too_often_stands_still_before_it_fills_its_dead_letters() {
    let (bed, mut plan) = (bed().await, pausing());
    plan.on_exhausted = OnExhausted::DeadLetter;
    plan.concurrency = 1;
    plan.stop_at_failure_rate = Some(FailureRate { percent: 20.0, last: 20 });
    let titles: Vec<(String, &str)> =
        (0..60).map(|n| (format!("d{n:02}"), if n < 30 { "" } else { "bad-c" })).collect();
    let docs: Vec<(&str, &str, &str)> = titles.iter().map(|(id, title)| (id.as_str(), id.as_str(), *title)).collect();
    bed.send_records(records(0, &docs)).await;
    bed.apply(std::slice::from_ref(&plan));
    let status = bed.state("s", StepState::Paused).await;
    assert!(status.last_error.contains("4 of the last 20"), "{}", status.last_error);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bed.read(DEAD).await.len(), 3, "the fourth stopped it");
    assert_eq!(bed.events.count(|event| matches!(event, Event::FailureRateReached { .. })), 1);
    let paused = bed.status("s").paused;
    let reasons: Vec<_> = paused.iter().map(|paused| (paused.reason, paused.offset.is_some())).collect();
    assert_eq!(reasons, [(PauseReason::FailureRate, true), (PauseReason::FailureRate, false)], "every partition");
    assert!(paused[1].error.contains("4 of the last 20"), "{}", paused[1].error);
    MENDED.lock().insert("bad-c".to_owned());
    bed.instance.resume(&plan.id);
    bed.await_records("out", 57).await;
    let status = bed.drained("s").await;
    assert_eq!((status.state, status.paused.len()), (StepState::Running, 0));
    assert_eq!(bed.read(DEAD).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_seldom_goes_on_though_acknowledgements_come_late() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let bed = bed().await;
        let mut plan = StepPlan { delivery, on_exhausted: OnExhausted::DeadLetter, ..pausing() };
        plan.stop_at_failure_rate = Some(FailureRate { percent: 20.0, last: 50 });
        let names: Vec<String> = (0..400).map(|n| format!("d{n:03}")).collect();
        let title = |n: usize| if n % 10 == 9 { "bad-seldom" } else { "" };
        let docs: Vec<_> = names.iter().enumerate().map(|(n, id)| (id.as_str(), id.as_str(), title(n))).collect();
        bed.send_records(records(0, &docs)).await;
        bed.apply(&[plan]);
        let end = || bed.status("s");
        until("the end, or a stop", || (end().failed == 40 || !end().paused.is_empty()).then_some(())).await;
        assert_eq!((end().state, end().last_error.contains("stop_at")), (StepState::Running, false), "{delivery:?}");
        bed.await_records("out", 360).await;
        assert_eq!(bed.read(DEAD).await.len(), 40, "{delivery:?}");
    }
}
