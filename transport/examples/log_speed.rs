//! How fast the SQLite log is by itself, without steps and modules, beside plain
//! rusqlite doing the same: records of one table read and inserted into another.
//!
//! ```text
//! cargo run --release -p pipedoc-transport --example log_speed -- [RECORDS] [ROUNDS]
//! ```
//!
//! Made to be profiled; figures to be quoted come from `bench/`.

// A measurement that cannot be made is to say so and end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    Commit, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Receipt, Start, Subscription, TopicSettings,
    TopicSpec,
};
use pipedoc_transport::sqlite::{Options, SqliteLog};
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, params};

const PARTITIONS: i64 = 4;
const BATCH: usize = 500;
/// Batches whose receipts may be open at once.
const AHEAD: usize = 8;

fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}

fn value(n: usize) -> Vec<u8> {
    let mut value = vec![b'x'; 1024];
    value[..8].copy_from_slice(format!("{n:08}").as_bytes());
    value
}

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse().expect("a number"));
    let (records, rounds): (usize, usize) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(3));
    for _ in 0..rounds {
        for page in [4096, 8192, 16384] {
            for vacuum in [0, 2] {
                let folder = tempfile::tempdir_in(".").unwrap();
                let (fill, copy) = raw(folder.path(), records, page, vacuum);
                println!(
                    "raw  page {page:5} auto_vacuum {vacuum}: fill {:7.0}/s  copy {:7.0}/s",
                    per_second(records, fill),
                    per_second(records, copy)
                );
            }
        }
        let folder = tempfile::tempdir_in(".").unwrap();
        let (fill, copy) = log(folder.path(), records).await;
        println!("log: fill {:7.0}/s  copy {:7.0}/s", per_second(records, fill), per_second(records, copy));
    }
}

fn per_second(records: usize, time: Duration) -> f64 {
    records as f64 / time.as_secs_f64()
}

/// The same with rusqlite: fills one table, then copies it to another in batches
/// with one commit of a position each.
fn raw(folder: &Path, records: usize, page: i64, vacuum: i64) -> (Duration, Duration) {
    let mut connection = Connection::open(folder.join("raw.db")).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size = {page}; PRAGMA auto_vacuum = {vacuum}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = {};",
            4000 * 4096 / page
        ))
        .unwrap();
    for table in ["a", "b"] {
        connection
            .execute_batch(&format!(
                "CREATE TABLE {table} (id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
                 timestamp INTEGER NOT NULL, key BLOB, value BLOB, headers BLOB);
                 CREATE UNIQUE INDEX {table}_by_place ON {table} (partition, offset);"
            ))
            .unwrap();
    }
    connection.execute_batch("CREATE TABLE position (partition INTEGER PRIMARY KEY, offset INTEGER)").unwrap();
    let began = Instant::now();
    for chunk in (0..records).collect::<Vec<_>>().chunks(BATCH) {
        let transaction = connection.transaction().unwrap();
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO a (partition, offset, timestamp, key, value) VALUES (?, ?, ?, ?, ?)")
                .unwrap();
            for n in chunk {
                let n64 = *n as i64;
                let key = format!("key-{n}");
                insert.execute(params![n64 % PARTITIONS, n64 / PARTITIONS, n64, key.as_bytes(), value(*n)]).unwrap();
            }
        }
        transaction.commit().unwrap();
    }
    let filled = began.elapsed();
    let began = Instant::now();
    let mut positions = [0_i64; PARTITIONS as usize];
    let mut next = [0_i64; PARTITIONS as usize];
    let mut copied = 0;
    while copied < records {
        for partition in 0..PARTITIONS {
            let at = partition as usize;
            let transaction = connection.transaction().unwrap();
            {
                let mut select = transaction
                    .prepare_cached(
                        "SELECT offset, timestamp, key, value, headers FROM a WHERE partition = ? AND offset >= ?
                         ORDER BY offset LIMIT ?",
                    )
                    .unwrap();
                let mut insert = transaction
                    .prepare_cached(
                        "INSERT INTO b (partition, offset, timestamp, key, value, headers) VALUES (?, ?, ?, ?, ?, ?)",
                    )
                    .unwrap();
                let mut rows = select.query(params![partition, positions[at], BATCH as i64]).unwrap();
                while let Some(row) = rows.next().unwrap() {
                    let offset: i64 = row.get(0).unwrap();
                    insert
                        .execute(params![
                            partition,
                            next[at],
                            as_is(row, 1),
                            as_is(row, 2),
                            as_is(row, 3),
                            as_is(row, 4)
                        ])
                        .unwrap();
                    next[at] += 1;
                    positions[at] = offset + 1;
                    copied += 1;
                }
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO position VALUES (?, ?)")
                    .unwrap()
                    .execute(params![partition, positions[at]])
                    .unwrap();
            }
            transaction.commit().unwrap();
        }
    }
    (filled, began.elapsed())
}

