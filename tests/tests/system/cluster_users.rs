//! Pipelines as their users write them: put with the `consul` command, fed and read
//! with `kcat`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use pipedoc_model::names::{ClusterName, ModuleName, Topic};
use pipedoc_proto::v1::PipeDoc as Document;
use pipedoc_sdk::attach::{AttachConfig, KeptFile, attach};
use pipedoc_sdk::event::Unobserved;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_sdk::layers::Layers;
use pipedoc_sdk::prelude::*;
use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::{consul, eventually, kafka, pipedoc, wait_for};
use pipedoc_transport::log::{Log, TopicSettings, TopicSpec};
use pipedoc_transport::objects::Objects;
use prost::Message;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::kafka_place::Place;
use super::load;
use super::work::PATIENCE;

const EMBEDDING: &str = r#"
pipeline: embedding
steps:
  - name: embed
    type: PIPELINE
    module: echo
    input_kafka_topic: "parsed-documents-topic"
    output_kafka_topics: ["embedded-text-topic", "raw-for-logging-topic"]
"#;

const AUDIT: &str = r#"
pipeline: audit
steps:
  - name: audit
    type: PIPELINE
    module: echo
    input_kafka_topic: "parsed-documents-topic"
    output_kafka_topics: ["audited-documents-topic"]
"#;

const CODE: &str = r#"
pipeline: code
steps:
  - name: choose
    type: PIPELINE
    module: chooser
    allowed_kafka_topics: ["chosen-by-code-topic"]
"#;

