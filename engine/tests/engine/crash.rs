//! Leaders that die between two writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use pipedoc_engine::store::folder::FolderStore;
use pipedoc_engine::store::{Candidate, Expected, InboxEntry, Key, Leadership, Lease, Result, Store, Value, Version};
use pipedoc_proto::v1;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::bed::{Bed, Running, SHELF};

/// The last write that a leader makes.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Head,
    Note,
    InboxEntry,
}

/// A folder store as one engine sees it that dies, or that never leads.
struct Mortal {
    inner: FolderStore,
    /// None: it never leads, and lives.
    last: Option<Last>,
    dead: AtomicBool,
}

impl Mortal {
    async fn engine(bed: &Bed, last: Option<Last>) -> Running {
        bed.engine_on(Arc::new(Self { inner: bed.store().await, last, dead: AtomicBool::new(false) })).await
    }

    /// What the dead begin never ends.
    async fn alive(&self) {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }

    fn made(&self, write: Last) {
        self.dead.fetch_or(self.last == Some(write), Ordering::SeqCst);
    }
}

#[async_trait]
impl Store for Mortal {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn get(&self, key: &Key) -> Result<Option<Value>> {
        self.alive().await;
        self.inner.get(key).await
    }

    async fn put(&self, key: &Key, text: &str, expected: Expected, lease: Option<&Lease>) -> Result<Version> {
        self.alive().await;
        let version = self.inner.put(key, text, expected, lease).await?;
        match key.as_str() {
            // Not what callers change.
            "head" if lease.is_some() => self.made(Last::Head),
            note if note.starts_with("notes/") => self.made(Last::Note),
            _ => {}
        }
        Ok(version)
    }

    async fn remove(&self, key: &Key, lease: Option<&Lease>) -> Result<()> {
        self.alive().await;
        self.inner.remove(key, lease).await
    }

    async fn list(&self, prefix: &Key) -> Result<Vec<String>> {
        self.alive().await;
        self.inner.list(prefix).await
    }

    async fn read_all(&self, prefix: &Key) -> Result<Vec<(String, Value)>> {
        self.alive().await;
        self.inner.read_all(prefix).await
    }

    async fn inbox(&self) -> Result<Vec<InboxEntry>> {
        self.alive().await;
        self.inner.inbox().await
    }

    async fn write_inbox(&self, name: &str, text: &str, replaces: Option<&str>) -> Result<()> {
        self.alive().await;
        self.inner.write_inbox(name, text, replaces).await?;
        self.made(Last::InboxEntry);
        Ok(())
    }

    async fn remove_inbox(&self, name: &str, removes: &str) -> Result<()> {
        self.alive().await;
        self.inner.remove_inbox(name, removes).await
    }

    fn inbox_name(&self, pipeline: &str) -> String {
        self.inner.inbox_name(pipeline)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes()
    }

    fn campaign(&self, candidate: Candidate) -> watch::Receiver<Leadership> {
        match self.last {
            Some(_) => self.inner.campaign(candidate),
            None => watch::channel(Leadership::Follows(None)).1,
        }
    }

    fn may_lead(&self, may: bool) {
        self.inner.may_lead(may);
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// An apply whose answer nobody waits for: its leader dies.
fn apply(engine: &Running) -> AbortOnDropHandle<()> {
    let mut control = engine.control();
    let request = v1::ApplyRequest { text: SHELF.into(), file: "test.yaml".into(), ..Default::default() };
    AbortOnDropHandle::new(tokio::spawn(async move { drop(control.apply(request).await) }))
}

/// A pipeline is applied whose leader dies when it has written the entry.
async fn apply_by_one_who_dies(bed: &Bed) {
    let leader = Mortal::engine(bed, Some(Last::InboxEntry)).await;
    let applying = apply(&leader);
    leader.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    drop(applying);
    leader.stop().await;
}

/// As a caller applies another text by an engine that does not lead.
async fn apply_another(bed: &Bed, text: &str) {
    let follower = Mortal::engine(bed, None).await;
    assert!(follower.apply_expecting(text, 1).await.accepted);
    follower.stop().await;
}

/// As a caller deletes the pipeline by an engine that does not lead.
async fn delete(bed: &Bed) {
    let follower = Mortal::engine(bed, None).await;
    follower.wait_for_status("the follower sees it", |status| status.pipelines.len() == 1).await;
    assert!(follower.delete("shelf", false).await.unwrap().accepted);
    follower.stop().await;
}

async fn stays_deleted(bed: &Bed) {
    let engine = bed.engine().await;
    engine.wait_for_status("the file is gone", |_| !bed.file("shelf.yaml").exists()).await;
    assert!(engine.history("shelf").await.deleted_at.is_some());
    assert!(engine.status().await.pipelines.is_empty());
}

async fn has(bed: &Bed, what: &str, there: impl Fn(&[String]) -> bool) {
    let store = bed.store().await;
    crate::bed::wait_for(what, std::time::Duration::from_secs(60), async || {
        let head = store.get(&Key::new(&["head"])).await.unwrap().map(|_| "head".to_owned());
        let notes = store.list(&Key::new(&["notes"])).await.unwrap();
        let found: Vec<_> = head.into_iter().chain(notes).collect();
        if there(&found) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_deleted_pipeline_does_not_come_back_from_an_entry_whose_writer_died() {
    let bed = Bed::new();
    apply_by_one_who_dies(&bed).await;
    delete(&bed).await;
    stays_deleted(&bed).await;
}

#[tokio::test]
async fn a_deleted_pipeline_does_not_come_back_from_an_entry_whose_taker_died() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let leader = Mortal::engine(&bed, Some(Last::Head)).await;
    has(&bed, "the file is taken", |found| found.contains(&"head".to_owned())).await;
    leader.stop().await;
    delete(&bed).await;
    stays_deleted(&bed).await;

    // Put there once more it is a new wish.
    let engine = bed.engine().await;
    bed.write("shelf.yaml", SHELF);
    engine.wait_for_status("it runs again", |status| status.pipelines.len() == 1).await;
}

#[tokio::test]
async fn what_was_applied_is_not_undone_by_an_entry_whose_writer_died() {
    let bed = Bed::new();
    apply_by_one_who_dies(&bed).await;
    let another = SHELF.replace("partitions: 3", "partitions: 4");
    apply_another(&bed, &another).await;

    let engine = bed.engine().await;
    let file = || std::fs::read_to_string(bed.file("shelf.yaml")).unwrap();
    engine.wait_for_status("the file follows", |_| file() == another).await;
    let history = engine.history("shelf").await.revisions;
    assert!(history.len() == 2 && history[0].current, "{history:#?}");
}

#[tokio::test]
async fn an_entry_that_a_dying_leader_did_not_write_is_written_by_the_next() {
    let bed = Bed::new();
    let leader = Mortal::engine(&bed, Some(Last::Note)).await;
    let applying = apply(&leader);
    has(&bed, "it is about to write", |found| found.contains(&"shelf.yaml".to_owned())).await;
    drop(applying);
    leader.stop().await;
    assert!(!bed.file("shelf.yaml").exists());

    let engine = bed.engine().await;
    engine.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    assert_eq!(engine.get("shelf").await.unwrap().text, SHELF);
    assert!(engine.delete("shelf", false).await.unwrap().accepted);
    engine.wait_for_status("the file is gone", |_| !bed.file("shelf.yaml").exists()).await;
}
