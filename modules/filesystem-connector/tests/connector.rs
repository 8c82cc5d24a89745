//! What the connector promises, over real folders and without a runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that meets the unexpected must end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use pipedoc_filesystem_connector::FilesystemConnector;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1::blob;
use pipedoc_sdk::testing::{self, Outbox, Sent, Stop};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder, and what the connector has been told of it so far.
struct Bed {
    folder: TempDir,
    _data: TempDir,
    state: State,
    step: Step,
    stop: Stop,
}

impl Bed {
    fn new() -> Self {
        let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = testing::state(&data.path().join("state")).unwrap();
        let (step, stop) = testing::step(StepType::Connector, data.path());
        Self { folder, _data: data, state, step, stop }
    }

    fn write(&self, path: &str, content: &str) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        // As if it had been written long ago: files written just now are read again.
        self.age(&path);
        self
    }

    /// Moves a file's times out of the time in which they are not to be relied on.
    fn age(&self, path: &Path) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
        // Nobody can set the time of the last change; it has to pass.
        let since = || fs::metadata(path).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_millis(80);
        while std::time::Instant::now() < deadline {
            let _ = since();
            std::thread::yield_now();
        }
    }

    async fn open(&self, settings: Value) -> Result<FilesystemConnector> {
        let mut config = json!({"folder": self.folder.path()});
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        FilesystemConnector::open(serde_json::from_value(config).unwrap(), &self.step).await
    }

    /// Runs to the end; what was sent, one word and the id each, in order of ids.
    async fn run(&self, settings: Value) -> Vec<String> {
        let mut told: Vec<_> = self.sent(settings).await.iter().map(tell).collect();
        told.sort();
        told
    }

    async fn sent(&self, settings: Value) -> Vec<Sent> {
        let connector = self.open(settings).await.unwrap();
        let (emitter, outbox) = Outbox::new(&self.state);
        let run = async {
            let result = connector.run(&self.step, &emitter, &self.state).await;
            drop(emitter);
            result
        };
        let (result, sent) = tokio::join!(run, outbox.all());
        result.unwrap();
        sent.unwrap()
    }
}

fn tell(sent: &Sent) -> String {
    let word = match sent {
        Sent::Document(_) => "sent",
        Sent::Deletion { .. } => "deleted",
        Sent::Unreadable { error, .. } => error.kind(),
        Sent::Unchanged { .. } => "unchanged",
    };
    format!("{word} {}", sent.id())
}

fn version(sent: &Sent) -> i64 {
    match sent {
        Sent::Document(doc) => doc.version,
        Sent::Deletion { version, .. } | Sent::Unreadable { version, .. } => *version,
        Sent::Unchanged { .. } => 0,
    }
}

