//! The folder store: the suite, and what only files can do wrong.

use std::sync::Arc;

use pipedoc_engine::store::folder::FolderStore;
use pipedoc_engine::store::{Error, Expected, FileProblem, Key, Store};
use pipedoc_model::names::ClusterName;

use pipedoc_engine::store::conformance as suite;

async fn open(place: &std::path::Path, cluster: &str) -> Result<FolderStore, Error> {
    FolderStore::open(ClusterName::new(cluster).unwrap(), place.join("pipelines"), place.join("data")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_store_passes_the_suite() {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("pipelines")).unwrap();
    let (one, other) = tokio::join!(open(place.path(), "local"), open(place.path(), "local"));
    suite::run(Arc::new(one.unwrap()), Arc::new(other.unwrap())).await;
}

#[tokio::test]
async fn clusters_share_a_data_folder_and_nothing_in_it() {
    let place = tempfile::tempdir().unwrap();
    let one = open(place.path(), "one").await.unwrap();
    let other = open(place.path(), "other").await.unwrap();
    let head = Key::new(&["head"]);
    one.put(&head, "{}", Expected::Absent, None).await.unwrap();
    assert_eq!(other.get(&head).await.unwrap(), None);
}

#[tokio::test]
async fn a_missing_folder_is_an_error_and_not_an_empty_inbox() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path(), "local").await.unwrap();
    let error = store.inbox().await.unwrap_err();
    assert!(matches!(&error, Error::Inbox { path, .. } if path.ends_with("pipelines")), "{error}");
    assert!(matches!(store.write_inbox("a.yaml", "x", None).await, Err(Error::InboxEntry { .. })));
}

#[tokio::test]
async fn a_file_that_is_something_else_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("data/control.db");
    std::fs::create_dir(place.path().join("data")).unwrap();
    std::fs::write(&file, "not a database at all, but a text that is long enough to be looked at\n".repeat(20))
        .unwrap();
    let before = std::fs::read(&file).unwrap();
    let Err(error) = open(place.path(), "local").await else { panic!("a text was taken for a database") };
    assert!(matches!(error, Error::File { problem: FileProblem::NotOurs, .. }), "{error:?}");
    assert!(error.to_string().contains("control.db"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);

    // Nor is another program's database ours.
    std::fs::remove_file(&file).unwrap();
    let foreign = rusqlite::Connection::open(&file).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x)").unwrap();
    drop(foreign);
    let Err(error) = open(place.path(), "local").await else { panic!("a foreign database was taken") };
    assert!(matches!(error, Error::File { problem: FileProblem::NotOurs, .. }), "{error:?}");
}

#[tokio::test]
async fn only_visible_pipeline_files_are_entries() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("pipelines");
    std::fs::create_dir_all(folder.join("folder.yaml")).unwrap();
    for name in ["b.yml", "a.yaml", "c.json", "notes.txt", ".hidden.yaml", "a.yaml~"] {
        std::fs::write(folder.join(name), name).unwrap();
    }
    std::fs::write(folder.join("latin.yaml"), [b'a', 0xe4]).unwrap();
    let store = open(place.path(), "local").await.unwrap();
    let entries = store.inbox().await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a.yaml", "b.yml", "c.json", "latin.yaml"]);
    assert!(entries[3].text.as_ref().unwrap_err().contains("UTF-8"));
}
