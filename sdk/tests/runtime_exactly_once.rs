//! What plain modules are promised under `delivery: EXACTLY_ONCE`: each output, each
//! dead letter is there once, whatever fails, and nothing is there of what is not
//! committed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, DEAD, Pipes, Read, doc, plan, until, way};
use pipedoc_model::headers::SOURCE_OFFSET;
use pipedoc_model::names::Topic;
use pipedoc_model::step::{Batch, Delivery, OnExhausted, Ordering, Retries, StepPlan};
use pipedoc_proto::PipeDoc;
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::progress;
use pipedoc_transport::log::{
    Commit, Committed, Consumer, ConsumerConfig, Ends, Error, Log, OutgoingRecord, Producer, ProducerConfig, Result,
    TopicInfo, TopicPartition, TopicSpec, Transactional, TransactionalConfig,
};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

fn exactly_once() -> StepPlan {
    StepPlan { delivery: Delivery::ExactlyOnce, ..plan("s") }
}

/// Documents of 20 keys, numbered within their key.
fn numbered(count: usize, title: &str) -> Vec<PipeDoc> {
    let numbered =
        |n: usize| PipeDoc { source_uri: format!("k{}", n % 20), part: n as i32, ..doc(&format!("d{n}"), title) };
    (0..count).map(numbered).collect()
}

/// Their records, keyed as the documents are numbered.
fn records(docs: &[PipeDoc]) -> Vec<OutgoingRecord> {
    docs.iter()
        .map(|doc| OutgoingRecord { key: Some(doc.source_uri.clone().into()), ..bed::record("in", doc) })
        .collect()
}

/// Passes keys on, so that outputs lie in their keys' partitions.
fn keyed(mut plan: StepPlan) -> StepPlan {
    plan.outputs[0].key = Some("key".to_owned());
    plan
}

fn ids(read: &[Read]) -> Vec<String> {
    let mut ids: Vec<String> = read.iter().map(|read| read.doc().id).collect();
    ids.sort();
    ids
}

fn assert_each_once_in_order(read: &[Read], count: usize) {
    let mut last: BTreeMap<String, i32> = BTreeMap::new();
    for doc in read.iter().map(Read::doc) {
        let before = last.insert(doc.source_uri.clone(), doc.part);
        assert!(before.is_none_or(|before| before < doc.part), "{} after {before:?}", doc.id);
    }
    let distinct: BTreeSet<String> = ids(read).into_iter().collect();
    assert_eq!((read.len(), distinct.len()), (count, count));
}

