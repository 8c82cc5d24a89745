//! What every store must pass. It uses nothing that Consul cannot do.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_engine::store::{Error, Expected, Key, Store};

/// Runs the suite on two handles of one empty store, as two processes would hold
/// them. Their inbox must exist and be empty.
pub async fn run(one: Arc<dyn Store>, other: Arc<dyn Store>) {
    values_are_what_was_written(&*one, &*other).await;
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
    let version = one.put(&at, &text, Expected::Anything).await.unwrap();
    let found = other.get(&at).await.unwrap().unwrap();
    assert_eq!((found.text, found.version), (text, version));
    other.remove(&at).await.unwrap();
    other.remove(&at).await.unwrap();
    assert_eq!(one.get(&at).await.unwrap(), None);
}

async fn check_and_set_lets_one_of_two_through(one: &dyn Store, other: &dyn Store) {
    let at = key(&["cas"]);
    let first = one.put(&at, "1", Expected::Absent).await.unwrap();
    assert!(matches!(other.put(&at, "2", Expected::Absent).await, Err(Error::Conflict { key }) if key == at));
    let second = other.put(&at, "2", Expected::Is(first)).await.unwrap();
    assert!(matches!(one.put(&at, "3", Expected::Is(first)).await, Err(Error::Conflict { .. })));
    assert_ne!(first, second);
    assert_eq!(one.get(&at).await.unwrap().unwrap().text, "2");
}

async fn versions_never_come_back(store: &dyn Store) {
    let at = key(&["again"]);
    let first = store.put(&at, "1", Expected::Absent).await.unwrap();
    store.remove(&at).await.unwrap();
    assert!(matches!(store.put(&at, "2", Expected::Is(first)).await, Err(Error::Conflict { .. })));
    assert_ne!(store.put(&at, "1", Expected::Absent).await.unwrap(), first);
}

async fn of_many_at_once_one_wins_each_round(one: &Arc<dyn Store>, other: &Arc<dyn Store>) {
    let at = key(&["counter"]);
    one.put(&at, "0", Expected::Absent).await.unwrap();
    let add = |store: Arc<dyn Store>, at: Key| async move {
        for _ in 0..10 {
            loop {
                let value = store.get(&at).await.unwrap().unwrap();
                let next = value.text.parse::<u32>().unwrap() + 1;
                match store.put(&at, &next.to_string(), Expected::Is(value.version)).await {
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
        store.put(&key(&[name]), "x", Expected::Anything).await.unwrap();
    }
    assert_eq!(store.list(&key(&["revisions"])).await.unwrap(), ["a/1", "a/2", "ab/1"]);
    assert_eq!(store.list(&key(&["revisions", "a"])).await.unwrap(), ["1", "2"]);
    assert!(store.list(&key(&["nothing"])).await.unwrap().is_empty());
}

async fn changes_are_heard_by_both(one: &dyn Store, other: &dyn Store) {
    for (n, (writer, listener)) in [(one, other), (other, one), (one, one)].into_iter().enumerate() {
        // A store may need a moment until it listens.
        let heard = async {
            let mut changes = listener.changes();
            loop {
                changes.mark_unchanged();
                writer.put(&key(&["head"]), &n.to_string(), Expected::Anything).await.unwrap();
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
    one.write_inbox(&name, "first").await.unwrap();
    other.write_inbox(&name, "pipeline: shelf\n").await.unwrap();
    let entries = one.inbox().await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].name, entries[0].text.as_deref()), (&name, Ok("pipeline: shelf\n")));
}
