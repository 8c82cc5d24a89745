//! Bad moments that a step must come out of in order: closes that never end,
//! panics outside of modules, batches with one bad document, refusals that come
//! late, partitions lost while something is tried again.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bed::*;
use parking_lot::Mutex;
use pipedoc_model::names::{Generation, StepId};
use pipedoc_model::step::Batch;
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Bounds, Instance, InstanceConfig, StepState};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord, TopicSettings};
use pipedoc_transport::memory::MemoryLog;

async fn topics(bed: &Bed, partitions: i32) {
    for name in ["in", "out", DEAD] {
        bed.topic(name, partitions).await;
    }
}

fn keyed(key: &str, id: &str, title: &str) -> OutgoingRecord {
    OutgoingRecord { key: Some(key.to_owned().into()), ..record("in", &doc(id, title)) }
}

fn instance(
    log: &MemoryLog,
    data: &std::path::Path,
    observer: Arc<dyn Observer>,
    factories: Vec<Factory>,
) -> InstanceConfig {
    InstanceConfig {
        log: Arc::new(log.clone()),
        objects: Arc::new(pipedoc_transport::objects::Objects::local(&data.join("objects")).unwrap()),
        id: "one".to_owned(),
        data: data.to_owned(),
        factories,
        observer,
        layers: Layers::new(),
    }
}

/// Never closes.
struct Clingy;

