//! What becomes of documents that a connector cannot give: `on_exhausted` and
//! `stop_at_failure_rate`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::ClusterName;
use pipedoc_model::step::{Delivery, FailureRate, OnExhausted, StepPlan, StepType};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{PauseReason, StepState};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::memory::MemoryLog;

use crate::bed::*;

/// Gives documents that it has not given before; every second one cannot be read until
/// that is mended.
struct Source {
    config: Sourcing,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sourcing {
    /// Name of what mends it.
    mended_by: String,
    /// How many documents there are.
    count: usize,
}

static MENDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Connector for Source {
    type Config = Sourcing;
    const NAME: &'static str = "source";

    async fn open(config: Sourcing, _: &Step) -> Result<Self> {
        Ok(Self { config })
    }

    async fn run(&self, _: &Step, out: &Emitter, state: &State) -> Result<()> {
        for n in 0..self.config.count {
            let id = format!("doc-{n:02}");
            if state.get(&id)?.is_some() {
                out.unchanged(&id).await?;
                continue;
            }
            let changes = vec![(id.clone(), Some("1".into()))];
            if n % 2 == 1 && !MENDED.lock().contains(&self.config.mended_by) {
                out.unreadable(&id, 1, Error::permanent("torn").with_kind("unreadable"), changes).await?;
            } else {
                // One after the other, so that a test knows how far it came.
                out.send(doc(&id, ""), changes).await?.await?;
            }
        }
        Ok(())
    }
}

fn bed() -> Bed {
    Bed::with(Arc::new(MemoryLog::new()), vec![Factory::connector::<Source>()], Layers::new())
}

fn source(mended_by: &str) -> StepPlan {
    let plan = plan("s");
    StepPlan {
        step_type: StepType::Connector,
        module: "source".parse().unwrap(),
        inputs: Vec::new(),
        state: Some(plan.id.state_topic(&ClusterName::new("test").unwrap())),
        config: serde_json::json!({"mended_by": mended_by, "count": 10}),
        ..plan
    }
}

async fn ids(bed: &Bed) -> Vec<String> {
    let mut ids: Vec<String> = bed.read("out").await.iter().map(Read::key).collect();
    ids.sort();
    ids
}

#[tokio::test(start_paused = true)]
async fn a_connector_stands_still_at_what_it_cannot_give_and_brings_it_when_resumed() {
    for (delivery, name) in [(Delivery::AtLeastOnce, "pause"), (Delivery::ExactlyOnce, "pause once")] {
        stands_still_and_goes_on(StepPlan { delivery, on_exhausted: OnExhausted::Pause, ..source(name) }, name).await;
    }
}

async fn stands_still_and_goes_on(plan: StepPlan, mended_by: &str) {
    let bed = bed();
    bed.run(std::slice::from_ref(&plan)).await;
    let status = bed.state("s", StepState::Paused).await;
    let [paused] = &status.paused[..] else { panic!("{:?}", status.paused) };
    assert_eq!((paused.reason, paused.offset, paused.document.as_str()), (PauseReason::Exhausted, None, "doc-01"));
    assert_eq!((paused.error.as_str(), paused.partition.to_string().as_str()), ("torn", "test.p.s.state[0]"));
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before = ids(&bed).await;
    assert!(before.contains(&"doc-00".to_owned()) && before.len() < 5, "{before:?}");
    // It is tried again, and stands still again.
    assert!(bed.instance.resume(&plan.id));
    let paused = |event: &Event| matches!(event, Event::PartitionPaused(_));
    until("another pause", || (bed.events.count(paused) == 2).then_some(())).await;
    MENDED.lock().insert(mended_by.to_owned());
    until("it to be shown again", || (!bed.status("s").paused.is_empty()).then_some(())).await;
    assert!(bed.instance.resume(&plan.id));
    let status = bed.state("s", StepState::Completed).await;
    assert_eq!((status.paused.len(), status.failed), (0, 0));
    let all: Vec<String> = (0..10).map(|n| format!("doc-{n:02}")).collect();
    assert_eq!(ids(&bed).await, all, "each once");
    assert_eq!(bed.read(DEAD).await.len(), 0);
    assert!(bed.events.count(|event| matches!(event, Event::PartitionResumed { .. })) >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_fails_too_often_stands_still() {
    let bed = bed();
    let rate = Some(FailureRate { percent: 40.0, last: 5 });
    let plan = StepPlan { stop_at_failure_rate: rate, ..source("rate") };
    bed.run(std::slice::from_ref(&plan)).await;
    let status = bed.state("s", StepState::Paused).await;
    assert_eq!((status.paused[0].reason, status.failed), (PauseReason::FailureRate, 1));
    assert!(status.paused[0].error.contains("2 of the last"), "{}", status.paused[0].error);
    assert_eq!(bed.read(DEAD).await.len(), 1, "the second stopped it");
    assert_eq!(bed.events.count(|event| matches!(event, Event::FailureRateReached { .. })), 1);
    MENDED.lock().insert("rate".to_owned());
    assert!(bed.instance.resume(&plan.id));
    bed.state("s", StepState::Completed).await;
    assert_eq!(ids(&bed).await.len(), 9, "all but the one in the dead letters");
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_fails_seldom_goes_on_though_acknowledgements_come_late() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let bed = Bed::with(Arc::new(MemoryLog::new()), vec![Factory::connector::<Counter>()], Layers::new());
        let plan = StepPlan {
            module: "counter".parse().unwrap(),
            config: serde_json::json!({"count": 400}),
            stop_at_failure_rate: Some(FailureRate { percent: 20.0, last: 50 }),
            delivery,
            ..source("")
        };
        bed.run(&[plan]).await;
        let ended = until("the end, or a stop", || {
            let status = bed.status("s");
            matches!(status.state, StepState::Completed | StepState::Paused).then_some(status)
        })
        .await;
        assert_eq!((ended.state, ended.done, ended.failed), (StepState::Completed, 360, 40), "{}", ended.last_error);
        assert_eq!((ids(&bed).await.len(), bed.read(DEAD).await.len()), (360, 40), "{delivery:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_connector_cannot_give_is_skipped_where_the_step_says_so() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let bed = bed();
        bed.run(&[StepPlan { delivery, on_exhausted: OnExhausted::Skip, ..source("never") }]).await;
        let status = bed.state("s", StepState::Completed).await;
        assert_eq!((status.done, status.failed), (5, 5));
        assert_eq!((ids(&bed).await.len(), bed.read(DEAD).await.len()), (5, 0));
        assert_eq!(bed.events.count(|event| matches!(event, Event::Skipped { error, .. } if error == "torn")), 5);
        assert_eq!(bed.read("test.p.s.state").await.len(), 10, "they do not come again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_stands_still_stops_at_once_and_goes_on_elsewhere() {
    let bed = bed();
    let plan = StepPlan { on_exhausted: OnExhausted::Pause, ..source("moves") };
    bed.run(std::slice::from_ref(&plan)).await;
    bed.state("s", StepState::Paused).await;
    let begun = tokio::time::Instant::now();
    bed.instance.stop(Duration::from_secs(60)).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    MENDED.lock().insert("moves".to_owned());
    let other = bed.beside("two", vec![Factory::connector::<Source>()]);
    other.apply(&[plan]);
    other.state("s", StepState::Completed).await;
    assert_eq!(ids(&bed).await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn at_most_once_is_refused_for_connectors() {
    let bed = bed();
    bed.run(&[StepPlan { delivery: Delivery::AtMostOnce, ..source("refused") }]).await;
    let status = bed.state("s", StepState::Failed).await;
    let words = "delivery AT_MOST_ONCE is not supported yet for a CONNECTOR";
    assert!(status.last_error.contains(words), "{}", status.last_error);
}
