//! What the runtime promises about connectors and record modules, on the memory log.

#![allow(clippy::unwrap_used, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::names::ClusterName;
use pipedoc_model::partition;
use pipedoc_model::step::{ControlState, StepPlan, StepType};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::Layers;
use pipedoc_transport::log::OutgoingRecord;
use pipedoc_transport::memory::MemoryLog;

fn bed() -> (Bed, MemoryLog) {
    let log = MemoryLog::new();
    let more = vec![Factory::connector::<Counter>(), Factory::records::<Pipes>()];
    (Bed::with(Arc::new(log.clone()), more, Layers::new()), log)
}

fn beside(bed: &Bed) -> Bed {
    bed.beside("two", vec![Factory::connector::<Counter>(), Factory::records::<Pipes>()])
}

fn connector(config: serde_json::Value) -> StepPlan {
    let mut plan = plan("s");
    plan.step_type = StepType::Connector;
    plan.module = "counter".parse().unwrap();
    plan.inputs = Vec::new();
    plan.state = Some(plan.id.state_topic(&ClusterName::new("test").unwrap()));
    plan.config = config;
    plan
}

fn records() -> StepPlan {
    let mut plan = plan("s");
    plan.module = "pipes".parse().unwrap();
    plan
}

#[tokio::test]
async fn a_connector_runs_to_its_end_and_a_second_run_sends_nothing_again() {
    let (bed, _) = bed();
    let plan = connector(serde_json::json!({"count": 50}));
    bed.run(std::slice::from_ref(&plan)).await;
    let status = bed.state("s", StepState::Completed).await;
    assert!(status.drained && status.in_flight == 0);
    assert_eq!((status.done, status.failed), (45, 5));
    assert_eq!(bed.read("out").await.len(), 45);
    let found: BTreeSet<String> = bed
        .events
        .all()
        .into_iter()
        .filter_map(|event| match event {
            Event::Found { document } => Some(document),
            _ => None,
        })
        .collect();
    assert_eq!(found.len(), 50);
    let record = &bed.read("out").await[0];
    assert_eq!(record.header(headers::HOP), Some("1"));
    assert!(record.header(headers::STREAM_ID).is_some() && record.header(headers::EVENT_TIME).is_some());
    let letters = bed.read(DEAD).await;
    assert_eq!(letters.len(), 5);
    assert_eq!(letters[0].header(headers::ERROR_TYPE), Some("unreadable"));
    assert_eq!(letters[0].header(headers::ERROR_MESSAGE), Some("torn"));
    assert_eq!(letters[0].header(headers::DOCUMENT_ID), Some(letters[0].key().as_str()));
    assert_eq!(letters[0].header(headers::VERSION), Some("5"));
    assert_eq!(bed.read("test.p.s.state").await.len(), 50);
    bed.instance.stop(Duration::from_secs(5)).await;

    let again = beside(&bed);
    again.apply(std::slice::from_ref(&plan));
    again.state("s", StepState::Completed).await;
    assert_eq!(again.events.count(|event| matches!(event, Event::Unchanged { .. })), 50);
    assert_eq!(bed.read("out").await.len(), 45);
    again.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_connector_that_fails_is_run_again_and_goes_on_where_it_was() {
    let (bed, log) = bed();
    log.faults().fail_acks(2, true);
    bed.run(&[connector(serde_json::json!({"count": 40, "fail_after": 15}))]).await;
    let status = bed.state("s", StepState::Completed).await;
    assert!(!status.last_error.is_empty());
    let ids: BTreeSet<String> = bed.read("out").await.iter().map(Read::key).collect();
    assert_eq!(ids.len(), 36);
    assert_eq!(bed.read(DEAD).await.iter().map(Read::key).collect::<BTreeSet<_>>().len(), 4);
    bed.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_connector_runs_in_one_instance_and_moves_when_that_one_stops() {
    let (bed, _) = bed();
    let plan = connector(serde_json::json!({"count": 20, "watch": true}));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("test.p.s.state", 20).await;
    let other = beside(&bed);
    other.apply(std::slice::from_ref(&plan));
    other.state("s", StepState::Running).await;
    bed.instance.stop(Duration::from_secs(5)).await;
    until("the other to run it", || {
        (other.events.count(|event| matches!(event, Event::Unchanged { .. })) >= 20).then_some(())
    })
    .await;
    assert_eq!(bed.read("out").await.len(), 18);
    assert_eq!(other.status("s").state, StepState::Running, "it watches");
    other.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn state_is_written_only_after_the_documents_are_acknowledged() {
    let (bed, log) = bed();
    let plan = connector(serde_json::json!({"count": 5}));
    log.faults().hold_acks();
    bed.run(std::slice::from_ref(&plan)).await;
    bed.await_records("out", 5).await;
    assert_eq!(bed.read("test.p.s.state").await.len(), 0);
    assert_ne!(bed.status("s").state, StepState::Completed);
    log.faults().release_acks();
    bed.state("s", StepState::Completed).await;
    assert_eq!(bed.read("test.p.s.state").await.len(), 5);
    bed.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_paused_connector_gives_nothing() {
    let (bed, _) = bed();
    let mut plan = connector(serde_json::json!({"count": 5}));
    plan.control = ControlState::Paused;
    bed.run(std::slice::from_ref(&plan)).await;
    until("ownership", || (bed.status("s").partitions.len() == 1).then_some(())).await;
    assert_eq!(bed.status("s").state, StepState::Paused);
    plan.control = ControlState::Running;
    bed.apply(std::slice::from_ref(&plan));
    bed.state("s", StepState::Completed).await;
    assert_eq!(bed.read("out").await.len(), 5);
    bed.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_document_that_cannot_be_sent_is_a_dead_letter_and_counts_as_given() {
    let (bed, _) = bed();
    bed.run(&[connector(serde_json::json!({"count": 2}))]).await;
    bed.state("s", StepState::Completed).await;
    let mut plan = connector(serde_json::json!({"count": 3}));
    plan.outputs[0].key = Some("doc.authors[0]".to_owned());
    bed.apply(std::slice::from_ref(&plan));
    let letters = bed.await_records(DEAD, 1).await;
    assert_eq!((letters[0].key().as_str(), letters[0].header(headers::ERROR_TYPE)), ("doc-0002", Some("expression")));
    assert_eq!(letters[0].doc().id, "doc-0002");
    bed.state("s", StepState::Completed).await;
    bed.instance.stop(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn records_are_piped_on_as_they_are() {
    let (bed, _) = bed();
    bed.topic("in", 4).await;
    bed.topic("out", 7).await;
    bed.topic(DEAD, 4).await;
    bed.apply(&[records()]);
    let mut keyless = Vec::new();
    for source in 0..4 {
        for n in 0..10 {
            let mut record = OutgoingRecord::new(topic("in"), None, Some(Bytes::from(format!("{source}/{n}"))));
            record.partition = Some(source);
            record.headers.append("foreign", Some(Bytes::from_static(&[0xff])));
            keyless.push(record);
        }
    }
    let mut keyed = OutgoingRecord::new(topic("in"), Some("a".into()), Some(Bytes::from_static(b"no PipeDoc")));
    keyed.headers.set(headers::HOP, "4");
    keyed.headers.set(headers::STREAM_ID, "stream");
    bed.send_records(keyless).await;
    bed.send_records(vec![keyed, tombstone("in", "b")]).await;
    let read = bed.await_records("out", 42).await;
    bed.drained("s").await;
    for source in 0..4 {
        let of = |read: &&Read| {
            read.record.value.as_ref().is_some_and(|value| value.starts_with(format!("{source}/").as_bytes()))
        };
        let piped: Vec<&Read> = read.iter().filter(of).collect();
        assert_eq!(piped.len(), 10);
        for (n, read) in piped.iter().enumerate() {
            assert_eq!(read.record.value.as_deref(), Some(format!("{source}/{n}").as_bytes()), "in order");
            assert_eq!(read.source.partition, partition::for_source(source, 7));
            assert_eq!(read.record.key, None);
            assert_eq!(read.record.headers.get("foreign"), Some([0xff].as_slice()));
            assert_eq!(read.header(headers::SOURCE_PARTITION), Some(source.to_string().as_str()));
            assert_eq!(read.header(headers::HOP), Some("1"));
        }
    }
    let of =
        |key: &'static str| read.iter().find(move |read| read.record.key.as_deref() == Some(key.as_bytes())).unwrap();
    assert_eq!((of("a").header(headers::HOP), of("a").header(headers::STREAM_ID)), (Some("5"), Some("stream")));
    assert_eq!(of("a").header(headers::DOCUMENT_ID), Some("a"));
    assert_eq!(of("b").record.value, None);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_loses_its_first_record_to_the_dead_letters_and_goes_on() {
    let (bed, _) = bed();
    bed.topic("in", 1).await;
    bed.topic("out", 1).await;
    bed.topic(DEAD, 1).await;
    let record = |key: &str| OutgoingRecord::new(topic("in"), Some(key.to_owned().into()), Some("x".into()));
    bed.send_records(["poison", "a", "b"].map(record).into()).await;
    bed.apply(&[records()]);
    assert_eq!(bed.await_records("out", 2).await.iter().map(Read::key).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(bed.await_records(DEAD, 1).await[0].key(), "poison");
    let status = bed.drained("s").await;
    assert_eq!((status.done, status.failed), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_what_it_piped_even_when_nobody_awaits_the_report() {
    let (bed, log) = bed();
    bed.topic("in", 1).await;
    bed.topic("out", 1).await;
    bed.topic(DEAD, 1).await;
    let plan = records();
    bed.send_records(vec![OutgoingRecord::new(topic("in"), Some("a".into()), Some("x".into()))]).await;
    log.faults().fail_acks(1, true);
    bed.apply(std::slice::from_ref(&plan));
    // The first attempt was refused; the second is stored but held.
    until("the refusal", || (!bed.status("s").last_error.is_empty()).then_some(())).await;
    log.faults().hold_acks();
    bed.await_records("out", 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.committed(&plan).await.get(&0).copied().unwrap_or(0), 0);
    log.faults().release_acks();
    bed.drained("s").await;
    assert_eq!(bed.committed(&plan).await[&0], 1);
}