/// A column, without a copy.
fn as_is<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> ToSqlOutput<'a> {
    ToSqlOutput::Borrowed(row.get_ref(column).unwrap())
}

/// The log: fills one topic, then a member of a group copies it to another.
async fn log(folder: &Path, records: usize) -> (Duration, Duration) {
    let log = SqliteLog::open(folder.join("log.db"), Options::default()).await.unwrap();
    for name in ["a", "b"] {
        let settings = TopicSettings::default();
        let partitions = PARTITIONS as i32;
        log.ensure_topic(&TopicSpec { topic: topic(name), partitions, replication: None, settings }).await.unwrap();
    }
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let began = Instant::now();
    let mut receipts = Vec::new();
    for chunk in (0..records).collect::<Vec<_>>().chunks(BATCH) {
        let make = |n: &usize| {
            let key = Some(format!("key-{n}").into());
            OutgoingRecord::new(topic("a"), key, Some(value(*n).into()))
        };
        receipts.push(producer.send(chunk.iter().map(make).collect()).await.unwrap());
        if receipts.len() > AHEAD {
            settle(receipts.remove(0)).await;
        }
    }
    for receipt in receipts {
        settle(receipt).await;
    }
    let filled = began.elapsed();
    let group = Subscription::Group {
        group: "copy".into(),
        topics: vec![topic("a")],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    let consumer = log.consumer(ConsumerConfig::new("copy", group)).await.unwrap();
    while !matches!(consumer.next().await.unwrap(), Event::Assigned(_)) {}
    let began = Instant::now();
    let mut copied = 0;
    let mut open: Vec<(Commit, Receipt)> = Vec::new();
    while copied < records {
        if let Event::Records(batch) = consumer.next().await.unwrap() {
            copied += batch.records.len();
            let last = batch.records.last().map_or(0, |record| record.offset);
            let commit = Commit { source: batch.source, offset: last + 1, metadata: String::new() };
            let to_b = |record: pipedoc_transport::log::Record| OutgoingRecord {
                partition: None,
                headers: record.headers,
                ..OutgoingRecord::new(topic("b"), record.key, record.value)
            };
            let receipt = producer.send(batch.records.into_iter().map(to_b).collect()).await.unwrap();
            open.push((commit, receipt));
            if open.len() > AHEAD {
                acknowledge(&consumer, &mut open).await;
            }
        }
    }
    acknowledge(&consumer, &mut open).await;
    let copied = began.elapsed();
    consumer.close().await.unwrap();
    (filled, copied)
}

async fn acknowledge(consumer: &Arc<dyn pipedoc_transport::log::Consumer>, open: &mut Vec<(Commit, Receipt)>) {
    for (commit, receipt) in open.drain(..) {
        settle(receipt).await;
        consumer.commit(vec![commit]).await.unwrap();
    }
}

async fn settle(receipt: Receipt) {
    assert!(receipt.await.iter().all(Result::is_ok));
}
