//! Kafka with TLS, passwords, certificates and access lists: with exactly the rights
//! that docs/kafka.md lists everything works, and each missing one is named.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::kafka::setup::{Setup, User};
use pipedoc_tests::bed::{free_ports, missing, pipedoc, wait_for};
use pipedoc_transport::error::Error;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{
    ConsumerConfig, Log, OutgoingRecord, ProducerConfig, Start, Subscription, TopicSettings, TopicSpec,
    TransactionalConfig,
};
use serde_json::Value;

use super::kafka_tools::{path_with, tools};

/// The cluster of these tests, by whose name all resources begin.
const CLUSTER: &str = "sec";

/// What an engine and a module need; `examples/kafka/acls.sh` grants the same.
const RIGHTS: [(&str, &[&str], &str); 5] = [
    ("engine", &["Create", "Alter", "AlterConfigs", "Read", "Write"], "topic"),
    ("engine", &["Describe"], "group"),
    ("module", &["Read", "Write", "DescribeConfigs"], "topic"),
    ("module", &["Read"], "group"),
    ("module", &["Write"], "transactional-id"),
];

/// Who lacks what: a user, whose rights it would have, the operation and the resource.
const LACKING: [(&str, &str, &str, &str); 9] = [
    ("no-create", "engine", "Create", "topic"),
    ("no-alter", "engine", "Alter", "topic"),
    ("no-alter-configs", "engine", "AlterConfigs", "topic"),
    ("no-group-describe", "engine", "Describe", "group"),
    ("no-read", "module", "Read", "topic"),
    ("no-write", "module", "Write", "topic"),
    ("no-describe-configs", "module", "DescribeConfigs", "topic"),
    ("no-group-read", "module", "Read", "group"),
    ("no-transactional-id", "module", "Write", "transactional-id"),
];

const PASSWORD: &str = "open-sesame";

/// Somebody who may write to no topic at all, nor say so to the cluster.
const READER: &str = "reader";

/// The broker of these tests: it limits records to 100 KB as well.
fn broker(test: &str) -> Option<&'static Kafka> {
    static BROKER: OnceLock<Result<Kafka, String>> = OnceLock::new();
    match BROKER.get_or_init(start) {
        Ok(broker) => Some(broker),
        Err(reason) => {
            missing(test, reason);
            None
        }
    }
}

fn start() -> Result<Kafka, String> {
    let names = ["engine", "module", READER].into_iter().chain(LACKING.map(|(name, ..)| name));
    let users: Vec<_> = names.map(|name| User { name, password: PASSWORD }).collect();
    let kafka = Kafka::start_as(Setup::new().secured(&users))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    tools(kafka.classpath(), folder.path());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/kafka/acls.sh");
    let mut granting = Command::new(script);
    granting.args([&kafka.bootstrap(), CLUSTER, "engine", "module"]).env("PATH", path_with(folder.path()));
    let granted = granting.output().unwrap();
    assert!(granted.status.success(), "{granted:?}");
    // One call for each right: all who have it at once.
    for (role, operations, resource) in RIGHTS {
        for operation in operations {
            let lacks = |name| LACKING.contains(&(name, role, operation, resource));
            let holders = LACKING.iter().filter(|(name, of, ..)| *of == role && !lacks(name)).map(|(name, ..)| *name);
            grant(&kafka, holders, operation, resource);
        }
    }
    grant(&kafka, [READER].into_iter(), "Read", "topic");
    grant(&kafka, [READER].into_iter(), "DescribeConfigs", "topic");
    // Who may write nowhere gets no producer at all; this one may, only not where it tries.
    let elsewhere = format!("{CLUSTER}-elsewhere");
    let arguments = ["--add", "--operation", "Write", "--topic", &elsewhere, "--allow-principal", "User:no-write"];
    kafka.ask("org.apache.kafka.tools.AclCommand", &arguments);
    Ok(kafka)
}

fn grant<'a>(kafka: &Kafka, users: impl Iterator<Item = &'a str>, operation: &str, resource: &str) {
    let kind = format!("--{resource}");
    let names = format!("{CLUSTER}.");
    let principals: Vec<_> = users.map(|user| format!("User:{user}")).collect();
    let mut arguments = vec!["--add", "--operation", operation, &kind, &names, "--resource-pattern-type", "prefixed"];
    arguments.extend(principals.iter().flat_map(|principal| ["--allow-principal", principal]));
    kafka.ask("org.apache.kafka.tools.AclCommand", &arguments);
}

