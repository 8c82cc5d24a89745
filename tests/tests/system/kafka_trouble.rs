//! What is given wrongly to a pipeline on Kafka, or not there: one clear answer
//! each, and nothing half done.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{free_ports, pipedoc};
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{Log, TopicSettings, TopicSpec};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(90);

/// A folder with `pipeline.yaml` and an `in`, whose pipeline has a name of its own.
struct Desk {
    folder: tempfile::TempDir,
    pipeline: String,
}

impl Desk {
    /// `MORE` in the pipeline's second step is replaced.
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        let pipeline = format!("d{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let text = format!(
            "pipeline: {pipeline}\ndefaults: {{partitions: 1}}\nsteps:\n  \
             - {{name: files, type: CONNECTOR, module: filesystem-connector, config: {{folder: \"${{in}}\"}}, outputs: [{{to: store}}]}}\n  \
             - name: store\n    type: SINK\n    module: object-sink\n    config: {{url: \"${{out}}\"}}\n{more}"
        );
        fs::write(folder.path().join("pipeline.yaml"), text).unwrap();
        Self { folder, pipeline }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join("in").join(name), text).unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = pipedoc::command(["run", "."]);
        command.args(more).current_dir(self.path());
        command
    }

    /// A topic of one of its steps: `local.<pipeline>.<rest>`.
    fn topic(&self, rest: &str) -> Topic {
        Topic::new(&format!("local.{}.{rest}", self.pipeline)).unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It is refused with exit code 2 and all these words, and leaves no `out`.
fn assert_refused(desk: &Desk, more: &[&str], words: &[&str]) {
    let output = desk.command(more).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for word in words {
        assert!(said.contains(word), "it does not say {word:?}:\n{said}");
    }
    assert!(!desk.path().join("out").join(".pipedoc").join("objects").exists(), "something was left behind");
}

#[test]
fn a_broker_out_of_reach_is_told_in_one_line_and_waited_for_as_long_as_wished() {
    let [port] = free_ports();
    let address = format!("127.0.0.1:{port}");
    let desk = Desk::new("");
    let begun = Instant::now();
    let output = desk.command(&["--kafka", &address, "--wait", "3s"]).output().unwrap();
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(begun.elapsed() >= Duration::from_secs(3), "it did not wait: {told}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for {:?}", begun.elapsed());
    assert!(told.lines().last().is_some_and(|last| last.contains(&address) && last.contains("out of reach")), "{told}");

    let mut patient = Process::start("run", &mut desk.command(&["--kafka", &address]), &desk.path().join("log"), None);
    patient.wait_for_output("out of reach", PATIENCE);
    std::thread::sleep(Duration::from_secs(4));
    assert!(patient.is_running(), "it does not wait:\n{}", patient.output());
    let output = patient.output();
    let lines: Vec<_> = output.lines().filter(|line| line.contains(&address)).collect();
    assert_eq!(lines.len(), 1, "one line tells it:\n{output}");
    assert!(lines[0].contains("--wait"), "it does not say how to bound it:\n{output}");
    patient.signal("INT");
    patient.wait(PATIENCE);
}

#[test]
fn settings_that_are_misspelt_or_forbidden_are_refused_together() {
    let desk =
        Desk::new("    kafka: {consumer: {enable.auto.commit: true, fetch.min.byte: 10}, producer: {acks: 1}}\n");
    let words = ["enable.auto.commit", "fetch.min.byte", "fetch.min.bytes", "acks", "pipeline.yaml"];
    assert_refused(&desk, &["--kafka", "127.0.0.1:1"], &words);
    let plain = Desk::new("");
    let more = ["--kafka", "127.0.0.1:1", "--kafka-setting", "group.id=mine", "--kafka-setting", "lingr.ms=5"];
    assert_refused(&plain, &more, &["group.id", "CLUSTER.PIPELINE.STEP", "lingr.ms", "linger.ms"]);
}

#[test]
fn brokers_that_are_none_are_refused_at_once_and_all_named() {
    let desk = Desk::new("");
    assert_refused(&desk, &["--kafka", "http://localhost:9092"], &["http://localhost:9092: is a URL", "HOST:PORT"]);
    let words = ["b: names no port", "c:notaport: ", "entry 4: is empty", "d d:1: "];
    assert_refused(&desk, &["--kafka", "a:9092,b,c:notaport,,d d:1"], &words);
    assert_refused(&desk, &["--log", "kafka:a:9092,b"], &["b: names no port"]);
}

#[test]
fn how_brokers_are_reached_is_refused_in_a_step() {
    let desk = Desk::new("    kafka: {producer: {sasl.password: open-sesame, linger.ms: '${env:PIPEDOC_TEST_NO}'}}\n");
    let output = desk.command(&["--kafka", "127.0.0.1:1"]).output().unwrap();
    let told = said(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("sasl.password") && told.contains("--kafka-settings"), "{told}");
    assert!(!told.contains("open-sesame"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_topics_under_verify_are_all_named_and_none_is_made() {
    let Some(kafka) = kafka::shared("missing_topics_under_verify_are_all_named_and_none_is_made") else { return };
    let desk = Desk::new("    topics: VERIFY\n");
    let output = desk.command(&["--kafka", &kafka.bootstrap()]).output().unwrap();
    let told = said(&output);
    assert!(!output.status.success(), "{told}");
    let missing = [desk.topic("store"), desk.topic("store.dlq")];
    for topic in &missing {
        assert!(told.contains(topic.as_str()), "it does not name {topic}:\n{told}");
    }
    assert!(told.contains("VERIFY"), "{told}");
    let log = KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap();
    for topic in &missing {
        assert!(log.topic(topic).await.unwrap().is_none(), "{topic} was made");
    }
}

/// Fewer partitions than there are change nothing; below the contract's call it is
/// refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_does_not_lose_partitions() {
    let Some(kafka) = kafka::shared("a_topic_does_not_lose_partitions") else { return };
    let log = KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap();
    let desk = Desk::new("");
    let topic = desk.topic("store");
    let spec = TopicSpec { topic: topic.clone(), partitions: 3, replication: None, settings: TopicSettings::default() };
    log.ensure_topic(&spec).await.unwrap();
    desk.write("a.txt", "a");
    let output = desk.command(&["--kafka", &kafka.bootstrap(), "--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(log.topic(&topic).await.unwrap().unwrap().partitions, 3);
    let shrunk = log.ensure_topic(&TopicSpec { partitions: 1, ..spec }).await.unwrap_err().to_string();
    assert!(shrunk.contains(topic.as_str()) && shrunk.contains("cannot shrink to 1"), "{shrunk}");
}

/// A topic that takes 100 KB, as a broker with `message.max.bytes=102400` makes them.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_beyond_the_limit_is_a_dead_letter_that_says_so() {
    let Some(kafka) = kafka::shared("a_document_beyond_the_limit_is_a_dead_letter_that_says_so") else { return };
    let log = KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap();
    let desk = Desk::new("");
    for rest in ["store", "store.dlq", "files.dlq"] {
        let settings = TopicSettings { max_message_bytes: Some(102_400), ..TopicSettings::default() };
        let spec = TopicSpec { topic: desk.topic(rest), partitions: 1, replication: None, settings };
        log.ensure_topic(&spec).await.unwrap();
    }
    desk.write("small.txt", "small");
    desk.write("large.txt", &"a line of words\n".repeat(10_000));
    let output = desk.command(&["--kafka", &kafka.bootstrap(), "--output", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["delivered"], &summary["dead_letters"]), (&1.into(), &1.into()), "{summary}");
    let pipeline = &desk.pipeline;
    let list =
        pipedoc::command(["dlq", "list", "--pipeline", pipeline, "--output", "json", "--kafka", &kafka.bootstrap()]);
    let listed = { list }.current_dir(desk.path()).output().unwrap();
    let letters: Value =
        serde_json::from_slice(&listed.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&listed)));
    let error = letters[0]["error"].as_str().unwrap();
    for word in ["102400", desk.topic("store").as_str(), "claim"] {
        assert!(error.contains(word), "it does not say {word}: {error}");
    }
}
