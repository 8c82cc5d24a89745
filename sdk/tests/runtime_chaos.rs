//! Faults from a printed seed, instances that come and go, sessions that expire:
//! nothing is lost, and keys keep their order wherever that is promised.

#![allow(clippy::unwrap_used, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::step::StepPlan;
use pipedoc_proto::PipeDoc;
use pipedoc_sdk::layers::Layers;
use pipedoc_transport::log::OutgoingRecord;
use pipedoc_transport::memory::MemoryLog;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const KEYS: usize = 40;
const EACH: usize = 50;

fn records(random: &mut StdRng) -> Vec<OutgoingRecord> {
    let mut records = Vec::new();
    for n in 0..EACH {
        for key in 0..KEYS {
            let name = format!("key-{key}");
            let title = match random.random_range(0..20) {
                0 => "fail:1".to_owned(),
                1 => "bad".to_owned(),
                2 => "many:3".to_owned(),
                _ => format!("slow:{}", random.random_range(0..15)),
            };
            let id = format!("{name}/{n:04}");
            let doc = PipeDoc { id, title, source_uri: name.clone(), part: n as i32, ..PipeDoc::default() };
            let value = Bytes::from(doc.encode_to_vec());
            records.push(OutgoingRecord::new(topic("in"), Some(name.into()), Some(value)));
        }
    }
    records
}

/// What is found at the end: every document in the output or the dead letters.
async fn check(bed: &Bed, seed: u64, ordered: bool) {
    let (out, dead) = (bed.read("out").await, bed.read(DEAD).await);
    let found: BTreeSet<(String, i32)> =
        out.iter().chain(&dead).map(|read| (read.doc().source_uri, read.doc().part)).collect();
    assert_eq!(found.len(), KEYS * EACH, "seed {seed}: something is missing");
    for (name, read) in [("out", &out), ("dead letters", &dead)].into_iter().filter(|_| ordered) {
        for (key, order) in last_deliveries(read) {
            assert!(order.is_sorted(), "seed {seed}: {name}, {key}: {order:?}");
        }
    }
    println!("seed {seed}: {} records, {} dead letters, of {} documents", out.len(), dead.len(), KEYS * EACH);
}

async fn all_done(bed: &Bed, plan: &StepPlan, others: &[Bed], seed: u64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    loop {
        let ends = bed.log.ends(&topic("in")).await.unwrap();
        let committed = bed.committed(plan).await;
        if (0..).zip(&ends).all(|(partition, ends)| committed.get(&partition).copied().unwrap_or(0) >= ends.end) {
            break;
        }
        let all = [bed].into_iter().chain(others);
        let statuses: Vec<_> = all.map(|bed| bed.instance.status()).collect();
        assert!(
            tokio::time::Instant::now() < deadline,
            "seed {seed}: stuck at {committed:?} of {ends:?}: {statuses:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn storm(seed: u64, expire: bool) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let log = MemoryLog::new();
    let bed = Bed::with(Arc::new(log.clone()), Vec::new(), Layers::new());
    let mut plan = plan("s");
    plan.outputs[0].key = Some("doc.source_uri".to_owned());
    plan.revoke_grace = Duration::from_millis(200);
    bed.run(std::slice::from_ref(&plan)).await;
    bed.send_records(records(&mut random)).await;
    let mut others: Vec<Bed> = Vec::new();
    let faults = log.faults();
    for round in 0..25 {
        tokio::time::sleep(Duration::from_millis(random.random_range(5..60))).await;
        match random.random_range(0..8) {
            0 => faults.fail_sends(random.random_range(1..3), true),
            1 => faults.fail_sends(1, false),
            2 => faults.fail_acks(random.random_range(1..5), true),
            3 => faults.lose_acks(random.random_range(1..5), true),
            4 => faults.fail_commits(1, true),
            5 => faults.fail_reads(2, true),
            6 if others.len() < 2 => {
                let other = bed.beside(&format!("other-{round}"), Vec::new());
                other.apply(std::slice::from_ref(&plan));
                others.push(other);
            }
            _ if expire => {
                log.expire("one");
            }
            _ => {
                if let Some(other) = others.pop() {
                    other.instance.stop(Duration::from_millis(random.random_range(0..300))).await;
                }
            }
        }
    }
    for off in [0, 0] {
        faults.fail_sends(off, true);
        faults.fail_acks(off, true);
        faults.lose_acks(off, true);
        faults.fail_commits(off, true);
        faults.fail_reads(off, true);
    }
    all_done(&bed, &plan, &others, seed).await;
    for other in others {
        other.instance.stop(Duration::from_secs(5)).await;
    }
    bed.instance.stop(Duration::from_secs(5)).await;
    check(&bed, seed, !expire).await;
}

fn seed() -> u64 {
    std::env::var("PIPEDOC_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random)
}

#[tokio::test(start_paused = true)]
async fn faults_and_rebalances_lose_nothing_and_keep_the_order_of_keys() {
    storm(seed(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_expire_lose_nothing() {
    storm(seed(), true).await;
}