/// Settings of a client that logs in, as NAME=VALUE.
fn login(kafka: &Kafka, user: &str, password: &str) -> [String; 5] {
    [
        "security.protocol=SASL_SSL".to_owned(),
        "sasl.mechanism=SCRAM-SHA-512".to_owned(),
        format!("sasl.username={user}"),
        format!("sasl.password={password}"),
        format!("ssl.ca.location={}", kafka.file("ca.pem").display()),
    ]
}

async fn connect(address: String, settings: &[String]) -> Result<KafkaLog, Error> {
    let mut config = KafkaConfig::new(address);
    for setting in settings {
        let (name, value) = setting.split_once('=').unwrap();
        config.settings.insert(name.to_owned(), value.to_owned());
    }
    KafkaLog::connect(config).await
}

async fn log_of(kafka: &Kafka, user: &str) -> KafkaLog {
    connect(kafka.secured(), &login(kafka, user, PASSWORD)).await.unwrap()
}

fn topic(name: &str) -> Topic {
    Topic::new(&format!("{CLUSTER}.{name}")).unwrap()
}

fn spec(topic: &Topic, partitions: i32) -> TopicSpec {
    TopicSpec { topic: topic.clone(), partitions, replication: None, settings: TopicSettings::default() }
}

/// What is told of a call that is refused for want of a right.
async fn refused<T: std::fmt::Debug>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> String {
    match call().await.unwrap_err() {
        error @ Error::Unauthorized { .. } => error.to_string(),
        error => panic!("not told as a missing right: {error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_is_named() {
    let Some(kafka) = broker("each_missing_right_is_named") else { return };
    let engine = log_of(kafka, "engine").await;
    let home = topic("rights");
    engine.ensure_topic(&spec(&home, 1)).await.unwrap();
    let group = format!("{CLUSTER}.rights.reader");
    let mut told = Vec::new();
    for (user, _, operation, resource) in LACKING {
        let log = log_of(kafka, user).await;
        let new = topic("new");
        let error = match user {
            "no-create" => refused(async || log.ensure_topic(&spec(&new, 1)).await).await,
            "no-alter" => refused(async || log.ensure_topic(&spec(&home, 2)).await).await,
            "no-alter-configs" => {
                let mut other = spec(&home, 1);
                other.settings.retention_ms = Some(1_000_000);
                refused(async || log.ensure_topic(&other).await).await
            }
            "no-group-describe" => refused(async || log.group_offsets(&group).await).await,
            "no-describe-configs" => refused(async || log.topic(&home).await).await,
            "no-write" => {
                let producer = log.producer(ProducerConfig::default()).await.unwrap();
                let record = OutgoingRecord::new(home.clone(), None, Some(Bytes::from("x")));
                refused(async || producer.send(vec![record.clone()]).await?.await.remove(0)).await
            }
            "no-read" | "no-group-read" => {
                let group = group.clone();
                let topics = vec![home.clone()];
                let start = Start::Earliest;
                let subscription = Subscription::Group { group, topics, patterns: Vec::new(), start };
                let consumer = log.consumer(ConsumerConfig::new("test", subscription)).await.unwrap();
                let refusal = refused(async || {
                    // What comes before the refusal is no news here.
                    tokio::time::timeout(Duration::from_secs(60), async {
                        loop {
                            if let Err(error) = consumer.next().await {
                                break Err::<(), _>(error);
                            }
                        }
                    })
                    .await
                    .expect("it is told")
                })
                .await;
                consumer.close().await.unwrap();
                refusal
            }
            "no-transactional-id" => {
                let id = format!("{group}.1.0");
                refused(async || log.transactional(TransactionalConfig::new(id.clone())).await.map(drop)).await
            }
            other => panic!("{other}"),
        };
        let name = match (resource, operation) {
            ("topic", "Create") => new.to_string(),
            ("topic", _) => home.to_string(),
            _ => group.clone(),
        };
        for word in [operation, resource.split('-').next().unwrap(), &name] {
            if !error.contains(word) {
                told.push(format!("{user}: {error} does not say {word}"));
            }
        }
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// The broker gives such a client no number for its records, which ends the client.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_write_nowhere_is_told_which_right_is_missing() {
    let Some(kafka) = broker("who_may_write_nowhere_is_told_which_right_is_missing") else { return };
    let home = topic("read-only");
    log_of(kafka, "engine").await.ensure_topic(&spec(&home, 1)).await.unwrap();
    let producer = log_of(kafka, READER).await.producer(ProducerConfig::default()).await.unwrap();
    for _ in 0..2 {
        let record = OutgoingRecord::new(home.clone(), None, Some(Bytes::from("x")));
        let error = refused(async || producer.send(vec![record.clone()]).await?.await.remove(0)).await;
        assert!(error.contains("the right Write on topic sec.read-only"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_show_a_certificate_instead() {
    let Some(kafka) = broker("a_client_may_show_a_certificate_instead") else { return };
    let home = topic("certified");
    let plain = KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap();
    plain.ensure_topic(&spec(&home, 1)).await.unwrap();
    let name = home.as_str();
    let arguments = ["--add", "--operation", "Describe", "--topic", name, "--allow-principal", "User:CN=client"];
    kafka.ask("org.apache.kafka.tools.AclCommand", &arguments);
    let certified = [
        "security.protocol=SSL".to_owned(),
        format!("ssl.ca.location={}", kafka.file("ca.pem").display()),
        format!("ssl.certificate.location={}", kafka.file("client.pem").display()),
        format!("ssl.key.location={}", kafka.file("client.key.pem").display()),
    ];
    let log = connect(kafka.mutual(), &certified).await.unwrap();
    assert_eq!(log.topics().await.unwrap(), [home], "it sees what it may describe");
    let stranger = connect(kafka.mutual(), &certified[..2]).await.unwrap_err();
    assert!(stranger.to_string().contains(&kafka.mutual()), "{stranger}");
}

/// A command that logs in, run to its end.
fn command<'a>(kafka: &Kafka, user: &str, password: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = pipedoc::command(arguments);
    command.args(["--kafka", &kafka.secured()]);
    for setting in login(kafka, user, "${env:KAFKA_PASSWORD}") {
        command.args(["--kafka-setting", &setting]);
    }
    command.env("KAFKA_PASSWORD", password);
    command
}

#[test]
fn a_wrong_password_is_told_and_does_not_wait() {
    let Some(kafka) = broker("a_wrong_password_is_told_and_does_not_wait") else { return };
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["dlq", "list", "--data", folder.path().to_str().unwrap()];
    let output = command(kafka, "engine", "wrong-password", arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("does not accept the credentials") && said.contains(&kafka.secured()), "{said}");
    assert!(!said.contains("wrong-password"), "the password is shown:\n{said}");
}

/// Engine and module log in with the rights of the table and nothing more.
#[test]
fn a_pipeline_works_with_exactly_the_rights_of_the_table() {
    let Some(kafka) = broker("a_pipeline_works_with_exactly_the_rights_of_the_table") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let [port] = free_ports();
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    std::fs::create_dir(path.join("pipelines")).unwrap();
    let out = path.join("out");
    let pipeline = format!(
        "pipeline: safe\ndefaults: {{partitions: 2}}\nsteps:\n  \
         - {{name: echo, type: PIPELINE, module: echo, outputs: [{{to: store}}]}}\n  \
         - {{name: store, type: SINK, module: object-sink, config: {{url: \"{}\"}}}}\n",
        out.display()
    );
    std::fs::write(path.join("pipelines/safe.yaml"), pipeline).unwrap();
    let start = |name: &str, user: &str, arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["--cluster", CLUSTER]);
        let mut command = command(kafka, user, PASSWORD, all);
        command.current_dir(path);
        pipedoc_tests::bed::process::Process::start(name, &mut command, &path.join(format!("{name}.log")), None)
    };
    let _engine = start("engine", "engine", &["engine", "--listen", &listen]);
    let _echo = start("echo", "module", &["module", "echo", "--engines", &address]);
    let _sink = start("sink", "module", &["module", "object-sink", "--engines", &address]);
    let step = |name: &str| -> Option<Value> {
        let output = pipedoc::command(["status", "--output", "json", "--engine", &address]).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        // A broker that has just started may not know the group yet; it does in the end.
        if status["problems"].as_array().is_some_and(|problems| !problems.is_empty()) {
            return None;
        }
        status["pipelines"][0]["steps"].as_array()?.iter().find(|step| step["step"] == name).cloned()
    };
    let limit = Duration::from_secs(90);
    wait_for("both steps run", limit, || {
        ["echo", "store"]
            .iter()
            .all(|name| step(name).is_some_and(|step| step["state"] == "STEP_STATE_RUNNING"))
            .then_some(())
    });
    let file = path.join("letter.txt");
    std::fs::write(&file, "a letter").unwrap();
    let sent = pipedoc::command(["submit", "--pipeline", "safe", "--engine", &address, file.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    wait_for("the document is stored", limit, || out.join("letter.txt.json").exists().then_some(()));
    let last = wait_for("both steps have no lag", limit, || {
        let steps = ["echo", "store"].map(|name| step(name).unwrap_or_default());
        steps.iter().all(|step| step["lag"].as_str().is_none_or(|lag| lag == "0")).then_some(steps)
    });
    for step in last {
        assert_eq!(step["lastError"].as_str().unwrap_or_default(), "", "{step}");
    }
}
