//! What record modules are promised: batches, marks, attempts, pipes, callbacks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bed::{Bed, DEAD, Nothing, input, letters, plan, topic, until, way};
use bytes::Bytes;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::partition;
use pipedoc_model::step::{Batch, OnExhausted, Retries, StepPlan};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::OutgoingRecord;
use pipedoc_transport::memory::MemoryLog;

/// Does what the values of its records say, word by word, and writes a diary into
/// the step's folder: `pipe`, `await`, `mark`, `fail:N` (while fewer than N attempts
/// were made), `bad`, `big`, `stranger`, `slow:MS`, `nowhere`.
struct Clerk(std::path::PathBuf);

impl Clerk {
    fn note(&self, line: impl std::fmt::Display) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.0);
        writeln!(file.unwrap(), "{line}").unwrap();
    }
}

impl RecordModule for Clerk {
    type Config = Nothing;
    const NAME: &'static str = "clerk";

    async fn open(_: Nothing, step: &Step) -> Result<Self> {
        std::fs::create_dir_all(step.data())?;
        Ok(Self(step.data().join("diary")))
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        let keys: Vec<_> = batch.records.iter().map(|record| text(record.key.as_ref())).collect();
        self.note(format_args!("{} try {} of {}", context.partition(), context.attempt(), keys.join(" ")));
        for record in &batch.records {
            for word in text(record.value.as_ref()).split_whitespace() {
                let (verb, number) = word.split_once(':').unwrap_or((word, "0"));
                match verb {
                    "pipe" => drop(context.pipe(record, "out")),
                    "await" => {
                        let delivered = context.pipe(record, "out").await?;
                        self.note(format_args!("{} is at {}", text(record.key.as_ref()), delivered[0].offset));
                    }
                    "mark" => context.mark_as_consumed(record)?,
                    "fail" if context.attempt() < number.parse()? => return Err(Error::retryable("not yet")),
                    "bad" => return Err(Error::permanent("no good").with_kind("bad")),
                    "big" => {
                        drop(context.pipe(&Record { value: Some(vec![0; 2 << 20].into()), ..record.clone() }, "out"))
                    }
                    "stranger" => context.mark_as_consumed(&Record { offset: 4711, ..record.clone() })?,
                    "slow" => tokio::time::sleep(Duration::from_millis(number.parse()?)).await,
                    "nowhere" => drop(context.pipe(record, "nowhere")),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn enhance(&self, message: &mut Message, record: &Record) {
        if text(record.value.as_ref()).contains("enhance") {
            message.key = Some("better".into());
            message.value = Some("value".into());
            message.headers.append("added", Some("header".into()));
        }
    }

    async fn assigned(&self, partition: &TopicPartition, _: &Step) -> Result<()> {
        self.note(format_args!("{partition} assigned"));
        Ok(())
    }

    async fn revoked(&self, partition: &TopicPartition, _: &Step) -> Result<()> {
        self.note(format_args!("{partition} revoked"));
        Ok(())
    }

    async fn shutdown(&self, _: &Step) -> Result<()> {
        self.note("shutdown");
        Ok(())
    }

    async fn close(self) {
        self.note("closed");
    }
}

fn text(bytes: Option<&Bytes>) -> String {
    bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

fn clerks() -> StepPlan {
    let retries = Retries { attempts: 3, initial: Duration::from_millis(10), jitter: 0.0, ..Retries::default() };
    let mut plan = plan("s");
    plan.module = pipedoc_model::names::ModuleName::new("clerk").unwrap();
    plan.inputs = vec![input("in")];
    plan.outputs = vec![way("out")];
    plan.retries = retries;
    plan
}

fn bed() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    (Bed::with(Arc::new(log.clone()), vec![Factory::records::<Clerk>()], Layers::new()), log)
}

fn diary(bed: &Bed) -> Vec<String> {
    let text = std::fs::read_to_string(bed.data.path().join("steps/p/s/diary")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The lines about attempts, without their partition.
fn tries(bed: &Bed) -> Vec<String> {
    let lines = diary(bed).into_iter();
    lines.filter_map(|line| line.split_once(" try ").map(|(_, tries)| tries.to_owned())).collect()
}

/// Puts records in, runs the step and waits until it is done with them.
async fn ran(bed: &Bed, plan: &StepPlan, records: Vec<OutgoingRecord>) {
    let count = records.len() as u64;
    bed.topic("in", 4).await;
    bed.send_records(records).await;
    bed.run(std::slice::from_ref(plan)).await;
    until("all to be done", || {
        let status = bed.status("s");
        (status.done + status.failed >= count && status.drained).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_piped_record_keeps_value_key_and_foreign_headers() {
    let (bed, _) = bed();
    let mut record = letters(&["pipe"]).remove(0);
    record.timestamp = Some(1_700_000_000_123);
    for (name, value) in [("b", Some(vec![0xff])), ("a", None), ("b", Some(vec![]))] {
        record.headers.append(name, value.map(Bytes::from));
    }
    record.headers.append(headers::SOURCE_TOPIC, Some("old".into()));
    record.headers.append(headers::SOURCE_OFFSET, Some("1".into()));
    record.headers.append(headers::HOP, Some("6".into()));
    record.headers.append(headers::VERSION, Some("3".into()));
    record.headers.append(headers::STREAM_ID, Some("stream".into()));
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    record.headers.append(headers::TRACEPARENT, Some(parent.into()));
    ran(&bed, &clerks(), vec![record.clone()]).await;
    let piped = bed.await_records("out", 1).await.remove(0);
    assert_eq!((&piped.record.key, &piped.record.value), (&record.key, &record.value));
    let foreign = |headers: &Headers| -> Vec<_> {
        headers
            .iter()
            .filter(|header| header.name().len() == 1)
            .map(|header| (header.name().to_owned(), header.value().map(<[u8]>::to_vec)))
            .collect()
    };
    assert_eq!(foreign(&piped.record.headers), foreign(&record.headers));
    let names: Vec<_> = piped.record.headers.iter().map(|header| header.name().to_owned()).collect();
    for name in names.iter().filter(|name| name.len() > 1) {
        assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name} is replaced, not repeated");
    }
    for (name, value) in [
        (headers::SOURCE_TOPIC, "in"),
        (headers::SOURCE_PARTITION, "0"),
        (headers::SOURCE_OFFSET, "0"),
        (headers::SOURCE_CONSUMER_GROUP, "test.p.s"),
        (headers::HOP, "7"),
        (headers::VERSION, "3"),
        (headers::STREAM_ID, "stream"),
        (headers::TRACEPARENT, parent),
        (headers::DOCUMENT_ID, "a"),
        (headers::EVENT_TIME, "2023-11-14T22:13:20.123Z"),
    ] {
        assert_eq!(piped.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_record_without_key_follows_its_source_partition() {
    let (bed, _) = bed();
    bed.topic("out", 3).await;
    let records = (0..4).flat_map(|partition| {
        (0..5).map(move |_| OutgoingRecord {
            partition: Some(partition),
            ..OutgoingRecord::new(topic("in"), None, Some("pipe".into()))
        })
    });
    let mut plan = clerks();
    plan.outputs[0].topic = topic("narrow");
    bed.topic("narrow", 3).await;
    bed.topic(DEAD, 1).await;
    bed.topic("in", 4).await;
    bed.send_records(records.collect()).await;
    bed.apply(std::slice::from_ref(&plan));
    let read = bed.await_records("narrow", 20).await;
    for read in read {
        let source: i32 = read.header(headers::SOURCE_PARTITION).unwrap().parse().unwrap();
        assert_eq!(read.source.partition, partition::for_source(source, 3));
        assert_eq!(read.record.key, None, "its key stays none");
        assert_eq!(read.header(headers::DOCUMENT_ID), None, "nothing says whose it is");
    }
}

#[tokio::test]
async fn an_awaited_report_tells_where_the_record_lies() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["await", "pipe", "await"])).await;
    let noted: Vec<_> = diary(&bed).into_iter().filter(|line| line.contains(" is at ")).collect();
    let read = bed.read("out").await;
    for line in &noted {
        let (key, offset) = line.split_once(" is at ").unwrap();
        assert!(read.iter().any(|read| read.key() == key && read.record.offset.to_string() == offset), "{line}");
    }
    assert_eq!((noted.len(), read.len()), (2, 3));
}

#[tokio::test]
async fn what_was_marked_stays_done_and_the_rest_comes_again_in_order() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["await mark", "pipe", "await mark", "pipe", "fail:2"])).await;
    assert_eq!(tries(&bed), ["0 of a b c d e", "1 of b d e", "2 of b d e"]);
    let status = bed.status("s");
    assert_eq!((status.done, status.failed), (5, 0));
    assert!(bed.read(DEAD).await.is_empty());
    assert_eq!(bed.committed(&clerks()).await[&0], 5);
}

#[tokio::test]
async fn marks_do_not_count_when_something_piped_was_not_acknowledged() {
    let (bed, log) = bed();
    bed.topic("in", 4).await;
    bed.topic("out", 4).await;
    bed.topic(DEAD, 4).await;
    bed.send_records(letters(&["pipe mark", "fail:1"])).await;
    log.faults().fail_acks(1, true);
    bed.apply(&[clerks()]);
    until("all to be done", || (bed.status("s").done == 2).then_some(())).await;
    let tries = tries(&bed);
    assert!(tries[..2] == ["0 of a b", "0 of a b"], "neither was done, and it was not their fault: {tries:?}");
    assert!(bed.read("out").await.iter().any(|read| read.key() == "a"));
}

#[tokio::test]
async fn the_first_unmarked_record_is_given_up_on_and_the_rest_starts_anew() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["mark", "fail:9", "pipe"])).await;
    assert_eq!(tries(&bed), ["0 of a b c", "1 of b c", "2 of b c", "0 of c"]);
    let dead = bed.read(DEAD).await;
    assert_eq!((dead.len(), dead[0].key(), dead[0].header(headers::SOURCE_ATTEMPTS)), (1, "b".to_owned(), Some("3")));
    assert_eq!(bed.read("out").await.len(), 1);
    assert_eq!(bed.committed(&clerks()).await[&0], 3);
}

#[tokio::test]
async fn a_permanent_error_is_not_tried_again() {
    let (bed, _) = bed();
    let plan = StepPlan { on_exhausted: OnExhausted::Skip, ..clerks() };
    ran(&bed, &plan, letters(&["bad", "pipe", "stranger", "pipe", "nowhere"])).await;
    let tries = tries(&bed);
    assert_eq!(tries[..2], ["0 of a b c d e", "0 of b c d e"]);
    assert!(bed.read(DEAD).await.is_empty(), "SKIP leaves none");
    assert!(bed.status("s").last_error.contains("nowhere"), "{}", bed.status("s").last_error);
}

#[tokio::test]
async fn the_record_that_cannot_be_piped_is_the_one_given_up_on() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["pipe", "pipe", "big", "pipe"])).await;
    let dead = bed.read(DEAD).await;
    assert_eq!(
        (dead.len(), dead[0].key(), dead[0].header(headers::ERROR_TYPE)),
        (1, "c".to_owned(), Some("too-large"))
    );
    let mut piped: Vec<_> = bed.read("out").await.iter().map(bed::Read::key).collect();
    piped.sort();
    piped.dedup();
    assert_eq!(piped, ["a", "b", "d"]);
}

