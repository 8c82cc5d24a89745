//! Editing pipeline files.

use std::time::{Duration, Instant};

use crate::bed::{Bed, SHELF, wait_for};

#[tokio::test]
async fn a_new_file_runs_within_two_seconds() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    let before = engine.wait_for_status("an empty start", |status| status.problems.is_empty()).await;
    assert_eq!(before.generation, 0, "no head is no news");
    // A machine at work elsewhere may be slow once; one that waits for its timer is slow each time.
    let mut took = Vec::new();
    while took.iter().all(|took| *took > Duration::from_secs(2)) {
        assert!(took.len() < 3, "{took:?}");
        let name = format!("shelf-{}", took.len());
        bed.write(&format!("any-name-{}.yml", took.len()), &SHELF.replace("shelf", &name));
        let written = Instant::now();
        engine.wait_for_status("it runs", |status| status.pipelines.iter().any(|one| one.pipeline == name)).await;
        took.push(written.elapsed());
    }
    assert_eq!(std::fs::read_dir(bed.file("")).unwrap().count(), took.len(), "the pipeline has its file already");
}

#[tokio::test]
async fn a_broken_edit_is_shown_and_the_last_good_text_runs_on() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let good = engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    bed.write("shelf.yaml", &SHELF.replace("to: store", "too: store").replace("type: SINK", "type: SNIK"));
    let broken = engine.wait_for_status("the mistakes are shown", |status| !status.problems.is_empty()).await;
    assert_eq!(broken.problems.len(), 3, "{:#?}", broken.problems);
    assert!(broken.problems.iter().all(|problem| problem.file.ends_with("shelf.yaml") && problem.line > 0));
    assert_eq!((broken.generation, &broken.pipelines), (good.generation, &good.pipelines));

    bed.write("shelf.yaml", &SHELF.replace("partitions: 3", "partitions: 5"));
    let mended = engine.wait_for_status("the edit runs", |status| status.generation > good.generation).await;
    assert_eq!(mended.pipelines[0].revision, 2);
    engine.wait_for_status("the problems are gone", |status| status.problems.is_empty()).await;
}

#[tokio::test]
async fn applying_replaces_a_broken_edit() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    bed.write("shelf.yaml", "pipeline: shelf\nsteps: none\n");
    engine.wait_for_status("the mistake is shown", |status| !status.problems.is_empty()).await;
    let text = SHELF.replace("partitions: 3", "partitions: 4");
    assert!(engine.apply(&text).await.accepted);
    engine.wait_for_status("the problem is gone", |status| status.problems.is_empty()).await;
    assert_eq!(std::fs::read_to_string(bed.file("shelf.yaml")).unwrap(), text);
}

#[tokio::test]
async fn a_file_gone_for_five_seconds_is_a_removed_pipeline() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    bed.write("other.yaml", &SHELF.replace("shelf", "other"));
    let engine = bed.engine().await;
    engine.wait_for_status("both run", |status| status.pipelines.len() == 2).await;
    // Renamed is not removed.
    std::fs::rename(bed.file("other.yaml"), bed.file("renamed.yaml")).unwrap();
    std::fs::remove_file(bed.file("shelf.yaml")).unwrap();
    let removed = Instant::now();
    let left = engine.wait_for_status("one is removed", |status| status.pipelines.len() == 1).await;
    assert!(removed.elapsed() >= Duration::from_secs(4), "removed after {:?} already", removed.elapsed());
    assert_eq!((left.pipelines[0].pipeline.as_str(), left.pipelines[0].revision), ("other", 1));
}

#[tokio::test]
async fn a_missing_folder_is_shown_and_removes_nothing() {
    let bed = Bed::new();
    bed.write("shelf.yaml", SHELF);
    let engine = bed.engine().await;
    let before = engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    let (folder, away) = (bed.file(""), bed.data().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    let during = engine.wait_for_status("the loss is shown", |status| !status.problems.is_empty()).await;
    assert!(during.problems[0].message.contains("pipelines"), "{:?}", during.problems);
    // Longer than it takes to remove a pipeline.
    let since = Instant::now();
    wait_for("six seconds", Duration::from_secs(60), async || {
        let status = engine.status().await;
        assert_eq!((status.generation, status.pipelines.len()), (before.generation, 1));
        if since.elapsed() > Duration::from_secs(6) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    std::fs::rename(&away, &folder).unwrap();
    engine.wait_for_status("all is well", |status| status.problems.is_empty()).await;
    bed.write("shelf.yaml", &SHELF.replace("partitions: 3", "partitions: 4"));
    let back = engine.wait_for_status("edits count again", |status| status.pipelines[0].revision == 2).await;
    assert!(back.generation > before.generation);
}

#[tokio::test]
async fn a_pipeline_in_two_files_stays_with_the_first() {
    let bed = Bed::new();
    bed.write("z.yaml", SHELF);
    let engine = bed.engine().await;
    engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    bed.write("a.yaml", &SHELF.replace("partitions: 3", "partitions: 4"));
    let status = engine.wait_for_status("the conflict is shown", |status| !status.problems.is_empty()).await;
    assert!(status.problems[0].message.contains("z.yaml"), "{:?}", status.problems);
    assert_eq!(engine.get("shelf").await.unwrap().text, SHELF);
}

#[tokio::test]
async fn a_refused_text_is_taken_once_its_variable_has_a_value() {
    let bed = Bed::new();
    bed.write("shelf.yaml", &SHELF.replace("module: object-sink", "module: object-sink, config: {url: \"${out}\"}"));
    let engine = bed.engine().await;
    engine.wait_for_status("the lack is shown", |status| !status.problems.is_empty()).await;
    engine.stop().await;
    let engine = bed.engine_with(&[("out", "there")]).await;
    engine.wait_for_status("the pipeline runs", |status| status.pipelines.len() == 1).await;
    assert_eq!(engine.get("shelf").await.unwrap().variables["out"], "there");
}
