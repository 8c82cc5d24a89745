//! Bad input of every kind has a defined end, whatever the delivery and the log: what
//! cannot be worked on is a dead letter with its reason, byte for byte, and what is
//! merely odd passes. docs/failures.md has the table.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::step::{Delivery, StepPlan};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{Log, OutgoingRecord};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

const DELIVERIES: [Delivery; 3] = [Delivery::AtLeastOnce, Delivery::ExactlyOnce, Delivery::AtMostOnce];

/// Bytes that are no UTF-8.
const NO_TEXT: &[u8] = b"\xff\xfe\x00";

/// Does with each record what its value says: `panic`, `hang`, `nowhere` (a topic that
/// is not there), `many:N` sends N for it; else pipes it on.
struct Pupil;

impl RecordModule for Pupil {
    type Config = Nothing;
    const NAME: &'static str = "pupil";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        for record in &batch.records {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            let (verb, number) = value.split_once(':').unwrap_or((value.as_str(), "0"));
            match verb {
                "panic" => panic!("oh no"),
                "hang" => std::future::pending::<()>().await,
                "nowhere" => drop(context.pipe(record, "nowhere")),
                "many" => {
                    let copies = vec![record.clone(); number.parse()?];
                    drop(context.pipe_many(&copies, "out"));
                }
                _ => drop(context.pipe(record, "out")),
            }
        }
        Ok(())
    }
}

fn bed_over(log: Arc<dyn Log>) -> Bed {
    Bed::with(log, vec![Factory::records::<Pupil>()], Layers::new())
}

async fn sqlite(folder: &tempfile::TempDir) -> Arc<dyn Log> {
    Arc::new(SqliteLog::open(&folder.path().join("log.db"), Options::default()).await.unwrap())
}

/// A plan with an output to a topic that is not there.
fn with_nowhere(delivery: Delivery) -> StepPlan {
    let mut plan = plan("s");
    let mut nowhere = way("nowhere");
    nowhere.when = Some("false".to_owned());
    plan.outputs.push(nowhere);
    StepPlan { delivery, timeout: Duration::from_secs(1), ..plan }
}

async fn topics(bed: &Bed, partitions: i32) {
    for name in ["in", "out", DEAD] {
        bed.topic(name, partitions).await;
    }
}

fn odd_headers(mut record: OutgoingRecord) -> OutgoingRecord {
    for name in ["foreign", headers::HOP, headers::VERSION, headers::EVENT_TIME, "traceparent", "deadline"] {
        record.headers.append(name, Some(Bytes::from_static(NO_TEXT)));
    }
    record
}

fn is_of(read: &Read, key: &str) -> bool {
    read.record.key.as_deref() == Some(key.as_bytes())
}

async fn odd_documents(bed: &Bed, delivery: Delivery) {
    topics(bed, 4).await;
    let (long, longer) = ("k".repeat(10 << 10), "l".repeat(10 << 10));
    bed.send_records(vec![
        record("in", &doc(&long, "")),
        record("in", &doc(&longer, "bad")),
        odd_headers(record("in", &doc("odd", ""))),
        odd_headers(record("in", &doc("odd-bad", "bad"))),
        record("in", &doc("many", "many:10000")),
        record("in", &doc("lost", "to:nowhere")),
        OutgoingRecord::new(topic("in"), Some("empty".into()), Some(Bytes::new())),
        OutgoingRecord::new(topic("in"), Some(Bytes::from_static(NO_TEXT)), Some(Bytes::from_static(NO_TEXT))),
        record("in", &doc("good", "")),
    ])
    .await;
    bed.apply(&[with_nowhere(delivery)]);
    let status = until("all to be done with", || {
        let status = bed.status("s");
        (status.done + status.failed == 9 && status.drained).then_some(status)
    })
    .await;
    assert_eq!((status.done, status.failed), (4, 5));

    let out = bed.read("out").await;
    let distinct: BTreeSet<String> = out.iter().map(Read::key).collect();
    assert_eq!((out.len(), distinct.len()), (10_003, 10_003), "each once");
    assert!(distinct.contains(&long) && distinct.contains("good") && distinct.contains("many-9999"));
    let odd = out.iter().find(|read| is_of(read, "odd")).unwrap();
    assert_eq!(odd.record.headers.get("foreign"), Some(NO_TEXT), "foreign headers travel on");
    assert_eq!(odd.record.headers.get("deadline"), Some(NO_TEXT), "one that cannot be read travels on as well");

    let dead = bed.read(DEAD).await;
    let kinds: BTreeMap<String, &str> =
        dead.iter().map(|letter| (kept(letter), letter.header(headers::ERROR_TYPE).unwrap())).collect();
    let expected = [
        (longer.as_str(), "bad"),
        ("odd-bad", "bad"),
        ("lost", "unknown-topic"),
        ("empty", "decode"),
        ("\u{fffd}\u{fffd}\0", "decode"),
    ];
    assert_eq!(kinds, expected.map(|(key, kind)| (key.to_owned(), kind)).into());
    let letter = |key: &str| dead.iter().find(|letter| kept(letter) == key).unwrap();
    assert!(letter("lost").header(headers::ERROR_MESSAGE).unwrap().contains("nowhere"));
    assert_eq!(letter("empty").record.value.as_deref(), Some([].as_slice()), "as it was");
    assert_eq!(letter("\u{fffd}\u{fffd}\0").record.value.as_deref(), Some(NO_TEXT), "as it was");
    assert_eq!(letter("odd-bad").record.headers.get("foreign"), Some(NO_TEXT), "as it was");
    assert_eq!(letter("odd-bad").record.headers.get(headers::HOP), Some(NO_TEXT), "as it was");
}

