//! What the runtime promises about topics of other systems: JSON texts and plain
//! bytes come in as documents and go out as they were.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what helps a test fails with it")]

mod bed;

use std::collections::BTreeMap;
use std::sync::Arc;

use bed::*;
use bytes::Bytes;
use pipedoc_model::headers::{self, Headers};
use pipedoc_model::partition;
use pipedoc_model::step::{Delivery, Format, Input, InputSource, Output as Way, StepPlan};
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::{Data, data};
use pipedoc_transport::log::{Log, OutgoingRecord, TopicSettings};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::sqlite::{Options, SqliteLog};

/// Integers beyond 2^53, a number no double holds, names out of order and twice, an
/// escape that need not be one.
const ORDER: &str =
    "{\"total\": 12345678901234567890123, \"id\":9007199254740993,\n \"id\":1.10, \"name\":\"\\u00e4\\/\"}";

fn foreign(name: &str, format: Format) -> Input {
    Input { source: InputSource::Topic(topic(name)), format }
}

fn out(name: &str, format: Format) -> Way {
    Way { format, ..way(name) }
}

/// Reads `events` and `files`, writes to `json`, `raw` and `docs`.
fn crossing(delivery: Delivery) -> StepPlan {
    let json = Way { when: Some("doc.mime_type == 'application/json'".into()), ..out("json", Format::Json) };
    let raw = Way { when: Some("doc.mime_type != 'application/json'".into()), ..out("raw", Format::Raw) };
    StepPlan {
        inputs: vec![input("in"), foreign("events", Format::Json), foreign("files", Format::Raw)],
        outputs: vec![json, raw, way("docs")],
        delivery,
        ..plan("s")
    }
}

