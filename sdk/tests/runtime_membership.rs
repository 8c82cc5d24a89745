//! A connector whose state is taken away and then lost, or given back, while its
//! run has not ended yet.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bed::*;
use parking_lot::Mutex;
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_model::step::{StepPlan, StepType};
use pipedoc_sdk::error::Result;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::{Connector, Step};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{self as log, *};
use pipedoc_transport::memory::MemoryLog;
use tokio::sync::mpsc;

/// A memory log whose groups' members hear what a test tells them besides.
struct Meddled {
    inner: MemoryLog,
    heard: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>>,
}

struct MeddledConsumer {
    inner: Arc<dyn Consumer>,
    heard: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>>,
}

#[async_trait]
impl Log for Meddled {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> log::Result<TopicInfo> {
        self.inner.ensure_topic(spec).await
    }
    async fn delete_topic(&self, topic: &Topic) -> log::Result<()> {
        self.inner.delete_topic(topic).await
    }
    async fn topic(&self, topic: &Topic) -> log::Result<Option<TopicInfo>> {
        self.inner.topic(topic).await
    }
    async fn topics(&self) -> log::Result<Vec<Topic>> {
        self.inner.topics().await
    }
    async fn ends(&self, topic: &Topic) -> log::Result<Vec<Ends>> {
        self.inner.ends(topic).await
    }
    async fn offsets_at(&self, topic: &Topic, millis: i64) -> log::Result<Vec<i64>> {
        self.inner.offsets_at(topic, millis).await
    }
    async fn group_offsets(&self, group: &str) -> log::Result<BTreeMap<TopicPartition, Committed>> {
        self.inner.group_offsets(group).await
    }
    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> log::Result<()> {
        self.inner.set_group_offsets(group, commits).await
    }
    async fn producer(&self, config: ProducerConfig) -> log::Result<Arc<dyn Producer>> {
        self.inner.producer(config).await
    }
    async fn transactional(&self, config: TransactionalConfig) -> log::Result<Box<dyn Transactional>> {
        self.inner.transactional(config).await
    }
    async fn consumer(&self, config: ConsumerConfig) -> log::Result<Arc<dyn Consumer>> {
        let is_member = matches!(config.subscription, Subscription::Group { .. });
        let inner = self.inner.consumer(config).await?;
        let heard = Arc::clone(&self.heard);
        Ok(if is_member { Arc::new(MeddledConsumer { inner, heard }) } else { inner })
    }
}

#[async_trait]
impl Consumer for MeddledConsumer {
    async fn next(&self) -> log::Result<Event> {
        let mut heard = self.heard.lock().await;
        tokio::select! {
            event = self.inner.next() => event,
            Some(event) = heard.recv() => Ok(event),
        }
    }
    async fn commit(&self, commits: Vec<Commit>) -> log::Result<()> {
        self.inner.commit(commits).await
    }
    fn pause(&self, partitions: &[TopicPartition]) {
        self.inner.pause(partitions);
    }
    fn resume(&self, partitions: &[TopicPartition]) {
        self.inner.resume(partitions);
    }
    async fn seek(&self, partition: &TopicPartition, to: Start) -> log::Result<()> {
        self.inner.seek(partition, to).await
    }
    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.inner.positions()
    }
    fn known_ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.inner.known_ends()
    }
    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.inner.group_metadata()
    }
    async fn close(&self) -> log::Result<()> {
        self.inner.close().await
    }
}

/// Runs on, whatever it is told, for as long as its configuration says.
struct Lingers {
    seconds: u64,
    runs: Arc<Runs>,
}

/// Runs of all connectors of a number: begun and at work.
#[derive(Default)]
struct Runs {
    begun: AtomicUsize,
    at_work: AtomicUsize,
}

static RUNS: Mutex<BTreeMap<u64, Arc<Runs>>> = Mutex::new(BTreeMap::new());

fn runs(number: u64) -> Arc<Runs> {
    Arc::clone(RUNS.lock().entry(number).or_default())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Lingering {
    seconds: u64,
}

impl Connector for Lingers {
    type Config = Lingering;
    const NAME: &'static str = "lingers";

    async fn open(config: Lingering, _: &Step) -> Result<Self> {
        Ok(Self { seconds: config.seconds, runs: runs(config.seconds) })
    }

    async fn run(&self, step: &Step, _: &Emitter, _: &State) -> Result<()> {
        struct AtWork<'a>(&'a Runs);
        impl Drop for AtWork<'_> {
            fn drop(&mut self) {
                self.0.at_work.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.runs.begun.fetch_add(1, Ordering::SeqCst);
        self.runs.at_work.fetch_add(1, Ordering::SeqCst);
        let _at_work = AtWork(&self.runs);
        step.stopping().await;
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        Ok(())
    }
}

fn lingering(seconds: u64) -> StepPlan {
    let mut plan = plan("s");
    plan.step_type = StepType::Connector;
    plan.module = "lingers".parse().unwrap();
    plan.inputs = Vec::new();
    plan.state = Some(plan.id.state_topic(&ClusterName::new("test").unwrap()));
    plan.config = serde_json::json!({"seconds": seconds});
    plan.revoke_grace = Duration::from_secs(7200);
    plan
}

async fn started(seconds: u64) -> (Bed, mpsc::UnboundedSender<Event>, Arc<Runs>, TopicPartition) {
    let (tell, heard) = mpsc::unbounded_channel();
    let log = Meddled { inner: MemoryLog::new(), heard: Arc::new(tokio::sync::Mutex::new(heard)) };
    let bed = Bed::with(Arc::new(log), vec![Factory::connector::<Lingers>()], Layers::new());
    let plan = lingering(seconds);
    let home = TopicPartition::new(plan.state.clone().unwrap(), 0);
    bed.run(&[plan]).await;
    let runs = runs(seconds);
    until("a run", || (runs.at_work.load(Ordering::SeqCst) == 1).then_some(())).await;
    (bed, tell, runs, home)
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_to_end_is_dropped_at_once_when_its_state_is_lost() {
    let (_bed, tell, runs, home) = started(3600).await;
    tell.send(Event::Revoked(Revocation::new(vec![home.clone()]).0)).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(runs.at_work.load(Ordering::SeqCst), 1, "it has its grace");
    tell.send(Event::Lost(vec![home])).unwrap();
    until("its end", || (runs.at_work.load(Ordering::SeqCst) == 0).then_some(())).await;
    assert_eq!(runs.begun.load(Ordering::SeqCst), 1, "it runs elsewhere");
}

#[tokio::test(start_paused = true)]
async fn a_connector_whose_state_comes_back_while_it_ends_runs_again() {
    let (_bed, tell, runs, home) = started(20).await;
    tell.send(Event::Revoked(Revocation::new(vec![home.clone()]).0)).unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    tell.send(Event::Assigned(vec![AssignedPartition { source: home, committed: None, position: 0 }])).unwrap();
    until("another run", || {
        let both = (runs.begun.load(Ordering::SeqCst), runs.at_work.load(Ordering::SeqCst));
        assert!(both.1 <= 1, "one after the other");
        (both == (2, 1)).then_some(())
    })
    .await;
}