impl Module for Clingy {
    type Config = Nothing;
    const NAME: &'static str = "clingy";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        Ok(doc.into())
    }

    async fn close(self) {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_that_never_closes_is_let_go_and_status_says_so() {
    let log = MemoryLog::new();
    let bed = Bed::with(Arc::new(log), vec![Factory::module::<Clingy>()], Layers::new());
    let mut plan = plan("s");
    plan.module = "clingy".parse().unwrap();
    bed.run(std::slice::from_ref(&plan)).await;
    bed.send("in", [doc("a", "")]).await;
    bed.await_records("out", 1).await;
    plan.concurrency = 3;
    bed.apply(std::slice::from_ref(&plan));
    until("the close to be let go", || bed.status("s").last_error.contains("close had not ended").then_some(())).await;
    bed.send("in", [doc("b", "")]).await;
    bed.await_records("out", 2).await;
    let begun = tokio::time::Instant::now();
    bed.instance.stop(Duration::from_secs(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_dropped_gives_its_steps_up() {
    let log = MemoryLog::new();
    let bed = Bed::over(Arc::new(log.clone()));
    topics(&bed, 2).await;
    bed.apply(&[plan("s")]);
    until("ownership", || (bed.status("s").partitions.len() == 2).then_some(())).await;
    let other = bed.beside("two", Vec::new());
    drop(bed);
    other.apply(&[plan("s")]);
    until("the other to own", || (other.status("s").partitions.len() == 2).then_some(())).await;
}

/// Panics at the first document that is done.
#[derive(Default)]
struct Jumpy {
    has_panicked: AtomicBool,
    done: Mutex<Vec<String>>,
}

impl Observer for Jumpy {
    fn event(&self, _: &StepId, event: &Event) {
        if let Event::Done { document, .. } = event {
            assert!(self.has_panicked.swap(true, Ordering::Relaxed), "an observer's own fault");
            self.done.lock().push(document.clone());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_panics_shows_it_as_failed_and_begins_again() {
    let log = MemoryLog::new();
    let bed = Bed::over(Arc::new(log.clone()));
    topics(&bed, 1).await;
    bed.send("in", [doc("a", ""), doc("b", "slow:50")]).await;
    let (data, observer) = (tempfile::tempdir().unwrap(), Arc::new(Jumpy::default()));
    let config = instance(&log, data.path(), observer.clone(), vec![Factory::module::<Actor>()]);
    let instance = Instance::start(config);
    instance.apply(Generation(1), vec![plan("s")]);
    let failed = until("the failure", || {
        let status = instance.status().remove(0);
        (status.state == StepState::Failed).then_some(status)
    })
    .await;
    assert!(failed.last_error.contains("the step panicked: an observer's own fault"), "{}", failed.last_error);
    assert_eq!((failed.in_flight, failed.partitions.len()), (0, 0));
    until("both to be done", || (observer.done.lock().len() >= 2).then_some(())).await;
    assert_eq!(instance.status().remove(0).state, StepState::Running);
    instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn documents_of_one_key_in_a_batch_are_worked_on_one_after_the_other() {
    let (bed, _) = Bed::memory();
    topics(&bed, 1).await;
    let mut plan = plan("s");
    plan.outputs[0].key = Some("'all'".to_owned());
    plan.batch = Some(Batch { records: 20, bytes: 1 << 20, wait: Duration::from_millis(50) });
    // Earlier ones are slower; the module refuses two of one `source_uri` at once.
    let records = (0..20).map(|n| {
        let key = format!("key-{}", n % 4);
        let doc =
            PipeDoc { source_uri: key.clone(), part: n, ..doc(&format!("{n:02}"), &format!("slow:{}", 40 - 2 * n)) };
        OutgoingRecord { key: Some(key.into()), ..record("in", &doc) }
    });
    bed.send_records(records.collect()).await;
    bed.apply(&[plan]);
    let read = bed.await_records("out", 20).await;
    assert_eq!(bed.read(DEAD).await.len(), 0, "no key was at work twice");
    for (key, order) in last_deliveries(&read) {
        assert!(order.is_sorted(), "{key}: {order:?}");
    }
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn a_document_that_fails_its_batch_falls_alone() {
    let (bed, _) = Bed::memory();
    topics(&bed, 1).await;
    let mut plan = plan("s");
    plan.timeout = Duration::from_secs(1);
    plan.batch = Some(Batch { records: 5, bytes: 1 << 20, wait: Duration::from_millis(50) });
    let docs = [("a", ""), ("b", "panic"), ("c", "hang"), ("d", ""), ("e", "")];
    bed.send_records(docs.iter().map(|(id, title)| keyed(id, id, title)).collect()).await;
    bed.apply(&[plan]);
    let mut dead: Vec<String> = bed.await_records(DEAD, 2).await.iter().map(Read::key).collect();
    dead.sort();
    assert_eq!(dead, ["b", "c"]);
    bed.drained("s").await;
    let mut out: Vec<String> = bed.read("out").await.iter().map(Read::key).collect();
    out.sort();
    assert_eq!(out, ["a", "d", "e"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_follows_an_earlier_one_of_its_key_that_was_refused_late() {
    let (bed, log) = Bed::memory();
    topics(&bed, 1).await;
    let small = TopicSettings { max_message_bytes: Some(3000), ..TopicSettings::default() };
    let mut plan = plan("s");
    plan.claim_threshold = 1 << 20;
    bed.apply(std::slice::from_ref(&plan));
    // The limit as the step has come to know it is the old one: the log refuses late.
    bed.send("in", [doc("warm", "")]).await;
    bed.await_records("out", 1).await;
    bed.topic_with("out", 1, small).await;
    log.faults().hold_acks();
    let body = "x".repeat(20_000);
    let large = PipeDoc { body, ..doc("first", "") };
    let large = OutgoingRecord { key: Some("k".into()), ..record("in", &large) };
    let producer = log.producer(Default::default()).await.unwrap();
    drop(producer.send(vec![large, keyed("k", "second", "bad"), keyed("k", "third", "bad")]).await.unwrap());
    tokio::time::sleep(Duration::from_secs(2)).await;
    log.faults().release_acks();
    let dead: Vec<String> = bed.await_records(DEAD, 3).await.iter().map(|read| read.doc().id).collect();
    assert_eq!(dead, ["first", "second", "third"]);
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_lost_while_it_waits_to_be_read_anew_costs_no_connections() {
    let (bed, log) = Bed::memory();
    topics(&bed, 1).await;
    bed.apply(&[plan("s")]);
    bed.send("in", [doc("a", "")]).await;
    bed.await_records("out", 1).await;
    bed.drained("s").await;
    bed.send("in", [doc("b", "slow:200")]).await;
    log.faults().fail_sends(1, true);
    until("the failure", || bed.status("s").last_error.contains("sending for").then_some(())).await;
    // The session is over before reading goes back.
    log.expire("one");
    bed.await_records("out", 2).await;
    bed.drained("s").await;
    let anew = |event: &Event| matches!(event, Event::ConnectionsRenewed { .. });
    assert_eq!(bed.events.count(anew), 0, "{:?}", bed.events.all());
}

/// What each document was worked on, by id.
#[derive(Default)]
struct Counts(Mutex<BTreeMap<String, usize>>);

impl Observer for Counts {
    fn event(&self, _: &StepId, event: &Event) {
        if let Event::Done { document, .. } = event {
            *self.0.lock().entry(document.clone()).or_default() += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_behind_a_stuck_record_is_not_done_again_after_a_restart() {
    let log = MemoryLog::new();
    let bed = Bed::over(Arc::new(log.clone()));
    topics(&bed, 1).await;
    let mut records = vec![keyed("stuck", "stuck", "hang")];
    records.extend((0..200).map(|n| keyed(&format!("k{}", n % 9), &format!("{n:03}"), "")));
    bed.send_records(records).await;
    let mut plan = plan("s");
    plan.timeout = Duration::from_secs(3600);
    let counts = Arc::new(Counts::default());
    for round in 0..3 {
        let data = tempfile::tempdir().unwrap();
        let config = instance(&log, data.path(), counts.clone(), vec![Factory::module::<Actor>()]);
        let instance = Instance::start(config);
        instance.apply(Generation(1), vec![plan.clone()]);
        until("the others to be done", || (counts.0.lock().len() >= 200).then_some(())).await;
        // One commit later it is gone: by an orderly stop, by a lost session, by a stop.
        tokio::time::sleep(Duration::from_secs(3)).await;
        if round == 1 {
            log.expire("one");
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert_eq!(instance.status()[0].in_flight, 1, "only the stuck one is open");
        instance.stop(Duration::ZERO).await;
    }
    assert!(counts.0.lock().values().all(|times| *times == 1), "{:?}", counts.0.lock());
    let committed = log.group_offsets(&plan.group).await.unwrap();
    let committed = committed.values().next().unwrap();
    assert_eq!(committed.offset, 0);
    assert!(committed.metadata.len() < 16, "{}", committed.metadata);
}

#[tokio::test(start_paused = true)]
async fn metadata_of_another_program_is_ignored() {
    let (bed, log) = Bed::memory();
    topics(&bed, 1).await;
    bed.send("in", ["a", "b", "c"].map(|id| doc(id, ""))).await;
    let plan = plan("s");
    let source = pipedoc_transport::log::TopicPartition::new(topic("in"), 0);
    let commit = pipedoc_transport::log::Commit { source, offset: 1, metadata: "bm90IG91cnM=".to_owned() };
    log.set_group_offsets(&plan.group, &[commit]).await.unwrap();
    bed.apply(&[plan]);
    let mut out: Vec<String> = bed.await_records("out", 2).await.iter().map(Read::key).collect();
    out.sort();
    assert_eq!(out, ["b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn where_reading_begins_is_written_down_at_once() {
    let (bed, log) = Bed::memory();
    topics(&bed, 2).await;
    log.faults().hold_acks();
    bed.apply(&[plan("s")]);
    let begun = tokio::time::Instant::now();
    let deadline = begun + Duration::from_secs(5);
    while bed.committed(&plan("s")).await.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", bed.committed(&plan("s")).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(bed.committed(&plan("s")).await, BTreeMap::from([(0, 0), (1, 0)]));
}

#[tokio::test(start_paused = true)]
async fn no_more_is_open_than_the_window_allows_in_records_and_in_bytes() {
    for (bounds, size, most) in [
        (Bounds { records: 40, bytes: 64 << 20 }, 10, 40 + 2 - 1),
        (Bounds { records: 10_000, bytes: 64 << 10 }, 1000, 65 + 1),
    ] {
        let log = MemoryLog::new();
        let bed = Bed::over(Arc::new(log.clone()));
        topics(&bed, 1).await;
        let value = |id: &str| PipeDoc { body: "x".repeat(size), ..doc(id, "hang") };
        bed.send("in", (0..2000).map(|n| value(&format!("{n:04}")))).await;
        let data = tempfile::tempdir().unwrap();
        let config = instance(&log, data.path(), Arc::new(Counts::default()), vec![Factory::module::<Actor>()]);
        let instance = Instance::start_within(config, bounds);
        instance.apply(Generation(1), vec![plan("s")]);
        let mut highest = 0;
        for _ in 0..1000 {
            highest = highest.max(instance.status()[0].in_flight);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        assert!(highest > most / 2 && highest <= most, "{highest} of {most} with {bounds:?}");
        instance.stop(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_is_remembered_behind_a_stuck_record_than_the_window_allows() {
    let log = MemoryLog::new();
    let bed = Bed::over(Arc::new(log.clone()));
    topics(&bed, 1).await;
    let mut records = vec![keyed("stuck", "stuck", "hang")];
    records.extend((0..3000).map(|n| keyed(&format!("k{}", n % 9), &format!("{n:04}"), "")));
    bed.send_records(records).await;
    let (data, counts) = (tempfile::tempdir().unwrap(), Arc::new(Counts::default()));
    let config = instance(&log, data.path(), counts.clone(), vec![Factory::module::<Actor>()]);
    let instance = Instance::start_within(config, Bounds { records: 40, bytes: 1 << 20 });
    let mut plan = plan("s");
    plan.timeout = Duration::from_secs(3600);
    instance.apply(Generation(1), vec![plan]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let done = counts.0.lock().len();
    assert!((390..=410).contains(&done), "{done} were done behind the stuck one");
    instance.stop(Duration::ZERO).await;
}
