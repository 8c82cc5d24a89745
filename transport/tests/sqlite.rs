//! What the sqlite log promises beside the contract: many processes, killed
//! ones, files that are no logs, full disks, room given back.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_transport::error::{Error, FileProblem};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::sqlite::{Options, SqliteLog};

const PATIENCE: Duration = Duration::from_secs(60);

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new(topic(), partition)
}

async fn open(folder: &Path) -> SqliteLog {
    SqliteLog::open(folder.join("log.db"), Options::default()).await.unwrap()
}

async fn ensure(log: &SqliteLog, partitions: i32, settings: TopicSettings) {
    log.ensure_topic(&TopicSpec { topic: topic(), partitions, replication: None, settings }).await.unwrap();
}

fn record(partition: i32, value: impl Into<bytes::Bytes>) -> OutgoingRecord {
    OutgoingRecord { partition: Some(partition), ..OutgoingRecord::new(topic(), None, Some(value.into())) }
}

fn group() -> Subscription {
    Subscription::Group { group: "g".into(), topics: vec![topic()], patterns: Vec::new(), start: Start::Earliest }
}

async fn read_all(log: &SqliteLog, partition: i32) -> Vec<(i64, String)> {
    let subscription = Subscription::Assigned(vec![(at(partition), Start::Earliest)]);
    let consumer = log.consumer(ConsumerConfig::new("reader", subscription)).await.unwrap();
    let mut records = Vec::new();
    loop {
        match consumer.next().await.unwrap() {
            Event::Records(batch) => records.extend(
                batch
                    .records
                    .into_iter()
                    .map(|record| (record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap())),
            ),
            Event::EndOfPartition { .. } => return records,
            _ => {}
        }
    }
}