#[tokio::test]
async fn nothing_is_lost_or_out_of_order_when_the_log_stumbles() {
    let (bed, log) = bed();
    bed.topic("in", 4).await;
    let records: Vec<_> = (0..400)
        .map(|n| {
            let mut record = OutgoingRecord::new(topic("in"), Some(format!("k{}", n % 20).into()), Some("pipe".into()));
            record.headers.append("n", Some(n.to_string().into()));
            record
        })
        .collect();
    let mut sent: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for n in 0..400 {
        sent.entry(format!("k{}", n % 20)).or_default().push(n);
    }
    bed.send_records(records).await;
    log.faults().fail_acks(30, true);
    log.faults().fail_sends(2, true);
    bed.run(&[clerks()]).await;
    until("all to be done", || (bed.status("s").done == 400 && bed.status("s").drained).then_some(())).await;
    let mut last: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for read in bed.read("out").await {
        let n: i32 = read.header("n").unwrap().parse().unwrap();
        let seen = last.entry(read.key()).or_default();
        seen.retain(|known| *known != n);
        seen.push(n);
    }
    assert_eq!(last, sent, "by their last deliveries all are there, in order");
    assert!(bed.read(DEAD).await.is_empty());
}

#[tokio::test]
async fn enhance_changes_what_is_piped() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["pipe enhance"])).await;
    let piped = bed.read("out").await.remove(0);
    assert_eq!((piped.key(), text(piped.record.value.as_ref())), ("better".to_owned(), "value".to_owned()));
    assert_eq!(piped.header("added"), Some("header"));
    assert_eq!(piped.source.partition, partition::for_key(b"better", 4), "the new key says where");
}

