//! What the runtime promises about documents, on the SQLite log: two instances
//! over one file, each with a handle of its own, as two processes have.

#![allow(clippy::unwrap_used, reason = "what helps a test fails with it")]

mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use pipedoc_model::names::ClusterName;
use pipedoc_model::step::{StepPlan, StepType};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_transport::log::Log;
use pipedoc_transport::sqlite::{Options, SqliteLog};

async fn open(file: &std::path::Path) -> Arc<dyn Log> {
    Arc::new(SqliteLog::open(file, Options::default()).await.unwrap())
}

/// A connector, a step that is slow for some and fails for others, and a sink.
fn pipeline(count: usize) -> Vec<StepPlan> {
    let mut first = plan("first");
    first.step_type = StepType::Connector;
    first.module = "counter".parse().unwrap();
    first.inputs = Vec::new();
    first.state = Some(first.id.state_topic(&ClusterName::new("test").unwrap()));
    first.config = serde_json::json!({"count": count, "title": "slow:5 fail:1 partial"});
    first.outputs = vec![way("second-in")];
    let mut second = plan("second");
    second.inputs = vec![input("second-in")];
    second.outputs = vec![way("third-in")];
    let mut third = plan("third");
    third.inputs = vec![input("third-in")];
    third.step_type = StepType::Sink;
    third.outputs = Vec::new();
    vec![first, second, third]
}

fn stored(bed: &Bed) -> Vec<String> {
    bed.events
        .named()
        .into_iter()
        .filter_map(|(step, event)| match event {
            Event::Done { document, .. } if step == "third" => Some(document),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_of_three_steps_accounts_for_every_document() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log.sqlite")).await;
    let bed = Bed::with(log, vec![Factory::connector::<Counter>()], Layers::new());
    bed.run(&pipeline(200)).await;
    bed.state("first", StepState::Completed).await;
    until("all to be stored", || (stored(&bed).len() >= 180).then_some(())).await;
    for step in ["second", "third"] {
        bed.drained(step).await;
    }
    assert_eq!(stored(&bed).into_iter().collect::<BTreeSet<_>>().len(), 180);
    assert_eq!(stored(&bed).len(), 180, "none came twice");
    assert_eq!(bed.read("test.p.first.dlq").await.len(), 20);
    bed.instance.stop(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_share_their_work_and_go_on_when_an_instance_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log.sqlite");
    let bed = Bed::with(open(&file).await, vec![Factory::connector::<Counter>()], Layers::new());
    let plans = pipeline(400);
    bed.run(&plans).await;
    let other = bed.over_again(open(&file).await, "two", vec![Factory::connector::<Counter>()]);
    other.apply(&plans);
    until("both to own partitions", || {
        let owned = |step| [&bed, &other].map(|bed| bed.status(step).partitions.len());
        (owned("second") == [2, 2] && owned("third") == [2, 2]).then_some(())
    })
    .await;
    // What there was may be done by now: here is more, for both.
    bed.send("second-in", (0..100).map(|n| doc(&format!("more-{n}"), "slow:5"))).await;
    until("both to work", || [&bed, &other].iter().all(|bed| bed.status("third").done > 0).then_some(())).await;
    other.instance.stop(Duration::from_secs(10)).await;
    until("the rest to be stored", || {
        let all: BTreeSet<String> = stored(&bed).into_iter().chain(stored(&other)).collect();
        (all.len() == 460).then_some(())
    })
    .await;
    for step in ["second", "third"] {
        bed.drained(step).await;
    }
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for document in stored(&bed).into_iter().chain(stored(&other)) {
        *times.entry(document).or_default() += 1;
    }
    assert_eq!(times.values().filter(|times| **times > 1).count(), 0, "a graceful stop repeats nothing");
    bed.instance.stop(Duration::from_secs(10)).await;
}