#[tokio::test]
async fn a_document_is_the_files_bytes_and_where_they_came_from() {
    let bed = Bed::new();
    bed.write("sub/C# notes.txt", "hello");
    let sent = bed.sent(json!({"id_prefix": "archive/"})).await;
    let [Sent::Document(doc)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(doc.id, "archive/sub/C%23 notes.txt");
    assert!(doc.version > 1_600_000_000_000_000, "{}", doc.version);
    assert!(doc.source_uri.starts_with("file:///") && doc.source_uri.ends_with("/sub/C%23%20notes.txt"));
    assert!(doc.modified_at.is_some());
    let [blob] = doc.blobs.as_slice() else { panic!("{doc:?}") };
    assert_eq!((blob.name.as_str(), blob.size), ("C# notes.txt", 5));
    assert_eq!(blob.content, Some(blob::Content::Inline("hello".into())));
    let sha256: String = blob.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
}

#[tokio::test]
async fn only_what_changed_is_sent_again() {
    let bed = Bed::new();
    bed.write("a", "1").write("b", "1").write("c", "1").write("d/e", "1");
    assert_eq!(bed.run(json!({})).await, ["sent a", "sent b", "sent c", "sent d/e"]);
    assert_eq!(bed.run(json!({})).await, ["unchanged a", "unchanged b", "unchanged c", "unchanged d/e"]);
    bed.write("a", "2").write("b", "1").write("new", "1");
    fs::remove_file(bed.folder.path().join("c")).unwrap();
    fs::remove_dir_all(bed.folder.path().join("d")).unwrap();
    assert_eq!(bed.run(json!({})).await, ["deleted c", "deleted d/e", "sent a", "sent new", "unchanged b"]);
    assert_eq!(bed.run(json!({})).await, ["unchanged a", "unchanged b", "unchanged new"]);
}

#[tokio::test]
async fn a_file_that_looks_unchanged_is_not_even_read() {
    let bed = Bed::new();
    bed.write("a", "1");
    bed.run(json!({})).await;
    let before = bed.state.get("a").unwrap();
    bed.run(json!({})).await;
    assert_eq!(bed.state.get("a").unwrap(), before);
    // Touched: the content is compared, and the new time remembered.
    bed.write("a", "1");
    assert_eq!(bed.run(json!({})).await, ["unchanged a"]);
    assert_ne!(bed.state.get("a").unwrap(), before);
}

#[tokio::test]
async fn versions_only_grow() {
    let bed = Bed::new();
    bed.write("a", "1");
    let future = json!({"version": i64::MAX - 10, "size": 0, "mtime": 0, "ctime": 0});
    let (emitter, mut outbox) = Outbox::new(&bed.state);
    let changes = vec![("a".to_owned(), Some(future.to_string().into_bytes().into()))];
    emitter.refreshed("a", changes).await.unwrap();
    outbox.next().await.unwrap();
    let sent = bed.sent(json!({})).await;
    assert_eq!(version(&sent[0]), i64::MAX - 9);
    fs::remove_file(bed.folder.path().join("a")).unwrap();
    assert_eq!(version(&bed.sent(json!({})).await[0]), i64::MAX - 8);
}

#[tokio::test]
async fn globs_and_recursive_choose_the_files() {
    let bed = Bed::new();
    bed.write("a.pdf", "1").write("b.txt", "1").write("sub/c.pdf", "1").write("drafts/d.pdf", "1");
    assert_eq!(bed.run(json!({"include": ["*.pdf"], "exclude": ["drafts"]})).await, ["sent a.pdf", "sent sub/c.pdf"]);
    // What is no longer chosen is no longer there, for everybody downstream.
    assert_eq!(bed.run(json!({"recursive": false})).await, ["deleted sub/c.pdf", "sent b.txt", "unchanged a.pdf"]);
}

#[tokio::test]
async fn bad_files_are_dead_letters_and_tried_again_only_when_changed() {
    let bed = Bed::new();
    bed.write("good", "1").write("large", "12345");
    // A regular file whose first byte cannot be read.
    symlink("/proc/self/mem", bed.folder.path().join("mem")).unwrap();
    let settings = json!({"max_file_size": "4B", "follow_symlinks": true, "exclude": []});
    assert_eq!(bed.run(settings.clone()).await, ["sent good", "too-large large", "unreadable mem"]);
    fs::remove_file(bed.folder.path().join("mem")).unwrap();
    assert_eq!(bed.run(settings.clone()).await, ["deleted mem", "unchanged good", "unchanged large"]);
    bed.write("large", "123456");
    assert_eq!(bed.run(settings.clone()).await, ["too-large large", "unchanged good"]);
    assert_eq!(bed.run(json!({})).await, ["sent large", "unchanged good"]);
}

#[tokio::test]
async fn a_broken_link_is_a_dead_letter_once() {
    let bed = Bed::new();
    symlink("nowhere", bed.folder.path().join("link")).unwrap();
    let settings = json!({"follow_symlinks": true});
    assert_eq!(bed.run(settings.clone()).await, ["unreadable link"]);
    assert_eq!(bed.run(settings).await, ["unchanged link"]);
}

#[tokio::test]
async fn an_empty_folder_is_fine() {
    assert!(Bed::new().run(json!({})).await.is_empty());
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_every_reason() {
    let bed = Bed::new();
    let settings = json!({"folder": "/no/such/folder", "include": ["["], "id_prefix": "a#"});
    let error = bed.open(settings).await.unwrap_err();
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(["/no/such/folder", "include[0]", "id_prefix `a#`"].iter().all(|part| text.contains(part)), "{text}");
}

#[tokio::test]
async fn a_missing_folder_is_refused_by_name() {
    let bed = Bed::new();
    for folder in ["/no/such/folder", "/etc/hostname/x"] {
        let error = bed.open(json!({"folder": folder})).await.unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains(folder), "{error}");
    }
}

#[tokio::test]
async fn a_folder_that_goes_away_deletes_nothing() {
    let bed = Bed::new();
    bed.write("a", "1");
    bed.run(json!({})).await;
    let connector = bed.open(json!({})).await.unwrap();
    fs::remove_dir_all(bed.folder.path()).unwrap();
    let (emitter, outbox) = Outbox::new(&bed.state);
    let error = connector.run(&bed.step, &emitter, &bed.state).await.unwrap_err();
    drop(emitter);
    assert!(error.is_retryable() && error.to_string().contains("cannot be read"), "{error}");
    assert!(outbox.all().await.unwrap().is_empty());
}

#[tokio::test]
async fn watching_sends_changes_as_they_happen_and_ends_when_told() {
    let bed = Bed::new();
    bed.write("a", "1").write("sub/b", "1");
    let connector = bed.open(json!({"watch": true, "debounce": "20ms", "rescan": "1h"})).await.unwrap();
    let (emitter, mut outbox) = Outbox::new(&bed.state);
    let (step, state) = (bed.step.clone(), bed.state.clone());
    let run = tokio::spawn(async move { connector.run(&step, &emitter, &state).await });
    let mut next = async || loop {
        let next = tokio::time::timeout(Duration::from_secs(20), outbox.next()).await;
        let told = tell(&next.expect("something is sent in time").unwrap().unwrap());
        // One change may be told of more than once; looking again changes nothing.
        if !told.starts_with("unchanged") {
            return told;
        }
    };
    let mut first = [next().await, next().await];
    first.sort();
    assert_eq!(first, ["sent a", "sent sub/b"]);
    bed.write("a", "2");
    assert_eq!(next().await, "sent a");
    bed.write("other/deep/c", "1");
    assert_eq!(next().await, "sent other/deep/c");
    fs::rename(bed.folder.path().join("sub"), bed.folder.path().join("moved")).unwrap();
    let mut moved = [next().await, next().await];
    moved.sort();
    assert_eq!(moved, ["deleted sub/b", "sent moved/b"]);
    fs::remove_dir_all(bed.folder.path().join("other")).unwrap();
    assert_eq!(next().await, "deleted other/deep/c");
    bed.stop.stop();
    tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_the_system_does_not_tell_of_is_found_by_looking() {
    let bed = Bed::new();
    // A watch that loses everything: all hints come too late.
    let connector = bed.open(json!({"watch": true, "debounce": "1h", "rescan": "50ms"})).await.unwrap();
    let (emitter, mut outbox) = Outbox::new(&bed.state);
    let (step, state) = (bed.step.clone(), bed.state.clone());
    let run = tokio::spawn(async move { connector.run(&step, &emitter, &state).await });
    bed.write("late", "1");
    let next = tokio::time::timeout(Duration::from_secs(20), outbox.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(tell(&next), "sent late");
    bed.stop.stop();
    tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn many_files_are_compared_page_by_page() {
    let bed = Bed::new();
    for n in 0..2500 {
        fs::write(bed.folder.path().join(format!("{n:04}")), "x").unwrap();
    }
    assert_eq!(bed.run(json!({})).await.len(), 2500);
    for n in (0..2500).step_by(2) {
        fs::remove_file(bed.folder.path().join(format!("{n:04}"))).unwrap();
    }
    let told = bed.run(json!({})).await;
    assert_eq!(told.iter().filter(|one| one.starts_with("deleted")).count(), 1250);
    assert_eq!(told.iter().filter(|one| one.starts_with("unchanged")).count(), 1250);
}
