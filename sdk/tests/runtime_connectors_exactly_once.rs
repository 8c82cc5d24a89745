//! What connectors are promised under `delivery: EXACTLY_ONCE`: documents, dead letters
//! and state are there once and together, whatever fails, and who has lost its place
//! writes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bed::{Bed, Counter, DEAD, Read, doc, plan, topic, until, way};
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_model::step::{Delivery, OnExhausted, StepPlan, StepType};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{
    self, Commit, Committed, ConsumerConfig, Delivered, Ends, GroupMetadata, Log, OutgoingRecord, ProducerConfig,
    Start, TopicInfo, TopicPartition, TopicSettings, TopicSpec, Transactional, TransactionalConfig,
};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};
use tokio::sync::watch;

const STATE: &str = "test.p.s.state";

/// Gives the same documents each time it is run, but for those that it has given.
struct Steady {
    config: Pace,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pace {
    count: usize,
    /// Milliseconds from document to document.
    pause: u64,
    /// Whether it awaits each receipt.
    #[serde(default)]
    awaits: bool,
}

impl Connector for Steady {
    type Config = Pace;
    const NAME: &'static str = "steady";

    async fn open(config: Pace, _: &Step) -> Result<Self> {
        Ok(Self { config })
    }

    async fn run(&self, step: &Step, out: &Emitter, state: &State) -> Result<()> {
        for n in 0..self.config.count {
            let id = format!("doc-{n:04}");
            if state.get(&id)?.is_some() {
                continue;
            }
            let receipt = out.send(doc(&id, ""), vec![(id.clone(), Some("1".into()))]).await?;
            if self.config.awaits {
                receipt.await?;
                assert!(state.get(&id)?.is_some(), "what was acknowledged is in the state");
            }
            tokio::time::sleep(Duration::from_millis(self.config.pause)).await;
            if step.is_stopping() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn more() -> Vec<Factory> {
    vec![Factory::connector::<Counter>(), Factory::connector::<Steady>()]
}

fn connector(module: &str, config: serde_json::Value) -> StepPlan {
    let plan = plan("s");
    StepPlan {
        step_type: StepType::Connector,
        module: module.parse().unwrap(),
        inputs: Vec::new(),
        state: Some(plan.id.state_topic(&ClusterName::new("test").unwrap())),
        config,
        delivery: Delivery::ExactlyOnce,
        ..plan
    }
}

fn memory() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    (Bed::with(Arc::new(log.clone()), more(), Layers::new()), log)
}

async fn open(file: &std::path::Path) -> Arc<dyn Log> {
    Arc::new(SqliteLog::open(file, Options::default()).await.unwrap())
}

/// So many keys lie there, each once.
fn assert_each_once(read: &[Read], count: usize) {
    let keys: BTreeSet<String> = read.iter().map(Read::key).collect();
    assert_eq!((read.len(), keys.len()), (count, count));
}

/// What the connector's group has committed.
async fn committed(bed: &Bed, plan: &StepPlan) -> Committed {
    bed.log.group_offsets(&plan.group).await.unwrap()[&TopicPartition::new(topic(STATE), 0)].clone()
}

/// Documents and state say the same.
async fn assert_whole(bed: &Bed, count: usize) {
    let (out, state) = (bed.read("out").await, bed.read(STATE).await);
    assert_each_once(&out, count);
    assert_each_once(&state, count);
}

async fn completed(beds: &[&Bed]) {
    until("one of them to complete", || {
        beds.iter().any(|bed| bed.status("s").state == StepState::Completed).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn documents_dead_letters_and_state_are_there_once_however_transactions_fail() {
    let (bed, log) = memory();
    log.faults().fail_transactions(6, true);
    let plan = connector("counter", serde_json::json!({"count": 400}));
    bed.run(std::slice::from_ref(&plan)).await;
    let status = bed.state("s", StepState::Completed).await;
    assert_eq!((status.done, status.failed, status.in_flight), (360, 40, 0));
    assert_each_once(&bed.read("out").await, 360);
    assert_each_once(&bed.read(DEAD).await, 40);
    let state = bed.read(STATE).await;
    assert_each_once(&state, 400);
    let keys: Vec<String> = state.iter().map(Read::key).collect();
    assert!(keys.is_sorted(), "states are in order, dead letters among them");
    assert!(bed.events.count(|event| matches!(event, Event::CommitFailed { .. })) >= 6);
    // Many documents to a transaction: each has a number of its own.
    let begun: usize = committed(&bed, &plan).await.metadata.rsplit('.').next().unwrap().parse().unwrap();
    assert!(begun < 40, "{begun} transactions for 400 documents");
    bed.instance.stop(Duration::from_secs(5)).await;

    let again = bed.beside("two", more());
    again.apply(std::slice::from_ref(&plan));
    again.state("s", StepState::Completed).await;
    assert_eq!(again.events.count(|event| matches!(event, Event::Unchanged { .. })), 400);
    assert_each_once(&bed.read("out").await, 360);
    assert_each_once(&bed.read(STATE).await, 400);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_resolves_once_its_transaction_is_committed() {
    let (bed, log) = memory();
    log.faults().fail_transactions(3, true);
    bed.run(&[connector("steady", serde_json::json!({"count": 20, "pause": 0, "awaits": true}))]).await;
    bed.state("s", StepState::Completed).await;
    assert_whole(&bed, 20).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_lost_is_not_made_again() {
    let log = MemoryLog::new();
    let odd = Odd::over(&log);
    let lost = Arc::clone(&odd.lost);
    let bed = Bed::with(Arc::new(odd), more(), Layers::new());
    let plan = connector("steady", serde_json::json!({"count": 200, "pause": 10}));
    lost.store(8, Ordering::Relaxed);
    bed.run(&[plan]).await;
    bed.state("s", StepState::Completed).await;
    assert_eq!(lost.load(Ordering::Relaxed), 0, "answers were lost");
    assert_whole(&bed, 200).await;
}

#[tokio::test(start_paused = true)]
async fn owners_that_lose_their_place_lose_and_repeat_nothing() {
    let (bed, log) = memory();
    let plan = connector("steady", serde_json::json!({"count": 300, "pause": 5}));
    bed.run(std::slice::from_ref(&plan)).await;
    let other = bed.beside("two", more());
    other.apply(std::slice::from_ref(&plan));
    for count in [50, 120, 200] {
        bed.await_records("out", count).await;
        let owner = if bed.status("s").partitions.is_empty() { "two" } else { "one" };
        assert!(log.expire(owner) > 0);
    }
    completed(&[&bed, &other]).await;
    assert_whole(&bed, 300).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_stopped_in_the_middle_leaves_nothing_half_done() {
    let (bed, _) = memory();
    let plan = connector("steady", serde_json::json!({"count": 300, "pause": 5}));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 70).await;
    bed.instance.stop(Duration::ZERO).await;
    let (out, state) = (bed.read("out").await, bed.read(STATE).await);
    let keys = |read: &[Read]| read.iter().map(Read::key).collect::<BTreeSet<String>>();
    assert!(keys(&out) == keys(&state) && out.len() < 300, "{} and {}", out.len(), state.len());
    let other = bed.beside("two", more());
    other.apply(&[plan]);
    completed(&[&other]).await;
    assert_whole(&bed, 300).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_does_not_hear_of_its_loss_writes_nothing_any_more() {
    let log = MemoryLog::new();
    let odd = Odd::over(&log);
    let deaf = odd.deaf.clone();
    let bed = Bed::with(Arc::new(odd), more(), Layers::new());
    let plan = connector("steady", serde_json::json!({"count": 300, "pause": 5}));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 50).await;
    deaf.send_replace(true);
    let other = bed.over_again(Arc::new(log.clone()), "two", more());
    other.apply(std::slice::from_ref(&plan));
    assert!(log.expire("one") > 0);
    until("the zombie to be refused", || {
        let refused = |event: &Event| match event {
            Event::CommitFailed { error } | Event::ConnectionsRenewed { error } => error.contains("fenced"),
            _ => false,
        };
        (bed.events.count(refused) > 0).then_some(())
    })
    .await;
    deaf.send_replace(false);
    completed(&[&bed, &other]).await;
    assert_whole(&bed, 300).await;
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_transactional_id_ends_what_was_open_under_it() {
    let (bed, log) = memory();
    let plan = connector("steady", serde_json::json!({"count": 200, "pause": 5}));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 50).await;
    // Before it reads the state, as an owner in another place would.
    let id = format!("{}.connector.0", plan.group);
    drop(log.transactional(TransactionalConfig::new(id)).await.unwrap());
    let told =
        |event: &Event| matches!(event, Event::ConnectionsRenewed { error } if error.contains("transactional id"));
    until("the owner to begin anew", || (bed.events.count(told) > 0).then_some(())).await;
    completed(&[&bed]).await;
    assert_whole(&bed, 200).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_log_refuses_is_a_dead_letter_and_nothing_else_of_it_is_written() {
    for (on_exhausted, letters) in [(OnExhausted::DeadLetter, 1), (OnExhausted::Skip, 0)] {
        let (bed, _) = memory();
        let mut plan = connector("steady", serde_json::json!({"count": 30, "pause": 0}));
        plan.on_exhausted = on_exhausted;
        plan.outputs = vec![way("out"), way("gone")];
        plan.outputs[1].when = Some("doc.id == 'doc-0013'".to_owned());
        for name in ["out", DEAD] {
            bed.topic(name, 4).await;
        }
        bed.topic_with(STATE, 1, TopicSettings { compact: Some(true), ..TopicSettings::default() }).await;
        bed.apply(&[plan]);
        bed.state("s", StepState::Completed).await;
        let out = bed.read("out").await;
        assert_each_once(&out, 29);
        assert!(out.iter().all(|read| read.key() != "doc-0013"));
        assert_each_once(&bed.read(DEAD).await, letters);
        let state: Vec<String> = bed.read(STATE).await.iter().map(Read::key).collect();
        assert!(state.len() == 30 && state.is_sorted(), "{state:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.db");
    let bed = Bed::with(open(&file).await, more(), Layers::new());
    let plan = connector("steady", serde_json::json!({"count": 400, "pause": 2}));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 50).await;
    let other = bed.over_again(open(&file).await, "two", more());
    other.apply(std::slice::from_ref(&plan));
    bed.await_records("out", 120).await;
    for one in [&bed, &other] {
        one.instance.stop(Duration::ZERO).await;
    }
    let last = bed.over_again(open(&file).await, "three", more());
    last.apply(&[plan]);
    completed(&[&last]).await;
    assert_whole(&bed, 400).await;
    last.instance.stop(Duration::from_secs(20)).await;
}

/// A log whose transactions are committed though the answer is lost, so many of them,
/// and whose members hear nothing while they are deaf.
struct Odd {
    log: MemoryLog,
    lost: Arc<AtomicUsize>,
    deaf: watch::Sender<bool>,
}

impl Odd {
    fn over(log: &MemoryLog) -> Self {
        Self { log: log.clone(), lost: Arc::default(), deaf: watch::Sender::new(false) }
    }
}

#[async_trait::async_trait]
impl Log for Odd {
    fn describe(&self) -> String {
        self.log.describe()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> log::Result<TopicInfo> {
        self.log.ensure_topic(spec).await
    }
    async fn delete_topic(&self, topic: &Topic) -> log::Result<()> {
        self.log.delete_topic(topic).await
    }
    async fn topic(&self, topic: &Topic) -> log::Result<Option<TopicInfo>> {
        self.log.topic(topic).await
    }
    async fn topics(&self) -> log::Result<Vec<Topic>> {
        self.log.topics().await
    }
    async fn ends(&self, topic: &Topic) -> log::Result<Vec<Ends>> {
        self.log.ends(topic).await
    }
    async fn offsets_at(&self, topic: &Topic, millis: i64) -> log::Result<Vec<i64>> {
        self.log.offsets_at(topic, millis).await
    }
    async fn group_offsets(&self, group: &str) -> log::Result<BTreeMap<TopicPartition, Committed>> {
        self.log.group_offsets(group).await
    }
    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> log::Result<()> {
        self.log.set_group_offsets(group, commits).await
    }
    async fn producer(&self, config: ProducerConfig) -> log::Result<Arc<dyn log::Producer>> {
        self.log.producer(config).await
    }
    async fn transactional(&self, config: TransactionalConfig) -> log::Result<Box<dyn Transactional>> {
        let transactional = self.log.transactional(config).await?;
        Ok(Box::new(Forgetful { transactional, lost: Arc::clone(&self.lost) }))
    }
    async fn consumer(&self, config: ConsumerConfig) -> log::Result<Arc<dyn log::Consumer>> {
        let consumer = self.log.consumer(config).await?;
        Ok(Arc::new(Deaf { consumer, deaf: self.deaf.subscribe() }))
    }
}

struct Forgetful {
    transactional: Box<dyn Transactional>,
    lost: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl Transactional for Forgetful {
    async fn begin(&mut self) -> log::Result<()> {
        self.transactional.begin().await
    }
    async fn send(&mut self, records: Vec<OutgoingRecord>) -> log::Result<()> {
        self.transactional.send(records).await
    }
    async fn send_offsets(&mut self, commits: Vec<Commit>, member: &GroupMetadata) -> log::Result<()> {
        self.transactional.send_offsets(commits, member).await
    }
    async fn commit(&mut self) -> log::Result<Vec<Delivered>> {
        let committed = self.transactional.commit().await?;
        if self.lost.load(Ordering::Relaxed) == 0 {
            return Ok(committed);
        }
        self.lost.fetch_sub(1, Ordering::Relaxed);
        Err(log::Error::Injected { operation: "answering a commit", retryable: true })
    }
    async fn abort(&mut self) -> log::Result<()> {
        self.transactional.abort().await
    }
}

struct Deaf {
    consumer: Arc<dyn log::Consumer>,
    deaf: watch::Receiver<bool>,
}

#[async_trait::async_trait]
impl log::Consumer for Deaf {
    async fn next(&self) -> log::Result<log::Event> {
        let mut deaf = self.deaf.clone();
        loop {
            let hears = deaf.wait_for(|deaf| !deaf).await.is_ok();
            tokio::select! {
                biased;
                Ok(_) = deaf.wait_for(|deaf| *deaf), if hears => {}
                event = self.consumer.next() => return event,
            }
        }
    }
    async fn commit(&self, commits: Vec<Commit>) -> log::Result<()> {
        self.consumer.commit(commits).await
    }
    fn pause(&self, partitions: &[TopicPartition]) {
        self.consumer.pause(partitions);
    }
    fn resume(&self, partitions: &[TopicPartition]) {
        self.consumer.resume(partitions);
    }
    async fn seek(&self, partition: &TopicPartition, to: Start) -> log::Result<()> {
        self.consumer.seek(partition, to).await
    }
    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.consumer.positions()
    }
    fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.consumer.known_ends()
    }
    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.consumer.group_metadata()
    }
    async fn close(&self) -> log::Result<()> {
        self.consumer.close().await
    }
}
