//! What whoever subscribes to events hears: every kind where it happens, and how many
//! went by.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use pipedoc_model::names::ClusterName;
use pipedoc_model::step::{Delivery, FailureRate, OnExhausted, StepPlan, StepType};
use pipedoc_sdk::event::{CAPACITY, Event, Happened, Heard, Subscription};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::module::Step;
use pipedoc_sdk::prelude::*;
use pipedoc_transport::error::FileProblem;
use pipedoc_transport::log::{self, Commit, Log, TopicPartition};
use pipedoc_transport::memory::MemoryLog;

/// A connector that finds a new document, one that is as it was, and a deletion.
struct Finder;

impl Connector for Finder {
    type Config = Nothing;
    const NAME: &'static str = "finder";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn run(&self, _: &Step, out: &Emitter, _: &State) -> Result<()> {
        out.send(doc("new", ""), Vec::new()).await?;
        out.unchanged("old").await?;
        out.delete("gone", 2, Vec::new()).await?;
        Ok(())
    }
}

/// Its first attempts meet a full disk, then a log that is broken.
struct Unlucky(parking_lot::Mutex<u32>);

impl Module for Unlucky {
    type Config = Nothing;
    const NAME: &'static str = "unlucky";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self(parking_lot::Mutex::new(0)))
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        let mut attempts = self.0.lock();
        *attempts += 1;
        match *attempts {
            1 => Err(std::io::Error::new(std::io::ErrorKind::StorageFull, "no room").into()),
            2 => {
                let problem = FileProblem::Corrupt;
                Err(log::Error::File { path: "log.db".into(), problem, source: None }.into())
            }
            _ => Ok(doc.into()),
        }
    }
}

/// Hears of its own step, and says so in what it passes on.
struct Listener(tokio::sync::Mutex<Subscription>);

impl Module for Listener {
    type Config = Nothing;
    const NAME: &'static str = "listener";

    async fn open(_: Nothing, step: &Step) -> Result<Self> {
        Ok(Self(tokio::sync::Mutex::new(step.events())))
    }

    async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
        let mut events = self.0.lock().await;
        while let Some(Heard::Event(happened)) = events.next().await {
            doc.keywords.push(format!("{} {}", happened.step.step, happened.event.name()));
            if let Event::Assigned(_) = happened.event {
                break;
            }
        }
        Ok(doc.into())
    }
}

fn bed() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    let more = vec![
        Factory::connector::<Finder>(),
        Factory::module::<Unlucky>(),
        Factory::module::<Listener>(),
        Factory::records::<Pipes>(),
    ];
    (Bed::with(Arc::new(log.clone()), more, Layers::new()), log)
}

fn with_module(plan: StepPlan, module: &str) -> StepPlan {
    StepPlan { module: module.parse().unwrap(), ..plan }
}

