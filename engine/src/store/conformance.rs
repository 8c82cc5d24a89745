//! What every store must pass; for tests, behind the feature `conformance`.
//!
//! It uses nothing that Consul cannot do.

// A test, only in another place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Expected, Key, Store};

/// Runs the suite on two handles of one empty store, as two processes would hold
/// them. Their inbox must exist and be empty.
///
/// # Panics
/// When the store breaks a promise.
pub async fn run(one: Arc<dyn Store>, other: Arc<dyn Store>) {
    values_are_what_was_written(&*one, &*other).await;
    long_values_are_kept_whole(&*one, &*other).await;
    check_and_set_lets_one_of_two_through(&*one, &*other).await;
    versions_never_come_back(&*one).await;
    of_many_at_once_one_wins_each_round(&one, &other).await;
    keys_are_listed_below_their_prefix(&*one).await;
    changes_are_heard_by_both(&*one, &*other).await;
    the_inbox_holds_what_was_written(&*one, &*other).await;
}

fn key(parts: &[&str]) -> Key {
    Key::new(parts)
}

async fn values_are_what_was_written(one: &dyn Store, other: &dyn Store) {
    let at = key(&["values", "a"]);
    assert_eq!(one.get(&at).await.unwrap(), None);
    let text = "ä line\nand \"another\"".repeat(1000);
    let version = one.put(&at, &text, Expected::Anything, None).await.unwrap();
    let found = other.get(&at).await.unwrap().unwrap();
    assert_eq!((found.text, found.version), (text, version));
    other.remove(&at, None).await.unwrap();
    other.remove(&at, None).await.unwrap();
    assert_eq!(one.get(&at).await.unwrap(), None);
}

async fn long_values_are_kept_whole(one: &dyn Store, other: &dyn Store) {
    let at = key(&["values", "long"]);
    let text = "0123456789abcde\n".repeat(32 * 1024 - 1);
    let version = one.put(&at, &text, Expected::Absent, None).await.unwrap();
    assert!(matches!(other.put(&at, &text, Expected::Absent, None).await, Err(Error::Conflict { .. })));
    assert_eq!(other.get(&at).await.unwrap().unwrap().text, text);
    assert_ne!(other.put(&at, &text.replace('a', "x"), Expected::Is(version), None).await.unwrap(), version);
    one.remove(&at, None).await.unwrap();
}

async fn check_and_set_lets_one_of_two_through(one: &dyn Store, other: &dyn Store) {
    let at = key(&["cas"]);
    let first = one.put(&at, "1", Expected::Absent, None).await.unwrap();
    assert!(matches!(other.put(&at, "2", Expected::Absent, None).await, Err(Error::Conflict { key }) if key == at));
    let second = other.put(&at, "2", Expected::Is(first), None).await.unwrap();
    assert!(matches!(one.put(&at, "3", Expected::Is(first), None).await, Err(Error::Conflict { .. })));
    assert_ne!(first, second);
    assert_eq!(one.get(&at).await.unwrap().unwrap().text, "2");
}

async fn versions_never_come_back(store: &dyn Store) {
    let at = key(&["again"]);
    let first = store.put(&at, "1", Expected::Absent, None).await.unwrap();
    store.remove(&at, None).await.unwrap();
    assert!(matches!(store.put(&at, "2", Expected::Is(first), None).await, Err(Error::Conflict { .. })));
    assert_ne!(store.put(&at, "1", Expected::Absent, None).await.unwrap(), first);
}

async fn of_many_at_once_one_wins_each_round(one: &Arc<dyn Store>, other: &Arc<dyn Store>) {
    let at = key(&["counter"]);
    one.put(&at, "0", Expected::Absent, None).await.unwrap();
    let add = |store: Arc<dyn Store>, at: Key| async move {
        for _ in 0..10 {
            loop {
                let value = store.get(&at).await.unwrap().unwrap();
                let next = value.text.parse::<u32>().unwrap() + 1;
                match store.put(&at, &next.to_string(), Expected::Is(value.version), None).await {
                    Ok(_) => break,
                    Err(Error::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    let tasks: Vec<_> =
        [one, other, one, other].map(|store| tokio::spawn(add(Arc::clone(store), at.clone()))).into_iter().collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(one.get(&at).await.unwrap().unwrap().text, "40");
}

async fn keys_are_listed_below_their_prefix(store: &dyn Store) {
    for name in ["revisions/a/2", "revisions/a/1", "revisions/ab/1", "revisionsx/1"] {
        store.put(&key(&[name]), "x", Expected::Anything, None).await.unwrap();
    }
    assert_eq!(store.list(&key(&["revisions"])).await.unwrap(), ["a/1", "a/2", "ab/1"]);
    assert_eq!(store.list(&key(&["revisions", "a"])).await.unwrap(), ["1", "2"]);
    assert!(store.list(&key(&["nothing"])).await.unwrap().is_empty());
    let all = store.read_all(&key(&["revisions"])).await.unwrap();
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a/1", "a/2", "ab/1"]);
    let one = store.get(&key(&["revisions", "a", "2"])).await.unwrap().unwrap();
    assert_eq!(all[1].1, one);
    // Names that people give come back as they were.
    let odd = "my shelf%2f.yaml~ä";
    store.put(&key(&["odd", odd]), "x", Expected::Absent, None).await.unwrap();
    assert_eq!(store.list(&key(&["odd"])).await.unwrap(), [odd]);
    assert_eq!(store.get(&key(&["odd", odd])).await.unwrap().unwrap().text, "x");
}

async fn changes_are_heard_by_both(one: &dyn Store, other: &dyn Store) {
    for (n, (writer, listener)) in [(one, other), (other, one), (one, one)].into_iter().enumerate() {
        // A store may need a moment until it listens.
        let heard = async {
            let mut changes = listener.changes();
            loop {
                changes.mark_unchanged();
                writer.put(&key(&["head"]), &n.to_string(), Expected::Anything, None).await.unwrap();
                if tokio::time::timeout(Duration::from_millis(500), changes.changed()).await.is_ok() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard).await.expect("the change is heard");
    }
}

async fn the_inbox_holds_what_was_written(one: &dyn Store, other: &dyn Store) {
    assert!(one.inbox().await.unwrap().is_empty());
    let name = one.inbox_name("shelf");
    one.write_inbox(&name, "first", None).await.unwrap();
    other.write_inbox(&name, "pipeline: shelf\n", Some("first")).await.unwrap();
    for replaces in [None, Some("first")] {
        let edited = one.write_inbox(&name, "late", replaces).await;
        assert!(matches!(edited, Err(Error::Conflict { .. })), "an edit was overwritten: {edited:?}");
    }
    let entries = one.inbox().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].name, entries[0].text.as_deref()), (&name, Ok("pipeline: shelf\n")));
    let edited = one.remove_inbox(&name, "first").await;
    assert!(matches!(edited, Err(Error::Conflict { .. })), "an edit was removed: {edited:?}");
    assert_eq!(other.inbox().await.unwrap().len(), 1);
    other.remove_inbox(&name, "pipeline: shelf\n").await.unwrap();
    one.remove_inbox(&name, "pipeline: shelf\n").await.unwrap();
    assert!(one.inbox().await.unwrap().is_empty());
}
