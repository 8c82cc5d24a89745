//! What docs/coming-from-karafka.md promises and no other test shows; and that every
//! test that it names exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, DEAD, Nothing, letters, topic, until};
use pipedoc_model::headers;
use pipedoc_model::names::ModuleName;
use pipedoc_model::step::{Delivery, Retries, StepPlan};
use pipedoc_sdk::application::{Consumer, ConsumerOptions, Producer};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord, Start};
use pipedoc_transport::memory::MemoryLog;

/// Does with its batch what the value of the first record says.
struct Courier;

impl RecordModule for Courier {
    type Config = Nothing;
    const NAME: &'static str = "courier";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        let records = &batch.records;
        let own = |number: usize| Message::new(format!("own-{number}"), "value");
        match records[0].value.as_deref() {
            Some(b"pipe_many_sync") => {
                let delivered = context.pipe_many(records, "out").await?;
                let offsets: Vec<i64> = delivered.iter().map(|delivered| delivered.offset).collect();
                assert_eq!(offsets, [0, 1, 2], "one place for each, in order");
            }
            Some(b"pipe_many_async") => drop(context.pipe_many(records, "out")),
            Some(b"produce") => {
                drop(context.send(own(1), "out"));
                let delivered = context.send_many([own(2), own(3)], "out").await?;
                assert_eq!(delivered.len(), 2);
            }
            Some(b"transaction") => {
                let delivered = context.transaction(|tx| async move {
                    drop(tx.send(own(1), "out"));
                    drop(tx.pipe(&records[0], "out"));
                    tx.mark_as_consumed(&records[0])
                });
                assert_eq!(delivered.await?.len(), 2, "both places, with the commit");
            }
            _ => return Err(Error::retryable("out of order")),
        }
        Ok(())
    }
}

fn couriers() -> StepPlan {
    let retries = Retries { attempts: 2, initial: Duration::from_millis(10), jitter: 0.0, ..Retries::default() };
    StepPlan { module: ModuleName::new("courier").unwrap(), retries, ..bed::plan("s") }
}

fn bed() -> Bed {
    Bed::with(Arc::new(MemoryLog::new()), vec![Factory::records::<Courier>()], Layers::new())
}

/// Runs couriers on these records until they are done.
async fn ran(plan: &StepPlan, values: &[&str]) -> Bed {
    let bed = bed();
    bed.topic("in", 4).await;
    bed.topic("out", 1).await;
    bed.send_records(letters(values)).await;
    bed.topic(DEAD, 4).await;
    bed.apply(std::slice::from_ref(plan));
    let count = values.len() as u64;
    until("all to be done", || {
        let status = bed.status("s");
        (status.done + status.failed >= count && status.drained).then_some(())
    })
    .await;
    bed
}

async fn keys(bed: &Bed, name: &str) -> Vec<String> {
    bed.read(name).await.iter().map(bed::Read::key).collect()
}

#[tokio::test]
async fn many_are_piped_synchronously_with_a_place_for_each() {
    let bed = ran(&couriers(), &["pipe_many_sync", "", ""]).await;
    assert_eq!(keys(&bed, "out").await, ["a", "b", "c"]);
    assert!(bed.read(DEAD).await.is_empty(), "its module had nothing to complain of");
}

#[tokio::test]
async fn many_are_piped_asynchronously_and_in_order() {
    let bed = ran(&couriers(), &["pipe_many_async", "", ""]).await;
    assert_eq!(keys(&bed, "out").await, ["a", "b", "c"]);
    assert_eq!(bed.committed(&couriers()).await[&0], 3);
}

#[tokio::test]
async fn a_module_sends_records_of_its_own() {
    let bed = ran(&couriers(), &["produce"]).await;
    let read = bed.read("out").await;
    assert_eq!(keys(&bed, "out").await, ["own-1", "own-2", "own-3"]);
    assert!(read.iter().all(|read| read.header(headers::SOURCE_TOPIC).is_none()), "they are no piped ones");
    assert!(bed.read(DEAD).await.is_empty());
}

#[tokio::test]
async fn a_transaction_tells_where_its_records_lie() {
    let plan = StepPlan { delivery: Delivery::ExactlyOnce, ..couriers() };
    let bed = ran(&plan, &["transaction"]).await;
    assert_eq!(keys(&bed, "out").await, ["own-1", "a"]);
    assert!(bed.read(DEAD).await.is_empty());
}

#[tokio::test]
async fn errors_are_told_to_whoever_observes() {
    let bed = ran(&couriers(), &["fail"]).await;
    let told = |is: fn(&Event) -> bool| bed.events.count(is);
    let retried = told(|event| matches!(event, Event::Retrying { attempts: 1, error, .. } if error == "out of order"));
    assert_eq!(retried, 1, "{:?}", bed.events.all());
    let given_up = told(|event| matches!(event, Event::DeadLetter { error, .. } if error == "out of order"));
    assert_eq!(given_up, 1, "{:?}", bed.events.all());
    assert_eq!(told(|event| matches!(event, Event::Assigned(partitions) if !partitions.is_empty())), 1);
}

