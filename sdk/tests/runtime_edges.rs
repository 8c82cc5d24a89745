//! Rare turns of the runtime: partitions that go and come back while something of
//! them is open, offsets beyond the end, pauses and stops at bad moments.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bed::*;
use pipedoc_model::headers;
use pipedoc_model::names::ClusterName;
use pipedoc_model::step::{Batch, ControlState, StepPlan, StepType};
use pipedoc_proto::PipeDoc;
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::{Connector, Step};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Commit, Log, OutgoingRecord, TopicPartition, TopicSettings};
use pipedoc_transport::memory::MemoryLog;
use tokio::sync::Notify;

fn bed() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    let more = vec![Factory::records::<Pipes>(), Factory::connector::<Twice>()];
    (Bed::with(Arc::new(log.clone()), more, Layers::new()), log)
}

async fn topics(bed: &Bed, partitions: i32) {
    for name in ["in", "out", DEAD] {
        bed.topic(name, partitions).await;
    }
}

fn pipes() -> StepPlan {
    let mut plan = plan("s");
    plan.module = "pipes".parse().unwrap();
    plan
}

fn plain(key: &str) -> OutgoingRecord {
    OutgoingRecord::new(topic("in"), Some(key.to_owned().into()), Some("x".into()))
}

fn to_partition(partition: i32, doc: &PipeDoc) -> OutgoingRecord {
    OutgoingRecord { partition: Some(partition), ..record("in", doc) }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_was_lost_while_it_piped_goes_on_when_it_returns() {
    let (bed, log) = bed();
    topics(&bed, 1).await;
    log.faults().hold_acks();
    bed.apply(&[pipes()]);
    drop(log.producer(Default::default()).await.unwrap().send(vec![plain("a")]).await.unwrap());
    bed.await_records("out", 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(log.expire("one"), 1);
    until("the loss", || bed.events.all().iter().any(|event| matches!(event, Event::Lost(_))).then_some(())).await;
    log.faults().release_acks();
    bed.await_records("out", 2).await;
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn a_batchs_dead_letter_that_was_not_acknowledged_is_sent_again() {
    let (bed, log) = bed();
    topics(&bed, 1).await;
    bed.send_records(vec![plain("poison"), plain("a")]).await;
    log.faults().fail_acks(1, true);
    bed.apply(&[pipes()]);
    bed.await_records(DEAD, 1).await;
    assert_eq!(bed.await_records("out", 1).await[0].key(), "a");
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_bad_document_of_its_key_in_a_batch_is_worked_on_after_it() {
    let (bed, _) = bed();
    topics(&bed, 1).await;
    let keyed = |id: &str, title: &str| OutgoingRecord { key: Some("k".into()), ..record("in", &doc(id, title)) };
    bed.send_records(vec![keyed("first", "bad"), keyed("second", ""), keyed("third", "")]).await;
    let mut plan = plan("s");
    plan.batch = Some(Batch { records: 3, bytes: 1 << 20, wait: Duration::from_millis(50) });
    bed.apply(&[plan]);
    bed.await_records(DEAD, 1).await;
    let out: Vec<String> = bed.await_records("out", 2).await.iter().map(|read| read.doc().id).collect();
    assert_eq!(out, ["second", "third"]);
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn what_shares_a_batch_with_something_lost_has_not_failed() {
    let (bed, log) = bed();
    // Each topic stands in a group of two partitions, of which one will be taken away.
    topics(&bed, 2).await;
    let mut plan = plan("s");
    plan.retries.attempts = 1;
    plan.revoke_grace = Duration::from_millis(200);
    plan.batch = Some(Batch { records: 2, bytes: 1 << 20, wait: Duration::from_secs(1) });
    let keyed = |partition, id: &str| OutgoingRecord {
        key: Some("k".into()),
        ..to_partition(partition, &doc(id, "slow:3000"))
    };
    bed.send_records(vec![keyed(0, "zero"), keyed(1, "one")]).await;
    bed.apply(std::slice::from_ref(&plan));
    until("both to be open", || (bed.status("s").in_flight == 2).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = bed.beside("two", Vec::new());
    other.apply(&[plan]);
    until("a move", || bed.events.all().iter().any(|event| matches!(event, Event::Revoked(_))).then_some(())).await;
    let mut out: Vec<String> = bed.await_records("out", 2).await.iter().map(|read| read.doc().id).collect();
    out.sort();
    assert_eq!(out, ["one", "zero"]);
    assert_eq!(bed.read(DEAD).await.len(), 0, "nothing was wrong with any document");
    drop(log);
}

#[tokio::test(start_paused = true)]
async fn a_step_paused_while_a_batch_fills_sleeps() {
    let (bed, _) = bed();
    topics(&bed, 1).await;
    let mut plan = plan("s");
    plan.batch = Some(Batch { records: 10, bytes: 1 << 20, wait: Duration::from_secs(5) });
    bed.apply(std::slice::from_ref(&plan));
    bed.send("in", [doc("a", "")]).await;
    until("a delivery", || (bed.status("s").in_flight == 1).then_some(())).await;
    plan.control = ControlState::Paused;
    bed.apply(std::slice::from_ref(&plan));
    // Paused time passes only while everything sleeps.
    let (bark, barked) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(60));
        let _ = bark.send(());
    });
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(60)) => {}
        _ = barked => panic!("the step never sleeps"),
    }
    plan.control = ControlState::Running;
    bed.apply(&[plan]);
    bed.await_records("out", 1).await;
}

#[tokio::test(start_paused = true)]
async fn reading_that_begins_again_at_the_start_takes_every_record() {
    let (bed, log) = bed();
    topics(&bed, 1).await;
    bed.send("in", ["a", "b", "c"].map(|id| doc(id, ""))).await;
    let plan = plan("s");
    let source = TopicPartition::new(topic("in"), 0);
    log.set_group_offsets(&plan.group, &[Commit { source, offset: 1000, metadata: String::new() }]).await.unwrap();
    bed.apply(std::slice::from_ref(&plan));
    assert_eq!(bed.await_records("out", 3).await.len(), 3);
    bed.drained("s").await;
    assert_eq!(bed.committed(&plan).await[&0], 3);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_returns_before_its_grace_is_over_is_worked_on() {
    let (bed, _) = bed();
    topics(&bed, 4).await;
    let mut plan = plan("s");
    plan.revoke_grace = Duration::from_secs(60);
    plan.timeout = Duration::from_secs(60);
    bed.send_records((0..4).map(|n| to_partition(n, &doc(&format!("slow-{n}"), "slow:20000"))).collect()).await;
    bed.apply(std::slice::from_ref(&plan));
    until("all to be at work", || (bed.status("s").in_flight == 4).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let other = bed.beside("two", Vec::new());
    other.apply(std::slice::from_ref(&plan));
    // The log takes the partitions away when the session timeout is over.
    until("the other to own", || (other.status("s").partitions.len() == 2).then_some(())).await;
    other.instance.stop(Duration::ZERO).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    bed.send_records((0..4).map(|n| to_partition(n, &doc(&format!("quick-{n}"), ""))).collect()).await;
    until("all to be worked on", || {
        let done = bed.events.all().into_iter().filter_map(|event| match event {
            Event::Done { document, .. } => Some(document),
            _ => None,
        });
        (done.filter(|document| document.starts_with("quick")).count() == 4).then_some(())
    })
    .await;
    bed.drained("s").await;
}

/// Counts how many documents it works on at once.
struct Crowd;

static INSIDE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

impl Module for Crowd {
    type Config = Nothing;
    const NAME: &'static str = "crowd";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        MOST.fetch_max(INSIDE.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        Ok(doc.into())
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_documents_are_at_work_at_once_as_the_step_says_and_no_more() {
    let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::module::<Crowd>()], Layers::new());
    topics(&bed, 2).await;
    bed.send("in", (0..20).map(|n| doc(&format!("d{n}"), ""))).await;
    bed.apply(&[StepPlan { module: "crowd".parse().unwrap(), concurrency: 3, ..plan("s") }]);
    bed.await_records("out", 20).await;
    assert_eq!(MOST.load(Ordering::SeqCst), 3);
}

/// Panics when its work is dropped.
struct Brittle;

struct Glass;

impl Drop for Glass {
    fn drop(&mut self) {
        panic!("it broke");
    }
}

impl Module for Brittle {
    type Config = Nothing;
    const NAME: &'static str = "brittle";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, _: PipeDoc, _: &Step) -> Result<Output> {
        let _glass = Glass;
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_panics_when_it_is_late_is_the_documents_own_failure() {
    let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::module::<Brittle>()], Layers::new());
    topics(&bed, 1).await;
    bed.send("in", [doc("a", "")]).await;
    bed.apply(&[StepPlan { module: "brittle".parse().unwrap(), ..plan("s") }]);
    let letter = bed.await_records(DEAD, 1).await.remove(0);
    assert_eq!(letter.header(headers::ERROR_TYPE), Some("panic"));
    assert_eq!(letter.header(headers::SOURCE_ATTEMPTS), Some("1"), "it is permanent");
    assert!(letter.header(headers::ERROR_MESSAGE).unwrap().contains("it broke"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_kept_while_a_changed_step_finishes() {
    let (bed, _) = bed();
    topics(&bed, 1).await;
    let mut plan = plan("s");
    plan.timeout = Duration::from_secs(3600);
    bed.send("in", [doc("a", "hang")]).await;
    bed.apply(std::slice::from_ref(&plan));
    until("work", || (bed.status("s").in_flight == 1).then_some(())).await;
    plan.concurrency = 3;
    bed.apply(&[plan]);
    bed.state("s", StepState::Stopping).await;
    let begun = tokio::time::Instant::now();
    bed.instance.stop(Duration::from_secs(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// Gives a document that its topic has come to refuse, and then a newer version
/// of the same one.
struct Twice;

static READY: Notify = Notify::const_new();
static GO: Notify = Notify::const_new();

impl Connector for Twice {
    type Config = Nothing;
    const NAME: &'static str = "twice";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn run(&self, _: &Step, out: &Emitter, _: &State) -> Result<()> {
        out.send(doc("warm", ""), Vec::new()).await?.await?;
        READY.notify_one();
        GO.notified().await;
        let big = PipeDoc { body: "x".repeat(20_000), ..doc("k", "") };
        out.send(big, vec![("k".to_owned(), Some("1".into()))]).await?;
        out.send(PipeDoc { version: 2, ..doc("k", "") }, vec![("k".to_owned(), Some("2".into()))]).await?;
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_document_refused_is_not_written_over_that_of_its_successor() {
    let (bed, _) = bed();
    let mut plan = plan("s");
    plan.step_type = StepType::Connector;
    plan.module = "twice".parse().unwrap();
    plan.inputs = Vec::new();
    plan.state = Some(plan.id.state_topic(&ClusterName::new("test").unwrap()));
    bed.run(&[plan]).await;
    READY.notified().await;
    bed.topic_with("out", 4, TopicSettings { max_message_bytes: Some(2000), ..TopicSettings::default() }).await;
    GO.notify_one();
    bed.state("s", StepState::Completed).await;
    assert_eq!(bed.read(DEAD).await.len(), 1);
    let state = bed.read("test.p.s.state").await;
    let values: Vec<&[u8]> = state.iter().map(|read| read.record.value.as_deref().unwrap()).collect();
    assert_eq!(values, [b"1", b"2"]);
}
