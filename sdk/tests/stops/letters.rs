//! Records that are given up on and too large for their dead letter topic even without
//! their values, through their headers or keys alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::step::{Delivery, StepPlan, StepType};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{PauseReason, StepState};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{OutgoingRecord, TopicSettings};
use pipedoc_transport::memory::MemoryLog;

use crate::bed::*;

const LARGE: usize = 1_300_000;

/// Pipes records on, and fails for good at those whose key begins with `bad`.
struct Choosy;

impl RecordModule for Choosy {
    type Config = Nothing;
    const NAME: &'static str = "choosy";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        for record in &batch.records {
            if record.key.as_deref().is_some_and(|key| key.starts_with(b"bad")) {
                return Err(Error::permanent("broken"));
            }
            drop(context.pipe(record, "out"));
            context.mark_as_consumed(record)?;
        }
        Ok(())
    }
}

fn taking(bytes: i32) -> TopicSettings {
    TopicSettings { max_message_bytes: Some(bytes), ..TopicSettings::default() }
}

async fn bed() -> Bed {
    let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::records::<Choosy>()], Layers::new());
    bed.topic_with("in", 2, taking(5_000_000)).await;
    bed.topic("out", 2).await;
    bed.topic(DEAD, 2).await;
    bed
}

/// A document of a partition; one whose id begins with `bad` is given up on by any module.
fn one(partition: i32, id: &str) -> OutgoingRecord {
    let title = if id.starts_with("bad") { "bad" } else { "" };
    OutgoingRecord { partition: Some(partition), ..record("in", &doc(id, title)) }
}

/// One that is given up on, and whose header is larger than a dead letter may be.
fn large() -> OutgoingRecord {
    let mut record = one(0, "bad");
    record.headers.append("large", Some(Bytes::from(vec![b'x'; LARGE])));
    record
}

fn plan_of(module: &str, delivery: Delivery) -> StepPlan {
    StepPlan { module: module.parse().unwrap(), delivery, ..plan("s") }
}

async fn keys(bed: &Bed) -> Vec<String> {
    let mut keys: Vec<String> = bed.read("out").await.iter().map(Read::key).collect();
    keys.sort();
    keys
}

fn tells_all(error: &str) -> bool {
    ["in[0]@1", "key and headers", "1300", "1048588", DEAD, "max.message.bytes", "on_exhausted: SKIP", "resume"]
        .iter()
        .all(|part| error.contains(part))
}