/// Writes documents into a topic with `kcat`, keyed by `<prefix>-<n>`.
fn write(kafka: &Kafka, place: &Place, topic: &str, ids: &[String], title: &str) {
    for id in ids {
        let doc = Document { id: id.clone(), title: title.to_owned(), body: "words".to_owned(), ..Document::default() };
        let file = place.path().join(id);
        fs::write(&file, doc.encode_to_vec()).unwrap();
        let mut kcat = Command::new("kcat");
        kcat.args(["-P", "-b", &kafka.bootstrap(), "-t", topic, "-X", "topic.partitioner=murmur2_random", "-k", id]);
        let output = kcat.arg(&file).output().expect("kcat runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// How often each key is in a topic, read with `kcat`.
fn read(kafka: &Kafka, topic: &str) -> BTreeMap<String, usize> {
    let arguments = ["-C", "-b", &kafka.bootstrap(), "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%k\\n"];
    let output = Command::new("kcat").args(arguments).output().expect("kcat runs");
    let mut found = BTreeMap::new();
    for key in String::from_utf8_lossy(&output.stdout).lines() {
        *found.entry(key.to_owned()).or_default() += 1;
    }
    found
}

/// Waits until a topic holds each of these once, and nothing else.
fn wait_for_all(kafka: &Kafka, topic: &str, ids: &[String]) {
    let wanted: BTreeMap<_, _> = ids.iter().map(|id| (id.clone(), 1)).collect();
    let mut found = BTreeMap::new();
    let whole = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(&format!("{topic} holds all"), PATIENCE, || {
            found = read(kafka, topic);
            (found == wanted).then_some(())
        });
    }));
    assert!(whole.is_ok(), "{topic} holds {found:?} instead of {ids:?}");
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// Which instances there are and when each was started.
fn lives(place: &Place) -> Vec<(Value, Value)> {
    let status = place.status().expect("the engine answers");
    let instances = status["instances"].as_array().unwrap();
    instances.iter().map(|one| (one["instanceId"].clone(), one["startedAt"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_put_into_consul_runs_as_they_wrote_it() {
    const TEST: &str = "what_people_put_into_consul_runs_as_they_wrote_it";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    let place = Place::on_consul(&kafka.bootstrap(), &[consul.address()]);
    let (mut engine, mut one, mut two) = (place.engine(), place.module("echo", "one"), place.module("echo", "two"));
    place.put(consul, "embedding", EMBEDDING);
    place.wait_for_owners("embed", 2, 8, PATIENCE);
    let before = lives(&place);

    // Both outputs have every record.
    let first = named("first", 20);
    write(kafka, &place, "parsed-documents-topic", &first, "");
    wait_for_all(kafka, "embedded-text-topic", &first);
    wait_for_all(kafka, "raw-for-logging-topic", &first);

    // A second pipeline on the same input gets all of them too.
    place.put(consul, "audit", AUDIT);
    wait_for_all(kafka, "audited-documents-topic", &first);

    // A pattern instead of the name, and another topic: it moves without a restart.
    let edited = EMBEDDING.replace(r#""parsed-documents-topic""#, r#"{pattern: "parsed-.*"}"#);
    place.put(consul, "embedding", &edited);
    wait_for("the edit is taken", PATIENCE, || (place.revision(0, "embedding")? == 2).then_some(()));
    let log = load::log(&kafka.bootstrap()).await;
    let topic = Topic::new("parsed-reports-topic").unwrap();
    let spec = TopicSpec { topic, partitions: 2, replication: None, settings: TopicSettings::default() };
    log.ensure_topic(&spec).await.unwrap();
    let (second, reports) = (named("second", 5), named("report", 10));
    write(kafka, &place, "parsed-reports-topic", &reports, "");
    write(kafka, &place, "parsed-documents-topic", &second, "");
    let all = [first.clone(), second.clone(), reports].concat();
    wait_for_all(kafka, "embedded-text-topic", &all);
    wait_for_all(kafka, "raw-for-logging-topic", &all);
    wait_for_all(kafka, "audited-documents-topic", &[first, second].concat());
    assert_eq!(lives(&place), before, "instances were restarted");
    for process in [&mut engine, &mut one, &mut two] {
        assert!(process.is_running(), "{}", process.output());
    }
}

/// Sends each document to the topic that is its title.
struct Chooser;

impl Module for Chooser {
    type Config = BTreeMap<String, String>;
    const NAME: &'static str = "chooser";

    async fn open(_config: Self::Config, _step: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        let topic = doc.title.clone();
        Ok(Output::from(doc).to(&topic))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_may_write_to_the_topics_it_is_allowed_and_to_no_others() {
    const TEST: &str = "code_may_write_to_the_topics_it_is_allowed_and_to_no_others";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    let place = Place::on_consul(&kafka.bootstrap(), &[consul.address()]);
    let _engine = place.engine();
    let log = load::log(&kafka.bootstrap()).await;
    let factory = Factory::module::<Chooser>();
    let instance = Instance::start(InstanceConfig {
        log: Arc::new(log.clone()),
        objects: Arc::new(Objects::local(&place.path().join("objects")).unwrap()),
        id: "chooser".to_owned(),
        data: place.path().to_owned(),
        factories: vec![factory.clone()],
        observer: Arc::new(Unobserved),
        layers: Layers::default(),
    });
    let cluster = ClusterName::new(place.cluster()).unwrap();
    let config = AttachConfig {
        engines: vec![place.address(0)],
        ..AttachConfig::new(cluster, ModuleName::new("chooser").unwrap(), factory.info().into(), "chooser")
    };
    let stop = CancellationToken::new();
    let attached =
        tokio::spawn(attach(config, KeptFile::in_folder(place.path()), Arc::new(instance.clone()), stop.clone()));
    place.put(consul, "code", CODE);
    let input = place.topic(".code.choose");
    eventually("its topic is made", PATIENCE, async || log.topic(&input).await.ok().flatten()).await;

    write(kafka, &place, input.as_str(), &named("allowed", 3), "chosen-by-code-topic");
    write(kafka, &place, input.as_str(), &named("forbidden", 2), "somebody-elses-topic");
    wait_for_all(kafka, "chosen-by-code-topic", &named("allowed", 3));
    let dead_letters = format!("{input}.dlq");
    wait_for_all(kafka, &dead_letters, &named("forbidden", 2));
    let log = format!("kafka:{}", kafka.bootstrap());
    let list = ["dlq", "list", "--cluster", place.cluster(), "--log", &log, "--output", "json"];
    let output = pipedoc::command(list).output().unwrap();
    let letters: Value = serde_json::from_slice(&output.stdout).unwrap();
    for letter in letters.as_array().unwrap() {
        let said = letter["error"].as_str().unwrap();
        assert!(said.contains("somebody-elses-topic") && said.contains("chosen-by-code-topic"), "{said}");
    }
    stop.cancel();
    attached.await.unwrap();
    instance.stop(PATIENCE).await;
}