#[tokio::test]
async fn the_commit_waits_for_what_nobody_awaits() {
    let (bed, log) = bed();
    bed.topic("in", 4).await;
    bed.topic("out", 4).await;
    bed.topic(DEAD, 4).await;
    bed.send_records(letters(&["pipe", "pipe"])).await;
    log.faults().hold_acks();
    bed.apply(&[clerks()]);
    until("the module to return", || (tries(&bed).len() == 1).then_some(())).await;
    // Longer than a commit is ever put off.
    let watched = std::time::Instant::now();
    while watched.elapsed() < Duration::from_millis(1500) {
        let committed = bed.committed(&clerks()).await.get(&0).copied().unwrap_or(0);
        assert_eq!((bed.status("s").done, committed), (0, 0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log.faults().release_acks();
    bed.drained("s").await;
    assert_eq!(bed.committed(&clerks()).await[&0], 2);
}

#[tokio::test]
async fn small_batches_become_the_size_that_the_step_asks_for() {
    let (bed, _) = bed();
    let batch = Some(Batch { records: 4, bytes: 1 << 20, wait: Duration::from_secs(60) });
    bed.run(&[StepPlan { batch, ..clerks() }]).await;
    bed.state("s", StepState::Running).await;
    for record in letters(&[""; 8]) {
        bed.send_records(vec![record]).await;
    }
    until("all to be done", || (bed.status("s").done == 8).then_some(())).await;
    assert!(tries(&bed).contains(&"0 of a b c d".to_owned()), "{:?}", tries(&bed));
}

#[tokio::test]
async fn a_module_hears_of_its_partitions_and_of_its_end() {
    let (bed, _) = bed();
    ran(&bed, &clerks(), letters(&["pipe"])).await;
    let other = bed.beside("two", vec![Factory::records::<Clerk>()]);
    other.apply(&[clerks()]);
    until("partitions to move", || (other.status("s").partitions.len() == 2).then_some(())).await;
    until("the first to hear of it", || {
        (diary(&bed).iter().filter(|line| line.ends_with("revoked")).count() == 2).then_some(())
    })
    .await;
    assert_eq!(diary(&bed).iter().filter(|line| line.ends_with("assigned")).count(), 4);
    bed.instance.stop(Duration::from_secs(20)).await;
    let diary = diary(&bed);
    assert_eq!(diary[diary.len() - 2..], ["shutdown", "closed"]);
    other.instance.stop(Duration::from_secs(20)).await;
}

#[tokio::test]
async fn what_was_begun_is_finished_before_a_partition_goes() {
    let (bed, _) = bed();
    bed.topic("in", 4).await;
    bed.send_records(letters(&["slow:1500 pipe"])).await;
    bed.run(&[clerks()]).await;
    until("work to begin", || (!tries(&bed).is_empty()).then_some(())).await;
    bed.instance.stop(Duration::from_secs(20)).await;
    assert_eq!(bed.committed(&clerks()).await[&0], 1);
    assert_eq!(tries(&bed), ["0 of a"]);
    assert_eq!(bed.read("out").await.len(), 1);
}
