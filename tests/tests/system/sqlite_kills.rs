//! Writers and readers of one SQLite file, killed at random: what was acknowledged
//! is there, once and in order; what was not committed never was; readers in
//! groups miss nothing, and exactly-once holds.
//!
//! `PIPEDOC_TEST_KILLS` says how often something is killed, `PIPEDOC_TEST_SEED`
//! repeats a run's choices (not its timing).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{eventually, wait_for};
use pipedoc_transport::error::Error;
use pipedoc_transport::log::{
    Commit, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, RecordBatch, Start, Subscription,
    TopicPartition, TopicSettings, TopicSpec, TransactionalConfig,
};
use pipedoc_transport::sqlite::{Options, SqliteLog};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::worker::{self, Worker};

const PARTITIONS: i32 = 4;
/// Batches of a writer that wait for their acknowledgement.
const IN_FLIGHT: usize = 4;
/// How many processes there are in each role.
const ROLES: [(&str, usize); 4] = [("writer", 3), ("transactional", 2), ("reader", 3), ("piper", 2)];
/// Numbers of a process begin above all those of its lives before.
const LIFE: u64 = 10_000_000;

fn input() -> Topic {
    Topic::new("in").unwrap()
}

fn output() -> Topic {
    Topic::new("out").unwrap()
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap()
}

fn member(group: &str, worker: &Worker) -> ConsumerConfig {
    let subscription = Subscription::Group {
        group: group.to_owned(),
        topics: vec![input()],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    ConsumerConfig { max_records: 50, ..ConsumerConfig::new(format!("{}-{}", worker.role, worker.slot), subscription) }
}

// ---- What the processes do. ----

/// Writes `p <slot> <number>`, keyed; tells the numbers that were acknowledged.
pub async fn write(worker: &Worker) {
    let log = worker.log().await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut random = StdRng::from_os_rng();
    let mut number = worker.life * LIFE;
    let mut waiting = VecDeque::new();
    let stopping = || worker.is_told_to("stop");
    loop {
        if waiting.len() == IN_FLIGHT || (stopping() && !waiting.is_empty()) {
            let (numbers, receipt): (Vec<u64>, pipedoc_transport::log::Receipt) = waiting.pop_front().unwrap();
            let mut acknowledged = Vec::new();
            for (number, report) in numbers.into_iter().zip(receipt.await) {
                match report {
                    Ok(_) => acknowledged.push(format!("acknowledged {number}")),
                    Err(error) => worker.tell_error(error),
                }
            }
            worker.tell(&acknowledged);
            continue;
        }
        if stopping() {
            return;
        }
        let numbers: Vec<u64> = (number..number + random.random_range(1..8)).collect();
        number += numbers.len() as u64;
        let record = |number: &u64| {
            let key = format!("p{}-{}", worker.slot, number % 5);
            let value = format!("p {} {number}", worker.slot);
            OutgoingRecord::new(input(), Some(key.into()), Some(value.into()))
        };
        let receipt = producer.send(numbers.iter().map(record).collect()).await.unwrap();
        waiting.push_back((numbers, receipt));
        tokio::time::sleep(Duration::from_millis(random.random_range(0..5))).await;
    }
}

/// Writes transactions of `t <slot> <number> <part> <parts>`; tells which were
/// committed and which it aborted.
pub async fn write_transactions(worker: &Worker) {
    let log = worker.log().await;
    let id = format!("transactional-{}", worker.slot);
    let mut transactional = log.transactional(TransactionalConfig::new(id)).await.unwrap();
    let mut random = StdRng::from_os_rng();
    let mut number = worker.life * LIFE;
    while !worker.is_told_to("stop") {
        number += 1;
        let parts = random.random_range(1..7);
        transactional.begin().await.unwrap();
        for part in 0..parts {
            let key = format!("t{}-{part}", worker.slot);
            let value = format!("t {} {number} {part} {parts}", worker.slot);
            let record = OutgoingRecord::new(input(), Some(key.into()), Some(value.into()));
            transactional.send(vec![record]).await.unwrap();
        }
        if random.random_ratio(1, 4) {
            // Told first: whatever happens then, it must not be there.
            worker.tell(&[format!("aborted {number}")]);
            transactional.abort().await.unwrap();
        } else {
            match transactional.commit().await {
                Ok(_) => worker.tell(&[format!("acknowledged {number}")]),
                Err(error) => worker.tell_error(error),
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..5))).await;
    }
}

