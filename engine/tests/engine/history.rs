//! Revisions: who made them, who was first, and how to get back.

use pipedoc_engine::store::{Expected, Key, Store};
use pipedoc_proto::v1;
use pipedoc_proto::v1::Road;
use tonic::Code;

use crate::bed::{Bed, SHELF};

fn with_partitions(n: usize) -> String {
    SHELF.replace("partitions: 3", &format!("partitions: {n}"))
}

#[tokio::test]
async fn who_expected_another_revision_is_told_which_one_is_there() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    assert_eq!(engine.apply_expecting(SHELF, 0).await.revision, 1, "there was none");
    assert_eq!(engine.apply_expecting(&with_partitions(4), 1).await.revision, 2);

    for expected in [0, 1, 3] {
        let late = engine.apply_expecting(&with_partitions(5), expected).await;
        assert!(!late.accepted && late.pipeline == "shelf", "{late:?}");
        let conflict = late.conflict.unwrap();
        let current = conflict.current.unwrap();
        assert_eq!((conflict.expected, current.revision, current.by.as_str()), (expected, 2, "ann@host"));
        assert!(current.applied_at.is_some() && current.current);
        assert!(late.errors[0].message.contains("2 is current"), "{:?}", late.errors);
    }
    assert_eq!(engine.get("shelf").await.unwrap().revision, 2);
    // Also who wants what is there already.
    let late = engine.apply_expecting(&with_partitions(4), 1).await;
    assert!(!late.accepted && late.conflict.is_some(), "{late:?}");
    let again = engine.apply_expecting(&with_partitions(4), 2).await;
    assert!(again.accepted && again.unchanged && again.revision == 2, "{again:?}");
    let missing = engine.apply_expecting(&SHELF.replace("shelf", "other"), 1).await;
    assert!(!missing.accepted && missing.conflict.unwrap().current.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_who_apply_at_once_one_wins_and_the_others_are_told() {
    let bed = Bed::new();
    let (one, two) = (bed.engine().await, bed.engine().await);
    assert!(one.apply(SHELF).await.accepted);
    let mut current = 1;
    for round in 1..=5 {
        let texts: Vec<_> = (0..4).map(|n| with_partitions(round * 4 + n)).collect();
        let answers: [_; 4] = tokio::join!(
            one.apply_expecting(&texts[0], current),
            two.apply_expecting(&texts[1], current),
            one.apply_expecting(&texts[2], current),
            two.apply_expecting(&texts[3], current),
        )
        .into();
        let winners: Vec<_> = (0..4).filter(|n| answers[*n].accepted).collect();
        let [winner] = winners[..] else { panic!("{answers:#?}") };
        for loser in answers.iter().filter(|answer| !answer.accepted) {
            let told = loser.conflict.as_ref().unwrap().current.as_ref().unwrap();
            assert_eq!(told.revision, answers[winner].revision, "{loser:?}");
        }
        let now = one.get("shelf").await.unwrap();
        assert_eq!((now.revision, &now.text), (answers[winner].revision, &texts[winner]));
        current = now.revision;
    }
    // A text that lost may have taken a number; it is no part of the history.
    let history = one.history("shelf").await.revisions;
    assert_eq!(history.len(), 6, "{history:#?}");
    assert!(history.windows(2).all(|pair| pair[0].replaces == pair[1].revision), "{history:#?}");
}

#[tokio::test]
async fn history_tells_every_road() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply_expecting(SHELF, 0).await;
    engine.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    bed.write("shelf.yaml", &with_partitions(4));
    engine.wait_for_status("the edit runs", |status| status.pipelines[0].revision == 2).await;
    let back = engine.rollback("shelf", None).await.unwrap();
    assert!(back.accepted && back.revision == 3, "{back:?}");
    assert_eq!(engine.get("shelf").await.unwrap().text, SHELF);

    let history = engine.history("shelf").await;
    assert_eq!(history.deleted_at, None);
    let roads: Vec<_> = history
        .revisions
        .iter()
        .map(|revision| (revision.revision, revision.road(), revision.rollback_of, revision.replaces, revision.current))
        .collect();
    let wanted = [(3, Road::Rollback, 1, 2, true), (2, Road::Inbox, 0, 1, false), (1, Road::Apply, 0, 0, false)];
    assert_eq!(roads, wanted);
    assert!(history.revisions.iter().all(|revision| revision.steps == 2 && revision.applied_at.is_some()));
    assert!(history.revisions[1].file.ends_with("shelf.yaml"), "{:?}", history.revisions[1]);
    assert_eq!(history.revisions[2].by, "ann@host");
    // The file follows; it is no edit.
    engine
        .wait_for_status("the file is the old one", |_| {
            std::fs::read_to_string(bed.file("shelf.yaml")).unwrap() == SHELF
        })
        .await;
    let request = v1::GetRequest { pipeline: "shelf".into(), revision: Some(2) };
    let second = engine.control().get(request).await.unwrap().into_inner();
    assert_eq!((second.text, second.cluster.as_str()), (with_partitions(4), "local"));
    assert!(!second.summary.unwrap().current);

    // What that rollback undid comes back by another one.
    assert!(engine.rollback("shelf", None).await.unwrap().accepted);
    assert_eq!(engine.get("shelf").await.unwrap().text, with_partitions(4));
}

