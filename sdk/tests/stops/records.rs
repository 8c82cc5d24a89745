//! Partitions of record modules that stand still: `on_exhausted: PAUSE` and
//! `stop_at_failure_rate`, at least once and exactly once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::step::{ControlState, Delivery, FailureRate, OnExhausted, StepPlan};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{PauseReason, StepState};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

use crate::bed::*;

/// Pipes and marks records one by one, and fails for good at those whose value begins
/// with `bad`, until that is mended.
struct Mendable(Config);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Whether each record has a transaction of its own.
    exact: bool,
}

/// Takes a while for each batch, and fails for good at records whose key begins with `bad`.
struct Slow;

impl RecordModule for Slow {
    type Config = Nothing;
    const NAME: &'static str = "slow";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, _: &RecordContext) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let is_bad = |record: &Record| record.key.as_deref().is_some_and(|key| key.starts_with(b"bad"));
        if batch.records.iter().any(is_bad) { Err(Error::permanent("broken")) } else { Ok(()) }
    }
}

static MENDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl RecordModule for Mendable {
    type Config = Config;
    const NAME: &'static str = "mendable";

    async fn open(config: Config, _: &Step) -> Result<Self> {
        Ok(Self(config))
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        for record in &batch.records {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            if value.starts_with("bad") && !MENDED.lock().contains(&value) {
                return Err(Error::permanent(format!("{value} is broken")));
            }
            if self.0.exact {
                let written = context.transaction(|tx| async move {
                    tx.pipe(record, "out").await?;
                    tx.mark_as_consumed(record)
                });
                written.await?;
            } else {
                drop(context.pipe(record, "out"));
                context.mark_as_consumed(record)?;
            }
        }
        Ok(())
    }
}

async fn bed_over(log: Arc<dyn Log>) -> Bed {
    let bed = Bed::with(log, vec![Factory::records::<Mendable>()], Layers::new());
    for name in ["in", "out", DEAD] {
        bed.topic(name, 2).await;
    }
    bed
}

async fn bed() -> Bed {
    bed_over(Arc::new(MemoryLog::new())).await
}

fn pausing(delivery: Delivery) -> StepPlan {
    StepPlan {
        module: "mendable".parse().unwrap(),
        on_exhausted: OnExhausted::Pause,
        config: serde_json::json!({"exact": delivery == Delivery::ExactlyOnce}),
        delivery,
        ..plan("s")
    }
}

fn records(partition: i32, records: &[(&str, &str)]) -> Vec<OutgoingRecord> {
    let one = |(key, value): &(&str, &str)| OutgoingRecord {
        partition: Some(partition),
        ..OutgoingRecord::new(topic("in"), Some((*key).to_owned().into()), Some((*value).to_owned().into()))
    };
    records.iter().map(one).collect()
}