#[tokio::test]
async fn without_retries_the_first_failure_is_given_up_on() {
    let mut plan = couriers();
    plan.retries.attempts = 1;
    let bed = ran(&plan, &["fail"]).await;
    let dead = bed.read(DEAD).await;
    assert_eq!((dead.len(), dead[0].header(headers::SOURCE_ATTEMPTS)), (1, Some("1")));
    assert_eq!(bed.events.count(|event| matches!(event, Event::Retrying { .. })), 0);
}

async fn next(consumer: &mut Consumer) -> RecordBatch {
    tokio::time::timeout(bed::PATIENCE, consumer.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_consumer_pauses_resumes_and_seeks() {
    let (bed, memory) = Bed::memory();
    bed.topic("t", 2).await;
    let log: Arc<dyn Log> = Arc::new(memory);
    let producer = Producer::open(&log, "test").await.unwrap();
    let send = async |partition| {
        let message = Message { partition: Some(partition), ..Message::new("key", "value") };
        producer.send_sync(&topic("t"), message).await.unwrap();
    };
    let mut consumer = Consumer::open(&log, ConsumerOptions::new("group", [topic("t")])).await.unwrap();
    send(0).await;
    let zero = next(&mut consumer).await.source;
    consumer.pause(std::slice::from_ref(&zero));
    send(0).await;
    send(1).await;
    assert_eq!(next(&mut consumer).await.source.partition, 1, "the other one goes on");
    let nothing = tokio::time::timeout(Duration::from_millis(300), consumer.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    consumer.resume(std::slice::from_ref(&zero));
    let batch = next(&mut consumer).await;
    assert_eq!((&batch.source, batch.records[0].offset), (&zero, 1));
    consumer.seek(&zero, Start::At(0)).await.unwrap();
    let batch = next(&mut consumer).await;
    assert_eq!((&batch.source, batch.records[0].offset), (&zero, 0), "from the start again");
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn a_consumer_takes_in_topics_that_match_its_pattern() {
    let (bed, memory) = Bed::memory();
    bed.topic("orders-eu", 1).await;
    bed.topic("orders-eu.dlq", 1).await;
    let record = |name: &str| OutgoingRecord::new(topic(name), Some("key".into()), Some("value".into()));
    bed.send_records(vec![record("orders-eu"), record("orders-eu.dlq")]).await;
    let log: Arc<dyn Log> = Arc::new(memory);
    let mut options = ConsumerOptions::new("group", []);
    options.patterns = vec![regex::Regex::new("orders-.*").unwrap()];
    let mut consumer = Consumer::open(&log, options).await.unwrap();
    assert_eq!(next(&mut consumer).await.source.topic, topic("orders-eu"));
    bed.topic("orders-us", 1).await;
    bed.send_records(vec![record("orders-us")]).await;
    assert_eq!(next(&mut consumer).await.source.topic, topic("orders-us"), "dead letters never match");
    consumer.close().await.unwrap();
}

/// The rows of the page's tables: all cells.
fn rows() -> Vec<Vec<String>> {
    let page = std::fs::read_to_string(root().join("docs/coming-from-karafka.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    rows.into_iter().filter(|row| row[0] != "Karafka").collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_row_of_the_page_names_a_test_that_exists() {
    let mut names = BTreeSet::new();
    for folder in ["sdk/tests", "tests/tests", "transport/tests"] {
        gather(&root().join(folder), &mut names);
    }
    assert!(names.len() > 200, "only {} functions were found", names.len());
    let rows = rows();
    assert!(rows.len() >= 40, "only {} rows were found", rows.len());
    let mut missing = Vec::new();
    for row in &rows {
        let tests = quoted(row.last().unwrap());
        if row.len() != 3 || tests.is_empty() {
            missing.push(format!("no test is named for {row:?}"));
        }
        missing
            .extend(tests.iter().filter(|test| !names.contains(**test)).map(|test| format!("there is no test {test}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Names of the functions that carry a test's attribute, in all files of a folder.
fn gather(folder: &Path, names: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            gather(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let function = line.trim_start_matches("async ").strip_prefix("fn ");
                match function.and_then(|rest| rest.split('(').next()) {
                    Some(name) if is_test => drop(names.insert(name.to_owned())),
                    _ if line.starts_with("#[") => is_test |= line.contains("test"),
                    _ => {}
                }
                is_test &= line.starts_with("#[");
            }
        }
    }
}

#[test]
fn every_feature_that_is_to_be_there_has_a_row() {
    let rows = rows();
    let named: BTreeSet<&str> = rows.iter().flat_map(|row| quoted(&row[0])).collect();
    let wanted = [
        "pipe_async",
        "pipe_sync",
        "pipe_many_async",
        "pipe_many_sync",
        "enhance_pipe_message",
        "transaction",
        "mark_as_consumed",
        "produce_async",
        "produce_sync",
        "produce_many_async",
        "produce_many_sync",
        "consume",
        "revoked",
        "shutdown",
        "error.occurred",
        "dead_letter_queue",
    ];
    let missing: Vec<_> = wanted.iter().filter(|name| !named.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