/// Polls a consumer until it was given so many partitions.
async fn own(consumer: &Arc<dyn Consumer>, wanted: usize) {
    let mut owned = 0;
    let owning = async {
        while owned < wanted {
            match consumer.next().await.unwrap() {
                Event::Assigned(partitions) => owned += partitions.len(),
                Event::Revoked(revocation) => owned -= revocation.partitions.len(),
                Event::Lost(partitions) => owned -= partitions.len(),
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, owning).await.unwrap_or_else(|_| panic!("not {wanted} partitions in time"));
}

// ---- Other processes: this test binary again, doing one thing. ----

const ROLE: &str = "PIPEDOC_TEST_ROLE";
const FOLDER: &str = "PIPEDOC_TEST_FOLDER";

/// Another process; it ends with the test, however that ends.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this binary as another process on the same file.
fn other_process(role: &str, folder: &Path) -> Other {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_another_process", "--nocapture"])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    Other(child)
}

fn signal(child: &Other, name: &str) {
    let sent = Command::new("kill").args([name, &child.0.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Does what a test asks of another process; nothing in an ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_another_process() {
    let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else { return };
    let log = open(Path::new(&folder)).await;
    match role.as_str() {
        "write" => {
            let producer = log.producer(ProducerConfig::default()).await.unwrap();
            for n in 0.. {
                let batch = (0..10).map(|m| record(n % 2, format!("{:08}", n * 10 + m))).collect();
                for delivered in producer.send(batch).await.unwrap().await {
                    let delivered = delivered.unwrap();
                    println!("acked {} {}", delivered.partition, delivered.offset);
                }
            }
        }
        "own" => {
            let consumer = log.consumer(ConsumerConfig::new("other", group())).await.unwrap();
            own(&consumer, 1).await;
            println!("owning");
            loop {
                let next = tokio::time::timeout(Duration::from_millis(500), consumer.next()).await;
                if let Ok(Ok(Event::Lost(_))) = next {
                    println!("lost");
                }
            }
        }
        "stall" => {
            let consumer = log.consumer(ConsumerConfig::new("stalls", group())).await.unwrap();
            own(&consumer, 2).await;
            println!("owning");
            // The parent stops this process and lets it go on once it took over.
            let began = Instant::now();
            while !Path::new(&folder).join("go").exists() && began.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let commit = Commit { source: at(0), offset: 1, metadata: String::new() };
            let committed = consumer.commit(vec![commit]).await;
            println!("committed: {}", matches!(committed, Err(Error::Fenced { .. })));
            std::process::exit(0);
        }
        // What a writer holds before it begins its transaction.
        "hold" => {
            let lock = |name: &str| {
                let file = std::fs::File::open(Path::new(&folder).join(name)).unwrap();
                file.lock().unwrap();
                file
            };
            let _held = (lock("log.db.turn"), lock("log.db.bell"));
            println!("holding");
            std::thread::sleep(Duration::from_secs(600));
        }
        other => panic!("no role {other}"),
    }
}

/// The lines that a process prints, without what the test harness says.
fn wait_for(lines: &mut impl Iterator<Item = std::io::Result<String>>, wanted: &str) -> String {
    lines.map(Result::unwrap).find(|line| line.contains(wanted)).unwrap_or_else(|| panic!("it never said {wanted:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_a_writer_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 2, TopicSettings::default()).await;
    let mut acked = [-1_i64; 2];
    for round in 0..5 {
        let mut child = other_process("write", folder.path());
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        wait_for(&mut lines, "acked");
        tokio::time::sleep(Duration::from_millis(50 + 37 * round)).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["acked", partition, offset] = words[..]
                && let (Ok(partition), Ok(offset)) = (partition.parse::<usize>(), offset.parse::<i64>())
            {
                acked[partition] = acked[partition].max(offset);
            }
        }
        for partition in 0..2 {
            let records = read_all(&log, partition).await;
            let last = records.last().map_or(-1, |(offset, _)| *offset);
            assert!(last >= acked[partition as usize], "acknowledged up to {acked:?}, found up to {last}");
            assert!(records.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0), "offsets without gaps");
            // Batches are whole: ten records each, in order.
            assert_eq!(records.len() % 10, 0);
            for batch in records.chunks(10) {
                assert!(batch.windows(2).all(|pair| pair[0].1 < pair[1].1));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_a_killed_process_move_within_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 2, TopicSettings::default()).await;
    let mut child = other_process("own", folder.path());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "owning");
    let consumer = log.consumer(ConsumerConfig::new("here", group())).await.unwrap();
    own(&consumer, 1).await;
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let killed = Instant::now();
    own(&consumer, 1).await;
    // Ten seconds are promised; a machine that runs all tests at once may take longer.
    assert!(killed.elapsed() < Duration::from_secs(30), "it took {:?}", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_frozen_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 2, TopicSettings::default()).await;
    let mut child = other_process("stall", folder.path());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "owning");
    signal(&child, "-STOP");
    let consumer = log.consumer(ConsumerConfig::new("here", group())).await.unwrap();
    own(&consumer, 2).await;
    std::fs::write(folder.path().join("go"), "").unwrap();
    signal(&child, "-CONT");
    assert!(wait_for(&mut lines, "committed").contains("committed: true"), "a late commit is fenced");
    child.0.wait().unwrap();
    assert!(log.group_offsets("g").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_stopped_in_its_turn_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let mut child = other_process("hold", folder.path());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    wait_for(&mut lines, "holding");
    signal(&child, "-STOP");
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let began = Instant::now();
    for n in 0..50 {
        let reports = producer.send(vec![record(0, format!("{n}"))]).await.unwrap().await;
        assert!(reports[0].is_ok(), "{reports:?}");
    }
    assert!(began.elapsed() < PATIENCE / 2, "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_many_handles_all_get_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 4, TopicSettings::default()).await;
    // All have opened the file before the clock starts: opening takes turns as well.
    let mut handles = Vec::new();
    for _ in 0..4 {
        let log = open(folder.path()).await;
        let producer = log.producer(ProducerConfig::default()).await.unwrap();
        handles.push((log, producer));
    }
    let until = Instant::now() + Duration::from_secs(3);
    let mut tasks = Vec::new();
    for (partition, (log, producer)) in (0..).zip(handles) {
        tasks.push(tokio::spawn(async move {
            let _open = log;
            let mut sent = 0;
            while Instant::now() < until {
                let reports = producer.send(vec![record(partition, format!("{sent:08}"))]).await.unwrap().await;
                assert!(reports[0].is_ok(), "{reports:?}");
                sent += 1;
            }
            sent
        }));
    }
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await.unwrap());
    }
    let mean = counts.iter().sum::<usize>() / counts.len();
    assert!(counts.iter().all(|count| *count * 2 >= mean), "{counts:?}");
    for partition in 0..4 {
        let records = read_all(&log, partition).await;
        assert_eq!(records.len(), counts[partition as usize]);
        assert!(records.windows(2).all(|pair| pair[0].1 < pair[1].1));
    }
}

// ---- Files that cannot be used. ----

async fn problem_of(path: &Path) -> FileProblem {
    match SqliteLog::open(path, Options::default()).await.map(|_| ()) {
        Err(Error::File { problem, path: named, .. }) => {
            assert_eq!(named, path);
            problem
        }
        other => panic!("{}: {other:?}", path.display()),
    }
}

#[tokio::test]
async fn what_is_no_log_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database, but quite a bit of text\n".repeat(100)).unwrap();
    let before = std::fs::read(&text).unwrap();
    assert_eq!(problem_of(&text).await, FileProblem::NotALog);
    assert_eq!(std::fs::read(&text).unwrap(), before);

    let short = folder.path().join("short.txt");
    std::fs::write(&short, "x").unwrap();
    assert_eq!(problem_of(&short).await, FileProblem::NotALog);

    let foreign = folder.path().join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    connection.execute_batch("CREATE TABLE addresses (name TEXT); INSERT INTO addresses VALUES ('a')").unwrap();
    drop(connection);
    let before = std::fs::read(&foreign).unwrap();
    assert_eq!(problem_of(&foreign).await, FileProblem::NotALog);
    assert_eq!(std::fs::read(&foreign).unwrap(), before, "another program's file is not touched");

    assert_eq!(problem_of(folder.path()).await, FileProblem::NotALog, "a folder");
    assert_eq!(problem_of(&folder.path().join("missing/log.db")).await, FileProblem::CannotOpen);
    assert_eq!(problem_of(Path::new("/proc/log.db")).await, FileProblem::ReadOnly);
}

#[tokio::test]
async fn a_newer_and_a_damaged_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.db");
    drop(open(folder.path()).await);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert_eq!(problem_of(&path).await, FileProblem::TooNew { found: 99, known: 2 });

    let damaged = folder.path().join("damaged.db");
    let log = SqliteLog::open(&damaged, Options::default()).await.unwrap();
    log.ensure_topic(&TopicSpec {
        topic: topic(),
        partitions: 1,
        replication: None,
        settings: TopicSettings::default(),
    })
    .await
    .unwrap();
    drop(log);
    // Its threads close the file soon after.
    let connection = rusqlite::Connection::open(&damaged).unwrap();
    connection.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
    drop(connection);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[100..].fill(0xa5);
    std::fs::write(&damaged, bytes).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", damaged.display()));
    }
    assert_eq!(problem_of(&damaged).await, FileProblem::Corrupt);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_another_program_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let other = rusqlite::Connection::open(log.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut receipt = producer.send(vec![record(0, "waits")]).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(500), &mut receipt).await;
    assert!(early.is_err(), "it waits: {early:?}");
    other.execute_batch("ROLLBACK").unwrap();
    let reports = tokio::time::timeout(PATIENCE, receipt).await.unwrap();
    assert!(reports[0].is_ok(), "{reports:?}");
}

/// A small file system of its own, for who may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_it_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED a_full_disk_is_told: no right to mount a file system");
        return;
    };
    let folder = disk.0.path();
    let filler = folder.join("filler");
    std::fs::write(&filler, vec![0; 1_500_000]).unwrap();
    let log = open(folder).await;
    ensure(&log, 1, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut acked = 0;
    let error = loop {
        let batch = (acked..acked + 10).map(|n| record(0, format!("{n:08}{}", "x".repeat(2000)))).collect();
        let reports = producer.send(batch).await.unwrap().await;
        if let Some(Err(error)) = reports.iter().find(|report| report.is_err()) {
            assert!(reports.iter().all(Result::is_err), "all of a batch or nothing");
            break error.clone();
        }
        acked += 10;
        assert!(acked < 10_000, "the disk never got full");
    };
    assert!(matches!(error, Error::File { problem: FileProblem::Full, .. }), "{error:?}");
    assert!(error.is_retryable() && error.to_string().contains("log.db"), "{error}");
    std::fs::remove_file(&filler).unwrap();
    let batch = (acked..acked + 10).map(|n| record(0, format!("{n:08}"))).collect();
    let reports = producer.send(batch).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok), "{reports:?}");
    let numbers: Vec<usize> = read_all(&log, 0).await.iter().map(|(_, value)| value[..8].parse().unwrap()).collect();
    assert_eq!(numbers, (0..acked + 10).collect::<Vec<_>>(), "what was acknowledged is there, and nothing else");
}

