//! Several engines on one folder.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::bed::{Bed, SHELF, instance, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_on_one_folder_agree_and_come_to_rest() {
    let bed = Bed::new();
    let (one, two) = (bed.engine().await, bed.engine().await);
    let _parser = (one.attach(instance("p1", "parser")).await, two.attach(instance("p1", "parser")).await);
    for n in 0..5 {
        bed.write(&format!("p{n}.yaml"), &SHELF.replace("shelf", &format!("p{n}")));
    }
    assert!(two.apply(SHELF).await.accepted);
    bed.write("p0.yaml", &SHELF.replace("shelf", "p0").replace("partitions: 3", "partitions: 4"));
    wait_for("both agree", Duration::from_secs(60), async || {
        let p0 = one.get("p0").await.unwrap_or_default();
        let (a, b) = (one.status().await, two.status().await);
        let whole = a.pipelines.len() == 6 && a.problems.is_empty() && b.problems.is_empty();
        let edited = p0.text.contains("partitions: 4")
            && a.pipelines.iter().any(|p| p.pipeline == "p0" && p.revision == p0.revision);
        let agreed = a.generation == b.generation && a.pipelines == b.pipelines;
        if whole && edited && agreed { Ok(()) } else { Err(format!("{a:#?}\n{b:#?}")) }
    })
    .await;

    // Nothing goes on by itself: over more than a round of the timer there is no
    // new generation, and no file is written again.
    let files = || {
        let entries = std::fs::read_dir(bed.file("")).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap())).collect::<BTreeSet<_>>()
    };
    let (generation, before) = (one.status().await.generation, files());
    assert_eq!(before.len(), 6, "{before:?}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!((one.status().await.generation, two.status().await.generation), (generation, generation));
    assert_eq!(files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_on_one_engine_reaches_instances_of_the_other() {
    let bed = Bed::new();
    let (one, two) = (bed.engine().await, bed.engine().await);
    let mut parser = two.attach(instance("p1", "parser")).await;
    let answer = one.apply(SHELF).await;
    let told = parser.assignment("the step", |assignment| assignment.steps.len() == 1).await;
    assert!(told.generation >= answer.generation);
    one.stop().await;
    assert!(two.apply(&SHELF.replace("partitions: 3", "partitions: 4")).await.accepted);
    let next = parser.assignment("the edit", |assignment| assignment.generation > told.generation).await;
    assert_eq!(next.steps.len(), 1);
}
