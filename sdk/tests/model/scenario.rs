//! What is made to happen: documents, faults, instances that come and go, and
//! what must be found at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::headers::DOCUMENT_ID;
use pipedoc_model::names::Generation;
use pipedoc_model::step::{Batch, ControlState, Delivery, OnExhausted, Ordering, StepPlan};
use pipedoc_proto::PipeDoc;
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Bounds, Instance, InstanceConfig};
use pipedoc_sdk::layers::Layers;
use pipedoc_transport::log::{Log, OutgoingRecord, ProducerConfig};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::objects::Objects;
use pipedoc_transport::sqlite::{Options, SqliteLog};
use proptest::prelude::*;
use prost::Message;

use super::actor::{self, Bulk, Puppet};
use super::watched::WatchedLog;
use super::world::{Wanted, Wish, World};

use crate::bed::{self, Bed, DEAD, Read, topic};

/// One case.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub ordering: Ordering,
    pub partitions: i32,
    pub concurrency: usize,
    /// Records of a batch and milliseconds to wait for one.
    pub batch: Option<(usize, u64)>,
    /// The module takes batches itself.
    pub bulk: bool,
    /// Outputs and offsets are written in transactions.
    pub exact: bool,
    pub attempts: u32,
    pub skip: bool,
    /// Most open records.
    pub window: usize,
    /// Milliseconds that an attempt may take.
    pub timeout: u64,
    /// Keys and wishes of the documents.
    pub documents: Vec<(usize, Wish)>,
    /// Milliseconds to wait, and then what happens.
    pub acts: Vec<(u64, Act)>,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    FailSends(usize, bool),
    FailAcks(usize, bool),
    LoseAcks(usize),
    FailCommits(usize, bool),
    /// A commit is written and reported as failed.
    LoseCommit,
    FailReads(usize, bool),
    /// Acknowledgements come so many milliseconds late.
    HoldAcks(u64),
    /// Another instance.
    Join,
    /// An instance stops within so many milliseconds.
    Leave(usize, u64),
    /// An instance is killed.
    Crash(usize),
    /// The log takes an instance for dead that is not.
    Expire(usize),
    /// The step rests for so many milliseconds.
    Pause(u64),
    /// The step's plan changes, so that it begins anew.
    Change,
    /// So many transactions end in nothing.
    FailTransactions(usize, bool),
    /// A transaction is written and reported as failed.
    LoseTransaction,
    /// An instance's transactional producers are fenced.
    Fence(usize),
}

/// Any case at least once.
pub fn scenario() -> impl Strategy<Value = Scenario> {
    of_delivery(false)
}

/// Any case exactly once.
pub fn exact_scenario() -> impl Strategy<Value = Scenario> {
    of_delivery(true)
}

fn of_delivery(exact: bool) -> impl Strategy<Value = Scenario> {
    let ordering = prop_oneof![4 => Just(Ordering::Key), 1 => Just(Ordering::Partition), 1 => Just(Ordering::None)];
    let batch = prop_oneof![3 => Just(None), 2 => (1..8_usize, 0..40_u64).prop_map(Some)];
    let settings =
        (ordering, 1..4_i32, 1..9_usize, batch, any::<bool>(), 1..4_u32, prop::bool::weighted(0.2), 4..60_usize);
    let documents = proptest::collection::vec((0..12_usize, wish()), 1..150);
    let acts = proptest::collection::vec((0..120_u64, act(exact)), 0..14);
    (settings, documents, acts).prop_map(move |(settings, documents, acts)| {
        let (ordering, partitions, concurrency, batch, bulk, attempts, skip, window) = settings;
        let timeout = 400;
        Scenario {
            ordering,
            partitions,
            concurrency,
            batch,
            bulk,
            exact,
            attempts,
            skip,
            window,
            timeout,
            documents,
            acts,
        }
    })
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        12 => (0..25_u64).prop_map(|after| Wish::Pass { after }),
        3 => (1..3_u32).prop_map(|fails| Wish::Retry { fails }),
        2 => (0..4_usize).prop_map(|many| Wish::Become { many }),
        2 => Just(Wish::Bad),
        1 => Just(Wish::Panic),
        1 => Just(Wish::Large),
        2 => Just(Wish::Tombstone),
        1 => Just(Wish::Hang),
    ]
}

