//! When an acknowledgement promises to survive a loss of power, the disk was told
//! to keep it before: a small library, loaded into the writing process, notes each
//! flush of a file beside the process's own notes of what was acknowledged.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::missing;
use pipedoc_transport::log::{OutgoingRecord, ProducerConfig, TopicSettings, TopicSpec, TransactionalConfig};
use pipedoc_transport::open::LogUrl;

use super::worker::{self, Worker};

const TRACE: &str = "PIPEDOC_TEST_TRACE";
const ACKNOWLEDGEMENTS: usize = 40;

/// Notes each flush of a write-ahead log; SQLite calls the C library for it.
const NOTES: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void note(int fd) {
    char link[64], path[4096];
    const char *trace = getenv("PIPEDOC_TEST_TRACE");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!trace || length < 4 || memcmp(path + length - 4, "-wal", 4)) return;
    int out = open(trace, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (out < 0 || write(out, "flushed\n", 8) != 8) abort();
    close(out);
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    note(fd);
    return result;
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(fd);
    note(fd);
    return result;
}
"#;

/// Writes records and transactions one by one, and notes each acknowledgement.
pub async fn write(worker: &Worker) {
    let trace = std::env::var(TRACE).unwrap();
    // As the programs open it: the environment says how much is flushed.
    let log = LogUrl::Sqlite(worker::log_file(&worker.folder)).open().await.unwrap();
    let topic = Topic::new("t").unwrap();
    let settings = TopicSettings::default();
    log.ensure_topic(&TopicSpec { topic: topic.clone(), partitions: 1, replication: None, settings }).await.unwrap();
    let mut trace = std::fs::File::options().create(true).append(true).open(trace).unwrap();
    trace.write_all(b"began\n").unwrap();
    let record = || vec![OutgoingRecord::new(topic.clone(), None, Some("value".into()))];
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    let mut transactional = log.transactional(TransactionalConfig::new("t")).await.unwrap();
    for number in 0..ACKNOWLEDGEMENTS {
        if number % 2 == 0 {
            assert!(producer.send(record()).await.unwrap().await[0].is_ok());
        } else {
            transactional.begin().await.unwrap();
            transactional.send(record()).await.unwrap();
            transactional.commit().await.unwrap();
        }
        trace.write_all(b"acknowledged\n").unwrap();
    }
    trace.write_all(b"ended\n").unwrap();
}

/// The library, built; `None` when there is no C compiler.
fn library(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("notes.c"), folder.join("notes.so"));
    std::fs::write(&source, NOTES).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
    match built {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(library)
        }
        Err(_) => None,
    }
}

/// What happened between the first and the last acknowledgement: how often each
/// one had a flush before it.
fn flushes(sync: Option<&str>) -> Option<Vec<usize>> {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path())?;
    let trace = folder.path().join("trace");
    let mut settings =
        vec![("LD_PRELOAD", library.to_str().unwrap().to_owned()), (TRACE, trace.to_str().unwrap().to_owned())];
    settings.push(("PIPEDOC_SYNC", sync.unwrap_or_default().to_owned()));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut process = worker::start("sync", folder.path(), 0, 1, &settings);
    assert!(process.wait(Duration::from_secs(60)).success(), "{}", process.output());
    let text = std::fs::read_to_string(&trace).unwrap();
    let (before, rest) = text.split_once("began\n").unwrap();
    let (between, _) = rest.split_once("ended\n").unwrap();
    assert!(before.contains("flushed"), "the library notes flushes: {text}");
    let mut counts = vec![0];
    for line in between.lines() {
        match line {
            "acknowledged" => counts.push(0),
            _ => *counts.last_mut().unwrap() += 1,
        }
    }
    // What came after the last acknowledgement promises nothing.
    counts.pop();
    assert_eq!(counts.len(), ACKNOWLEDGEMENTS);
    Some(counts)
}

#[test]
fn every_acknowledgement_has_its_flush_unless_told_otherwise() {
    let Some(full) = flushes(None) else {
        missing("every_acknowledgement_has_its_flush_unless_told_otherwise", "it needs a C compiler (cc)");
        return;
    };
    assert!(full.iter().all(|flushes| *flushes > 0), "acknowledged without a flush: {full:?}");
    let explicit = flushes(Some("full")).unwrap();
    assert!(explicit.iter().all(|flushes| *flushes > 0), "acknowledged without a flush: {explicit:?}");
    let normal = flushes(Some("normal")).unwrap();
    let count: usize = normal.iter().sum();
    assert!(count <= 2, "PIPEDOC_SYNC=normal still flushes: {normal:?}");
}
