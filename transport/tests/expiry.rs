//! Members whose session is taken for over: they come back, and the joining of
//! others does not end them.

// Helpers of tests may fail as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_transport::log::{ConsumerConfig, Event, Log, Start, Subscription, TopicSettings, TopicSpec};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

const PATIENCE: Duration = Duration::from_secs(60);

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

async fn ensure(log: &dyn Log, partitions: i32) {
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: topic(), partitions, replication: None, settings }).await.unwrap();
}

fn member(client: &str) -> ConsumerConfig {
    let topics = vec![topic()];
    let group = Subscription::Group { group: "g".into(), topics, patterns: Vec::new(), start: Start::Earliest };
    ConsumerConfig::new(client, group)
}

#[tokio::test(start_paused = true)]
async fn a_member_that_expires_while_it_holds_nothing_joins_anew() {
    let log = MemoryLog::new();
    ensure(&log, 1).await;
    let owner = log.consumer(member("owner")).await.unwrap();
    while !matches!(owner.next().await.unwrap(), Event::Assigned(_)) {}
    let idle = log.consumer(member("idle")).await.unwrap();
    tokio::spawn(async move { while idle.next().await.is_ok() {} });
    for time in ["joins", "joins anew"] {
        let expiring = async {
            while log.expire("idle") == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, expiring).await.unwrap_or_else(|_| panic!("it never {time}"));
    }
}

/// Lets every session in the file look as if its process had ended.
fn bury(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    assert!(connection.execute("UPDATE sessions SET process = 'another-boot pid:[1] 1 1'", []).unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_joins_over_dead_ones_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.db");
    // Each handle has a session of its own, as each process has.
    let [dead, first, second] = [
        SqliteLog::open(&file, Options::default()).await.unwrap(),
        SqliteLog::open(&file, Options::default()).await.unwrap(),
        SqliteLog::open(&file, Options::default()).await.unwrap(),
    ];
    ensure(&dead, 2).await;
    let gone = dead.consumer(member("gone")).await.unwrap();
    while !matches!(gone.next().await.unwrap(), Event::Assigned(_)) {}
    bury(&file);

    let stays = first.consumer(member("stays")).await.unwrap();
    while !matches!(stays.next().await.unwrap(), Event::Assigned(_)) {}
    let comes = second.consumer(member("comes")).await.unwrap();
    let coming = async { while !matches!(comes.next().await.unwrap(), Event::Assigned(_)) {} };
    let staying = async {
        loop {
            if let Event::Lost(partitions) = stays.next().await.unwrap() {
                panic!("it lost {partitions:?} though it is alive");
            }
        }
    };
    let both = async {
        tokio::select! {
            () = coming => {}
            () = staying => {}
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("the other gets its share");
}

/// Puts a member into the group whose process cannot be seen from here, as one in
/// another container; it says nothing any more.
fn silent_member(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection
        .execute_batch(
            "BEGIN IMMEDIATE;
             INSERT OR IGNORE INTO groups (name, changed) VALUES ('g', 1);
             INSERT INTO sessions (id, beats, process) VALUES (7, 5, '');
             INSERT INTO members (grp, session, client, timeout_ms, topics)
                 SELECT id, 7, 'silent', 6000, 't' FROM groups WHERE name = 'g';
             INSERT OR REPLACE INTO leases (grp, partition, owner, target, epoch)
                 SELECT g.id, p.id, m.id, m.id, 1 FROM groups g, partitions p, members m WHERE m.session = 7;
             UPDATE groups SET last_epoch = last_epoch + 1;
             COMMIT;",
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_which_nothing_is_heard_is_taken_out_though_its_process_cannot_be_seen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.db");
    let log = SqliteLog::open(&file, Options::default()).await.unwrap();
    ensure(&log, 2).await;
    silent_member(&file);
    let began = std::time::Instant::now();
    let consumer = log.consumer(member("here")).await.unwrap();
    let taking_over = async { while !matches!(consumer.next().await.unwrap(), Event::Assigned(_)) {} };
    tokio::time::timeout(PATIENCE, taking_over).await.expect("its partitions come here");
    assert!(began.elapsed() > Duration::from_secs(5), "its session was given its time: {:?}", began.elapsed());
    consumer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_which_nothing_is_heard_can_be_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.db");
    let log = SqliteLog::open(&file, Options::default()).await.unwrap();
    ensure(&log, 2).await;
    silent_member(&file);
    log.set_group_offsets("g", &[]).await.expect("the group is empty once its silent member is taken out");
}
