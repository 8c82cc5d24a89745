//! What the sink promises, over real folders and without a runtime.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test that meets the unexpected must end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pipedoc_object_sink::config::Config;
use pipedoc_object_sink::{Merged, ObjectSink, finish, merge};
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::json::from_json;
use pipedoc_sdk::proto::v1::{Blob, blob};
use pipedoc_sdk::testing;
use serde_json::{Value, json};
use tempfile::TempDir;

struct Bed {
    folder: TempDir,
    settings: Value,
    sink: ObjectSink,
    step: Step,
}

impl Bed {
    async fn new(settings: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (step, _) = testing::step(StepType::Sink, Path::new("unused"));
        let mut all = json!({"url": folder.path(), "fsync": false});
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let sink = ObjectSink::open(serde_json::from_value(all.clone()).unwrap(), &step).await.unwrap();
        Self { folder, settings: all, sink, step }
    }

    fn config(&self) -> Config {
        serde_json::from_value(self.settings.clone()).unwrap()
    }

    async fn store(&self, doc: PipeDoc) {
        let output = self.sink.process(doc, &self.step).await.unwrap();
        assert!(output.items.is_empty());
    }

    async fn delete(&self, id: &str, version: i64) {
        self.sink.deleted(Deletion { id: id.into(), version }, &self.step).await.unwrap();
    }

    /// Visible files with the bodies of their documents.
    fn visible(&self) -> BTreeMap<String, String> {
        self.files(self.folder.path())
            .into_iter()
            .filter(|(name, _)| !name.starts_with(".pipedoc-sink"))
            .map(|(name, text)| (name, from_json(&text).unwrap().body))
            .collect()
    }

    fn names(&self) -> Vec<String> {
        self.visible().into_keys().collect()
    }

    fn files(&self, folder: &Path) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(self.files(&path));
            } else {
                let name = path.strip_prefix(self.folder.path()).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read_to_string(path).unwrap());
            }
        }
        files
    }

    /// Documents of the merged file: id and body, in order of ids.
    fn merged(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.folder.path().join("documents.jsonl")).unwrap();
        let docs = text.lines().map(|line| from_json(line).unwrap());
        let mut docs: Vec<_> = docs.map(|doc| (doc.id, doc.body)).collect();
        docs.sort();
        docs
    }
}

fn doc(id: &str, version: i64, body: &str) -> PipeDoc {
    PipeDoc { id: id.into(), version, body: body.into(), ..PipeDoc::default() }
}

fn part(parent: &str, part: i32, parts: i32, version: i64) -> PipeDoc {
    PipeDoc {
        parent_id: parent.into(),
        part,
        parts,
        parent_version: version,
        ..doc(&format!("{parent}#{part}"), version, &format!("v{version}"))
    }
}

