//! What others see of us on Kafka: `kcat` and Kafka's own tools, and the library
//! example beside its results on the embedded log. The page docs/kafka.md is run as
//! it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use pipedoc_proto::v1::PipeDoc;
use pipedoc_tests::bed::kafka::{self, Kafka};
use pipedoc_tests::bed::{pipedoc, wait_for};
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{Log, OutgoingRecord, ProducerConfig, TransactionalConfig};
use prost::Message;
use serde_json::Value;

use super::kafka_place::Place;

const PATIENCE: Duration = Duration::from_secs(90);

/// Root of the checkout.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Kafka's own tools under the names that its distribution gives them, and the
/// command, in a folder for `PATH`.
pub fn tools(classpath: &str, folder: &Path) {
    let classes = [
        ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
        ("kafka-console-consumer.sh", "org.apache.kafka.tools.consumer.ConsoleConsumer"),
        ("kafka-consumer-groups.sh", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"),
        ("kafka-server-start.sh", "kafka.Kafka"),
        ("kafka-storage.sh", "kafka.tools.StorageTool"),
        ("kafka-topics.sh", "org.apache.kafka.tools.TopicCommand"),
    ];
    fs::create_dir_all(folder).unwrap();
    for (name, class) in classes {
        let java = "exec java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";
        let script = format!("#!/bin/sh\n{java} -cp '{}' {class} \"$@\"\n", classpath);
        fs::write(folder.join(name), script).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let _ = fs::remove_file(folder.join("pipedoc"));
    std::os::unix::fs::symlink(pipedoc::binary(), folder.join("pipedoc")).unwrap();
}

/// `PATH` with a folder in front.
pub fn path_with(folder: &Path) -> String {
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default())
}

/// Results by document, without what differs from run to run.
pub fn results(folder: &Path, found: &mut BTreeMap<String, Value>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            results(&path, found);
        } else {
            let doc: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mut doc = doc;
            // The moment at which the connector saw the file.
            doc.as_object_mut().unwrap().remove("version");
            let id = doc["id"].as_str().unwrap().to_owned();
            assert!(found.insert(id.clone(), doc).is_none(), "{id} is there twice");
        }
    }
}

/// The sh blocks of a page, in order.
fn commands(page: &str) -> String {
    let mut commands = String::from("set -eu\n");
    for block in page.split("```sh\n").skip(1) {
        commands.push_str(block.split("```").next().unwrap());
    }
    commands
}

/// Runs docs/kafka.md, and looks at what its commands printed and left behind.
#[test]
fn the_page_on_kafka_is_true() {
    let Some(kafka) = kafka::shared("the_page_on_kafka_is_true") else { return };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    tools(kafka.classpath(), &place.join("bin"));
    for name in ["examples", "docs"] {
        std::os::unix::fs::symlink(root().join(name), place.join(name)).unwrap();
    }
    let page = fs::read_to_string(root().join("docs/kafka.md")).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &commands(&page).replace("localhost:9092", &kafka.bootstrap())]).current_dir(place);
    shell.env("PATH", path_with(&place.join("bin")));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIPEDOC_")) {
        shell.env_remove(name);
    }
    let output = shell.output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");

    // The library came to its end by itself, with the results of the embedded log.
    let embedded =
        pipedoc::command(["run", "examples/library", "--out", "embedded"]).current_dir(place).output().unwrap();
    assert!(embedded.status.success(), "{}", text(&embedded));
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    results(&place.join("out"), &mut ours);
    results(&place.join("embedded"), &mut theirs);
    let ids = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(ids(&ours), ids(&theirs));
    for (id, doc) in &ours {
        assert_eq!(doc, &theirs[id], "{id} differs from log to log");
    }

    // What the page says of topics, groups, keys and headers.
    let line = |words: &[&str]| said.lines().any(|line| words.iter().all(|word| line.contains(word)));
    for topic in ["library.files.state", "library.parse", "library.parse.dlq", "library.chunk", "library.store"] {
        assert!(line(&[&format!("local.{topic}")]), "no topic local.{topic}:\n{said}");
    }
    for group in ["parse", "chunk", "store"] {
        let group = format!("local.library.{group}");
        let lags: Vec<_> = said
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|columns| columns.first() == Some(&group.as_str()) && columns.get(1) == Some(&group.as_str()))
            .map(|columns| columns[5].to_owned())
            .collect();
        // Partitions that nothing was written to have no offset, and no lag.
        assert!(!lags.is_empty() && lags.iter().all(|lag| lag == "0" || lag == "-"), "{group}: {lags:?}\n{said}");
    }
    // kcat: key, then headers; Kafka's own consumer: headers, then key.
    assert!(line(&["lamps.txt", "source_topic=local.library.parse", "pipedoc_hop="]), "{said}");
    assert!(line(&["source_topic:local.library.parse", "pipedoc_hop:", "lamps.txt"]), "{said}");
    assert!(line(&["broken-truncated.pdf", "error_message="]), "no dead letter:\n{said}");
}

