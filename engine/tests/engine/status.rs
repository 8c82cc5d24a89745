//! What status says.

use pipedoc_model::names::Topic;
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{self, StepState, SubmitRequest};
use pipedoc_transport::log::{Commit, Log, OutgoingRecord, ProducerConfig, TopicPartition, TopicSettings, TopicSpec};

use crate::bed::{Bed, SHELF, instance};

fn report(step: &str, state: StepState, done: i64, error: &str, at: i64) -> v1::StepReport {
    v1::StepReport {
        pipeline: "shelf".into(),
        step: step.into(),
        state: state.into(),
        in_flight: 2,
        done,
        failed: 1,
        last_error: error.into(),
        last_error_at: Some(prost_types::Timestamp { seconds: at, nanos: 0 }),
        ..Default::default()
    }
}

#[tokio::test]
async fn lag_and_dead_letters_come_from_the_log() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    let documents = (0..10).map(|n| PipeDoc { id: n.to_string(), ..PipeDoc::default() }).collect();
    let request = SubmitRequest { pipeline: "shelf".into(), documents, ..Default::default() };
    let reports = engine.intake().submit(request).await.unwrap().into_inner().reports;
    let status = engine.status().await;
    let step = |status: &v1::StatusResponse, n: usize| status.pipelines[0].steps[n].clone();
    assert_eq!((step(&status, 0).lag, step(&status, 1).lag), (10, 0));

    let topic = Topic::new("local.shelf.parse").unwrap();
    let first = &reports[0];
    let done = reports.iter().filter(|report| report.partition == first.partition).count();
    let source = TopicPartition::new(topic, first.partition);
    let commit = Commit { source, offset: i64::try_from(done).unwrap(), metadata: String::new() };
    bed.log.set_group_offsets("local.shelf.parse", &[commit]).await.unwrap();
    let dead = OutgoingRecord::new(Topic::new("local.shelf.parse.dlq").unwrap(), Some("a".into()), Some("x".into()));
    let producer = bed.log.producer(ProducerConfig::default()).await.unwrap();
    for report in producer.send(vec![dead.clone(), dead]).await.unwrap().await {
        report.unwrap();
    }
    let status = engine.status().await;
    assert_eq!(step(&status, 0).lag, 10 - i64::try_from(done).unwrap());
    assert_eq!(step(&status, 0).dead_letters, 2);
    assert_eq!(step(&status, 0).module, "parser");
    assert_eq!(step(&status, 1).r#type(), v1::StepType::Sink);
}

/// Markers of transactions have offsets and are no records; here it is compaction that
/// leaves such gaps: of the first 1,000 records it keeps the newest of each of 10 keys, and
/// again of each 1,020.
#[tokio::test]
async fn dead_letters_of_transactions_are_counted_and_not_their_offsets() {
    for (offsets, letters) in [(1_200, 210), (5_000, 980)] {
        let bed = Bed::new();
        let engine = bed.engine().await;
        let text = SHELF.replace("module: parser,", "module: parser, delivery: EXACTLY_ONCE,");
        assert!(engine.apply(&text).await.accepted);
        let topic = Topic::new("local.shelf.parse.dlq").unwrap();
        let settings = TopicSettings { compact: Some(true), ..TopicSettings::default() };
        let spec = TopicSpec { topic: topic.clone(), partitions: 3, replication: None, settings };
        bed.log.ensure_topic(&spec).await.unwrap();
        let producer = bed.log.producer(ProducerConfig::default()).await.unwrap();
        let send = async |count: usize| {
            let letter = |n: usize| OutgoingRecord {
                partition: Some(0),
                ..OutgoingRecord::new(topic.clone(), Some((n % 10).to_string().into()), Some("x".into()))
            };
            let reports = producer.send((0..count).map(letter).collect()).await.unwrap().await;
            assert!(reports.iter().all(Result::is_ok));
        };
        let at_most = |status: &v1::StatusResponse| {
            status.warnings.iter().find(|warning| warning.message.contains("at most")).cloned()
        };
        let shown = |status: &v1::StatusResponse| status.pipelines[0].steps[0].dead_letters;
        send(offsets).await;
        let first = engine.status().await;
        if offsets > 2_000 {
            // More than a look reads: the number says what it is, and further looks mend it.
            let warning = at_most(&first).unwrap().message;
            assert!(warning.contains("step shelf/parse has 3000 dead letters at most"), "{warning}");
            assert_eq!(shown(&first), 3_000);
        } else {
            assert_eq!((shown(&first), at_most(&first)), (letters, None));
        }
        let status = engine.wait_for_status("all are counted", |status| at_most(status).is_none()).await;
        assert_eq!(shown(&status), letters);
        send(1).await;
        assert_eq!(shown(&engine.status().await), letters + 1);
    }
}