#[tokio::test]
async fn each_of_the_last_50_revisions_can_be_brought_back() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let text = |n: usize| SHELF.replace("module: parser", &format!("module: parser, concurrency: {n}"));
    for n in 1..=55 {
        assert_eq!(engine.apply(&text(n)).await.revision, u64::try_from(n).unwrap());
    }
    let history = engine.history("shelf").await.revisions;
    assert_eq!((history.len(), history[0].revision, history[49].revision), (50, 55, 6));
    let gone = engine.rollback("shelf", Some(5)).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(gone.message().contains("no revision 5") && gone.message().contains("6 to 55"), "{}", gone.message());
    for n in 6..=55 {
        let back = engine.rollback("shelf", Some(n)).await.unwrap();
        assert!(back.accepted, "{n}: {back:?}");
        assert_eq!(engine.get("shelf").await.unwrap().text, text(usize::try_from(n).unwrap()));
    }
    assert_eq!(engine.history("shelf").await.revisions.len(), 50);
}

#[tokio::test]
async fn revisions_that_lost_a_race_take_nobodys_place_among_the_last_50() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let text = |n: u64| SHELF.replace("module: parser", &format!("module: parser, concurrency: {n}"));
    engine.apply(&text(1)).await;
    let store = bed.store().await;
    let key = |n: u64| Key::new(&["revisions", "shelf", &n.to_string()]);
    let other = store.get(&key(1)).await.unwrap().unwrap().text;
    for n in (2..=59).step_by(3) {
        // What an engine leaves whose change came too late.
        store.put(&key(n), &other, Expected::Absent, None).await.unwrap();
        for n in [n + 1, n + 2] {
            assert_eq!(engine.apply(&text(n)).await.revision, n);
        }
    }
    for n in 62..=80 {
        assert_eq!(engine.apply(&text(n)).await.revision, n);
    }
    let history = engine.history("shelf").await.revisions;
    assert_eq!((history.len(), history[0].revision), (50, 80));
    let oldest = history[49].revision;
    assert!(engine.rollback("shelf", Some(oldest)).await.unwrap().accepted);
    assert_eq!(engine.get("shelf").await.unwrap().text, text(oldest));
    assert!(store.list(&Key::new(&["revisions", "shelf"])).await.unwrap().len() < 80, "old ones go");
}

#[tokio::test]
async fn what_cannot_be_rolled_back_says_why() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let missing = engine.rollback("shelf", None).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    engine.apply(SHELF).await;
    let first = engine.rollback("shelf", None).await.unwrap_err();
    assert_eq!(first.code(), Code::FailedPrecondition);
    assert!(first.message().contains("before 1"), "{}", first.message());
    let same = engine.rollback("shelf", Some(1)).await.unwrap();
    assert!(same.accepted && same.unchanged && same.revision == 1, "it is that text already: {same:?}");
    let request = v1::RollbackRequest {
        pipeline: "shelf".into(),
        revision: Some(1),
        expected_revision: Some(7),
        ..Default::default()
    };
    let late = engine.control().rollback(request).await.unwrap().into_inner();
    assert!(!late.accepted && late.conflict.is_some(), "{late:?}");
}

#[tokio::test]
async fn a_revision_0_is_none_and_those_that_are_kept_are_named() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    engine.apply(&with_partitions(4)).await;
    let get = v1::GetRequest { pipeline: "shelf".into(), revision: Some(0) };
    let get = engine.control().get(get).await.map(drop);
    let rollback = engine.rollback("shelf", Some(0)).await.map(drop);
    for refused in [get, rollback] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        let said = refused.message();
        assert!(said.contains("no revision 0") && said.contains("1 to 2 are kept"), "{said}");
    }
    assert_eq!(engine.get("shelf").await.unwrap().revision, 2);
}

#[tokio::test]
async fn a_deleted_pipeline_goes_with_its_file_and_comes_back() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    engine.apply(&with_partitions(4)).await;
    engine.wait_for_status("the file is written", |_| bed.file("shelf.yaml").exists()).await;
    let request = v1::DeleteRequest { pipeline: "shelf".into(), expected_revision: Some(1), ..Default::default() };
    let late = engine.control().delete(request).await.unwrap().into_inner();
    assert!(!late.accepted && late.conflict.unwrap().current.unwrap().revision == 2);

    let deleted = engine.delete("shelf", false).await.unwrap();
    assert!(deleted.accepted && deleted.revision == 2, "{deleted:?}");
    engine.wait_for_status("the file is gone", |_| !bed.file("shelf.yaml").exists()).await;
    assert!(engine.status().await.pipelines.is_empty());
    for refused in [engine.get("shelf").await.map(drop), engine.delete("shelf", false).await.map(drop)] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(refused.message().contains("`pipedoc rollback shelf` brings revision 2 back"), "{refused:?}");
    }
    let history = engine.history("shelf").await;
    assert!(history.deleted_at.is_some() && history.revisions.len() == 2 && !history.revisions[0].current);

    let back = engine.rollback("shelf", None).await.unwrap();
    assert!(back.accepted && back.revision == 3, "{back:?}");
    assert_eq!(engine.get("shelf").await.unwrap().text, with_partitions(4));
    assert_eq!(engine.history("shelf").await.revisions.len(), 3);
    engine.wait_for_status("the file is back", |_| bed.file("shelf.yaml").exists()).await;

    // The same file, put there once more after another delete, is a new wish.
    assert!(engine.delete("shelf", false).await.unwrap().accepted);
    engine.wait_for_status("the file is gone", |_| !bed.file("shelf.yaml").exists()).await;
    bed.write("shelf.yaml", &with_partitions(4));
    engine.wait_for_status("it runs again", |status| status.pipelines.len() == 1).await;
    assert_eq!(engine.history("shelf").await.revisions[0].replaces, 3);
}