// ---- What need not be kept. ----

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_keeps_the_newest_record_of_each_key() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 1, TopicSettings { compact: Some(true), ..TopicSettings::default() }).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let keyed = |n: usize| OutgoingRecord { key: Some(format!("{}", n % 7).into()), ..record(0, n.to_string()) };
    let reports = producer.send((0..2000).map(keyed).collect()).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok));
    until("compaction", async || read_all(&log, 0).await.len() == 7).await;
    let mut values: Vec<String> = read_all(&log, 0).await.into_iter().map(|(_, value)| value).collect();
    values.sort();
    assert_eq!(values, (1993..2000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(log.ends(&topic()).await.unwrap()[0].end, 2000, "offsets stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_removes_what_is_too_old_or_too_much() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    let settings =
        TopicSettings { retention_ms: Some(3_600_000), retention_bytes: Some(50_000), ..TopicSettings::default() };
    ensure(&log, 2, settings).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let old = (0..50).map(|_| OutgoingRecord { timestamp: Some(1_000), ..record(0, "old") });
    let new = (0..5).map(|_| record(0, "new"));
    let much = (0..200).map(|_| record(1, "x".repeat(1000)));
    let reports = producer.send(old.chain(new).chain(much).collect()).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok));
    until("retention by age and size", async || {
        let ends = log.ends(&topic()).await.unwrap();
        ends[0].start == 50 && ends[1].start == 150
    })
    .await;
    assert_eq!(read_all(&log, 0).await.len(), 5);
    assert_eq!(read_all(&log, 1).await.len(), 50);
    let count = async || {
        let connection = rusqlite::Connection::open(log.path()).unwrap();
        connection.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    until("the records are gone from the file", async || count().await == 55).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_topic_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path()).await;
    ensure(&log, 2, TopicSettings::default()).await;
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let reports = producer.send((0..1500).map(|n| record(n % 2, "v")).collect()).await.unwrap().await;
    assert!(reports.iter().all(Result::is_ok));
    let consumer = log.consumer(ConsumerConfig::new("c", group())).await.unwrap();
    own(&consumer, 2).await;
    log.delete_topic(&topic()).await.unwrap();
    // Made anew under the same name it is another topic.
    ensure(&log, 1, TopicSettings::default()).await;
    assert_eq!(log.ends(&topic()).await.unwrap()[0].end, 0);
    let reports = producer.send(vec![record(0, "anew")]).await.unwrap().await;
    assert_eq!(reports[0].as_ref().unwrap().offset, 0);
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Event::Records(batch) = consumer.next().await.unwrap()
                && batch.records.iter().any(|record| record.value.as_deref() == Some(b"anew"))
            {
                return;
            }
        }
    });
    found.await.expect("the member reads the new topic");
    let count = async || {
        let connection = rusqlite::Connection::open(log.path()).unwrap();
        connection.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    until("the old records are gone from the file", async || count().await == 1).await;
}