fn sent(to: &str, key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> OutgoingRecord {
    let mut headers = Headers::new();
    headers.append("foreign", Some(Bytes::from_static(&[0xff, 0])));
    headers.append("foreign", None);
    let (key, value) = (key.map(Bytes::from_static), value.map(Bytes::from_static));
    OutgoingRecord { headers, ..OutgoingRecord::new(topic(to), key, value) }
}

/// Key, value and foreign headers: what other systems see.
fn seen(read: &[Read]) -> Vec<(Option<Bytes>, Option<Bytes>, usize)> {
    let ours = |name: &str| name.starts_with("pipedoc_") || name.starts_with("source_");
    let mut seen: Vec<_> = read
        .iter()
        .map(|read| {
            let foreign: Vec<_> = read.record.headers.iter().filter(|header| !ours(header.name())).collect();
            assert!(foreign.iter().all(|header| header.name() == "foreign"), "{:?}", read.record.headers);
            (read.record.key.clone(), read.record.value.clone(), foreign.len())
        })
        .collect();
    seen.sort();
    seen
}

fn json_of(doc: &PipeDoc) -> &str {
    match &doc.data {
        Some(Data { kind: Some(data::Kind::Json(text)) }) => text,
        other => panic!("no JSON but {other:?}"),
    }
}

async fn crosses(log: Arc<dyn Log>, delivery: Delivery) {
    let bed = Bed::over(log);
    bed.run(&[crossing(delivery)]).await;
    let events = [
        sent("events", Some(b"order-1"), Some(ORDER.as_bytes())),
        sent("events", Some(b"50% #2"), Some(b" [] ")),
        sent("events", Some(&[0xff, 0, b'%']), Some(b"null")),
        sent("events", None, Some(b"9007199254740993")),
    ];
    let files = [
        sent("files", Some(b"a"), Some(&[0, 0xff, 0])),
        sent("files", Some(b"empty"), Some(b"")),
        sent("files", Some(b""), Some(b"empty key")),
    ];
    let expected = |records: &[OutgoingRecord]| {
        let mut expected: Vec<_> = records.iter().map(|record| (record.key.clone(), record.value.clone(), 2)).collect();
        expected.sort();
        expected
    };
    bed.send_records(events.iter().chain(&files).cloned().collect()).await;
    let json = bed.await_records("json", 4).await;
    assert_eq!(seen(&json), expected(&events));
    assert_eq!(seen(&bed.await_records("raw", 3).await), expected(&files));

    let docs = bed.await_records("docs", 7).await;
    let by_id: BTreeMap<String, PipeDoc> = docs.iter().map(|read| (read.doc().id, read.doc())).collect();
    assert_eq!(json_of(&by_id["order-1"]), ORDER);
    assert_eq!(json_of(&by_id["50%25 %232"]), " [] ");
    assert_eq!(json_of(&by_id["%FF\0%25"]), "null");
    assert_eq!(by_id["a"].blobs.len(), 1);
    for read in &docs {
        assert_eq!(read.key(), read.doc().id, "documents are keyed by their ids");
        assert_eq!(read.header(headers::DOCUMENT_ID), Some(read.doc().id.as_str()));
        assert!(!read.record.headers.contains(headers::FORMAT));
    }
    // What has no key is called after its place, and follows its partition.
    let place = by_id.keys().find(|id| id.starts_with("events/")).unwrap();
    let source: i32 = place.split('/').nth(1).unwrap().parse().unwrap();
    let keyless = json.iter().find(|read| read.record.key.is_none()).unwrap();
    assert_eq!(keyless.source.partition, partition::for_source(source, 4));

    // A deletion is one everywhere, under the key that it came with.
    bed.send_records(vec![sent("events", Some(b"50% #2"), None), sent("events", None, None)]).await;
    let gone = |read: &[Read]| {
        let gone = read.iter().filter(|read| read.record.value.is_none());
        gone.map(|read| read.record.key.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(gone(&bed.await_records("json", 5).await), ["50% #2"]);
    assert_eq!(gone(&bed.await_records("raw", 4).await), ["50% #2"]);
    assert_eq!(gone(&bed.await_records("docs", 8).await), ["50%25 %232"]);
    let nobody = bed.await_records(DEAD, 1).await;
    assert_eq!((nobody[0].header(headers::ERROR_TYPE), nobody.len()), (Some("decode"), 1));
    bed.drained("s").await;
    bed.instance.stop(PATIENCE).await;
}

#[tokio::test(start_paused = true)]
async fn json_and_bytes_come_in_and_go_out_byte_for_byte() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce, Delivery::AtMostOnce] {
        crosses(Arc::new(MemoryLog::new()), delivery).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_do_so_on_sqlite() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteLog::open(&folder.path().join("log.sqlite"), Options::default()).await.unwrap();
        crosses(Arc::new(log), delivery).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_json_is_a_dead_letter_byte_for_byte_that_knows_what_it_was() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let (bed, _) = Bed::memory();
        bed.run(&[crossing(delivery)]).await;
        let bad = [
            sent("events", Some(b"a"), Some(b"{\"a\":")),
            sent("events", Some(b"b"), Some(b"")),
            sent("events", None, Some(&[b'"', 0xff, b'"'])),
        ];
        bed.send_records(bad.to_vec()).await;
        let letters = bed.await_records(DEAD, 3).await;
        for letter in &letters {
            let record = bad.iter().find(|bad| bad.value == letter.record.value).unwrap();
            assert_eq!(letter.record.key, record.key);
            let foreign: Vec<_> = letter.record.headers.iter().filter(|header| header.name() == "foreign").collect();
            assert_eq!(foreign, record.headers.iter().collect::<Vec<_>>());
            assert_eq!(letter.header(headers::FORMAT), Some("JSON"));
            assert_eq!(letter.header(headers::ERROR_TYPE), Some("decode"));
            assert_eq!(letter.header(headers::SOURCE_TOPIC), Some("events"));
            assert!(letter.header(headers::ERROR_MESSAGE).unwrap().starts_with("the value is no JSON: "));
        }
        // One without key keeps the name that its place gave it, wherever it lies.
        let keyless = letters.iter().find(|letter| letter.record.key.is_none()).unwrap();
        assert!(keyless.header(headers::DOCUMENT_ID).unwrap().starts_with("events/"));
        assert_eq!(bed.read("json").await.len() + bed.read("docs").await.len(), 0);
        bed.instance.stop(PATIENCE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_redriven_record_is_read_as_what_it_was() {
    let (bed, _) = Bed::memory();
    bed.run(&[crossing(Delivery::AtLeastOnce)]).await;
    // As a redrive leaves it: in the step's own topic, which holds PipeDocs.
    let mut redriven = sent("in", None, Some(b"{\"a\": 1}"));
    redriven.headers.append(headers::FORMAT, Some("JSON".into()));
    redriven.headers.append(headers::DOCUMENT_ID, Some("events/3/7".into()));
    bed.send_records(vec![redriven]).await;
    let docs = bed.await_records("docs", 1).await;
    assert_eq!((docs[0].doc().id.as_str(), json_of(&docs[0].doc())), ("events/3/7", "{\"a\": 1}"));
    assert!(!docs[0].record.headers.contains(headers::FORMAT), "what was made of it is a PipeDoc");
    let json = bed.await_records("json", 1).await;
    assert_eq!(json[0].record.key, None);
}

/// A dead letter that does not fit becomes a claim, and comes back as what it was.
#[tokio::test(start_paused = true)]
async fn a_dead_letter_too_large_for_its_topic_comes_back_whole() {
    let (bed, _) = Bed::memory();
    let mut fails = crossing(Delivery::AtLeastOnce);
    fails.outputs = vec![Way { key: Some("doc.data.nothing".into()), ..out("json", Format::Json) }];
    let mut again = plan("again");
    again.inputs = vec![input(DEAD)];
    again.outputs = vec![out("json", Format::Json)];
    let roomy = TopicSettings { max_message_bytes: Some(2 << 20), ..TopicSettings::default() };
    bed.topic_with("json", 4, roomy).await;
    bed.run(&[fails, again]).await;
    // It fits as it is, but not with the reason beside it.
    let value = Bytes::from(format!("[\"{}\"]", "x".repeat(1_048_400)));
    let record = OutgoingRecord::new(topic("events"), Some("a".into()), Some(value.clone()));
    bed.send_records(vec![record]).await;
    let letters = bed.await_records(DEAD, 1).await;
    assert!(letters[0].record.headers.contains(headers::CLAIM), "{:?}", letters[0].record.headers);
    assert!(letters[0].record.value.as_ref().unwrap().len() < 1000);
    let json = bed.await_records("json", 1).await;
    assert_eq!((json[0].key().as_str(), &json[0].record.value), ("a", &Some(value)));
}

#[tokio::test(start_paused = true)]
async fn a_pattern_reads_all_that_match_as_its_format_says() {
    let (bed, _) = Bed::memory();
    let by_pattern = |pattern: &str, format| Input { source: InputSource::Pattern(pattern.to_owned()), format };
    let mut plan = plan("s");
    plan.inputs = vec![
        input("in"),
        by_pattern("shop\\..*", Format::Json),
        by_pattern(".*\\.log", Format::Raw),
        input("shop.docs"),
    ];
    plan.outputs = vec![out("raw", Format::Raw)];
    for name in ["shop.orders", "web.log"] {
        bed.topic(name, 1).await;
    }
    bed.run(&[plan]).await;
    bed.send_records(vec![sent("shop.orders", Some(b"a"), Some(b"{}")), sent("web.log", Some(b"b"), Some(b"{"))]).await;
    bed.send("shop.docs", [PipeDoc { body: "text".into(), ..doc("c", "") }]).await;
    let read = bed.await_records("raw", 3).await;
    let mut values: Vec<_> = read.iter().map(|read| (read.key(), read.record.value.clone().unwrap())).collect();
    values.sort();
    let expected = [("a", "{}"), ("b", "{"), ("c", "text")];
    assert_eq!(values, expected.map(|(key, value)| (key.to_owned(), Bytes::from(value))));
    assert_eq!(bed.read(DEAD).await.len(), 0);
}