#[tokio::test(start_paused = true)]
async fn a_partition_stands_still_at_what_no_dead_letter_holds_until_there_is_room() {
    for module in ["actor", "choosy"] {
        for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
            let (bed, plan) = (bed().await, plan_of(module, delivery));
            bed.apply(std::slice::from_ref(&plan));
            bed.send_records(vec![one(0, "a")]).await;
            bed.await_records("out", 1).await;
            bed.send_records(vec![large()]).await;
            let status = until("the pause", || {
                let status = bed.status("s");
                (!status.paused.is_empty()).then_some(status)
            })
            .await;
            let [paused] = &status.paused[..] else { panic!("{:?}", status.paused) };
            assert_eq!((paused.partition.partition, paused.offset), (0, Some(1)), "{module} {delivery:?}");
            assert_eq!((paused.reason, paused.document.as_str()), (PauseReason::Exhausted, "bad"));
            assert!(tells_all(&paused.error), "{}", paused.error);
            assert!(tells_all(&status.last_error), "{}", status.last_error);
            assert_eq!(status.state, StepState::Running);
            // Others go on.
            bed.send_records(vec![one(0, "c"), one(1, "y"), one(1, "z")]).await;
            bed.await_records("out", 3).await;
            tokio::time::sleep(Duration::from_secs(40)).await;
            let out = keys(&bed).await;
            assert!(out.contains(&"y".to_owned()) && out.contains(&"z".to_owned()), "{out:?}");
            assert_eq!((bed.read(DEAD).await.len(), bed.status("s").failed), (0, 0), "{module} {delivery:?}");
            assert!(bed.committed(&plan).await.get(&0).is_none_or(|offset| *offset <= 1), "nothing is lost");
            // Nothing has changed: it stands still again.
            let again = |event: &Event| matches!(event, Event::PartitionPaused(paused) if paused.document == "bad");
            assert!(bed.instance.resume(&plan.id));
            until("another pause", || (bed.events.count(again) == 2).then_some(())).await;
            until("it to be shown again", || (!bed.status("s").paused.is_empty()).then_some(())).await;
            bed.topic_with(DEAD, 2, taking(2_000_000)).await;
            assert!(bed.instance.resume(&plan.id));
            let letters = bed.await_records(DEAD, 1).await;
            let status = bed.drained("s").await;
            assert_eq!((letters.len(), status.failed, status.paused.len()), (1, 1, 0), "{module} {delivery:?}");
            let sent = large();
            assert_eq!((letters[0].record.key.clone(), letters[0].record.value.clone()), (sent.key, sent.value));
            assert_eq!(letters[0].header("large").map(str::len), Some(LARGE));
            let mut out = keys(&bed).await;
            if delivery == Delivery::AtLeastOnce {
                out.dedup();
            }
            assert_eq!(out, ["a", "c", "y", "z"], "{module} {delivery:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_the_log_refuses_is_not_lost() {
    for module in ["actor", "choosy"] {
        for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce, Delivery::AtMostOnce] {
            let (bed, plan) = (bed().await, plan_of(module, delivery));
            bed.topic_with(DEAD, 2, taking(5_000_000)).await;
            bed.send_records(vec![one(0, "bad-first")]).await;
            bed.apply(std::slice::from_ref(&plan));
            bed.await_records(DEAD, 1).await;
            // Less than the step believes that it takes.
            bed.topic_with(DEAD, 2, taking(1_048_588)).await;
            bed.send_records(vec![large()]).await;
            until("the refusal", || bed.status("s").last_error.contains("is too large for").then_some(())).await;
            bed.send_records(vec![one(0, "a"), one(1, "z")]).await;
            tokio::time::sleep(Duration::from_secs(40)).await;
            assert_eq!(bed.read(DEAD).await.len(), 1, "{module} {delivery:?}");
            if delivery == Delivery::AtMostOnce {
                assert_eq!(bed.drained("s").await.failed, 2, "{module}");
                continue;
            }
            bed.topic_with(DEAD, 2, taking(2_000_000)).await;
            assert!(bed.instance.resume(&plan.id));
            let letters = bed.await_records(DEAD, 2).await;
            assert_eq!((letters.len(), bed.drained("s").await.failed), (2, 2), "{module} {delivery:?}");
            assert_eq!(keys(&bed).await, ["a", "z"], "{module} {delivery:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_and_fits_no_dead_letter_is_told_and_counted() {
    for module in ["actor", "choosy"] {
        let (bed, plan) = (bed().await, plan_of(module, Delivery::AtMostOnce));
        bed.apply(std::slice::from_ref(&plan));
        bed.send_records(vec![one(0, "a")]).await;
        bed.await_records("out", 1).await;
        bed.send_records(vec![large()]).await;
        until("the failure", || (bed.status("s").failed == 1).then_some(())).await;
        bed.send_records(vec![one(0, "c"), one(1, "z")]).await;
        bed.await_records("out", 3).await;
        let status = bed.drained("s").await;
        assert_eq!((status.done, status.failed, status.paused.len()), (3, 1, 0), "{module}");
        assert!(tells_all(&status.last_error), "{}", status.last_error);
        let told = |event: &Event| matches!(event, Event::Skipped { document, error } if document == "bad" && tells_all(error));
        assert_eq!((bed.events.count(told), bed.read(DEAD).await.len()), (1, 0), "{module}");
        assert_eq!(keys(&bed).await, ["a", "c", "z"], "{module}");
    }
}

/// Gives a document whose id is too large for any record of a topic as it is by default,
/// and a small one.
struct Vast;

impl Connector for Vast {
    type Config = Nothing;
    const NAME: &'static str = "vast";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn run(&self, _: &Step, out: &Emitter, _: &State) -> Result<()> {
        for id in ["x".repeat(LARGE), "small".to_owned()] {
            out.send(doc(&id, ""), Vec::new()).await?.await?;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_stands_still_at_what_no_dead_letter_holds_until_there_is_room() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::connector::<Vast>()], Layers::new());
        let plan = plan_of("vast", delivery);
        let state = plan.id.state_topic(&plan.cluster);
        let plan = StepPlan { step_type: StepType::Connector, inputs: Vec::new(), state: Some(state), ..plan };
        bed.run(std::slice::from_ref(&plan)).await;
        let status = bed.state("s", StepState::Paused).await;
        let [paused] = &status.paused[..] else { panic!("{:?}", status.paused) };
        assert!(paused.error.starts_with("document xxx") && paused.error.len() < 2_000, "{}", paused.error.len());
        for part in ["cannot become a dead letter", "key and headers", "max.message.bytes", "is too large for topic"] {
            assert!(paused.error.contains(part), "{delivery:?} {part}: {}", paused.error);
        }
        assert!(paused.document.len() < 300, "{}", paused.document.len());
        assert_eq!((bed.read(DEAD).await.len(), status.failed), (0, 0), "{delivery:?}");
        bed.topic_with(DEAD, 4, taking(8_000_000)).await;
        assert!(bed.instance.resume(&plan.id));
        let letters = bed.await_records(DEAD, 1).await;
        assert_eq!(letters[0].key().len(), LARGE);
        bed.state("s", StepState::Completed).await;
        assert_eq!(keys(&bed).await, ["small"], "{delivery:?}");
    }
}
