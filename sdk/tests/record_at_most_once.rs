//! What record modules are promised under `delivery: AT_MOST_ONCE`: the offset is
//! committed first, and nothing that was sent is sent again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::step::{Delivery, FailureRate, OnExhausted, StepPlan};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

/// Pipes each record, then does what its value says: `fail` in the first attempt,
/// `slow:MS`, `big` pipes one that no topic takes.
struct Doer;

impl RecordModule for Doer {
    type Config = Nothing;
    const NAME: &'static str = "doer";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        for record in &batch.records {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            let (verb, number) = value.split_once(':').unwrap_or((value.as_str(), "0"));
            if verb == "big" {
                drop(context.pipe(&Record { value: Some(vec![0; 2 << 20].into()), ..record.clone() }, "out"));
            } else {
                context.pipe(record, "out").await?;
            }
            match verb {
                "fail" if context.attempt() == 0 => return Err(Error::retryable("not yet")),
                "slow" => tokio::time::sleep(Duration::from_millis(number.parse()?)).await,
                _ => {}
            }
        }
        Ok(())
    }
}

fn at_most_once() -> StepPlan {
    StepPlan { module: "doer".parse().unwrap(), delivery: Delivery::AtMostOnce, ..plan("s") }
}

fn bed() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    (Bed::with(Arc::new(log.clone()), vec![Factory::records::<Doer>()], Layers::new()), log)
}

fn records(values: impl IntoIterator<Item = &'static str>) -> Vec<OutgoingRecord> {
    let one = |(n, value): (usize, &'static str)| {
        OutgoingRecord::new(topic("in"), Some(format!("r{n:03}").into()), Some(Bytes::from_static(value.as_bytes())))
    };
    values.into_iter().enumerate().map(one).collect()
}

async fn keys(bed: &Bed, name: &str) -> Vec<String> {
    bed.read(name).await.iter().map(Read::key).collect()
}

fn distinct(keys: &[String]) -> usize {
    keys.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_is_committed_already_and_comes_nowhere_again() {
    let (bed, _) = bed();
    let plan = StepPlan { timeout: Duration::from_secs(9000), ..at_most_once() };
    bed.topic("in", 4).await;
    bed.send_records(records(["slow:5000000"; 10])).await;
    bed.run(std::slice::from_ref(&plan)).await;
    until("all to be begun", || (bed.status("s").in_flight == 10).then_some(())).await;
    until("all to be committed", || (bed.status("s").lag == 0).then_some(())).await;
    assert_eq!(bed.committed(&plan).await.values().sum::<i64>(), 10);
    bed.instance.stop(Duration::ZERO).await;
    let next = bed.beside("two", vec![Factory::records::<Doer>()]);
    next.apply(&[plan]);
    next.drained("s").await;
    assert_eq!((next.status("s").done, keys(&next, "out").await.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_worked_on_before_its_offset_is_committed() {
    let (bed, log) = bed();
    let plan = at_most_once();
    bed.run(std::slice::from_ref(&plan)).await;
    until("partitions", || (bed.status("s").partitions.len() == 4).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    log.faults().fail_commits(3, true);
    bed.send_records(records([""; 100])).await;
    until("commits to fail", || {
        (bed.events.count(|event| matches!(event, Event::CommitFailed { .. })) >= 2).then_some(())
    })
    .await;
    assert_eq!((bed.status("s").done, bed.status("s").in_flight), (0, 100));
    bed.drained("s").await;
    let out = keys(&bed, "out").await;
    assert_eq!((out.len(), distinct(&out)), (100, 100));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_has_sent_nothing() {
    let (bed, _) = bed();
    bed.topic("in", 1).await;
    bed.send_records(records(["", "fail", ""])).await;
    bed.run(&[at_most_once()]).await;
    bed.drained("s").await;
    assert_eq!(keys(&bed, "out").await.len(), 3);
    assert_eq!((bed.status("s").done, bed.status("s").failed), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_not_sent_again_though_its_acknowledgement_is_lost() {
    let (bed, log) = bed();
    bed.topic("in", 4).await;
    bed.send_records(records([""; 200])).await;
    log.faults().lose_acks(5, true);
    bed.run(&[at_most_once()]).await;
    let status = bed.drained("s").await;
    let out = keys(&bed, "out").await;
    assert_eq!((out.len(), distinct(&out)), (200, 200));
    assert_eq!((status.done, status.failed), (195, 5));
    assert_eq!(bed.events.count(|event| matches!(event, Event::Skipped { .. })), 5);
}

#[tokio::test(start_paused = true)]
async fn what_no_topic_takes_is_a_dead_letter_and_the_others_are_sent_once() {
    let (bed, _) = bed();
    bed.topic("in", 1).await;
    bed.send_records(records(["", "big", "", "big", ""])).await;
    bed.run(&[at_most_once()]).await;
    let status = bed.drained("s").await;
    let (out, mut dead) = (keys(&bed, "out").await, keys(&bed, DEAD).await);
    assert_eq!((out.len(), distinct(&out)), (3, 3), "{out:?}");
    dead.sort();
    assert_eq!(dead, ["r001", "r003"]);
    assert_eq!((status.done, status.failed), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn partitions_that_move_repeat_nothing() {
    let (bed, log) = bed();
    let plan = at_most_once();
    bed.run(std::slice::from_ref(&plan)).await;
    let other = bed.beside("two", vec![Factory::records::<Doer>()]);
    for n in 0..6 {
        let records = (0..100).map(|m| {
            let key = format!("d{}", n * 100 + m);
            OutgoingRecord::new(topic("in"), Some(key.into()), Some(Bytes::from_static(b"slow:5")))
        });
        bed.send_records(records.collect()).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
        match n {
            1 => other.apply(std::slice::from_ref(&plan)),
            3 => assert!(log.expire("one") > 0),
            _ => {}
        }
    }
    until("all to be drained", || {
        let statuses = [bed.status("s"), other.status("s")];
        let owned: usize = statuses.iter().map(|status| status.partitions.len()).sum();
        (statuses.iter().all(|status| status.drained) && owned == 4).then_some(())
    })
    .await;
    let out = keys(&bed, "out").await;
    assert_eq!(out.len(), distinct(&out));
    assert!(out.len() > 250, "far too many are lost: {} of 600 are there", out.len());
}

#[tokio::test]
async fn the_same_holds_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(&folder.path().join("log.db"), Options::default()).await.unwrap();
    let log: Arc<dyn Log> = Arc::new(log);
    let bed = Bed::with(log, vec![Factory::records::<Doer>()], Layers::new());
    bed.topic("in", 4).await;
    bed.send_records(records([""; 300])).await;
    bed.run(&[at_most_once()]).await;
    let status = bed.drained("s").await;
    let out = keys(&bed, "out").await;
    assert_eq!((out.len(), distinct(&out), status.done), (300, 300, 300));
    bed.instance.stop(Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_would_stand_still_is_refused() {
    let (bed, _) = bed();
    let rate = Some(FailureRate { percent: 20.0, last: 10 });
    bed.run(&[StepPlan { on_exhausted: OnExhausted::Pause, stop_at_failure_rate: rate, ..at_most_once() }]).await;
    let error = bed.state("s", StepState::Failed).await.last_error;
    assert!(error.contains("AT_MOST_ONCE contradicts on_exhausted PAUSE"), "{error}");
    assert!(error.contains("AT_MOST_ONCE is not supported yet with stop_at_failure_rate"), "{error}");
}
