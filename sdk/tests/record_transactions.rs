//! What record modules are promised under `delivery: EXACTLY_ONCE`, and what they
//! hear without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, DEAD, Nothing, input, letters, plan, topic, until, way};
use bytes::Bytes;
use pipedoc_model::names::ModuleName;
use pipedoc_model::step::{Delivery, Retries, StepPlan};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

/// Does what the values of its records say, word by word: `pipe`, `own` (a transaction
/// that pipes and marks), `lost` (one that fails), `abort`, `fail:N`, `bad`, `big`.
struct Clerk;

impl RecordModule for Clerk {
    type Config = Nothing;
    const NAME: &'static str = "clerk";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        for record in &batch.records {
            for word in text(record.value.as_ref()).split_whitespace() {
                let (verb, number) = word.split_once(':').unwrap_or((word, "0"));
                match verb {
                    "pipe" => assert!(context.pipe(record, "out").await?.is_empty() || number == "at-least-once"),
                    "own" => {
                        let delivered = context
                            .transaction(|tx| async move {
                                assert!(tx.pipe(record, "out").await?.is_empty(), "places come with the commit");
                                tx.mark_as_consumed(record)
                            })
                            .await?;
                        assert!(delivered.len() <= 1, "{delivered:?}");
                    }
                    "lost" => {
                        let lost = context.transaction(|tx| async move {
                            drop(tx.pipe(record, "out"));
                            tx.mark_as_consumed(record)?;
                            Err(Error::retryable("changed my mind"))
                        });
                        assert!(lost.await.unwrap_err().to_string().contains("changed my mind"));
                    }
                    "abort" => {
                        let aborted = context.transaction(|tx| async move {
                            drop(tx.pipe_many([record], "out"));
                            tx.abort();
                            Ok(())
                        });
                        assert!(aborted.await?.is_empty());
                    }
                    "fail" if context.attempt() < number.parse()? => return Err(Error::retryable("not yet")),
                    "bad" => return Err(Error::permanent("no good")),
                    "big" => {
                        drop(context.pipe(&Record { value: Some(vec![0; 2 << 20].into()), ..record.clone() }, "out"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn text(bytes: Option<&Bytes>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

fn exactly_once() -> StepPlan {
    let mut plan = plan("s");
    plan.module = ModuleName::new("clerk").unwrap();
    plan.inputs = vec![input("in")];
    plan.outputs = vec![way("out")];
    plan.delivery = Delivery::ExactlyOnce;
    plan.retries = Retries { attempts: 3, initial: Duration::from_millis(10), jitter: 0.0, ..Retries::default() };
    plan
}

fn clerks() -> Vec<Factory> {
    vec![Factory::records::<Clerk>()]
}

fn memory() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    (Bed::with(Arc::new(log.clone()), clerks(), Layers::new()), log)
}

async fn ran(bed: &Bed, plan: &StepPlan, records: Vec<OutgoingRecord>) {
    bed.topic("in", 4).await;
    bed.send_records(records).await;
    bed.run(std::slice::from_ref(plan)).await;
    bed.drained("s").await;
}

async fn keys(bed: &Bed, name: &str) -> Vec<String> {
    bed.read(name).await.iter().map(bed::Read::key).collect()
}

/// Numbered records of 20 keys over all partitions.
fn numbered(count: usize) -> Vec<OutgoingRecord> {
    let record = |n: usize| {
        let word = if n % 50 == 7 { "own" } else { "pipe" };
        let mut record = OutgoingRecord::new(topic("in"), Some(format!("k{}", n % 20).into()), Some(word.into()));
        record.headers.append("n", Some(n.to_string().into()));
        record
    };
    (0..count).map(record).collect()
}

/// Numbers found in the output, each once.
async fn numbers(bed: &Bed) -> Vec<usize> {
    let mut numbers: Vec<usize> =
        bed.read("out").await.iter().map(|read| read.header("n").unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn a_transaction_needs_exactly_once() {
    let (bed, _) = memory();
    let plan = StepPlan { delivery: Delivery::AtLeastOnce, ..exactly_once() };
    ran(&bed, &plan, letters(&["own", "pipe:at-least-once"])).await;
    let letter = bed.read(DEAD).await.remove(0);
    let error = letter.header(pipedoc_model::headers::ERROR_MESSAGE).unwrap().to_owned();
    assert!(error.contains("delivery: EXACTLY_ONCE") && error.contains("AT_LEAST_ONCE"), "{error}");
    assert_eq!(keys(&bed, "out").await, ["b"]);
}

#[tokio::test]
async fn everything_arrives_once_however_transactions_fail() {
    let (bed, log) = memory();
    bed.topic("in", 4).await;
    bed.send_records(numbered(600)).await;
    log.faults().fail_transactions(5, true);
    bed.run(&[exactly_once()]).await;
    bed.drained("s").await;
    assert_eq!(numbers(&bed).await, (0..600).collect::<Vec<_>>());
    let committed: i64 = bed.committed(&exactly_once()).await.values().sum();
    assert!(committed >= 600, "{committed}");
}

#[tokio::test]
async fn what_a_transaction_committed_stays_when_its_batch_fails() {
    let (bed, _) = memory();
    ran(&bed, &exactly_once(), letters(&["pipe", "own", "pipe", "fail:2"])).await;
    let mut found = keys(&bed, "out").await;
    assert_eq!(found.remove(0), "b", "it was committed first");
    assert_eq!(found, ["a", "c"], "and what stands outside once, with its batch");
    assert!(bed.read(DEAD).await.is_empty());
}

#[tokio::test]
async fn nothing_is_left_of_a_transaction_that_fails_or_is_aborted() {
    let (bed, _) = memory();
    ran(&bed, &exactly_once(), letters(&["lost", "abort", "pipe"])).await;
    assert_eq!(keys(&bed, "out").await, ["c"]);
    assert_eq!(bed.status("s").done, 3, "the batch itself has not failed");
}

#[tokio::test]
async fn a_dead_letter_is_written_once_with_the_offset() {
    let (bed, log) = memory();
    log.faults().fail_transactions(2, true);
    ran(&bed, &exactly_once(), letters(&["bad", "pipe", "big", "pipe"])).await;
    assert_eq!(keys(&bed, DEAD).await, ["a", "c"]);
    assert_eq!(keys(&bed, "out").await, ["b", "d"]);
    assert_eq!(bed.committed(&exactly_once()).await[&0], 4);
}

#[tokio::test]
async fn what_was_marked_beyond_is_not_done_again_by_the_next_owner() {
    let (bed, _) = memory();
    let patient = Retries { attempts: 99, initial: Duration::from_secs(300), ..Retries::default() };
    let plan = StepPlan { retries: patient, ..exactly_once() };
    bed.topic("in", 4).await;
    bed.send_records(letters(&["", "own", "fail:1"])).await;
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 1).await;
    bed.instance.stop(Duration::from_secs(20)).await;
    let next = bed.beside("two", clerks());
    next.apply(&[StepPlan { retries: exactly_once().retries, ..plan }]);
    next.drained("s").await;
    assert_eq!(keys(&next, "out").await, ["b"], "once");
    next.instance.stop(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn partitions_that_move_are_neither_lost_nor_repeated() {
    let (bed, _) = memory();
    bed.topic("in", 4).await;
    bed.run(&[exactly_once()]).await;
    let mut others = Vec::new();
    for (n, records) in numbered(900).chunks(90).enumerate() {
        bed.send_records(records.to_vec()).await;
        if n % 3 == 1 {
            let other = bed.beside(&format!("beside-{n}"), clerks());
            other.apply(&[exactly_once()]);
            others.push(other);
        }
        if n == 7 {
            others.remove(0).instance.stop(Duration::from_secs(20)).await;
        }
    }
    until("all to be committed", || {
        let drained = others.iter().chain([&bed]).all(|bed| bed.status("s").drained);
        let partitions: usize = others.iter().chain([&bed]).map(|bed| bed.status("s").partitions.len()).sum();
        (drained && partitions == 4).then_some(())
    })
    .await;
    assert_eq!(numbers(&bed).await, (0..900).collect::<Vec<_>>());
    for bed in others {
        bed.instance.stop(Duration::from_secs(20)).await;
    }
}

#[tokio::test]
async fn order_within_a_key_is_kept() {
    let (bed, log) = memory();
    bed.topic("in", 4).await;
    let plain = numbered(400).into_iter().map(|record| OutgoingRecord { value: Some("pipe".into()), ..record });
    bed.send_records(plain.collect()).await;
    log.faults().fail_transactions(3, true);
    bed.run(&[exactly_once()]).await;
    bed.drained("s").await;
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for read in bed.read("out").await {
        let n: usize = read.header("n").unwrap().parse().unwrap();
        assert!(last.insert(read.key(), n).is_none_or(|before| before < n), "{} of {}", n, read.key());
    }
}

#[tokio::test]
async fn the_same_holds_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn Log> = Arc::new(SqliteLog::open(&folder.path().join("log.db"), Options::default()).await.unwrap());
    let bed = Bed::with(log, clerks(), Layers::new());
    bed.topic("in", 4).await;
    bed.send_records(numbered(600)).await;
    bed.run(&[exactly_once()]).await;
    until("work to be under way", || (bed.status("s").done > 0).then_some(())).await;
    let other = bed.beside("two", clerks());
    other.apply(&[exactly_once()]);
    until("all to be committed", || {
        let both = [bed.status("s"), other.status("s")];
        let partitions: usize = both.iter().map(|status| status.partitions.len()).sum();
        (both.iter().all(|status| status.drained) && partitions == 4).then_some(())
    })
    .await;
    assert_eq!(numbers(&bed).await, (0..600).collect::<Vec<_>>());
    bed.instance.stop(Duration::from_secs(20)).await;
    other.instance.stop(Duration::from_secs(20)).await;
}
