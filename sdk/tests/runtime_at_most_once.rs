//! What plain modules are promised under `delivery: AT_MOST_ONCE`: the offset is
//! committed first, and nothing comes twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod bed;

use std::collections::BTreeSet;
use std::time::Duration;

use bed::{Bed, DEAD, doc, plan, until};
use pipedoc_model::step::{Delivery, FailureRate, OnExhausted, StepPlan};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::instance::StepState;

fn at_most_once() -> StepPlan {
    StepPlan { delivery: Delivery::AtMostOnce, ..plan("s") }
}

async fn ids(bed: &Bed, topic: &str) -> Vec<String> {
    bed.read(topic).await.iter().map(|read| read.doc().id).collect()
}

fn distinct(ids: &[String]) -> usize {
    ids.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_is_committed_already_and_comes_nowhere_again() {
    let (bed, _) = Bed::memory();
    let plan = StepPlan { timeout: Duration::from_secs(9000), ..at_most_once() };
    bed.topic("in", 4).await;
    bed.send("in", (0..10).map(|n| doc(&format!("d{n}"), "slow:5000000"))).await;
    bed.run(std::slice::from_ref(&plan)).await;
    until("all to be begun", || (bed.status("s").in_flight == 10).then_some(())).await;
    until("all to be committed", || (bed.status("s").lag == 0).then_some(())).await;
    assert_eq!(bed.committed(&plan).await.values().sum::<i64>(), 10);
    bed.instance.stop(Duration::ZERO).await;
    let next = bed.beside("two", Vec::new());
    next.apply(&[plan]);
    next.drained("s").await;
    assert_eq!((next.status("s").done, ids(&next, "out").await.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_worked_on_before_its_offset_is_committed() {
    let (bed, log) = Bed::memory();
    let plan = at_most_once();
    bed.topic("in", 4).await;
    bed.run(std::slice::from_ref(&plan)).await;
    until("partitions", || (bed.status("s").partitions.len() == 4).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    log.faults().fail_commits(3, true);
    bed.send("in", (0..100).map(|n| doc(&format!("d{n}"), ""))).await;
    until("commits to fail", || {
        (bed.events.count(|event| matches!(event, Event::CommitFailed { .. })) >= 2).then_some(())
    })
    .await;
    assert_eq!((bed.status("s").done, bed.status("s").in_flight), (0, 100));
    bed.drained("s").await;
    let out = ids(&bed, "out").await;
    assert_eq!((out.len(), distinct(&out)), (100, 100));
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_is_not_sent_again_though_its_acknowledgement_is_lost() {
    let (bed, log) = Bed::memory();
    let plan = at_most_once();
    bed.topic("in", 4).await;
    bed.send("in", (0..200).map(|n| doc(&format!("d{n}"), if n % 50 == 7 { "bad" } else { "fail:1" }))).await;
    log.faults().lose_acks(5, true);
    bed.run(std::slice::from_ref(&plan)).await;
    bed.drained("s").await;
    let (out, dead) = (ids(&bed, "out").await, ids(&bed, DEAD).await);
    assert_eq!((out.len(), distinct(&out), dead.len(), distinct(&dead)), (196, 196, 4, 4));
    assert_eq!(bed.events.count(|event| matches!(event, Event::Skipped { .. })), 5);
    assert_eq!(bed.events.count(|event| matches!(event, Event::Lost(_))), 0);
}

#[tokio::test(start_paused = true)]
async fn partitions_that_move_repeat_nothing() {
    let (bed, log) = Bed::memory();
    let plan = at_most_once();
    bed.topic("in", 4).await;
    bed.run(std::slice::from_ref(&plan)).await;
    let other = bed.beside("two", Vec::new());
    for n in 0..6 {
        bed.send("in", (0..100).map(|m| doc(&format!("d{}", n * 100 + m), "slow:5"))).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
        match n {
            1 => other.apply(std::slice::from_ref(&plan)),
            3 => assert!(log.expire("one") > 0),
            _ => {}
        }
    }
    until("all to be drained", || {
        let statuses = [bed.status("s"), other.status("s")];
        let owned: usize = statuses.iter().map(|status| status.partitions.len()).sum();
        (statuses.iter().all(|status| status.drained) && owned == 4).then_some(())
    })
    .await;
    let out = ids(&bed, "out").await;
    assert_eq!(out.len(), distinct(&out));
    assert!(out.len() > 400, "far too many are lost: {} of 600 are there", out.len());
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_would_stand_still_is_refused() {
    let (bed, _) = Bed::memory();
    let rate = Some(FailureRate { percent: 20.0, last: 10 });
    bed.run(&[StepPlan { on_exhausted: OnExhausted::Pause, stop_at_failure_rate: rate, ..at_most_once() }]).await;
    let error = bed.state("s", StepState::Failed).await.last_error;
    assert!(error.contains("AT_MOST_ONCE contradicts on_exhausted PAUSE"), "{error}");
    assert!(error.contains("AT_MOST_ONCE is not supported yet with stop_at_failure_rate"), "{error}");
}