/// The key of a dead letter, as text.
fn kept(letter: &Read) -> String {
    String::from_utf8_lossy(letter.record.key.as_deref().unwrap_or_default()).into_owned()
}

#[tokio::test(start_paused = true)]
async fn odd_documents_pass_or_end_in_dead_letters() {
    for delivery in DELIVERIES {
        let bed = bed_over(Arc::new(MemoryLog::new()));
        odd_documents(&bed, delivery).await;
        bed.instance.stop(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn odd_documents_pass_or_end_in_dead_letters_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let bed = bed_over(sqlite(&folder).await);
    odd_documents(&bed, Delivery::ExactlyOnce).await;
    bed.instance.stop(Duration::from_secs(20)).await;
}

/// Records of one partition each, so that none shares a batch with another bad one.
async fn odd_records(bed: &Bed, delivery: Delivery) {
    topics(bed, 6).await;
    let long = "k".repeat(10 << 10);
    let of = |partition: i32, key: &str, value: &'static [u8]| OutgoingRecord {
        partition: Some(partition),
        ..OutgoingRecord::new(topic("in"), Some(key.to_owned().into()), Some(Bytes::from_static(value)))
    };
    bed.send_records(vec![
        of(0, "panic", b"panic"),
        of(0, "after-panic", b""),
        of(1, "hang", b"hang"),
        of(1, "after-hang", b""),
        odd_headers(of(2, "lost", b"nowhere")),
        of(2, "after-lost", b""),
        of(3, &long, b""),
        odd_headers(of(3, "odd", NO_TEXT)),
        of(4, "many", b"many:10000"),
        OutgoingRecord { key: Some(Bytes::from_static(NO_TEXT)), ..of(5, "", b"x") },
    ])
    .await;
    bed.apply(&[StepPlan { module: "pupil".parse().unwrap(), ..with_nowhere(delivery) }]);
    let status = until("all to be done with", || {
        let status = bed.status("s");
        (status.done + status.failed == 10 && status.drained).then_some(status)
    })
    .await;
    assert_eq!((status.done, status.failed), (7, 3));
    let out = bed.read("out").await;
    assert_eq!(out.iter().filter(|read| is_of(read, "many")).count(), 10_000, "each once");
    let others: BTreeSet<Vec<u8>> = out.iter().filter_map(|read| Some(read.record.key.as_ref()?.to_vec())).collect();
    let expected = ["after-panic", "after-hang", "after-lost", &long, "odd", "many"].map(|key| key.as_bytes().to_vec());
    assert_eq!(others, expected.into_iter().chain([NO_TEXT.to_vec()]).collect());
    // At least once, what followed the lost one in its batch was sent twice.
    let twice = if delivery == Delivery::AtLeastOnce { 1 } else { 0 };
    assert_eq!(out.len(), 10_006 + twice);
    let odd = out.iter().find(|read| is_of(read, "odd")).unwrap();
    assert_eq!((odd.record.value.as_deref(), odd.record.headers.get("foreign")), (Some(NO_TEXT), Some(NO_TEXT)));

    let dead = bed.read(DEAD).await;
    let kinds: BTreeMap<String, &str> =
        dead.iter().map(|letter| (kept(letter), letter.header(headers::ERROR_TYPE).unwrap())).collect();
    let expected = [("panic", "panic"), ("hang", "timeout"), ("lost", "unknown-topic")];
    assert_eq!(kinds, expected.map(|(key, kind)| (key.to_owned(), kind)).into());
    let lost = dead.iter().find(|letter| kept(letter) == "lost").unwrap();
    assert_eq!(
        (lost.record.value.as_deref(), lost.record.headers.get("foreign")),
        (Some(&b"nowhere"[..]), Some(NO_TEXT))
    );
}

#[tokio::test(start_paused = true)]
async fn odd_records_pass_or_end_in_dead_letters() {
    for delivery in DELIVERIES {
        let bed = bed_over(Arc::new(MemoryLog::new()));
        odd_records(&bed, delivery).await;
        bed.instance.stop(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn odd_records_pass_or_end_in_dead_letters_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let bed = bed_over(sqlite(&folder).await);
    odd_records(&bed, Delivery::ExactlyOnce).await;
    bed.instance.stop(Duration::from_secs(20)).await;
}
