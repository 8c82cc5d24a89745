//! Quick modules, whose documents are worked on in rows: each document of a row
//! stands for itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};

use bed::*;
use pipedoc_proto::PipeDoc;

/// Of documents that are mostly quick, some wait, some fail, some panic.
fn mixed(n: i64) -> PipeDoc {
    let title = match n {
        n if n % 50 == 20 => "slow:20",
        n if n % 70 == 33 => "bad",
        n if n % 90 == 55 => "panic",
        _ => "",
    };
    PipeDoc { version: n + 1, ..doc(&format!("key-{}", n % 40), title) }
}

fn is_good(doc: &PipeDoc) -> bool {
    !matches!(doc.title.as_str(), "bad" | "panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_a_row_that_waits_fails_or_panics_is_charged_to_no_other() {
    let (bed, _log) = Bed::memory();
    for name in ["in", "out", DEAD] {
        bed.topic(name, 3).await;
    }
    let docs: Vec<PipeDoc> = (0..2000).map(mixed).collect();
    bed.send("in", docs.clone()).await;
    let mut plan = plan("s");
    // One attempt: whoever is charged for another is a dead letter.
    plan.retries.attempts = 1;
    bed.apply(&[plan]);
    bed.drained("s").await;

    let versions = |docs: &[PipeDoc]| docs.iter().map(|doc| doc.version).collect::<BTreeSet<i64>>();
    let (good, bad): (Vec<_>, Vec<_>) = docs.into_iter().partition(is_good);
    let out: Vec<PipeDoc> = bed.await_records("out", good.len() as i64).await.iter().map(Read::doc).collect();
    assert_eq!((out.len(), versions(&out)), (good.len(), versions(&good)), "each good one once");
    let dead: Vec<PipeDoc> = bed.await_records(DEAD, bad.len() as i64).await.iter().map(Read::doc).collect();
    assert_eq!((dead.len(), versions(&dead)), (bad.len(), versions(&bad)), "each bad one once");
    let mut last = BTreeMap::new();
    for doc in &out {
        let before = last.insert(doc.id.clone(), doc.version).unwrap_or(0);
        assert!(before < doc.version, "{}: {} came after {before}", doc.id, doc.version);
    }
}