fn act(exact: bool) -> impl Strategy<Value = Act> {
    let rarely_for_good = || prop::bool::weighted(0.8);
    let of_transactions = prop_oneof![
        2 => (1..4_usize, rarely_for_good()).prop_map(|(n, retryable)| Act::FailTransactions(n, retryable)),
        2 => Just(Act::LoseTransaction),
        1 => (0..4_usize).prop_map(Act::Fence),
    ];
    let of_all = prop_oneof![
        2 => (1..4_usize, rarely_for_good()).prop_map(|(n, retryable)| Act::FailSends(n, retryable)),
        2 => (1..6_usize, rarely_for_good()).prop_map(|(n, retryable)| Act::FailAcks(n, retryable)),
        2 => (1..6_usize).prop_map(Act::LoseAcks),
        1 => (1..3_usize, rarely_for_good()).prop_map(|(n, retryable)| Act::FailCommits(n, retryable)),
        1 => Just(Act::LoseCommit),
        1 => (1..3_usize, rarely_for_good()).prop_map(|(n, retryable)| Act::FailReads(n, retryable)),
        2 => (1..300_u64).prop_map(Act::HoldAcks),
        3 => Just(Act::Join),
        2 => (0..4_usize, 0..300_u64).prop_map(|(which, grace)| Act::Leave(which, grace)),
        2 => (0..4_usize).prop_map(Act::Crash),
        1 => (0..4_usize).prop_map(Act::Expire),
        1 => (1..200_u64).prop_map(Act::Pause),
        1 => Just(Act::Change),
    ];
    if exact { prop_oneof![1 => of_transactions, 3 => of_all].boxed() } else { of_all.boxed() }
}

/// One instance and its view of the log.
struct Member {
    name: String,
    log: WatchedLog,
    instance: Instance,
    _data: tempfile::TempDir,
}

/// A scenario that runs.
struct Stage {
    scenario: Scenario,
    /// How the log can be made to take an instance for dead.
    memory: Option<MemoryLog>,
    world: Arc<World>,
    plan: StepPlan,
    bed: Bed,
    members: Vec<Member>,
    joined: usize,
    generation: u64,
    numbers: BTreeMap<usize, usize>,
    /// How long everything may take in the end.
    patience: Duration,
}

/// Plays a scenario on the memory log, in paused time.
pub fn play_in_memory(scenario: Scenario) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let log = MemoryLog::new();
    runtime.block_on(play(scenario, Arc::new(log.clone()), Some(log), Duration::from_secs(900)))
}