/// Listens until all of these were heard; gives the first of each, in that order.
async fn hear(events: &mut Subscription, names: &[&str]) -> Vec<Arc<Happened>> {
    let mut heard: Vec<Option<Arc<Happened>>> = names.iter().map(|_| None).collect();
    let listening = async {
        while heard.iter().any(Option::is_none) {
            match events.next().await {
                Some(Heard::Event(happened)) => {
                    if let Some(at) = names.iter().position(|name| *name == happened.event.name()) {
                        heard[at].get_or_insert(happened);
                    }
                }
                other => panic!("{other:?} instead of an event"),
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), listening).await.is_err() {
        let missing = names.iter().zip(&heard).filter(|(_, heard)| heard.is_none()).map(|(name, _)| *name);
        panic!("nothing was heard of {:?}", missing.collect::<Vec<_>>());
    }
    heard.into_iter().flatten().collect()
}

#[tokio::test(start_paused = true)]
async fn what_happens_to_documents_is_heard() {
    let (bed, _) = bed();
    let mut events = bed.instance.events().subscribe_to_all();
    let mut by_doc = plan("s");
    by_doc.outputs[0].key = Some("doc.id".to_owned());
    let mut skips = plan("t");
    skips.on_exhausted = OnExhausted::Skip;
    skips.inputs = vec![input("other")];
    bed.run(&[by_doc, skips]).await;
    bed.send("in", [doc("a", "fail:1"), doc("b", "bad"), doc("c", "partial")]).await;
    bed.send_records(vec![tombstone("in", "d")]).await;
    bed.send("other", [doc("e", "bad")]).await;
    let kinds = [
        "delivery.retrying",
        "dead_letter.sent",
        "delivery.partial",
        "deletion.ended",
        "delivery.skipped",
        "delivery.done",
    ];
    let heard = hear(&mut events, &kinds).await;
    let document = |at: usize| match &heard[at].event {
        Event::Retrying { document, attempts: 1, .. }
        | Event::DeadLetter { document, .. }
        | Event::Partial { document, .. }
        | Event::DeletionEnded { document, .. }
        | Event::Skipped { document, .. } => (heard[at].step.step.as_str(), document.as_str()),
        other => panic!("{other:?}"),
    };
    assert_eq!((0..5).map(document).collect::<Vec<_>>(), [("s", "a"), ("s", "b"), ("s", "c"), ("s", "d"), ("t", "e")]);
}

#[tokio::test]
async fn what_a_connector_finds_is_heard() {
    let (bed, _) = bed();
    let mut events = bed.instance.events().subscribe_to_all();
    let mut plan = with_module(plan("s"), "finder");
    plan.step_type = StepType::Connector;
    plan.inputs = Vec::new();
    plan.state = Some(plan.id.state_topic(&ClusterName::new("test").unwrap()));
    bed.run(&[plan]).await;
    let heard =
        hear(&mut events, &["document.found", "document.unchanged", "document.deleted", "group.rebalanced"]).await;
    assert_eq!(heard[0].event, Event::Found { document: "new".into() });
    assert_eq!(heard[1].event, Event::Unchanged { document: "old".into() });
    assert_eq!(heard[2].event, Event::Deleted { document: "gone".into() });
    assert!(matches!(&heard[3].event, Event::Rebalanced { owned } if owned.len() == 1), "{heard:?}");
    bed.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_to_partitions_is_heard_of_documents_and_of_records() {
    for module in ["actor", "pipes"] {
        let (bed, log) = bed();
        let mut events = bed.instance.events().subscribe();
        let plan = with_module(plan("s"), module);
        bed.run(std::slice::from_ref(&plan)).await;
        let heard = hear(&mut events, &["step.state", "partitions.assigned", "group.rebalanced"]).await;
        let all: Vec<_> = (0..4).map(|n| TopicPartition::new(topic("in"), n)).collect();
        let Event::Assigned(assigned) = &heard[1].event else { panic!("{heard:?}") };
        assert_eq!(assigned.iter().cloned().collect::<BTreeSet<_>>(), all.iter().cloned().collect());
        assert_eq!(heard[2].event, Event::Rebalanced { owned: all });

        let more = vec![Factory::connector::<Finder>(), Factory::records::<Pipes>()];
        let other = bed.beside("two", more);
        other.apply(std::slice::from_ref(&plan));
        let heard = hear(&mut events, &["partitions.revoked", "group.rebalanced"]).await;
        assert!(matches!(&heard[0].event, Event::Revoked(gone) if !gone.is_empty()), "{heard:?}");
        assert!(matches!(&heard[1].event, Event::Rebalanced { owned } if owned.len() < 4), "{heard:?}");
        assert!(log.expire("one") > 0);
        let heard = hear(&mut events, &["partitions.lost", "group.rebalanced"]).await;
        assert!(matches!(&heard[1].event, Event::Rebalanced { owned } if owned.is_empty()), "{heard:?}");
        other.instance.stop(Duration::ZERO).await;
        bed.instance.stop(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_that_stand_still_and_go_on_are_heard() {
    for (module, rate) in [("actor", false), ("actor", true), ("pipes", false), ("pipes", true)] {
        let (bed, _) = bed();
        let mut events = bed.instance.events().subscribe();
        let mut plan = with_module(plan("s"), module);
        match rate {
            false => plan.on_exhausted = OnExhausted::Pause,
            true => plan.stop_at_failure_rate = Some(FailureRate { percent: 100.0, last: 1 }),
        }
        bed.run(std::slice::from_ref(&plan)).await;
        bed.send("in", [doc("poison", "bad")]).await;
        if rate {
            hear(&mut events, &["failure_rate.reached", "partition.paused"]).await;
        } else {
            let heard = hear(&mut events, &["partition.paused"]).await;
            let Event::PartitionPaused(paused) = &heard[0].event else { panic!("{heard:?}") };
            assert_eq!((paused.document.as_str(), paused.offset), ("poison", Some(0)));
        }
        until("status to show it", || (!bed.status("s").paused.is_empty()).then_some(())).await;
        assert!(bed.instance.resume(&plan.id));
        hear(&mut events, &["partition.resumed", "partition.paused"]).await;
        bed.instance.stop(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_is_heard() {
    let (bed, log) = bed();
    let mut events = bed.instance.events().subscribe();
    bed.topic("in", 1).await;
    bed.send("in", [doc("a", ""), doc("b", "")]).await;
    let source = TopicPartition::new(topic("in"), 0);
    let plan = plan("s");
    log.set_group_offsets(&plan.group, &[Commit { source, offset: 1000, metadata: String::new() }]).await.unwrap();
    bed.run(std::slice::from_ref(&plan)).await;
    let heard = hear(&mut events, &["offsets.gone"]).await;
    assert!(matches!(heard[0].event, Event::OffsetsGone { wanted: 1000, resumed_at: 0, .. }), "{heard:?}");
    bed.drained("s").await;

    log.faults().fail_commits(1, true);
    bed.send("in", [doc("c", "")]).await;
    hear(&mut events, &["commit.failed"]).await;
    bed.drained("s").await;

    log.faults().fail_reads(1, true);
    bed.send("in", [doc("d", "")]).await;
    let heard = hear(&mut events, &["error.occurred"]).await;
    assert!(matches!(&heard[0].event, Event::Error { error } if error.contains("reading failed")), "{heard:?}");
    bed.drained("s").await;

    log.faults().fail_reads(1, false);
    bed.send("in", [doc("e", "")]).await;
    let heard = hear(&mut events, &["connections.renewed"]).await;
    let Event::ConnectionsRenewed { error } = &heard[0].event else { panic!("{heard:?}") };
    assert!(error.contains("reading failed"), "{error}");
    bed.drained("s").await;
    bed.instance.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_and_a_broken_log_are_heard() {
    let (bed, _) = bed();
    let mut events = bed.instance.events().subscribe();
    bed.run(&[with_module(plan("s"), "unlucky")]).await;
    bed.send("in", [doc("a", "")]).await;
    let heard = hear(&mut events, &["storage.full"]).await;
    assert!(matches!(&heard[0].event, Event::StorageFull { error } if error == "no room"), "{heard:?}");
    hear(&mut events, &["log.broken"]).await;
    bed.await_records("out", 1).await;
    bed.instance.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn transactions_that_fail_are_heard() {
    let (bed, log) = bed();
    let mut events = bed.instance.events().subscribe();
    log.faults().fail_transactions(1, true);
    bed.run(&[StepPlan { delivery: Delivery::ExactlyOnce, ..plan("s") }]).await;
    bed.send("in", [doc("a", "")]).await;
    hear(&mut events, &["commit.failed"]).await;
    bed.await_records("out", 1).await;
    bed.instance.stop(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_loses_the_oldest_and_is_told_how_many() {
    let (bed, _) = bed();
    let mut slow = bed.instance.events().subscribe_to_all();
    let mut notable = bed.instance.events().subscribe();
    bed.run(&[plan("s")]).await;
    let count = CAPACITY + 500;
    bed.send("in", (0..count).map(|n| doc(&format!("d{n}"), ""))).await;
    bed.await_records("out", count as i64).await;
    bed.drained("s").await;
    bed.instance.stop(Duration::from_secs(5)).await;
    let Some(Heard::Missed(missed)) = slow.next().await else { panic!("it was told of none that it missed") };
    let all = bed.events.all().len() as u64;
    assert_eq!(missed, all - CAPACITY as u64);
    let mut heard = Vec::new();
    for _ in 0..CAPACITY {
        let Some(Heard::Event(happened)) = slow.next().await else { panic!("fewer than are kept") };
        heard.push(happened.event.clone());
    }
    assert_eq!(heard, bed.events.all()[missed as usize..], "the newest, in order");
    // Who wants no single documents has missed nothing.
    let heard = hear(&mut notable, &["step.state", "partitions.assigned"]).await;
    assert_eq!(heard[0].event, Event::State(StepState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_module_hears_of_its_own_step() {
    let (bed, _) = bed();
    let mut other = plan("t");
    other.inputs = vec![input("other")];
    bed.run(&[with_module(plan("s"), "listener"), other]).await;
    bed.send("in", [doc("a", "")]).await;
    let out = bed.await_records("out", 1).await;
    let heard = out[0].doc().keywords;
    assert!(heard.contains(&"s partitions.assigned".to_owned()), "{heard:?}");
    assert!(heard.iter().all(|heard| heard.starts_with("s ")), "{heard:?}");
    bed.instance.stop(Duration::from_secs(5)).await;
}