#[tokio::test]
async fn a_document_is_one_json_file_named_by_its_id() {
    let bed = Bed::new(json!({})).await;
    let mut stored = doc("reports/may.pdf", 7, "text");
    stored.title = "May".into();
    stored.blobs = vec![Blob { size: 1, content: Some(blob::Content::Inline("x".into())), ..Blob::default() }];
    bed.store(stored.clone()).await;
    let text = fs::read_to_string(bed.folder.path().join("reports/may.pdf.json")).unwrap();
    assert_eq!(from_json(&text).unwrap(), stored);
    assert!(text.starts_with(r#"{"id":"reports/may.pdf","version":"7","#), "{text}");
    assert!(text.ends_with("}\n"));
}

#[tokio::test]
async fn pretty_is_for_people_and_blobs_can_be_left_out() {
    let bed = Bed::new(json!({"pretty": true, "blobs": "OMIT"})).await;
    let blob = Blob { name: "n".into(), size: 1, content: Some(blob::Content::Inline("x".into())), ..Blob::default() };
    bed.store(PipeDoc { blobs: vec![blob], ..doc("a", 7, "text") }).await;
    let text = fs::read_to_string(bed.folder.path().join("a.json")).unwrap();
    assert!(text.starts_with("{\n  \"id\": \"a\",\n  \"version\": \"7\",\n"), "{text}");
    let blob = &from_json(&text).unwrap().blobs[0];
    assert_eq!((blob.name.as_str(), blob.size, &blob.content), ("n", 1, &None));
    // What was written prettily is read back for its version, too.
    bed.store(doc("a", 6, "older")).await;
    assert_eq!(bed.visible()["a.json"], "text");
}

#[tokio::test]
async fn older_versions_never_replace_newer_ones() {
    let bed = Bed::new(json!({})).await;
    for (version, body, expected) in [
        (5, "five", "five"),
        (4, "four", "five"),
        (5, "five again", "five again"),
        (6, "six", "six"),
        (0, "unknown", "unknown"),
        (3, "three", "three"),
    ] {
        bed.store(doc("a", version, body)).await;
        assert_eq!(bed.visible()["a.json"], expected, "{version}");
    }
}

#[tokio::test]
async fn a_deletion_leaves_only_the_memory_of_it() {
    let bed = Bed::new(json!({})).await;
    bed.store(doc("sub/dir/a", 5, "x")).await;
    bed.store(doc("sub/b", 5, "x")).await;
    bed.delete("sub/dir/a", 4).await;
    assert_eq!(bed.names(), ["sub/b.json", "sub/dir/a.json"]);
    bed.delete("sub/dir/a", 6).await;
    assert_eq!(bed.names(), ["sub/b.json"]);
    assert!(!bed.folder.path().join("sub/dir").exists());
    // Twice is as good as once; late old versions stay away, newer ones come.
    bed.delete("sub/dir/a", 6).await;
    bed.store(doc("sub/dir/a", 5, "old")).await;
    assert_eq!(bed.names(), ["sub/b.json"]);
    bed.store(doc("sub/dir/a", 7, "new")).await;
    assert_eq!(bed.names(), ["sub/b.json", "sub/dir/a.json"]);
    assert!(bed.folder.path().exists());
}

#[tokio::test]
async fn a_deletion_without_version_is_one_of_what_is_there() {
    let bed = Bed::new(json!({})).await;
    bed.store(doc("a", 5, "x")).await;
    bed.store(doc("b", 0, "x")).await;
    bed.delete("a", 0).await;
    bed.delete("b", 0).await;
    bed.delete("never", 0).await;
    bed.store(doc("a", 5, "again")).await;
    assert!(bed.names().is_empty());
    bed.store(doc("a", 6, "new")).await;
    assert_eq!(bed.names(), ["a.json"]);
}

#[tokio::test]
async fn deletions_are_forgotten_after_the_horizon() {
    let bed = Bed::new(json!({})).await;
    bed.delete("a", 5).await;
    let tombstone = bed.folder.path().join(".pipedoc-sink/tombstones/a.json");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(31 * 24 * 3600);
    fs::File::options().write(true).open(&tombstone).unwrap().set_modified(old).unwrap();
    bed.delete("b", 5).await;
    assert!(tombstone.exists());
    ObjectSink::open(bed.config(), &bed.step).await.unwrap();
    assert!(!tombstone.exists());
    assert!(bed.folder.path().join(".pipedoc-sink/tombstones/b.json").exists());
}

#[tokio::test]
async fn a_document_that_shrinks_leaves_no_parts_behind() {
    let bed = Bed::new(json!({})).await;
    for n in 0..10 {
        bed.store(part("a", n, 10, 1)).await;
    }
    assert_eq!(bed.names().len(), 10);
    for n in 0..8 {
        bed.store(part("a", n, 8, 2)).await;
    }
    // A part of the old version comes late.
    bed.store(part("a", 9, 10, 1)).await;
    let expected: Vec<_> = (0..8).map(|n| format!("a#/{n}.json")).collect();
    assert_eq!(bed.names(), expected);
    assert!(bed.visible().values().all(|body| body == "v2"));
    // The same version, cut differently: what is beyond goes.
    bed.store(part("a", 0, 3, 2)).await;
    assert_eq!(bed.names(), expected[..3]);
}

#[tokio::test]
async fn parts_go_with_their_parent() {
    let bed = Bed::new(json!({})).await;
    for n in 0..3 {
        bed.store(part("a", n, 3, 1)).await;
        bed.store(part("a#1", n, 3, 1)).await;
    }
    assert_eq!(bed.names().len(), 6);
    bed.delete("a", 2).await;
    assert!(bed.names().is_empty());
    bed.store(part("a", 0, 3, 1)).await;
    bed.store(part("a#1", 0, 3, 1)).await;
    assert!(bed.names().is_empty(), "{:?}", bed.names());
    // As a newer whole document they are replaced, too.
    bed.store(part("a", 0, 3, 3)).await;
    bed.store(doc("a", 4, "whole")).await;
    assert_eq!(bed.names(), ["a.json"]);
    bed.store(part("a", 0, 3, 3)).await;
    assert_eq!(bed.names(), ["a.json"]);
    let left = bed.files(&bed.folder.path().join(".pipedoc-sink"));
    assert!(!left.keys().any(|name| name.contains("parents")), "{left:?}");
}

#[tokio::test]
async fn a_part_must_be_one_and_an_id_must_be_there() {
    let bed = Bed::new(json!({})).await;
    for bad in [
        doc("", 1, ""),
        PipeDoc { parent_id: "b".into(), ..part("a", 0, 1, 1) },
        PipeDoc { parts: 1, ..part("a", 1, 2, 1) },
        PipeDoc { id: "a".into(), ..part("a", 0, 1, 1) },
    ] {
        let error = bed.sink.process(bad, &bed.step).await.unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert_eq!(error.kind(), "invalid-document");
    }
}

#[tokio::test]
async fn a_batch_answers_for_each_document_in_order() {
    let bed = Bed::new(json!({})).await;
    let docs = (0..50).map(|n| doc(if n == 20 { "" } else { "a" }, 0, &n.to_string())).chain([doc("b", 1, "b")]);
    let results = bed.sink.process_batch(docs.collect(), &bed.step).await;
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).map(|(n, _)| n).collect();
    assert_eq!((results.len(), failed), (51, vec![20]));
    assert_eq!(bed.visible()["a.json"], "49");
    assert_eq!(bed.visible()["b.json"], "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_side_by_side_ends_with_the_newest() {
    let bed = Bed::new(json!({})).await;
    let calls = (0..200).map(|n| {
        let version = i64::from((n * 37) % 200 + 1);
        bed.sink.process(doc(if n % 2 == 0 { "x/a" } else { "x/b" }, version, &version.to_string()), &bed.step)
    });
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
    let bodies: Vec<i64> = bed.visible().values().map(|body| body.parse().unwrap()).collect();
    assert_eq!(bodies.iter().max(), Some(&200));
    assert_eq!(bodies.iter().sum::<i64>(), 399);
}

#[tokio::test]
async fn places_that_cannot_be_written_to_are_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let (step, _) = testing::step(StepType::Sink, Path::new("unused"));
    let below = file.join("out").to_str().unwrap().to_owned();
    for (url, expected) in [
        ("s3://bucket/x", "not supported yet"),
        ("", "not supported yet"),
        (below.as_str(), "correct `url`"),
        ("/proc/x", "/proc/x"),
    ] {
        let config = serde_json::from_value(json!({"url": url})).unwrap();
        let error = ObjectSink::open(config, &step).await.unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains(expected), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_file_url_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (step, _) = testing::step(StepType::Sink, Path::new("unused"));
    let url = format!("file://{}/with%20space", folder.path().display());
    let sink = ObjectSink::open(serde_json::from_value(json!({"url": url})).unwrap(), &step).await.unwrap();
    sink.process(doc("a", 1, "x"), &step).await.unwrap();
    assert!(folder.path().join("with space/a.json").exists());
}

#[tokio::test]
async fn lines_are_merged_to_the_newest_of_each() {
    let bed = Bed::new(json!({"format": "JSONL", "pretty": true})).await;
    bed.store(doc("a", 5, "five")).await;
    bed.store(doc("a", 4, "four")).await;
    bed.store(doc("b", 1, "x\ny")).await;
    bed.store(doc("gone", 1, "x")).await;
    bed.delete("gone", 2).await;
    for n in 0..4 {
        bed.store(part("p", n, 4, 1)).await;
    }
    for n in 0..2 {
        bed.store(part("p", n, 2, 2)).await;
    }
    bed.store(part("q", 0, 1, 1)).await;
    bed.store(part("q#0", 0, 1, 1)).await;
    bed.delete("q", 2).await;
    assert_eq!(finish(&bed.settings).unwrap(), Some(Merged { documents: 4, files: 14 }));
    let expected = [("a", "five"), ("b", "x\ny"), ("p#0", "v2"), ("p#1", "v2")];
    assert_eq!(bed.merged(), expected.map(|(id, body)| (id.to_owned(), body.to_owned())));
    let left: Vec<PathBuf> = fs::read_dir(bed.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("part-")), "{left:?}");
}

/// What a document leaves behind in both formats, when parts come with versions, and
/// when nobody knows any.
#[tokio::test]
async fn parts_leave_nothing_behind_in_either_format() {
    for format in ["JSON", "JSONL"] {
        for version in [0, 5] {
            let bed = Bed::new(json!({"format": format})).await;
            let next = |n: i64| if version == 0 { 0 } else { version + n };
            let left = async || {
                if format == "JSON" {
                    return bed.visible().values().cloned().collect::<Vec<_>>();
                }
                merge(&bed.config()).unwrap();
                bed.merged().into_iter().map(|(_, body)| body).collect()
            };
            let store = async |parts: i32, version: i64| {
                for n in 0..parts {
                    bed.store(part("a", n, parts, version)).await;
                }
            };
            store(10, next(0)).await;
            assert_eq!(left().await.len(), 10, "{format}, version {version}");
            store(8, next(1)).await;
            let body = format!("v{}", next(1));
            assert_eq!(left().await, vec![body; 8], "{format}, version {version}");
            bed.delete("a", next(2)).await;
            assert_eq!(left().await.len(), 0, "{format}, version {version}");
            store(3, next(3)).await;
            // One that says that nothing of this version has parts any more.
            bed.delete("a", next(3)).await;
            assert_eq!(left().await.len(), 0, "{format}, version {version}");
            store(2, next(5)).await;
            if version != 0 {
                bed.delete("a", next(4)).await;
            }
            assert_eq!(left().await.len(), 2, "{format}, version {version}: what is newer stays");
        }
    }
}

#[tokio::test]
async fn a_merge_remembers_deletions_and_can_be_repeated() {
    let bed = Bed::new(json!({"format": "JSONL"})).await;
    bed.store(doc("a", 5, "x")).await;
    bed.store(doc("b", 5, "x")).await;
    bed.delete("a", 6).await;
    merge(&bed.config()).unwrap();
    bed.store(doc("a", 5, "late")).await;
    merge(&bed.config()).unwrap();
    assert_eq!(bed.merged(), [("b".to_owned(), "x".to_owned())]);
    assert_eq!(merge(&bed.config()).unwrap(), Some(Merged::default()));
    bed.store(doc("a", 7, "new")).await;
    merge(&bed.config()).unwrap();
    assert_eq!(bed.merged().len(), 2);
    // One that was cut off before it removed what it had merged.
    bed.store(doc("c", 1, "x")).await;
    let parts: Vec<_> = fs::read_dir(bed.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("part-"))
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert_eq!(parts.len(), 1);
    merge(&bed.config()).unwrap();
    fs::write(&parts[0].0, &parts[0].1).unwrap();
    merge(&bed.config()).unwrap();
    assert_eq!(bed.merged().len(), 3);
}

#[tokio::test]
async fn a_broken_line_is_named_and_nothing_is_lost() {
    let bed = Bed::new(json!({"format": "JSONL"})).await;
    bed.store(doc("a", 1, "x")).await;
    fs::write(bed.folder.path().join("documents.jsonl"), "{\"id\":\"b\",\"version\":\"1\"}\nnonsense\n").unwrap();
    let error = merge(&bed.config()).unwrap_err();
    assert!(error.to_string().contains("documents.jsonl:2") && !error.is_retryable(), "{error}");
    assert_eq!(fs::read_dir(bed.folder.path()).unwrap().count(), 3);
}

#[tokio::test]
async fn only_lines_are_merged() {
    let bed = Bed::new(json!({})).await;
    assert_eq!(merge(&bed.config()).unwrap(), None);
}