#[tokio::test]
async fn a_module_never_seen_is_named_with_its_step_until_one_comes() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    bed.write("shelf.yaml", &SHELF.replace("module: parser", "module: parsr"));
    let status = engine.wait_for_status("both are told", |status| status.warnings.len() == 2).await;
    let warning = &status.warnings[0];
    assert!(
        warning.file.ends_with("shelf.yaml") && warning.line == 4 && warning.field == "steps[0].module",
        "{warning:?}"
    );
    assert!(warning.message.contains("\"parsr\" was never seen; step parse waits"), "{warning:?}");
    assert!(status.problems.is_empty(), "that is no mistake: {:?}", status.problems);

    // As modules come it is known which one was meant.
    let _parser = engine.attach(instance("p1", "parser")).await;
    let status = engine
        .wait_for_status("a near name is offered", |status| {
            status.warnings.first().is_some_and(|warning| warning.message.contains("did you mean"))
        })
        .await;
    assert!(status.warnings[0].message.ends_with("did you mean \"parser\"?"), "{:?}", status.warnings);
    let _sink = engine.attach(instance("s1", "object-sink")).await;
    bed.write("shelf.yaml", SHELF);
    engine.wait_for_status("nothing is to be told", |status| status.warnings.is_empty()).await;
}

#[tokio::test]
async fn of_the_engines_on_a_folder_one_leads_until_it_goes() {
    let bed = Bed::new();
    let leader = bed.engine().await;
    let engines = leader.status().await.engines;
    let [only] = &engines[..] else { panic!("{engines:?}") };
    assert!(only.answers && only.leads && only.healthy, "{only:?}");

    let next = bed.engine().await;
    let leads = |status: &v1::StatusResponse| status.engines.iter().any(|engine| engine.answers && engine.leads);
    assert!(!leads(&next.status().await));
    // What is put into the folder is taken by the one, and runs by both.
    bed.write("shelf.yaml", SHELF);
    next.wait_for_status("the pipeline is taken", |status| status.pipelines.len() == 1).await;
    leader.stop().await;
    next.wait_for_status("the other one leads", leads).await;
    bed.write("shelf.yaml", &SHELF.replace("partitions: 3", "partitions: 4"));
    next.wait_for_status("the edit runs", |status| status.pipelines[0].revision == 2).await;
}

#[tokio::test]
async fn a_steps_state_is_the_worst_of_its_instances() {
    let bed = Bed::new();
    let engine = bed.engine().await;
    engine.apply(SHELF).await;
    let status = engine.status().await;
    assert_eq!(status.pipelines[0].steps[0].state(), StepState::WaitingForModule);

    let good = v1::InstanceReport {
        steps: vec![report("parse", StepState::Running, 3, "older", 1)],
        ..instance("p1", "parser")
    };
    let bad = v1::InstanceReport {
        steps: vec![report("parse", StepState::Failed, 4, "newer", 2)],
        ..instance("p2", "parser")
    };
    let _good = engine.attach(good).await;
    let bad = engine.attach(bad).await;
    let status = engine.wait_for_status("both are seen", |status| status.pipelines[0].steps[0].instances == 2).await;
    let step = &status.pipelines[0].steps[0];
    assert_eq!(step.state(), StepState::Failed);
    assert_eq!((step.done, step.failed, step.in_flight, step.last_error.as_str()), (7, 2, 4, "newer"));
    assert_eq!(status.pipelines[0].steps[1].state(), StepState::WaitingForModule, "nobody runs the sink");
    let ids: Vec<_> = status.instances.iter().map(|instance| instance.instance_id.as_str()).collect();
    assert_eq!(ids, ["p1", "p2"]);
    assert!(status.instances[0].last_report_at.is_some());

    drop(bad);
    let status = engine.wait_for_status("one has left", |status| status.instances.len() == 1).await;
    assert_eq!(status.pipelines[0].steps[0].state(), StepState::Running);
}