/// Reads as a member of group `read`: tells each record, then commits.
pub async fn read(worker: &Worker) {
    follow(worker, "read", async |consumer, batch| {
        let seen = |record: &Record| format!("read {} {} {}", batch.source.partition, record.offset, text(record));
        worker.tell(&batch.records.iter().map(seen).collect::<Vec<_>>());
        let offset = batch.records.last().unwrap().offset + 1;
        let commit = Commit { source: batch.source, offset, metadata: String::new() };
        match consumer.commit(vec![commit]).await {
            // Another has it, and reads these again.
            Ok(()) | Err(Error::Fenced { .. }) => {}
            Err(error) => worker.tell_error(error),
        }
    })
    .await;
}

/// Pipes each record to the same partition of the output as `<offset> <value>`,
/// exactly once, as a member of group `piped`.
pub async fn pipe(worker: &Worker) {
    let log = worker.log().await;
    let id = format!("piper-{}", worker.slot);
    let transactional = log.transactional(TransactionalConfig::new(id)).await.unwrap();
    let transactional = tokio::sync::Mutex::new(transactional);
    follow(worker, "piped", async |consumer, batch| {
        let mut transactional = transactional.lock().await;
        let piped = |record: &Record| OutgoingRecord {
            partition: Some(batch.source.partition),
            ..OutgoingRecord::new(
                output(),
                record.key.clone(),
                Some(format!("{} {}", record.offset, text(record)).into()),
            )
        };
        let offset = batch.records.last().unwrap().offset + 1;
        let commit = Commit { source: batch.source.clone(), offset, metadata: format!("up to {offset}") };
        let Some(member) = consumer.group_metadata() else { return };
        transactional.begin().await.unwrap();
        transactional.send(batch.records.iter().map(piped).collect()).await.unwrap();
        let done = match transactional.send_offsets(vec![commit], &member).await {
            Ok(()) => transactional.commit().await.map(drop),
            refused => refused,
        };
        match done {
            Ok(()) => {}
            // Another has the partition; all of this never was.
            Err(Error::Fenced { .. }) => transactional.abort().await.unwrap(),
            Err(error) => worker.tell_error(error),
        }
    })
    .await;
}

/// Consumes the input in a group until told that all is done.
async fn follow(
    worker: &Worker,
    group: &str,
    mut work: impl AsyncFnMut(&dyn pipedoc_transport::log::Consumer, RecordBatch),
) {
    let log = worker.log().await;
    let consumer = log.consumer(member(group, worker)).await.unwrap();
    let mut expected: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    while !worker.is_told_to("done") {
        let Ok(next) = tokio::time::timeout(Duration::from_millis(100), consumer.next()).await else { continue };
        match next {
            Ok(Event::Assigned(partitions)) => {
                expected.extend(partitions.into_iter().map(|partition| (partition.source, partition.position)));
            }
            Ok(Event::Records(batch)) => {
                let place = expected.get_mut(&batch.source).expect("records of what it owns");
                for record in &batch.records {
                    if record.offset != *place {
                        worker.tell_error(format!("{} after {place} of {}", record.offset, batch.source));
                    }
                    *place = record.offset + 1;
                }
                work(&*consumer, batch).await;
            }
            Ok(Event::OffsetsGone { wanted, .. }) => worker.tell_error(format!("{wanted} is gone")),
            Ok(Event::EndOfPartition { .. } | Event::Revoked(_) | Event::Lost(_)) => {}
            Err(error) => worker.tell_error(error),
        }
    }
    consumer.close().await.unwrap();
}

// ---- The test. ----

/// One process that is killed and started anew.
struct Slot {
    role: &'static str,
    slot: usize,
    lives: u64,
    process: Process,
}

impl Slot {
    fn start(role: &'static str, slot: usize, folder: &Path) -> Self {
        Self { role, slot, lives: 1, process: worker::start(role, folder, slot, 1, &[]) }
    }

    fn kill(&mut self) {
        assert!(self.process.is_running(), "{} {} ended by itself:\n{}", self.role, self.slot, self.process.output());
        self.process.kill();
    }