/// Plays a scenario on the SQLite log, in real time. What only a timeout ends is
/// left out: a busy machine may be slow, and nothing else is to run into one.
pub fn play_on_sqlite(mut scenario: Scenario) -> Result<(), String> {
    scenario.timeout = 60_000;
    scenario.documents.iter_mut().for_each(|(_, wish)| {
        if *wish == Wish::Hang {
            *wish = Wish::Bad;
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let result = runtime.block_on(async {
        let log = SqliteLog::open(&folder.path().join("log.sqlite"), Options::default()).await.unwrap();
        play(scenario, Arc::new(log), None, Duration::from_secs(120)).await
    });
    // Instances that were killed go on until then.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// Plays a scenario on a log, and says what was wrong.
pub async fn play(
    scenario: Scenario,
    log: Arc<dyn Log>,
    memory: Option<MemoryLog>,
    patience: Duration,
) -> Result<(), String> {
    let world = Arc::new(World::new(scenario.ordering));
    let plan = plan(&scenario, actor::settle(&world));
    let bed = Bed::over(log);
    for (name, partitions) in [("in", scenario.partitions), ("out", 3), (DEAD, 2)] {
        bed.topic(name, partitions).await;
    }
    let mut stage = Stage {
        memory,
        world,
        plan,
        bed,
        members: Vec::new(),
        joined: 0,
        generation: 0,
        numbers: BTreeMap::new(),
        patience,
        scenario,
    };
    stage.run().await
}

fn plan(scenario: &Scenario, world: usize) -> StepPlan {
    let mut plan = bed::plan("s");
    if scenario.exact {
        plan.delivery = Delivery::ExactlyOnce;
    }
    plan.module = if scenario.bulk { "bulk" } else { "puppet" }.parse().unwrap();
    plan.config = serde_json::json!({"world": world});
    // Deletions carry their document's key as their own.
    plan.outputs[0].key = Some("key".to_owned());
    plan.ordering = scenario.ordering;
    plan.concurrency = scenario.concurrency;
    plan.batch =
        scenario.batch.map(|(records, wait)| Batch { records, bytes: 1 << 20, wait: Duration::from_millis(wait) });
    plan.retries.attempts = scenario.attempts + 2;
    plan.retries.initial = Duration::from_millis(10);
    plan.on_exhausted = if scenario.skip { OnExhausted::Skip } else { OnExhausted::DeadLetter };
    plan.timeout = Duration::from_millis(scenario.timeout);
    plan.revoke_grace = Duration::from_millis(150);
    plan
}

impl Stage {
    async fn run(&mut self) -> Result<(), String> {
        self.join();
        let acts = self.scenario.acts.clone();
        let documents = self.scenario.documents.clone();
        let each = documents.len().div_ceil(acts.len() + 1);
        let mut documents = documents.chunks(each);
        self.send(documents.next().unwrap_or_default()).await;
        for (wait, act) in acts {
            self.watch_for(Duration::from_millis(wait)).await;
            self.act(act).await;
            self.send(documents.next().unwrap_or_default()).await;
        }
        for member in &self.members {
            member.log.heal();
        }
        self.control(ControlState::Running);
        if self.members.is_empty() {
            self.join();
        }
        self.finish().await?;
        for member in std::mem::take(&mut self.members) {
            member.instance.stop(Duration::from_secs(5)).await;
        }
        self.check().await
    }

    /// Looks at the instances for a while.
    async fn watch_for(&self, duration: Duration) {
        let until = tokio::time::Instant::now() + duration;
        loop {
            self.look();
            let now = tokio::time::Instant::now();
            if now >= until {
                return;
            }
            tokio::time::sleep_until(until.min(now + Duration::from_millis(7))).await;
        }
    }

    fn look(&self) {
        // The batch that fills the window may pass its bound.
        let batch = self.bounds().batch_records();
        let most = if self.scenario.exact { 5 * self.scenario.window } else { self.scenario.window } + batch - 1;
        for member in &self.members {
            for status in member.instance.status() {
                self.world.open(&member.name, usize::try_from(status.in_flight).unwrap(), most);
            }
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds { records: self.scenario.window, bytes: 1 << 20 }
    }

    fn join(&mut self) {
        self.joined += 1;
        let name = format!("instance-{}", self.joined);
        let inner = Arc::clone(&self.bed.log);
        let log = WatchedLog::new(inner, Arc::clone(&self.world), &name, topic("in"), topic(DEAD));
        let data = tempfile::tempdir().unwrap();
        let config = InstanceConfig {
            log: Arc::new(log.clone()),
            objects: Arc::new(Objects::local(&data.path().join("objects")).unwrap()),
            id: name.clone(),
            data: data.path().to_owned(),
            factories: vec![Factory::module::<Puppet>(), Factory::module::<Bulk>()],
            observer: Arc::new(Skips(Arc::clone(&self.world))),
            layers: Layers::new(),
        };
        let instance = Instance::start_within(config, self.bounds());
        instance.apply(Generation(self.generation), vec![self.plan.clone()]);
        self.members.push(Member { name, log, instance, _data: data });
    }

    /// Takes a member out; never the only one, which is replaced.
    fn take(&mut self, which: usize) -> Member {
        let at = which % self.members.len();
        let member = self.members.remove(at);
        if self.members.is_empty() {
            self.join();
        }
        member
    }

    fn apply(&mut self) {
        self.generation += 1;
        for member in &self.members {
            member.instance.apply(Generation(self.generation), vec![self.plan.clone()]);
        }
    }

    fn control(&mut self, control: ControlState) {
        if self.plan.control != control {
            self.plan.control = control;
            self.apply();
        }
    }

    async fn act(&mut self, act: Act) {
        let broken = self.generation as usize % self.members.len();
        let log = self.members[broken].log.clone();
        match act {
            Act::FailSends(n, retryable) => log.break_next(|faults| faults.sends = (n, retryable)),
            Act::FailAcks(n, retryable) => log.break_next(|faults| faults.acks = (n, retryable)),
            Act::LoseAcks(n) => log.break_next(|faults| faults.lost_acks = (n, true)),
            Act::FailCommits(n, retryable) => log.break_next(|faults| faults.commits = (n, retryable)),
            Act::LoseCommit => log.break_next(|faults| faults.lost_commits = 1),
            Act::FailReads(n, retryable) => log.break_next(|faults| faults.reads = (n, retryable)),
            Act::FailTransactions(n, retryable) => log.break_next(|faults| faults.transactions = (n, retryable)),
            Act::LoseTransaction => log.break_next(|faults| faults.lost_transactions = 1),
            Act::Fence(which) => self.members[which % self.members.len()].log.fence().await,
            Act::HoldAcks(wait) => {
                log.hold(true);
                self.watch_for(Duration::from_millis(wait)).await;
                log.hold(false);
            }
            Act::Join => {
                if self.members.len() < 4 {
                    self.join();
                }
            }
            Act::Leave(which, grace) => {
                let member = self.take(which);
                member.instance.stop(Duration::from_millis(grace)).await;
            }
            Act::Crash(which) => {
                let member = self.take(which);
                member.log.crash();
                // What it runs goes on in vain, and ends with the test's runtime.
                std::mem::forget(member.instance);
            }
            Act::Expire(which) => {
                if let Some(memory) = &self.memory {
                    memory.expire(&self.members[which % self.members.len()].name);
                }
            }
            Act::Pause(wait) => {
                self.control(ControlState::Paused);
                self.watch_for(Duration::from_millis(wait)).await;
                self.control(ControlState::Running);
            }
            Act::Change => {
                self.plan.max_hops = Some(100 + self.generation as u32);
                self.apply();
            }
        }
    }

    async fn send(&mut self, documents: &[(usize, Wish)]) {
        let mut records = Vec::new();
        for (key, wish) in documents {
            let number = self.numbers.entry(*key).or_default();
            let id = format!("key-{key}/{number}");
            let partition = *key as i32 % self.scenario.partitions;
            self.world.wants(&id, Wanted { key: *key, partition, number: *number, wish: *wish });
            let body = if *wish == Wish::Large { "x".repeat(8 << 10) } else { String::new() };
            let doc = PipeDoc {
                id: id.clone(),
                source_uri: format!("key-{key}"),
                part: *number as i32,
                body,
                ..PipeDoc::default()
            };
            let value = (*wish != Wish::Tombstone).then(|| Bytes::from(doc.encode_to_vec()));
            let mut record = OutgoingRecord::new(topic("in"), Some(format!("key-{key}").into()), value);
            record.partition = Some(partition);
            record.headers.set(DOCUMENT_ID, id);
            records.push(record);
            *number += 1;
        }
        if records.is_empty() {
            return;
        }
        let producer = self.bed.log.producer(ProducerConfig::default()).await.unwrap();
        for report in producer.send(records).await.unwrap().await {
            report.unwrap();
        }
    }

    /// Waits until everything is committed.
    async fn finish(&self) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            self.look();
            let ends = self.bed.log.ends(&topic("in")).await.unwrap();
            let committed = self.bed.committed(&self.plan).await;
            if (0..).zip(&ends).all(|(partition, ends)| committed.get(&partition).copied().unwrap_or(0) >= ends.end) {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let statuses: Vec<_> = self.members.iter().map(|member| member.instance.status()).collect();
                let violations = self.world.violations();
                return Err(format!("stuck at {committed:?} of {ends:?}: {statuses:#?}; {violations:#?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn check(&self) -> Result<(), String> {
        let mut wrong = self.world.violations();
        let (out, dead) = (self.bed.read("out").await, self.bed.read(DEAD).await);
        let ids = |read: &[Read]| -> BTreeSet<String> {
            read.iter().map(|read| read.header(DOCUMENT_ID).unwrap_or_default().to_owned()).collect()
        };
        let (delivered, buried) = (ids(&out), ids(&dead));
        for (id, wanted) in self.world.documents() {
            let parts = delivered.iter().filter(|out| out.split('#').next() == Some(id.as_str())).count();
            match wanted.wish.outputs() {
                Some(expected) if parts != expected => {
                    wrong.push(format!("{id} became {parts} of {expected} documents ({:?})", wanted.wish));
                }
                Some(_) if buried.contains(&id) => wrong.push(format!("{id} was given up on ({:?})", wanted.wish)),
                None if parts > 0 => wrong.push(format!("{id} was passed on ({:?})", wanted.wish)),
                None if !self.scenario.skip && !buried.contains(&id) => {
                    wrong.push(format!("{id} is in no dead letter ({:?})", wanted.wish));
                }
                _ => {}
            }
        }
        if self.scenario.exact {
            for (name, read) in [("out", &out), ("dead letters", &dead)] {
                let mut seen = BTreeSet::new();
                for read in read.iter().filter_map(|read| read.header(DOCUMENT_ID)) {
                    if !seen.insert(read) {
                        wrong.push(format!("{read} is there twice in {name}"));
                    }
                }
            }
        }
        let expired = self.scenario.acts.iter().any(|(_, act)| matches!(act, Act::Expire(_)));
        if self.scenario.ordering != Ordering::None && (!expired || self.scenario.exact) {
            for (name, read) in [("out", &out), ("dead letters", &dead)] {
                for (key, order) in order(read) {
                    if !order.is_sorted() {
                        wrong.push(format!("{name}, {key}: {order:?}"));
                    }
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }
}

/// Numbers of each key in the order of their last deliveries, tombstones too.
fn order(read: &[Read]) -> BTreeMap<String, Vec<usize>> {
    let mut order: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for read in read {
        let id = read.header(DOCUMENT_ID).unwrap_or_default();
        let root = id.split('#').next().unwrap_or_default();
        let Some((key, number)) = root.rsplit_once('/') else { continue };
        let number: usize = number.parse().unwrap();
        let numbers = order.entry(key.to_owned()).or_default();
        numbers.retain(|other| *other != number);
        numbers.push(number);
    }
    order
}

/// Tells the model of what is skipped.
struct Skips(Arc<World>);

impl Observer for Skips {
    fn event(&self, _: &pipedoc_model::names::StepId, event: &Event) {
        if let Event::Skipped { document, .. } = event {
            self.0.was_given_up(document);
        }
    }
}