/// All of these instances are drained, and own all partitions between them.
async fn all_drained(beds: &[&Bed]) {
    until("all to be committed", || {
        let statuses: Vec<_> = beds.iter().map(|bed| bed.status("s")).collect();
        let owned: usize = statuses.iter().map(|status| status.partitions.len()).sum();
        (statuses.iter().all(|status| status.partitions.is_empty() || status.drained) && owned == 4).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn outputs_and_dead_letters_are_there_once_however_transactions_fail() {
    let (bed, log) = Bed::memory();
    bed.topic("in", 4).await;
    let mut docs = numbered(400, "");
    docs.iter_mut().filter(|doc| doc.part % 40 == 7).for_each(|doc| doc.title = "bad".to_owned());
    bed.send_records(records(&docs)).await;
    log.faults().fail_transactions(6, true);
    let plan = keyed(exactly_once());
    bed.run(std::slice::from_ref(&plan)).await;
    bed.drained("s").await;
    assert_each_once_in_order(&bed.read("out").await, 390);
    assert_each_once_in_order(&bed.read(DEAD).await, 10);
    assert_eq!(bed.committed(&plan).await.values().sum::<i64>(), 400);
    assert!(bed.events.count(|event| matches!(event, Event::CommitFailed { .. })) >= 6);
}

/// What one key's backoff leaves open is left out; the others are committed, and named.
#[tokio::test(start_paused = true)]
async fn a_record_in_backoff_is_left_out_of_transactions_and_nobody_repeats_the_others() {
    let (bed, _) = Bed::memory();
    let patient = Retries { attempts: 99, initial: Duration::from_secs(3000), jitter: 0.0, ..Retries::default() };
    let stuck = StepPlan { retries: Retries { max: Duration::from_secs(3000), ..patient }, ..exactly_once() };
    bed.topic("in", 4).await;
    let mut docs = numbered(100, "");
    docs[0].title = "fail:1".to_owned();
    // Of one partition, each with a key of its own.
    let in_one = docs.iter().map(|doc| OutgoingRecord { partition: Some(0), ..bed::record("in", doc) });
    bed.send_records(in_one.collect()).await;
    bed.run(std::slice::from_ref(&stuck)).await;
    bed.await_records("out", 99).await;
    let place = TopicPartition::new(bed::topic("in"), 0);
    let committed = bed.log.group_offsets(&stuck.group).await.unwrap()[&place].clone();
    assert_eq!(committed.offset, 0);
    let named: Vec<i64> = progress::decode(0, &committed.metadata).into_iter().flatten().collect();
    assert_eq!(named, (1..100).collect::<Vec<_>>());
    bed.instance.stop(Duration::ZERO).await;

    let next = bed.beside("two", Vec::new());
    next.apply(&[StepPlan { retries: plan("s").retries, ..stuck }]);
    next.drained("s").await;
    let found = ids(&next.read("out").await);
    let expected: BTreeSet<String> = docs.iter().map(|doc| doc.id.clone()).collect();
    assert_eq!((found.len(), found.into_iter().collect::<BTreeSet<_>>()), (100, expected));
}

#[tokio::test(start_paused = true)]
async fn a_fenced_producer_begins_anew_and_repeats_nothing() {
    let (bed, log) = Bed::memory();
    bed.topic("in", 4).await;
    let plan = keyed(exactly_once());
    bed.run(std::slice::from_ref(&plan)).await;
    for (n, docs) in numbered(300, "slow:3").chunks(60).enumerate() {
        bed.send_records(records(docs)).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
        // As an instance that took over its identity would.
        let id = format!("{}.one.{}", plan.group, n % 2);
        drop(log.transactional(TransactionalConfig::new(id)).await.unwrap());
    }
    bed.drained("s").await;
    assert_each_once_in_order(&bed.read("out").await, 300);
    let told =
        |event: &Event| matches!(event, Event::ConnectionsRenewed { error } if error.contains("transactional id"));
    assert!(bed.events.count(told) > 0, "nobody was fenced");
}

#[tokio::test(start_paused = true)]
async fn partitions_that_move_or_are_lost_are_neither_lost_nor_repeated() {
    let (bed, log) = Bed::memory();
    bed.topic("in", 4).await;
    let plan = keyed(exactly_once());
    bed.run(std::slice::from_ref(&plan)).await;
    let mut others = Vec::new();
    for (n, docs) in numbered(900, "slow:2").chunks(90).enumerate() {
        bed.send_records(records(docs)).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        match n {
            1 | 4 => {
                let other = bed.beside(&format!("beside-{n}"), Vec::new());
                other.apply(std::slice::from_ref(&plan));
                others.push(other);
            }
            3 | 6 => assert!(log.expire("one") > 0),
            8 => others.remove(0).instance.stop(Duration::from_secs(20)).await,
            _ => {}
        }
    }
    all_drained(&[&bed, &others[0]]).await;
    assert_each_once_in_order(&bed.read("out").await, 900);
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_steps_gives_each_document_once_at_its_end() {
    let (bed, log) = Bed::memory();
    bed.topic("in", 4).await;
    bed.send_records(records(&numbered(400, ""))).await;
    log.faults().fail_transactions(8, true);
    let mut first = keyed(exactly_once());
    first.outputs = vec![way("middle")];
    first.outputs[0].key = Some("key".to_owned());
    let mut second = keyed(StepPlan { delivery: Delivery::ExactlyOnce, ..plan("t") });
    second.inputs = vec![bed::input("middle")];
    bed.run(&[first, second]).await;
    bed.drained("s").await;
    until("all at the end", || (bed.status("t").done == 400).then_some(())).await;
    bed.drained("t").await;
    assert_each_once_in_order(&bed.read("out").await, 400);
}

#[tokio::test(start_paused = true)]
async fn batches_filters_and_deletions_are_exact_as_well() {
    let (bed, log) = Bed::memory();
    let mut plan = exactly_once();
    plan.batch = Some(Batch { records: 10, bytes: 1 << 20, wait: Duration::from_millis(20) });
    plan.ordering = Ordering::Partition;
    bed.topic("in", 4).await;
    let titles = ["", "many:3", "skip", "delete", "bad"];
    let docs: Vec<PipeDoc> = (0..50).map(|n| doc(&format!("d{n:02}"), titles[n % 5])).collect();
    bed.send("in", docs).await;
    log.faults().fail_transactions(3, true);
    bed.run(std::slice::from_ref(&plan)).await;
    bed.drained("s").await;
    let (out, dead) = (bed.read("out").await, bed.read(DEAD).await);
    let mut keys: Vec<String> = out.iter().map(Read::key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!((out.len(), keys.len(), dead.len()), (50, 50, 10));
    assert_eq!(bed.committed(&plan).await.values().sum::<i64>(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_stands_still_goes_on_without_repeating_anything() {
    let (bed, _) = Bed::memory();
    let plan = keyed(StepPlan {
        on_exhausted: OnExhausted::Pause,
        retries: Retries { attempts: 2, ..plan("s").retries },
        ..exactly_once()
    });
    bed.topic("in", 4).await;
    let mut docs = numbered(200, "slow:1");
    docs[40].title = "fail:2".to_owned();
    bed.send_records(records(&docs)).await;
    bed.run(std::slice::from_ref(&plan)).await;
    until("a partition to stand still", || (!bed.status("s").paused.is_empty()).then_some(())).await;
    assert!(bed.read("out").await.iter().all(|read| read.doc().id != "d40"));
    bed.instance.resume(&plan.id);
    bed.drained("s").await;
    assert_each_once_in_order(&bed.read("out").await, 200);
    assert_eq!(bed.read(DEAD).await.len(), 0);
}

/// Were more admitted, what is done between the stuck ones could not be named, and
/// would come twice after a crash.
#[tokio::test(start_paused = true)]
async fn no_more_is_admitted_than_can_be_named_beside_the_offset() {
    let (bed, _) = Bed::memory();
    let mut plan = StepPlan { ordering: Ordering::None, concurrency: 50_000, ..exactly_once() };
    plan.timeout = Duration::from_secs(1_000_000);
    bed.topic("in", 4).await;
    // Every third one is stuck: too many runs for the room, in too wide a span.
    let docs = (0..30_000).map(|n| doc(&format!("d{n}"), if n % 3 == 0 { "slow:100000000" } else { "" }));
    let in_one = docs.map(|doc| OutgoingRecord { partition: Some(0), ..bed::record("in", &doc) });
    bed.send_records(in_one.collect()).await;
    bed.run(std::slice::from_ref(&plan)).await;
    let place = TopicPartition::new(bed::topic("in"), 0);
    let mut before = 0;
    let committed = loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let found = bed.log.group_offsets(&plan.group).await.unwrap();
        let named = found.get(&place).map_or(0, |found| progress::decode(found.offset, &found.metadata).len());
        if named > 0 && named == before {
            break found[&place].clone();
        }
        before = named;
    };
    let named: BTreeSet<i64> = progress::decode(committed.offset, &committed.metadata).into_iter().flatten().collect();
    let out = bed.read("out").await;
    let written: BTreeSet<i64> = out.iter().map(|read| read.header(SOURCE_OFFSET).unwrap().parse().unwrap()).collect();
    assert_eq!(written.len(), out.len());
    assert!(written == named, "{} are written, {} are named", written.len(), named.len());
    assert!(written.len() < 19_000, "everything was admitted: {}", written.len());
    assert!(written.len() > 10_000, "hardly anything was admitted: {}", written.len());
    bed.instance.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_refuses_transactions_is_told_and_nothing_is_read() {
    let log = MemoryLog::new();
    let refusing = Refusing(log.clone());
    let bed = Bed::over(Arc::new(refusing));
    bed.topic("in", 4).await;
    bed.send_records(records(&numbered(3, ""))).await;
    bed.run(&[exactly_once()]).await;
    until("it to be told", || {
        let status = bed.status("s");
        (status.last_error.contains("transactions cannot be made") && status.partitions.is_empty()).then_some(())
    })
    .await;
    assert_ne!(bed.status("s").state, StepState::Stopped);
    assert_eq!(bed.read("out").await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_refuses_transactions_is_told_of_by_record_modules_and_nothing_is_written() {
    let refusing = Refusing(MemoryLog::new());
    let bed = Bed::with(Arc::new(refusing), vec![Factory::records::<Pipes>()], Layers::new());
    let plan = StepPlan { module: "pipes".parse().unwrap(), ..exactly_once() };
    bed.topic("in", 4).await;
    bed.send_records(records(&numbered(3, ""))).await;
    bed.run(std::slice::from_ref(&plan)).await;
    until("it to be told", || bed.status("s").last_error.contains("here:9092").then_some(())).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((bed.read("out").await.len(), bed.status("s").done), (0, 0));
    bed.instance.stop(Duration::ZERO).await;
    assert_eq!(bed.committed(&plan).await.values().sum::<i64>(), 0, "all of it comes again");
}

#[tokio::test]
async fn the_same_holds_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn Log> = Arc::new(SqliteLog::open(&folder.path().join("log.db"), Options::default()).await.unwrap());
    let bed = Bed::over(log);
    bed.topic("in", 4).await;
    bed.send_records(records(&numbered(600, "slow:1"))).await;
    let plan = keyed(exactly_once());
    bed.run(std::slice::from_ref(&plan)).await;
    until("work to be under way", || (bed.status("s").done > 0).then_some(())).await;
    let other = bed.beside("two", Vec::new());
    other.apply(std::slice::from_ref(&plan));
    all_drained(&[&bed, &other]).await;
    assert_each_once_in_order(&bed.read("out").await, 600);
    bed.instance.stop(Duration::from_secs(20)).await;
    other.instance.stop(Duration::from_secs(20)).await;
}

/// A log of brokers without transactions.
struct Refusing(MemoryLog);

#[async_trait::async_trait]
impl Log for Refusing {
    fn describe(&self) -> String {
        self.0.describe()
    }
    async fn ensure_topic(&self, spec: &TopicSpec) -> Result<TopicInfo> {
        self.0.ensure_topic(spec).await
    }
    async fn delete_topic(&self, topic: &Topic) -> Result<()> {
        self.0.delete_topic(topic).await
    }
    async fn topic(&self, topic: &Topic) -> Result<Option<TopicInfo>> {
        self.0.topic(topic).await
    }
    async fn topics(&self) -> Result<Vec<Topic>> {
        self.0.topics().await
    }
    async fn ends(&self, topic: &Topic) -> Result<Vec<Ends>> {
        self.0.ends(topic).await
    }
    async fn offsets_at(&self, topic: &Topic, millis: i64) -> Result<Vec<i64>> {
        self.0.offsets_at(topic, millis).await
    }
    async fn group_offsets(&self, group: &str) -> Result<BTreeMap<TopicPartition, Committed>> {
        self.0.group_offsets(group).await
    }
    async fn set_group_offsets(&self, group: &str, commits: &[Commit]) -> Result<()> {
        self.0.set_group_offsets(group, commits).await
    }
    async fn producer(&self, config: ProducerConfig) -> Result<Arc<dyn Producer>> {
        self.0.producer(config).await
    }
    async fn transactional(&self, _: TransactionalConfig) -> Result<Box<dyn Transactional>> {
        let address = "here:9092".to_owned();
        Err(Error::UnsupportedBroker { operation: "taking an id", address, needs: "more" })
    }
    async fn consumer(&self, config: ConsumerConfig) -> Result<Arc<dyn Consumer>> {
        self.0.consumer(config).await
    }
}