/// Lag of a group by Kafka's own tool, over all partitions.
fn lag_by_kafka(kafka: &Kafka, group: &str) -> Option<i64> {
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let shown = kafka.ask(class, &["--describe", "--group", group, "--timeout", "60000"]);
    let lines = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lags: Vec<_> =
        lines.filter(|columns| columns.first() == Some(&group)).map(|columns| columns[5].to_owned()).collect();
    lags.iter().map(|lag| lag.parse::<i64>().ok()).sum::<Option<i64>>().filter(|_| !lags.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tool_and_status_show_the_same_lag_also_behind_transactions() {
    const TEST: &str = "kafkas_own_tool_and_status_show_the_same_lag_also_behind_transactions";
    let Some(kafka) = kafka::shared(TEST) else { return };
    let pipeline = "
pipeline: lag
defaults: {partitions: 2}
steps:
  - {name: echo, type: PIPELINE, module: echo, outputs: [{topic: CLUSTER-out}]}
";
    let place = Place::new(&kafka.bootstrap(), &[pipeline]);
    let (_engine, mut echo) = (place.engine(), place.module("echo", "echo"));
    place.wait_for_owners("echo", 1, 2, PATIENCE);
    let log = KafkaLog::connect(KafkaConfig::new(kafka.bootstrap())).await.unwrap();
    let (topic, group) = (place.topic(".lag.echo"), place.topic(".lag.echo").to_string());
    let records = |count: i32| {
        let record = |n: i32| {
            let doc = PipeDoc { id: n.to_string(), ..PipeDoc::default() };
            let record =
                OutgoingRecord::new(topic.clone(), Some(doc.id.clone().into()), Some(doc.encode_to_vec().into()));
            OutgoingRecord { partition: Some(n % 2), ..record }
        };
        (0..count).map(record).collect::<Vec<_>>()
    };
    let status_lag = || -> Option<i64> {
        let step = place.step("lag", "echo")?;
        step["lag"].as_str().map_or(Some(0), |lag| lag.parse().ok())
    };

    // Every partition ends with control records: of a commit, then of an abort.
    let mut transactional = log.transactional(TransactionalConfig::new(group.clone())).await.unwrap();
    for commit in [true, false] {
        transactional.begin().await.unwrap();
        transactional.send(records(20)).await.unwrap();
        if commit { drop(transactional.commit().await.unwrap()) } else { transactional.abort().await.unwrap() }
    }
    wait_for("the tool shows no lag", PATIENCE, || (lag_by_kafka(kafka, &group)? == 0).then_some(()));
    wait_for("status shows no lag", PATIENCE, || (status_lag()? == 0).then_some(()));

    // Nobody works: both count what waits.
    echo.signal("TERM");
    echo.wait(PATIENCE);
    let producer = log.producer(ProducerConfig::default()).await.unwrap();
    for report in producer.send(records(30)).await.unwrap().await {
        report.unwrap();
    }
    wait_for("status shows what waits", PATIENCE, || (status_lag()? == 30).then_some(()));
    wait_for("the tool shows the same", PATIENCE, || (lag_by_kafka(kafka, &group)? == 30).then_some(()));
}

/// Keys and headers that are no text, repeated headers, headers without value:
/// `kcat` writes them, a step passes them on, Kafka's own consumer shows them.
#[tokio::test(flavor = "multi_thread")]
async fn headers_of_others_pass_through_and_are_shown() {
    let Some(kafka) = kafka::shared("headers_of_others_pass_through_and_are_shown") else { return };
    let pipeline = "
pipeline: pass
defaults: {partitions: 1}
steps:
  - {name: echo, type: PIPELINE, module: echo, outputs: [{topic: CLUSTER-out}]}
";
    let place = Place::new(&kafka.bootstrap(), &[pipeline]);
    let (_engine, _echo) = (place.engine(), place.module("echo", "echo"));
    place.wait_for_owners("echo", 1, 1, PATIENCE);
    let doc = Bytes::from(PipeDoc { id: "tide".into(), title: "Tide".into(), ..PipeDoc::default() }.encode_to_vec());
    let file = place.path().join("value");
    fs::write(&file, &doc).unwrap();
    let (input, output) = (place.topic(".pass.echo"), place.topic("-out"));
    let sent = Command::new("kcat")
        .args(["-P", "-b", &kafka.bootstrap(), "-t", input.as_str(), "-k", "tide"])
        .args(["-H", "seen=first", "-H", "seen=second", "-H", "empty="])
        .arg(&file)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{}", text(&sent));
    let shown = kafka.ask(
        "org.apache.kafka.tools.consumer.ConsoleConsumer",
        &["--topic", output.as_str(), "--from-beginning", "--max-messages", "1", "--timeout-ms", "60000"]
            .into_iter()
            .chain(["print.key=true", "print.headers=true"].into_iter().flat_map(|one| ["--formatter-property", one]))
            .collect::<Vec<_>>(),
    );
    for words in ["seen:first,seen:second,empty:", "\ttide\t", "source_offset:0", "pipedoc_document_id:tide"] {
        assert!(shown.contains(words), "{words:?} is not in {shown}");
    }
}