async fn keys(bed: &Bed) -> Vec<String> {
    let mut keys: Vec<String> = bed.read("out").await.iter().map(Read::key).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// How it is whatever the log and the delivery; `bad` is a value of the test's own.
async fn stands_still_and_goes_on(bed: &Bed, delivery: Delivery, bad: &str) {
    let plan = pausing(delivery);
    bed.apply(std::slice::from_ref(&plan));
    bed.send_records(records(0, &[("a", ""), ("b", bad), ("c", "")])).await;
    let status = until("the pause", || {
        let status = bed.status("s");
        (!status.paused.is_empty()).then_some(status)
    })
    .await;
    let paused = &status.paused[0];
    assert_eq!((status.paused.len(), paused.partition.partition, paused.offset), (1, 0, Some(1)));
    assert_eq!((paused.reason, paused.document.as_str()), (PauseReason::Exhausted, "b"));
    assert_eq!((paused.error.clone(), status.state), (format!("{bad} is broken"), StepState::Running));
    bed.send_records(records(0, &[("d", "")])).await;
    bed.send_records(records(1, &[("z", "")])).await;
    until("the other partition", || (bed.status("s").done >= 1).then_some(())).await;
    until_async("z", async || keys(bed).await.contains(&"z".to_owned())).await;
    let out = keys(bed).await;
    assert!(!out.contains(&"b".to_owned()) && !out.contains(&"d".to_owned()), "something passed the bad one: {out:?}");
    assert!(!bed.status("s").drained);
    // It is tried again, and stands still again.
    assert!(bed.instance.resume(&plan.id));
    let again = |event: &Event| matches!(event, Event::PartitionPaused(paused) if paused.document == "b");
    until("another pause", || (bed.events.count(again) == 2).then_some(())).await;
    // Mended, an operator's pause and resume does the same.
    MENDED.lock().insert(bad.to_owned());
    bed.apply(&[StepPlan { control: ControlState::Paused, ..plan.clone() }]);
    bed.state("s", StepState::Paused).await;
    bed.apply(std::slice::from_ref(&plan));
    let status = bed.drained("s").await;
    assert_eq!((status.paused.len(), status.failed), (0, 0));
    assert_eq!(keys(bed).await, ["a", "b", "c", "d", "z"]);
    assert_eq!(bed.read(DEAD).await.len(), 0);
    assert_eq!((bed.committed(&plan).await[&0], bed.committed(&plan).await[&1]), ends(bed).await);
    assert!(bed.events.count(|event| matches!(event, Event::PartitionResumed { .. })) >= 2);
}

async fn ends(bed: &Bed) -> (i64, i64) {
    let ends = bed.log.ends(&topic("in")).await.unwrap();
    (ends[0].end, ends[1].end)
}

async fn until_async(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_stands_still_at_a_bad_record_and_goes_on_when_resumed() {
    stands_still_and_goes_on(&bed().await, Delivery::AtLeastOnce, "bad-once").await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_stands_still_and_goes_on_without_repeating_anything() {
    let bed = bed().await;
    stands_still_and_goes_on(&bed, Delivery::ExactlyOnce, "bad-exact").await;
    assert_eq!(bed.read("out").await.len(), 5, "each is there once");
}

#[tokio::test]
async fn the_same_holds_on_sqlite() {
    for (delivery, bad) in [(Delivery::AtLeastOnce, "bad-lite"), (Delivery::ExactlyOnce, "bad-lite-exact")] {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteLog::open(&folder.path().join("log.db"), Options::default()).await.unwrap();
        let bed = bed_over(Arc::new(log)).await;
        stands_still_and_goes_on(&bed, delivery, bad).await;
        bed.instance.stop(Duration::from_secs(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_stands_still_moves_at_once() {
    let (bed, plan) = (bed().await, pausing(Delivery::AtLeastOnce));
    bed.send_records(records(0, &[("a", ""), ("b", "bad-moves"), ("c", "")])).await;
    bed.apply(std::slice::from_ref(&plan));
    until("the pause", || (bed.status("s").paused.len() == 1).then_some(())).await;
    let begun = tokio::time::Instant::now();
    bed.instance.stop(Duration::from_secs(60)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    MENDED.lock().insert("bad-moves".to_owned());
    let other = bed.beside("two", vec![Factory::records::<Mendable>()]);
    other.apply(&[plan]);
    other.drained("s").await;
    let out: Vec<String> = bed.read("out").await.iter().map(Read::key).collect();
    assert_eq!(out, ["a", "b", "c"], "what was done stayed done");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_too_often_stands_still_before_it_fills_its_dead_letters() {
    for (delivery, bad) in [(Delivery::AtLeastOnce, "bad-rate"), (Delivery::ExactlyOnce, "bad-rate-exact")] {
        let bed = bed().await;
        let plan = StepPlan {
            on_exhausted: OnExhausted::DeadLetter,
            stop_at_failure_rate: Some(FailureRate { percent: 20.0, last: 20 }),
            ..pausing(delivery)
        };
        let names: Vec<(String, &str)> = (0..60).map(|n| (format!("r{n:02}"), if n < 30 { "" } else { bad })).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        bed.send_records(records(0, &pairs)).await;
        bed.apply(std::slice::from_ref(&plan));
        let status = bed.state("s", StepState::Paused).await;
        assert!(status.last_error.contains("4 of the last 20"), "{}", status.last_error);
        until("both to be shown", || (bed.status("s").paused.len() == 2).then_some(())).await;
        let paused = bed.status("s").paused;
        assert!(paused.iter().all(|paused| paused.reason == PauseReason::FailureRate), "{paused:?}");
        assert_eq!((paused[0].offset, paused[1].offset), (Some(33), None));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(bed.read(DEAD).await.len(), 3, "the fourth stopped it");
        assert_eq!(bed.events.count(|event| matches!(event, Event::FailureRateReached { .. })), 1);
        MENDED.lock().insert(bad.to_owned());
        bed.instance.resume(&plan.id);
        let status = bed.drained("s").await;
        assert_eq!((status.state, status.paused.len()), (StepState::Running, 0));
        assert_eq!((keys(&bed).await.len(), bed.read(DEAD).await.len()), (57, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_seldom_goes_on_though_its_transactions_come_late() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let log = Arc::new(MemoryLog::new());
        let bed = Bed::with(log, vec![Factory::records::<Slow>()], Layers::new());
        for name in ["in", "out", DEAD] {
            bed.topic(name, 1).await;
        }
        // So large that each is a batch of its own; so many that transactions come between.
        let large = bytes::Bytes::from(vec![b'x'; 600 << 10]);
        let one = |n: usize| {
            let key = format!("{}{n}", if n % 10 == 9 { "bad" } else { "good" });
            OutgoingRecord::new(topic("in"), Some(key.into()), Some(large.clone()))
        };
        bed.send_records((0..60).map(one).collect()).await;
        let plan = StepPlan {
            module: "slow".parse().unwrap(),
            stop_at_failure_rate: Some(FailureRate { percent: 20.0, last: 10 }),
            delivery,
            ..plan("s")
        };
        bed.apply(&[plan]);
        let ended = until("the end, or a stop", || {
            let status = bed.status("s");
            (status.done + status.failed == 60 || !status.paused.is_empty()).then_some(status)
        })
        .await;
        assert_eq!((ended.done, ended.failed, ended.paused.len()), (54, 6, 0), "{}", ended.last_error);
        assert_eq!(bed.read(DEAD).await.len(), 6, "{delivery:?}");
    }
}
