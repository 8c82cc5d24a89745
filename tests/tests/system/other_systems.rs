//! Topics of other systems, and documents that are made into parts: what comes in as
//! JSON or bytes goes out as it was, and a document that shrinks or is deleted leaves
//! nothing behind in any sink. Real modules, on every log that processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pipedoc_model::headers::{ERROR_TYPE, FORMAT, Headers, VERSION};
use pipedoc_model::names::{ClusterName, Generation, Topic};
use pipedoc_model::plan::plan;
use pipedoc_sdk::event::Unobserved;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_tests::bed::{eventually, kafka, pipedoc};
use pipedoc_transport::log::{
    ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, Record, Start, Subscription, TopicPartition,
    TopicSettings, TopicSpec,
};
use pipedoc_transport::objects::Objects;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// A pipeline at work, and its log.
struct Line {
    /// Begins the names of its topics.
    name: String,
    log: Arc<dyn Log>,
    instance: Instance,
    folder: tempfile::TempDir,
}

impl Line {
    /// Runs a pipeline, where `NAME` stands for a name of its own and `OUT` for a folder.
    async fn start(url: Option<&str>, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("line{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
        let own = format!("sqlite:{}", folder.path().join("log.sqlite").display());
        let log = pipedoc_transport::open::open(url.unwrap_or(&own)).await.unwrap();
        let factories = vec![
            Factory::module::<pipedoc_echo::Echo>(),
            Factory::module::<pipedoc_chunker::Chunker>(),
            Factory::module::<pipedoc_splitter::Splitter>(),
            Factory::module::<pipedoc_object_sink::ObjectSink>(),
        ];
        let known = factories.iter().map(|one| (one.info().module.clone(), one.info().clone())).collect();
        let text = text.replace("NAME", &name).replace("OUT", folder.path().to_str().unwrap());
        let parsed = pipedoc_model::pipeline::parse(&text, "p.yaml", &BTreeMap::new(), &known, true);
        let parsed = parsed.unwrap_or_else(|problems| panic!("{problems}"));
        let plan = plan(&ClusterName::new("test").unwrap(), &[parsed.config], &Default::default());
        for planned in &plan.topics {
            let settings = TopicSettings { compact: Some(planned.compacted), ..TopicSettings::default() };
            let (topic, partitions) = (planned.topic.clone(), planned.partitions);
            log.ensure_topic(&TopicSpec { topic, partitions, replication: None, settings }).await.unwrap();
        }
        let instance = Instance::start(InstanceConfig {
            log: Arc::clone(&log),
            objects: Arc::new(Objects::local(&folder.path().join("objects")).unwrap()),
            id: name.clone(),
            data: folder.path().join("data"),
            factories,
            observer: Arc::new(Unobserved),
            layers: Default::default(),
        });
        instance.apply(Generation(1), plan.steps);
        Self { name, log, instance, folder }
    }

    fn topic(&self, name: &str) -> Topic {
        Topic::new(&name.replace("NAME", &self.name)).unwrap()
    }

    async fn send(&self, to: &str, key: Option<&'static [u8]>, value: Option<Bytes>, headers: Headers) {
        let record = OutgoingRecord::new(self.topic(to), key.map(Bytes::from_static), value);
        let producer = self.log.producer(ProducerConfig::default()).await.unwrap();
        for report in producer.send(vec![OutgoingRecord { headers, ..record }]).await.unwrap().await {
            report.unwrap();
        }
    }

    /// All that lies in a topic now, committed.
    async fn read(&self, name: &str) -> Vec<Record> {
        let topic = self.topic(name);
        let count = i32::try_from(self.log.ends(&topic).await.unwrap().len()).unwrap();
        let all = (0..count).map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
        let consumer = self.log.consumer(ConsumerConfig::new("reader", Subscription::Assigned(all))).await.unwrap();
        let (mut found, mut ended) = (Vec::new(), BTreeSet::new());
        while ended.len() < count as usize {
            match tokio::time::timeout(PATIENCE, consumer.next()).await.expect("an end in time") {
                Ok(Event::Records(batch)) => found.extend(batch.records),
                Ok(Event::EndOfPartition { source, .. }) => drop(ended.insert(source)),
                Err(error) if !error.is_retryable() => panic!("{name} cannot be read: {error}"),
                _ => {}
            }
        }
        consumer.close().await.unwrap();
        found
    }

    async fn await_records(&self, name: &str, count: usize) -> Vec<Record> {
        eventually(&format!("{name} to hold {count} records"), PATIENCE, async || {
            let found = self.read(name).await;
            (found.len() >= count).then_some(found)
        })
        .await
    }
}

/// Key, value, and values of the foreign headers.
type Seen = (Option<Bytes>, Option<Bytes>, Vec<Option<Bytes>>);

/// What other systems see of records, in order of keys and values.
fn seen(records: &[Record]) -> Vec<Seen> {
    let mut seen: Vec<_> = records
        .iter()
        .map(|record| {
            let foreign = record.headers.iter().filter(|header| header.name() == "foreign");
            let values = foreign.map(|header| header.value().map(Bytes::copy_from_slice)).collect();
            (record.key.clone(), record.value.clone(), values)
        })
        .collect();
    seen.sort();
    seen
}

async fn everything_crosses_as_it_was(url: Option<&str>, delivery: &str) {
    let line = Line::start(
        url,
        &format!(
            "pipeline: NAME\ndefaults: {{partitions: 2, delivery: {delivery}}}\nsteps:\n\
             - {{name: texts, type: PIPELINE, module: echo, input_kafka_topic: {{topic: NAME.in.json, format: JSON}},\n   \
               output_kafka_topics: [{{topic: NAME.out.json, format: JSON}}, NAME.docs]}}\n\
             - {{name: bytes, type: PIPELINE, module: echo, input_kafka_topic: {{topic: NAME.in.raw, format: RAW}},\n   \
               output_kafka_topics: [{{topic: NAME.out.raw, format: RAW}}]}}\n\
             - {{name: back, type: PIPELINE, module: echo, input_kafka_topic: NAME.docs,\n   \
               output_kafka_topics: [{{topic: NAME.back, format: JSON}}]}}\n"
        ),
    )
    .await;
    let mut headers = Headers::new();
    headers.append("foreign", Some(Bytes::from_static(&[0xff, 0])));
    headers.append("foreign", None);
    let exact = "{\"z\":9007199254740993, \"a\":12345678901234567890.10,\n\"a\":\"\\u00e4\\/\"}";
    let texts: [(Option<&'static [u8]>, &'static str); 3] =
        [(Some(b"50% #1"), exact), (Some(&[0xff, 0, 7]), " [1, 2] "), (None, "null")];
    for (key, text) in texts {
        line.send("NAME.in.json", key, Some(text.into()), headers.clone()).await;
    }
    let files: [(Option<&'static [u8]>, &'static [u8]); 3] =
        [(Some(b"a"), &[0, 0xff, 0]), (Some(b"empty"), b""), (None, b"text")];
    for (key, bytes) in files {
        line.send("NAME.in.raw", key, Some(Bytes::from_static(bytes)), headers.clone()).await;
    }
    line.send("NAME.in.json", Some(b"bad"), Some(Bytes::from_static(b"{\"a\":")), headers.clone()).await;
    line.send("NAME.in.json", Some(b"50% #1"), None, headers.clone()).await;

    let json = line.await_records("NAME.out.json", 4).await;
    let mut sent = line.read("NAME.in.json").await;
    sent.retain(|record| record.key.as_deref() != Some(b"bad"));
    assert_eq!(seen(&json), seen(&sent));
    let raw = line.await_records("NAME.out.raw", 3).await;
    assert_eq!(seen(&raw), seen(&line.read("NAME.in.raw").await));
    // By way of a document of ours, which has a key: its id.
    let mut back = line.await_records("NAME.back", 4).await;
    sent.retain(|record| record.key.is_some());
    back.retain(|record| record.value.as_deref() != Some(b"null"));
    assert_eq!(seen(&back), seen(&sent));
    let letters = line.await_records("test.NAME.texts.dlq", 1).await;
    let letter = &letters[0];
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"bad"[..]), Some(&b"{\"a\":"[..])));
    assert_eq!((letter.headers.get_str(FORMAT), letter.headers.get_str(ERROR_TYPE)), (Some("JSON"), Some("decode")));
    assert_eq!(seen(&letters)[0].2, seen(&sent)[0].2);
    line.instance.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_bytes_cross_pipelines_on_sqlite() {
    for delivery in ["AT_LEAST_ONCE", "EXACTLY_ONCE"] {
        everything_crosses_as_it_was(None, delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_bytes_cross_pipelines_on_kafka() {
    let Some(kafka) = kafka::shared("json_and_bytes_cross_pipelines_on_kafka") else { return };
    for delivery in ["AT_LEAST_ONCE", "EXACTLY_ONCE"] {
        everything_crosses_as_it_was(Some(&format!("kafka:{}", kafka.bootstrap())), delivery).await;
    }
}

/// Stored documents, one file each.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.file_name().unwrap().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Orders come as JSON; their lines are stored by two sinks, and the latest form of each
/// order lies in a compacted topic.
async fn nothing_is_left_behind(url: Option<&str>, delivery: &str, versions: bool) {
    let line = Line::start(
        url,
        &format!(
            "pipeline: NAME\ndefaults: {{partitions: 2, delivery: {delivery}}}\nsteps:\n\
             - name: split\n  type: PIPELINE\n  module: splitter\n  \
               input_kafka_topic: {{topic: NAME.orders, format: JSON}}\n  \
               config: {{rules: [{{by: ARRAY, at: /lines, output: lines}}], whole: latest}}\n  \
               outputs:\n  - {{to: chunk, name: lines}}\n  \
               - {{topic: NAME.latest, name: latest, format: JSON, compacted: true}}\n\
             - {{name: chunk, type: PIPELINE, module: chunker, outputs: [{{to: files}}, {{to: lines}}]}}\n\
             - {{name: files, type: SINK, module: object-sink, config: {{url: OUT/files, fsync: false}}}}\n\
             - {{name: lines, type: SINK, module: object-sink, config: {{url: OUT/lines, format: JSONL, fsync: false}}}}\n"
        ),
    )
    .await;
    let out = line.folder.path();
    let lines_sink = serde_json::json!({"url": out.join("lines"), "format": "JSONL", "fsync": false});
    let stored = || {
        let mut by_file: BTreeSet<String> = BTreeSet::new();
        for path in files(&out.join("files")) {
            let Ok(text) = fs::read_to_string(path) else { continue };
            let doc: Value = serde_json::from_str(&text).unwrap();
            by_file.insert(format!("{} {}", doc["id"].as_str().unwrap(), doc["data"]["json"].as_str().unwrap()));
        }
        pipedoc_object_sink::finish(&lines_sink).unwrap();
        let merged = fs::read_to_string(out.join("lines/documents.jsonl")).unwrap_or_default();
        let by_line: BTreeSet<String> = merged
            .lines()
            .map(|text| {
                let doc: Value = serde_json::from_str(text).unwrap();
                format!("{} {}", doc["id"].as_str().unwrap(), doc["data"]["json"].as_str().unwrap())
            })
            .collect();
        (by_file, by_line)
    };
    // How many lines the order has, one form after the other; none: it is deleted.
    for (revision, count) in [(1, Some(10)), (2, Some(8)), (3, Some(0)), (4, Some(3)), (5, None)] {
        let line_of = |n: usize| format!("{{\"sku\": 90071992547409{revision}, \"n\":{n}}}");
        let value = count.map(|count| {
            let lines: Vec<String> = (0..count).map(line_of).collect();
            Bytes::from(format!("{{\"revision\": {revision}, \"lines\": [{}]}}", lines.join(",")))
        });
        let mut headers = Headers::new();
        if versions {
            headers.append(VERSION, Some(revision.to_string().into()));
        }
        line.send("NAME.orders", Some(b"order#1"), value.clone(), headers).await;
        let expected: BTreeSet<String> =
            (0..count.unwrap_or(0)).map(|n| format!("order%231#{n} {}", line_of(n))).collect();
        let told = format!("{delivery}, versions {versions}: both sinks to hold revision {revision}");
        eventually(&told, PATIENCE, async || {
            let (by_file, by_line) = stored();
            (by_file == expected && by_line == expected).then_some(())
        })
        .await;
        eventually(&format!("the latest form to be revision {revision}"), PATIENCE, async || {
            let latest = line.read("NAME.latest").await;
            let last = latest.last()?;
            (last.key.as_deref() == Some(&b"order#1"[..]) && last.value == value).then_some(())
        })
        .await;
    }
    line.instance.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_shrinks_or_is_deleted_leaves_nothing_behind_on_sqlite() {
    for (delivery, versions) in [("AT_LEAST_ONCE", true), ("EXACTLY_ONCE", false)] {
        nothing_is_left_behind(None, delivery, versions).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_shrinks_or_is_deleted_leaves_nothing_behind_on_kafka() {
    let name = "an_order_that_shrinks_or_is_deleted_leaves_nothing_behind_on_kafka";
    let Some(kafka) = kafka::shared(name) else { return };
    nothing_is_left_behind(Some(&format!("kafka:{}", kafka.bootstrap())), "EXACTLY_ONCE", true).await;
}

/// The example of mails, as a stranger runs it.
#[test]
fn a_mail_that_loses_an_attachment_or_is_gone_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mails = folder.path().join("in");
    fs::create_dir(&mails).unwrap();
    for name in ["books.eml", "thanks.eml"] {
        fs::copy(examples.join("mails/in").join(name), mails.join(name)).unwrap();
    }
    let stored = || -> BTreeMap<String, Value> {
        let example = examples.join("mails");
        let run = ["run", example.to_str().unwrap(), "--in", "in", "--out", "out", "--output", "json"];
        let output = pipedoc::command(run).current_dir(folder.path()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert!(told.contains("\"dead_letters\":0"), "{told}");
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
        let docs = files(&folder.path().join("out")).into_iter().map(read);
        docs.map(|doc| (doc["id"].as_str().unwrap().to_owned(), doc)).collect()
    };
    let first = stored();
    assert_eq!(first.keys().collect::<Vec<_>>(), ["books.eml#0", "books.eml#1", "books.eml#2", "thanks.eml#0"]);
    let field = |id: &str, name: &str| first[id][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(field("books.eml#0", "body"), "Grüße, the list is attached.");
    assert!(field("books.eml#1", "body").contains("An atlas"));
    assert!(field("books.eml#2", "body").contains("lies flat"));
    assert_eq!(field("thanks.eml#0", "title"), "Thanks");

    let shorter = fs::read_to_string(mails.join("thanks.eml")).unwrap().replace("It arrived", "It is here");
    fs::write(mails.join("books.eml"), shorter).unwrap();
    let second = stored();
    assert_eq!(second.keys().collect::<Vec<_>>(), ["books.eml#0", "thanks.eml#0"]);
    assert_eq!(second["books.eml#0"]["body"], "It is here.");
    fs::remove_file(mails.join("books.eml")).unwrap();
    assert_eq!(stored().keys().collect::<Vec<_>>(), ["thanks.eml#0"]);
}

#[test]
fn the_example_of_orders_is_a_pipeline() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/orders/pipeline.yaml");
    let output = pipedoc::command(["plan", example.to_str().unwrap(), "--strict"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("shop.order-lines"), "{told}");
}
