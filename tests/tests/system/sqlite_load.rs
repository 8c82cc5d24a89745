//! Ten processes on one SQLite file at full load: each writes and reads as fast as
//! it can; none is told that the file is busy, none starves, and the file stays
//! bounded by the topic's retention.
//!
//! `PIPEDOC_TEST_MINUTES` says for how long; else it is a few seconds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipedoc_model::names::Topic;
use pipedoc_tests::bed::wait_for;
use pipedoc_transport::error::Error;
use pipedoc_transport::log::{
    Commit, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Receipt, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::sqlite::{Options, SqliteLog};

use super::worker::{self, Worker};

const PROCESSES: usize = 10;
const SECONDS: &str = "PIPEDOC_TEST_SECONDS";
/// Records sent at once, and how many such batches wait for their acknowledgement.
const BATCH: usize = 20;
const IN_FLIGHT: usize = 4;
const RECORD: usize = 1024;
/// Bytes kept of each partition.
const KEPT: i64 = 8 << 20;

fn topic() -> Topic {
    Topic::new("load").unwrap()
}

/// Writes to the partition of its slot and reads as a member of the group.
pub async fn work(worker: &Worker) {
    let duration = Duration::from_secs(std::env::var(SECONDS).unwrap().parse().unwrap());
    let log = worker.log().await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let subscription = Subscription::Group {
        group: "load".to_owned(),
        topics: vec![topic()],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    let consumer = log.consumer(ConsumerConfig::new(format!("load-{}", worker.slot), subscription)).await.unwrap();
    // A group is joined by asking for records: each has its share before the clock starts.
    let (mut owned, mut is_ready) = (BTreeSet::new(), false);
    while !worker.is_told_to("go") {
        match tokio::time::timeout(Duration::from_millis(10), consumer.next()).await {
            Ok(Ok(Event::Assigned(came))) => owned.extend(came.into_iter().map(|partition| partition.source)),
            Ok(Ok(Event::Revoked(gone))) => owned.retain(|source| !gone.partitions.contains(source)),
            Ok(Ok(Event::Lost(gone))) => owned.retain(|source| !gone.contains(source)),
            Ok(Err(error)) => worker.tell_error(error),
            Ok(Ok(_)) | Err(_) => {}
        }
        if !is_ready && owned.len() == 1 {
            worker.tell(&["ready".to_owned()]);
            is_ready = true;
        }
    }
    let end = Instant::now() + duration;

    let writing = async {
        let mut waiting: VecDeque<(Instant, Receipt)> = VecDeque::new();
        let (mut sent, mut written, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
        loop {
            let more = Instant::now() < end;
            if waiting.len() == IN_FLIGHT || (!more && !waiting.is_empty()) {
                let (since, receipt) = waiting.pop_front().unwrap();
                for report in receipt.await {
                    match report {
                        Ok(_) => written += 1,
                        Err(error) => worker.tell_error(error),
                    }
                }
                slowest = slowest.max(since.elapsed());
                continue;
            }
            if !more {
                return (written, slowest);
            }
            let numbered = |number: u64| {
                let mut value = format!("{number:012}").into_bytes();
                value.resize(RECORD, b'.');
                OutgoingRecord {
                    partition: Some(worker.slot as i32),
                    ..OutgoingRecord::new(topic(), None, Some(Bytes::from(value)))
                }
            };
            let batch = (sent..sent + BATCH as u64).map(numbered).collect();
            sent += BATCH as u64;
            waiting.push_back((Instant::now(), producer.send(batch).await.unwrap()));
        }
    };
    let reading = async {
        let mut last: BTreeMap<TopicPartition, String> = BTreeMap::new();
        let (mut read, mut gone) = (0_u64, 0_u64);
        while Instant::now() < end {
            let Ok(next) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else { continue };
            match next {
                Ok(Event::Records(batch)) => {
                    for record in &batch.records {
                        let number = String::from_utf8(record.value.as_ref().unwrap()[..12].to_vec()).unwrap();
                        if last.get(&batch.source).is_some_and(|last| *last >= number) {
                            worker.tell_error(format!("{number} of {} after {last:?}", batch.source));
                        }
                        last.insert(batch.source.clone(), number);
                    }
                    read += batch.records.len() as u64;
                    let offset = batch.records.last().unwrap().offset + 1;
                    let commit = Commit { source: batch.source, offset, metadata: String::new() };
                    match consumer.commit(vec![commit]).await {
                        Ok(()) | Err(Error::Fenced { .. }) => {}
                        Err(error) => worker.tell_error(error),
                    }
                }
                // Who reads more slowly than others write is overtaken by retention.
                Ok(Event::OffsetsGone { .. }) => gone += 1,
                Ok(Event::Assigned(partitions)) => {
                    // It may come again from where its last owner committed.
                    partitions.iter().for_each(|partition| drop(last.remove(&partition.source)));
                }
                Ok(Event::EndOfPartition { .. } | Event::Revoked(_) | Event::Lost(_)) => {}
                Err(error) => worker.tell_error(error),
            }
        }
        (read, gone)
    };
    let ((written, slowest), (read, gone)) = tokio::join!(writing, reading);
    worker.tell(&[format!("figures {written} {read} {gone} {}", slowest.as_millis())]);
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_processes_at_full_load_starve_nobody_and_hear_of_no_lock() {
    let minutes = std::env::var("PIPEDOC_TEST_MINUTES").ok().map(|text| text.parse::<f64>().unwrap());
    let seconds = minutes.map_or(5, |minutes| (minutes * 60.0) as u64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let log = SqliteLog::open(worker::log_file(path), Options::default()).await.unwrap();
    let settings = TopicSettings { retention_bytes: Some(KEPT), ..TopicSettings::default() };
    let spec = TopicSpec { topic: topic(), partitions: PROCESSES as i32, replication: None, settings };
    log.ensure_topic(&spec).await.unwrap();
    let text = seconds.to_string();
    let mut processes: Vec<_> =
        (0..PROCESSES).map(|slot| worker::start("load", path, slot, 1, &[(SECONDS, &text)])).collect();
    wait_for("all are ready", Duration::from_secs(120), || {
        let ready = (0..PROCESSES).all(|slot| worker::told(path, "load", slot).contains(&"ready".to_owned()));
        ready.then_some(())
    });
    std::fs::write(path.join("go"), "").unwrap();
    for process in &mut processes {
        assert!(process.wait(Duration::from_secs(seconds + 120)).success(), "{}", process.output());
    }

    let mut figures = Vec::new();
    for slot in 0..PROCESSES {
        let lines = worker::told(path, "load", slot);
        let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("error")).take(5).collect();
        assert!(errors.is_empty(), "errors reached a caller: {errors:#?}");
        let told = lines.iter().find_map(|line| line.strip_prefix("figures ")).expect("figures");
        let numbers: Vec<u64> = told.split(' ').map(|word| word.parse().unwrap()).collect();
        figures.push(numbers);
    }
    let column = |n: usize| -> Vec<u64> { figures.iter().map(|row| row[n]).collect() };
    let (written, read, gone, slowest) = (column(0), column(1), column(2), column(3));
    let ends: Vec<u64> = log.ends(&topic()).await.unwrap().iter().map(|ends| ends.end as u64).collect();
    assert_eq!(ends, written, "what was acknowledged is there, and nothing else");
    let size = |suffix: &str| {
        let mut name = worker::log_file(path).into_os_string();
        name.push(suffix);
        std::fs::metadata(name).map_or(0, |metadata| metadata.len()) >> 20
    };
    let mean = written.iter().sum::<u64>() / PROCESSES as u64;
    let least = *written.iter().min().unwrap();
    eprintln!(
        "{seconds} s: written {written:?} ({} records of {RECORD} bytes a second in all, slowest {:.2} of the mean), \
         read {read:?}, overtaken by retention {gone:?} times, longest wait for an acknowledgement {} ms, \
         file {} MB, write-ahead log {} MB",
        written.iter().sum::<u64>() / seconds,
        least as f64 / mean as f64,
        slowest.iter().max().unwrap(),
        size(""),
        size("-wal"),
    );
    assert!(least * 2 >= mean, "the slowest of {written:?} has less than half of the mean {mean}");
    assert!(read.iter().all(|read| *read > 0), "somebody read nothing: {read:?}");
    drop(log);
    worker::assert_intact(path);
}