    fn start_again(&mut self, folder: &Path) {
        self.lives += 1;
        self.process = worker::start(self.role, folder, self.slot, self.lives, &[]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_processes_are_killed_at_random() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = number("PIPEDOC_TEST_KILLS").unwrap_or(25);
    let seed = number("PIPEDOC_TEST_SEED").unwrap_or_else(rand::random);
    eprintln!("PIPEDOC_TEST_KILLS={kills} PIPEDOC_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    {
        // Not kept open: where everybody is killed, nobody is left to keep the file's state.
        let log = SqliteLog::open(worker::log_file(path), Options::default()).await.unwrap();
        for topic in [input(), output()] {
            let settings = TopicSettings::default();
            let spec = TopicSpec { topic, partitions: PARTITIONS, replication: None, settings };
            log.ensure_topic(&spec).await.unwrap();
        }
    }
    let roles = ROLES.into_iter().flat_map(|(role, count)| (0..count).map(move |slot| (role, slot)));
    let mut slots: Vec<Slot> = roles.map(|(role, slot)| Slot::start(role, slot, path)).collect();

    wait_for("every writer writes", Duration::from_secs(90), || {
        let writes = |line: &String| line.starts_with("acknowledged");
        (0..ROLES[0].1).all(|slot| worker::told(path, ROLES[0].0, slot).iter().any(writes)).then_some(())
    });

    let began = Instant::now();
    let mut killed = 0;
    while killed < kills {
        tokio::time::sleep(Duration::from_millis(random.random_range(30..500))).await;
        // Now and then all of them at once, as when the machine goes down.
        let victims = match random.random_ratio(1, 12) {
            true => 0..slots.len(),
            false => {
                let victim = random.random_range(0..slots.len());
                victim..victim + 1
            }
        };
        slots[victims.clone()].iter_mut().for_each(Slot::kill);
        killed += victims.len() as u64;
        slots[victims].iter_mut().for_each(|slot| slot.start_again(path));
    }
    let striking = began.elapsed();

    std::fs::write(path.join("stop"), "").unwrap();
    for slot in slots.iter_mut().filter(|slot| ["writer", "transactional"].contains(&slot.role)) {
        assert!(slot.process.wait(Duration::from_secs(60)).success(), "{}", slot.process.output());
    }
    let log = SqliteLog::open(worker::log_file(path), Options::default()).await.unwrap();
    let ends: Vec<i64> = log.ends(&input()).await.unwrap().iter().map(|ends| ends.end).collect();
    for group in ["read", "piped"] {
        eventually(&format!("group {group} consumes all"), Duration::from_secs(120), async || {
            let committed = log.group_offsets(group).await.unwrap();
            let offset = |n| committed.get(&TopicPartition::new(input(), n)).map_or(0, |committed| committed.offset);
            ((0..PARTITIONS).map(offset).collect::<Vec<_>>() == ends).then_some(())
        })
        .await;
    }
    std::fs::write(path.join("done"), "").unwrap();
    for slot in slots.iter_mut().filter(|slot| ["reader", "piper"].contains(&slot.role)) {
        assert!(slot.process.wait(Duration::from_secs(60)).success(), "{}", slot.process.output());
    }
    let took = began.elapsed();
    let found = check(&log, path).await;
    drop(log);
    worker::assert_intact(path);
    eprintln!("{killed} kills in {striking:?}, all consumed after {took:?}: {found}");
}

/// Compares what is in the log with what the processes told; gives figures.
async fn check(log: &SqliteLog, folder: &Path) -> String {
    let mut told: BTreeMap<(&str, usize), Vec<String>> = BTreeMap::new();
    for (role, count) in ROLES {
        for slot in 0..count {
            let lines = worker::told(folder, role, slot);
            let errors: Vec<_> = lines.iter().filter(|line| line.starts_with("error")).collect();
            assert!(errors.is_empty(), "errors reached a caller: {errors:#?}");
            told.insert((role, slot), lines);
        }
    }
    let numbers = |role: &str, slot: usize, word: &str| -> BTreeSet<u64> {
        let lines = told.iter().find(|((named, at), _)| *named == role && *at == slot).unwrap().1.iter();
        lines.filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
    };

    let records = read_topic(log, &input()).await;
    let mut plain: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    let mut transactions: BTreeMap<(usize, u64), (usize, BTreeSet<usize>)> = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for record in records.iter().flatten() {
        let text = text(record);
        let words: Vec<&str> = text.split(' ').collect();
        let number_at = |place: usize| words[place].parse::<u64>().unwrap();
        let (slot, number) = (number_at(1) as usize, number_at(2));
        let key = String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap();
        if let Some(before) = last.insert(key, number) {
            assert!(before < number, "{text} lies after {before}: out of order");
        }
        if words[0] == "p" {
            assert!(plain.entry(slot).or_default().insert(number), "{text} is there twice");
        } else {
            let entry = transactions.entry((slot, number)).or_insert((number_at(4) as usize, BTreeSet::new()));
            assert!(entry.1.insert(number_at(3) as usize), "{text} is there twice");
        }
    }
    let (mut acknowledged, mut committed, mut aborted) = (0, 0, 0);
    for slot in 0..ROLES[0].1 {
        let acks = numbers("writer", slot, "acknowledged");
        let lost: Vec<_> = acks.difference(&plain[&slot]).collect();
        assert!(lost.is_empty(), "{} of {} acknowledged by writer {slot} are lost: {lost:?}", lost.len(), acks.len());
        acknowledged += acks.len();
    }
    for slot in 0..ROLES[1].1 {
        let acks = numbers("transactional", slot, "acknowledged");
        for number in &acks {
            assert!(transactions.contains_key(&(slot, *number)), "committed transaction {slot} {number} is lost");
        }
        let undone = numbers("transactional", slot, "aborted");
        for number in &undone {
            assert!(!transactions.contains_key(&(slot, *number)), "aborted transaction {slot} {number} is there");
        }
        committed += acks.len();
        aborted += undone.len();
    }
    for (number, (parts, found)) in &transactions {
        assert_eq!(found.len(), *parts, "transaction {number:?} is there in part");
    }

    // The group `read` has seen every record, each as it is now.
    let mut seen: BTreeSet<(usize, i64)> = BTreeSet::new();
    let mut readings = 0;
    for line in told.iter().filter(|((role, _), _)| *role == "reader").flat_map(|(_, lines)| lines) {
        let Some(rest) = line.strip_prefix("read ") else { continue };
        let [partition, offset, value] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let (partition, offset) = (partition.parse::<usize>().unwrap(), offset.parse::<i64>().unwrap());
        // Offsets have no gaps on this log.
        let record = records[partition].get(offset as usize).filter(|record| record.offset == offset);
        assert_eq!(record.map(text).as_deref(), Some(value), "what was read at {partition}[{offset}] was undone");
        seen.insert((partition, offset));
        readings += 1;
    }
    let all: BTreeSet<(usize, i64)> =
        records.iter().enumerate().flat_map(|(n, of)| of.iter().map(move |record| (n, record.offset))).collect();
    assert_eq!(seen.len(), all.len(), "some records were never read: {:?}", all.difference(&seen).take(5));

    // The group `piped` has piped each record once, in order.
    let piped = read_topic(log, &output()).await;
    for (partition, (records, piped)) in records.iter().zip(&piped).enumerate() {
        let expected: Vec<String> =
            records.iter().map(|record| format!("{} {}", record.offset, text(record))).collect();
        let found: Vec<String> = piped.iter().map(text).collect();
        let same = expected.iter().zip(&found).take_while(|(expected, found)| expected == found).count();
        let around = |values: &[String]| values.iter().skip(same).take(3).cloned().collect::<Vec<_>>();
        assert!(
            expected == found,
            "partition {partition} was not piped exactly once from place {same} of {} on: {:?} became {:?}",
            expected.len(),
            around(&expected),
            around(&found)
        );
    }
    format!(
        "{} records, {acknowledged} acknowledged one by one and {committed} transactions, 0 lost, 0 out of order, \
         {aborted} aborted and none visible; read {readings} times by groups, piped exactly once",
        all.len()
    )
}

/// All records of a topic, by partition.
async fn read_topic(log: &SqliteLog, topic: &Topic) -> Vec<Vec<Record>> {
    let all = (0..PARTITIONS).map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
    let consumer = log.consumer(ConsumerConfig::new("checker", Subscription::Assigned(all))).await.unwrap();
    let mut records: Vec<Vec<Record>> = vec![Vec::new(); PARTITIONS as usize];
    let mut ended = BTreeSet::new();
    while ended.len() < PARTITIONS as usize {
        match consumer.next().await.unwrap() {
            Event::Records(batch) => records[batch.source.partition as usize].extend(batch.records),
            Event::EndOfPartition { source, .. } => drop(ended.insert(source)),
            _ => {}
        }
    }
    records
}
