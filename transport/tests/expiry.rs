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

const PATIENCE: Duration = Duration::from_secs(30);

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

/// Lets every session in the file look as if it had not been renewed for long.
fn age_sessions(file: &Path) {
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    assert!(connection.execute("UPDATE sessions SET seen_at = 0", []).unwrap() > 0);
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
    age_sessions(&file);

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
