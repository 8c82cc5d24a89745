//! What the runtime promises about documents, on the memory log.

#![allow(clippy::unwrap_used, reason = "what helps a test fails with it")]

mod bed;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bed::*;
use bytes::Bytes;
use pipedoc_model::headers;
use pipedoc_model::step::{Batch, ControlState, OnExhausted};
use pipedoc_proto::v1::{Blob, blob};
use pipedoc_sdk::event::Event;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::StepState;
use pipedoc_sdk::layers::{Input, Layers, Request};
use pipedoc_sdk::prelude::*;
use pipedoc_transport::log::{OutgoingRecord, TopicSettings};
use prost::Message;

/// Documents of several keys, numbered within each key.
fn numbered(keys: usize, each: usize, title: impl Fn(usize, usize) -> String) -> Vec<OutgoingRecord> {
    let mut records = Vec::new();
    for n in 0..each {
        for key in 0..keys {
            let name = format!("key-{key}");
            let doc = PipeDoc {
                id: format!("{name}/{n:04}"),
                title: title(key, n),
                source_uri: name.clone(),
                part: n as i32,
                ..PipeDoc::default()
            };
            let value = Bytes::from(doc.encode_to_vec());
            records.push(OutgoingRecord::new(topic("in"), Some(name.into()), Some(value)));
        }
    }
    records
}

/// Numbers of each key in the order they lie in `out`, which is keyed by `source_uri`.
fn order_by_key(read: &[Read]) -> HashMap<String, Vec<i32>> {
    let mut order: HashMap<String, Vec<i32>> = HashMap::new();
    for read in read {
        let doc = read.doc();
        order.entry(doc.source_uri).or_default().push(doc.part);
    }
    order
}

fn keyed_by_source(mut plan: pipedoc_model::step::StepPlan) -> pipedoc_model::step::StepPlan {
    plan.outputs[0].key = Some("doc.source_uri".to_owned());
    plan
}

#[tokio::test(start_paused = true)]
async fn keys_stay_in_order_while_others_go_beside_them() {
    let (bed, _) = Bed::memory();
    bed.run(&[keyed_by_source(plan("s"))]).await;
    // Earlier ones of a key are slower than later ones, and some need a second attempt.
    let records =
        numbered(
            10,
            20,
            |key, n| {
                if (key + n) % 7 == 0 { "fail:1".to_owned() } else { format!("slow:{}", 40 - 2 * n) }
            },
        );
    bed.send_records(records).await;
    let read = bed.await_records("out", 200).await;
    assert_eq!(read.len(), 200);
    for (key, order) in order_by_key(&read) {
        assert_eq!(order, (0..20).collect::<Vec<_>>(), "{key}");
    }
    assert_eq!(bed.read(DEAD).await.len(), 0, "no key was at work twice");
    let status = bed.drained("s").await;
    assert_eq!((status.done, status.failed, status.state), (200, 0, StepState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_slow_key_holds_up_nobody_else_and_no_commit_passes_it() {
    let (bed, _) = Bed::memory();
    let plan = keyed_by_source(plan("s"));
    bed.topic("in", 1).await;
    bed.topic("out", 1).await;
    bed.topic(DEAD, 1).await;
    bed.apply(std::slice::from_ref(&plan));
    bed.send_records(numbered(5, 10, |key, n| if (key, n) == (0, 2) { "slow:9000".into() } else { String::new() }))
        .await;
    let read = bed.await_records("out", 42).await;
    assert_eq!(order_by_key(&read)["key-0"], [0, 1], "the others do not wait");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.committed(&plan).await[&0], 10, "offset 10 is open");
    bed.await_records("out", 50).await;
    bed.drained("s").await;
    assert_eq!(bed.committed(&plan).await[&0], 50);
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_repeated_after_a_wait_and_then_succeeds() {
    let (bed, _) = Bed::memory();
    bed.run(&[plan("s")]).await;
    bed.send("in", [doc("a", "fail:2")]).await;
    assert_eq!(bed.await_records("out", 1).await.len(), 1);
    let waits = bed.events.count(|event| matches!(event, Event::Retrying { document, .. } if document == "a"));
    assert_eq!(waits, 2);
    let status = bed.drained("s").await;
    assert_eq!(status.last_error, "attempt 2: not yet");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_the_record_with_its_reason() {
    let (bed, _) = Bed::memory();
    bed.run(&[plan("s")]).await;
    let mut record = record("in", &doc("a", "fail:9"));
    record.headers.append("foreign", Some(Bytes::from_static(&[0xff, 0])));
    record.headers.append("foreign", None);
    record.headers.append(headers::SOURCE_TOPIC, Some("elsewhere".into()));
    bed.send_records(vec![record.clone()]).await;
    let letters = bed.await_records(DEAD, 1).await;
    let letter = &letters[0];
    assert_eq!((&letter.record.key, &letter.record.value), (&record.key, &record.value));
    let foreign: Vec<_> = letter.record.headers.iter().filter(|header| header.name() == "foreign").collect();
    assert_eq!(foreign, record.headers.iter().filter(|header| header.name() == "foreign").collect::<Vec<_>>());
    assert_eq!(letter.header(headers::SOURCE_TOPIC), Some("in"));
    assert_eq!(letter.header(headers::SOURCE_OFFSET), Some("0"));
    assert_eq!(letter.header(headers::SOURCE_CONSUMER_GROUP), Some("test.p.s"));
    assert_eq!(letter.header(headers::SOURCE_ATTEMPTS), Some("3"));
    assert_eq!(letter.header(headers::ERROR_TYPE), Some("retryable"));
    assert_eq!(letter.header(headers::ERROR_MESSAGE), Some("attempt 3: not yet"));
    assert_eq!(letter.header(headers::ERROR_STEP), Some("p/s"));
    assert!(letter.header(headers::FAILED_AT).and_then(headers::parse_time).is_some());
    let status = bed.drained("s").await;
    assert_eq!((status.done, status.failed), (0, 1));
    let told = bed.events.count(
        |event| matches!(event, Event::DeadLetter { document, version: 1, kind, .. } if document == "a" && kind == "retryable"),
    );
    assert_eq!(told, 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_a_document_does_ends_in_one_dead_letter_and_the_partition_goes_on() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    plan.timeout = Duration::from_secs(1);
    plan.max_hops = Some(3);
    bed.topic("in", 1).await;
    bed.run(&[plan]).await;
    let mut tired = record("in", &doc("tired", ""));
    tired.headers.set(headers::HOP, "4");
    let records = vec![
        record("in", &doc("bad", "bad")),
        record("in", &doc("panic", "panic")),
        record("in", &doc("hang", "hang")),
        record("in", &doc("noid", "noid")),
        record("in", &doc("to", "to:nowhere")),
        tired,
        OutgoingRecord::new(topic("in"), Some("rubbish".into()), Some(Bytes::from_static(b"\xff\xff"))),
        OutgoingRecord::new(topic("in"), Some("empty".into()), Some(Bytes::new())),
        OutgoingRecord::new(topic("in"), None, None),
        record("in", &doc("good", "")),
    ];
    bed.send_records(records).await;
    let letters = bed.await_records(DEAD, 9).await;
    let kinds: BTreeMap<String, &str> = letters
        .iter()
        .map(|letter| {
            let key = letter.record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
            (key.unwrap_or_default(), letter.header(headers::ERROR_TYPE).unwrap())
        })
        .collect();
    let expected = [
        ("", "decode"),
        ("bad", "bad"),
        ("empty", "decode"),
        ("hang", "timeout"),
        ("noid", "no-id"),
        ("panic", "panic"),
        ("rubbish", "decode"),
        ("tired", "max-hops"),
        ("to", "unknown-output"),
    ];
    assert_eq!(kinds, expected.map(|(key, kind)| (key.to_owned(), kind)).into());
    let message = |key: &str| {
        let letter = letters.iter().find(|letter| letter.record.key.as_deref() == Some(key.as_bytes())).unwrap();
        letter.header(headers::ERROR_MESSAGE).unwrap().to_owned()
    };
    assert_eq!(message("panic"), "the module panicked: oh no");
    assert!(message("to").contains("\"nowhere\" is neither an output of p/s (out)"), "{}", message("to"));
    let good = bed.await_records("out", 1).await;
    assert_eq!(good[0].key(), "good");
    assert_eq!(bed.drained("s").await.lag, 0);
}

#[tokio::test(start_paused = true)]
async fn skipped_records_are_dropped_and_counted() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    plan.on_exhausted = OnExhausted::Skip;
    bed.run(&[plan]).await;
    bed.send("in", [doc("a", "bad"), doc("b", "")]).await;
    bed.await_records("out", 1).await;
    let status = bed.drained("s").await;
    assert_eq!((status.done, status.failed), (1, 1));
    assert_eq!(bed.read(DEAD).await.len(), 0);
    assert_eq!(bed.events.count(|event| matches!(event, Event::Skipped { document, .. } if document == "a")), 1);
}

#[tokio::test(start_paused = true)]
async fn outputs_are_taken_by_condition_by_draw_and_by_name() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    let (mut long, mut other, mut red, mut blue) = (way("long"), way("other"), way("red"), way("blue"));
    long.when = Some("doc.body.size() > 3".to_owned());
    other.otherwise = true;
    (red.weight, red.when) = (Some(1), Some("doc.language == 'draw'".to_owned()));
    (blue.weight, blue.when) = (Some(1), Some("doc.language == 'draw'".to_owned()));
    plan.outputs = vec![long, other, red, blue];
    plan.allowed_topics = vec![topic("allowed")];
    bed.topic("allowed", 1).await;
    bed.run(&[plan]).await;
    let body = |id: &str, body: &str, title: &str| PipeDoc { body: body.into(), ..doc(id, title) };
    bed.send(
        "in",
        [body("a", "long enough", ""), body("b", "no", ""), body("c", "no", "to:long"), body("d", "", "to:allowed")],
    )
    .await;
    bed.send("in", (0..100).map(|n| PipeDoc { language: "draw".into(), ..doc(&format!("draw-{n}"), "") })).await;
    bed.drained("s").await;
    until("all to be done", || (bed.status("s").done == 104).then_some(())).await;
    let keys = async |name: &str| {
        let mut keys: Vec<String> = bed.read(name).await.iter().map(Read::key).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("long").await, ["a", "c"]);
    assert_eq!(keys("other").await, ["b"]);
    assert_eq!(keys("allowed").await, ["d"]);
    let (red, blue) = (keys("red").await.len(), keys("blue").await.len());
    assert_eq!(red + blue, 100);
    assert!((20..=80).contains(&red), "{red} of 100 by even odds");
}

#[tokio::test(start_paused = true)]
async fn headers_tell_the_journey() {
    let (bed, _) = Bed::memory();
    let mut second = plan("t");
    second.inputs = vec![input("out")];
    second.outputs = vec![way("end")];
    bed.run(&[plan("s"), second]).await;
    let mut record = record("in", &doc("a", ""));
    record.timestamp = Some(1_700_000_000_123);
    record.headers.append("mine", Some("x".into()));
    record.headers.append(headers::TRACEPARENT, Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()));
    bed.send_records(vec![record]).await;
    let end = bed.await_records("end", 1).await;
    let end = &end[0];
    assert_eq!(end.header("mine"), Some("x"));
    assert_eq!(end.header(headers::HOP), Some("2"));
    assert_eq!(end.header(headers::SOURCE_TOPIC), Some("out"));
    assert_eq!(end.header(headers::SOURCE_CONSUMER_GROUP), Some("test.p.t"));
    assert_eq!(end.header(headers::EVENT_TIME), Some("2023-11-14T22:13:20.123Z"));
    assert_eq!(end.header(headers::DOCUMENT_ID), Some("a"));
    assert_eq!(end.header(headers::VERSION), Some("1"));
    assert!(end.header(headers::TRACEPARENT).unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    let first = bed.read("out").await;
    assert_eq!(first[0].header(headers::STREAM_ID), end.header(headers::STREAM_ID));
    assert!(end.record.timestamp > 1_700_000_000_123, "each hop has its own");
}

#[tokio::test(start_paused = true)]
async fn tombstones_reach_every_output_that_can_carry_them() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    let (mut never, mut by_doc, mut by_header) = (way("never"), way("by-doc"), way("by-header"));
    never.when = Some("false".to_owned());
    by_doc.key = Some("doc.language".to_owned());
    by_header.key = Some("headers.tenant".to_owned());
    plan.outputs = vec![never, by_doc, by_header];
    bed.run(&[plan]).await;
    let mut gone = tombstone("in", "a");
    gone.headers.append("tenant", Some("acme".into()));
    gone.headers.set(headers::DOCUMENT_ID, "a#3");
    gone.headers.set(headers::VERSION, "17");
    bed.send_records(vec![gone]).await;
    let never = bed.await_records("never", 1).await;
    assert_eq!((never[0].key().as_str(), &never[0].record.value), ("a", &None), "a part's by its parent's id");
    assert_eq!(never[0].header(headers::DOCUMENT_ID), Some("a#3"));
    assert_eq!(never[0].header(headers::VERSION), Some("17"));
    assert_eq!(bed.await_records("by-header", 1).await[0].key(), "acme");
    bed.drained("s").await;
    assert_eq!(bed.read("by-doc").await.len(), 0);
    let ended = Event::DeletionEnded { document: "a".into(), output: "by-doc".into() };
    assert_eq!(bed.events.count(|event| *event == ended), 1);
    assert_eq!(bed.events.count(|event| matches!(event, Event::Done { tombstone: true, sent: 2, .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn parts_are_keyed_by_their_parent_and_refused_by_compacted_topics() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    let mut compacted = way("latest");
    compacted.compacted = true;
    compacted.when = Some("doc.language == 'latest'".to_owned());
    plan.outputs.push(compacted);
    // The topic is compacted, though the plan does not say so.
    let mut found = way("found");
    found.when = Some("doc.language == 'found'".to_owned());
    plan.outputs.push(found);
    bed.topic_with("found", 4, TopicSettings { compact: Some(true), ..TopicSettings::default() }).await;
    bed.run(&[plan]).await;
    let to = |id: &str, language: &str| PipeDoc { language: language.into(), ..doc(id, "parts:2") };
    bed.send("in", [doc("a", "parts:3"), to("b", "latest"), to("c", "found")]).await;
    let parts = bed.await_records("out", 3).await;
    for part in &parts {
        assert_eq!((part.key().as_str(), part.doc().parent_version, part.doc().version), ("a", 1, 1));
    }
    for letter in bed.await_records(DEAD, 2).await {
        assert_eq!(letter.header(headers::ERROR_TYPE), Some("part-to-compacted"));
    }
    assert_eq!(bed.events.count(|event| matches!(event, Event::Done { document, sent: 3, .. } if document == "a")), 1);
}

#[tokio::test(start_paused = true)]
async fn outputs_that_get_no_part_any_more_learn_that_what_is_older_goes() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    plan.outputs[0].when = Some("doc.part == 0".to_owned());
    plan.outputs.push(pipedoc_model::step::Output { when: Some("doc.part > 1".to_owned()), ..way("other") });
    bed.run(&[plan]).await;
    let version = |id: &str, version: i64, title: &str| PipeDoc { version, ..doc(id, title) };
    bed.send(
        "in",
        [
            version("a", 5, "parts:3"),
            version("b", 6, "parts:1"),
            version("none", 7, "outdated"),
            // Nothing has a version that is older than the first; and what has none is taken as it comes.
            version("first", 1, "parts:1"),
            version("first", 1, "outdated"),
            version("unknown", 0, "parts:1"),
        ],
    )
    .await;
    bed.drained("s").await;
    let told = |read: Vec<Read>| {
        let gone = read.into_iter().filter(|read| read.record.value.is_none());
        let gone = gone.map(|read| (read.key(), read.header(headers::VERSION).map(str::to_owned)));
        gone.collect::<BTreeMap<_, _>>()
    };
    let at = |id: &str, version: &str| (id.to_owned(), Some(version.to_owned()));
    assert_eq!(told(bed.read("other").await), BTreeMap::from([at("b", "5"), at("none", "6")]));
    assert_eq!(told(bed.read("out").await), BTreeMap::from([at("none", "6")]));
}

#[tokio::test]
async fn large_blobs_and_documents_pass_by_claim() {
    let (bed, _) = Bed::memory();
    let mut second = plan("t");
    second.inputs = vec![input("out")];
    second.outputs = vec![way("end")];
    let mut small = plan("u");
    small.inputs = vec![input("out")];
    small.outputs = vec![way("nowhere")];
    small.hydrate_max = 1000;
    bed.run(&[plan("s"), second, small]).await;
    let payload = Bytes::from(vec![7_u8; 100_000]);
    let blob = Blob { name: "x".into(), content: Some(blob::Content::Inline(payload.clone())), ..Blob::default() };
    let body = "long ".repeat(40_000);
    bed.send(
        "in",
        [PipeDoc { blobs: vec![blob], ..doc("blob", "") }, PipeDoc { body: body.clone(), ..doc("body", "") }],
    )
    .await;
    let between = bed.await_records("out", 2).await;
    for record in &between {
        assert!(record.record.value.as_ref().unwrap().len() < 1000);
        assert!(record.header(headers::CLAIM).unwrap().starts_with("default/sha256/"));
    }
    // What went by claim was whole again for the next step, and went by claim again.
    let end = bed.await_records("end", 2).await;
    let of = |id: &str, read: &[Read]| read.iter().find(|read| read.key() == id).unwrap().record.value.clone();
    assert_eq!(of("blob", &end), of("blob", &between));
    assert_eq!(of("body", &end), of("body", &between));
    // The one that may not read so much says which setting forbids it.
    let letters = bed.await_records("test.p.u.dlq", 2).await;
    assert!(letters[0].header(headers::ERROR_MESSAGE).unwrap().contains("hydrate_max is 1000"));
}

#[tokio::test]
async fn what_is_too_large_for_its_topic_is_a_dead_letter_even_of_a_small_one() {
    let (bed, _) = Bed::memory();
    let small = |limit| TopicSettings { max_message_bytes: Some(limit), ..TopicSettings::default() };
    bed.run(&[plan("s")]).await;
    bed.topic_with("out", 4, small(2000)).await;
    bed.topic_with(DEAD, 4, small(1500)).await;
    bed.send("in", [PipeDoc { body: "x".repeat(3000), ..doc("a", "") }]).await;
    let letters = bed.await_records(DEAD, 1).await;
    assert_eq!(letters[0].header(headers::ERROR_TYPE), Some("too-large"));
    assert!(letters[0].header(headers::CLAIM).is_some(), "its value lies in the store");
    bed.drained("s").await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_what_is_in_flight_and_a_restart_goes_on_from_there() {
    let (bed, _) = Bed::memory();
    let plan = keyed_by_source(plan("s"));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.send_records(numbered(50, 10, |_, _| "slow:300".into())).await;
    bed.await_records("out", 32).await;
    bed.instance.stop(Duration::from_secs(5)).await;
    let before = bed.read("out").await.len();
    assert!(before < 500);
    let again = bed.beside("two", Vec::new());
    again.apply(std::slice::from_ref(&plan));
    again.drained("s").await;
    let read = bed.read("out").await;
    let mut seen: HashMap<String, usize> = HashMap::new();
    for read in &read {
        *seen.entry(read.doc().id).or_default() += 1;
    }
    assert_eq!(seen.len(), 500, "nothing is lost");
    let keys_ahead = 50;
    assert!(
        read.len() <= 500 + keys_ahead,
        "{} for 500: only what was done beyond the watermark comes again",
        read.len()
    );
    for (key, order) in order_by_key(&read) {
        let firsts: Vec<i32> =
            order.iter().enumerate().filter(|(at, n)| !order[..*at].contains(n)).map(|(_, n)| *n).collect();
        assert_eq!(firsts, (0..10).collect::<Vec<_>>(), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_move_to_a_second_instance_and_nothing_is_lost() {
    let (bed, _) = Bed::memory();
    let plan = keyed_by_source(plan("s"));
    bed.run(std::slice::from_ref(&plan)).await;
    bed.send_records(numbered(40, 25, |_, n| format!("slow:{}", 10 + n))).await;
    bed.await_records("out", 100).await;
    let other = bed.beside("two", Vec::new());
    other.apply(std::slice::from_ref(&plan));
    until("both to own partitions", || {
        let owned = [&bed, &other].map(|bed| bed.status("s").partitions.len());
        (owned == [2, 2]).then_some(())
    })
    .await;
    bed.await_records("out", 1000).await;
    for bed in [&bed, &other] {
        bed.drained("s").await;
    }
    let read = bed.read("out").await;
    let mut ids: Vec<String> = read.iter().map(|read| read.doc().id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1000);
    assert_eq!(read.len(), 1000, "a revocation lets open deliveries finish: nothing came twice");
    assert_eq!(bed.read(DEAD).await.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_partition_is_dropped_at_once_and_comes_again() {
    let (bed, log) = Bed::memory();
    bed.run(&[plan("s")]).await;
    bed.send("in", (0..20).map(|n| doc(&format!("d{n}"), "slow:2000"))).await;
    until("work to begin", || (bed.status("s").in_flight == 20).then_some(())).await;
    assert_eq!(log.expire("one"), 1);
    bed.await_records("out", 20).await;
    bed.drained("s").await;
    assert_eq!(bed.read("out").await.len(), 20, "what was dropped had not been sent");
    assert_eq!(bed.events.count(|event| matches!(event, Event::Lost(_))), 1);
}

#[tokio::test(start_paused = true)]
async fn failing_sends_acks_commits_and_reads_lose_nothing_and_keep_order() {
    let (bed, log) = Bed::memory();
    let plan = keyed_by_source(plan("s"));
    bed.run(std::slice::from_ref(&plan)).await;
    let faults = log.faults();
    bed.send_records(numbered(10, 30, |key, n| format!("slow:{}", 5 + (key * n) % 9))).await;
    for round in 0..8 {
        let wanted = 20 * (round + 1);
        let _ = bed.await_records("out", wanted).await;
        match round % 4 {
            0 => faults.fail_sends(2, true),
            1 => faults.fail_acks(3, true),
            2 => faults.lose_acks(3, true),
            _ => {
                faults.fail_commits(1, true);
                faults.fail_reads(2, true);
            }
        }
    }
    bed.drained("s").await;
    until("all to be committed", || (bed.status("s").lag == 0).then_some(())).await;
    for (key, order) in last_deliveries(&bed.read("out").await) {
        assert_eq!(order, (0..30).collect::<Vec<_>>(), "{key}");
    }
    assert_eq!(bed.read(DEAD).await.len(), 0);
    assert_eq!(bed.status("s").failed, 0);
}

#[tokio::test(start_paused = true)]
async fn clients_that_cannot_be_used_any_more_are_made_anew() {
    let (bed, log) = Bed::memory();
    bed.run(&[plan("s")]).await;
    bed.send("in", [doc("a", "")]).await;
    bed.await_records("out", 1).await;
    bed.send("in", [doc("b", "slow:500")]).await;
    log.faults().fail_sends(1, false);
    bed.await_records("out", 2).await;
    let status = bed.drained("s").await;
    let anew = |event: &Event| matches!(event, Event::ConnectionsRenewed { .. });
    assert_eq!(bed.events.count(anew), 1);
    assert!(!status.last_error.contains("new connections"), "it is over: {}", status.last_error);
    assert_eq!(status.state, StepState::Running);
}

/// What stands in the way is shown for as long as it does; a document's error keeps
/// its time.
#[tokio::test(start_paused = true)]
async fn trouble_that_is_over_is_not_shown_any_more() {
    let (bed, log) = Bed::memory();
    bed.run(&[plan("s")]).await;
    bed.send("in", [doc("a", "fail:1")]).await;
    let before = bed.drained("s").await;
    assert_eq!(before.last_error, "attempt 1: not yet");
    log.faults().fail_commits(3, true);
    bed.send("in", [doc("b", "")]).await;
    until("the failing commits", || bed.status("s").last_error.contains("committing failed").then_some(())).await;
    log.faults().fail_reads(2, true);
    bed.send("in", [doc("c", "")]).await;
    until("the failing reads", || bed.status("s").last_error.contains("reading failed").then_some(())).await;
    let after = bed.drained("s").await;
    assert_eq!((after.last_error, after.last_error_at), (before.last_error, before.last_error_at));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_before_it_is_acknowledged() {
    let (bed, log) = Bed::memory();
    let plan = plan("s");
    bed.topic("in", 1).await;
    bed.topic("out", 1).await;
    bed.topic(DEAD, 1).await;
    bed.apply(std::slice::from_ref(&plan));
    bed.state("s", StepState::Running).await;
    log.faults().hold_acks();
    let producer = bed.log.producer(pipedoc_transport::log::ProducerConfig::default()).await.unwrap();
    drop(producer.send(vec![record("in", &doc("a", "")), record("in", &doc("b", "bad"))]).await.unwrap());
    bed.await_records("out", 1).await;
    bed.await_records(DEAD, 1).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bed.committed(&plan).await.get(&0).copied().unwrap_or(0), 0);
    assert_eq!(bed.status("s").in_flight, 2);
    log.faults().release_acks();
    bed.drained("s").await;
    assert_eq!(bed.committed(&plan).await[&0], 2);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_key_fills_the_window_and_no_more() {
    let (bed, _) = Bed::memory();
    let plan = keyed_by_source(plan("s"));
    bed.topic("in", 1).await;
    bed.run(&[plan]).await;
    let mut records = numbered(1, 1, |_, _| "slow:8000".into());
    records.extend(numbered(1, 15_000, |_, n| if n == 0 { "skip".into() } else { String::new() }));
    bed.send_records(records).await;
    until("the window to fill", || (bed.status("s").in_flight >= 2_000).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let full = bed.status("s").in_flight;
    assert!((2_000..=10_500).contains(&full), "{full} deliveries are open");
    let status = bed.drained("s").await;
    assert_eq!(status.done, 15_001);
}

#[tokio::test(start_paused = true)]
async fn paused_steps_keep_their_partitions_and_take_nothing() {
    let (bed, _) = Bed::memory();
    let mut plan = plan("s");
    plan.control = ControlState::Paused;
    bed.run(std::slice::from_ref(&plan)).await;
    bed.send("in", [doc("a", "")]).await;
    until("partitions", || (bed.status("s").partitions.len() == 4).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let status = bed.status("s");
    assert_eq!((status.state, status.lag), (StepState::Paused, 1));
    assert_eq!(bed.read("out").await.len(), 0);
    plan.control = ControlState::Running;
    bed.apply(std::slice::from_ref(&plan));
    bed.await_records("out", 1).await;
    assert_eq!(bed.events.count(|event| matches!(event, Event::Assigned(_))), 1, "membership was kept");
    plan.control = ControlState::Stopped;
    bed.apply(std::slice::from_ref(&plan));
    bed.state("s", StepState::Stopped).await;
    assert_eq!(bed.status("s").partitions.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn modules_know_their_outputs_when_they_open() {
    let (bed, _) = Bed::memory();
    let asks = |name: &str, output: &str| {
        let mut plan = plan(name);
        plan.outputs[0].name = "rest".to_owned();
        plan.allowed_topics = vec![topic("aside")];
        plan.config = serde_json::json!({"open": format!("output:{output}")});
        plan
    };
    bed.run(&[asks("name", "rest"), asks("topic", "out"), asks("allowed", "aside"), asks("wrong", "nowhere")]).await;
    for step in ["name", "topic", "allowed"] {
        bed.state(step, StepState::Running).await;
    }
    let wrong = bed.state("wrong", StepState::Failed).await.last_error;
    assert!(wrong.contains(r#"no output nowhere, but Some(["rest"])"#), "{wrong}");
}

#[tokio::test(start_paused = true)]
async fn steps_that_do_not_open_leave_others_alone() {
    let (bed, _) = Bed::memory();
    let with = |name: &str, config: serde_json::Value| {
        let mut plan = plan(name);
        plan.config = config;
        plan
    };
    let mut unknown = plan("unknown");
    unknown.module = "nobody".parse().unwrap();
    let mut later = plan("later");
    later.delivery = pipedoc_model::step::Delivery::AtMostOnce;
    later.on_exhausted = OnExhausted::Pause;
    bed.run(&[
        with("good", serde_json::json!({})),
        with("bad", serde_json::json!({"open": "bad"})),
        with("wrong", serde_json::json!({"open": 7, "shut": true})),
        with("waits", serde_json::json!({"open": "retry"})),
        unknown,
        later,
    ])
    .await;
    bed.send("in", [doc("a", "")]).await;
    bed.drained("good").await;
    assert!(bed.state("bad", StepState::Failed).await.last_error.contains("never opens"));
    let wrong = bed.state("wrong", StepState::Failed).await.last_error;
    assert!(wrong.contains("open: ") && wrong.contains("shut"), "both mistakes: {wrong}");
    assert!(bed.state("unknown", StepState::Failed).await.last_error.contains("no module nobody"));
    let later = bed.state("later", StepState::Failed).await.last_error;
    assert!(later.contains("delivery AT_MOST_ONCE contradicts on_exhausted PAUSE"), "{later}");
    assert_eq!(bed.status("waits").state, StepState::Starting);
    assert!(bed.status("waits").last_error.contains("not open yet"));
    // A change of its plan is a new chance.
    bed.apply(&[with("bad", serde_json::json!({}))]);
    bed.state("bad", StepState::Running).await;
    assert_eq!(bed.instance.status().iter().filter(|status| status.id.step.as_str() == "waits").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn batches_keep_the_order_of_keys_and_stop_at_a_failure() {
    let log = std::sync::Arc::new(pipedoc_transport::memory::MemoryLog::new());
    let bed = Bed::with(log, vec![Factory::module::<Bulk>()], Layers::new());
    let mut plan = plan("s");
    plan.outputs[0].key = Some("key".to_owned());
    plan.module = "bulk".parse().unwrap();
    plan.batch = Some(Batch { records: 30, bytes: 1 << 20, wait: Duration::from_millis(50) });
    bed.run(&[plan]).await;
    let records = numbered(5, 20, |key, n| if (key + n) % 6 == 0 { "fail:1".into() } else { String::new() });
    bed.send_records(records).await;
    bed.send_records(vec![tombstone("in", "key-3"), record("in", &doc("panics", "panic"))]).await;
    let read = bed.await_records("out", 101).await;
    let docs: Vec<Read> = read.iter().filter(|read| read.record.value.is_some()).cloned().collect();
    for (key, order) in order_by_key(&docs) {
        assert_eq!(order, (0..20).collect::<Vec<_>>(), "{key}");
    }
    assert!(docs.iter().any(|read| read.doc().parts > 5), "several share a batch");
    let of_three: Vec<&Read> = read.iter().filter(|read| read.key() == "key-3").collect();
    assert_eq!(of_three.last().map(|read| &read.record.value), Some(&None), "the deletion came last");
    bed.await_records(DEAD, 1).await;
    let status = bed.drained("s").await;
    assert!(status.done >= 101 && status.failed >= 1, "{status:?}");
}

/// Works on batches one after the other, and says in `parts` how large each was.
struct Bulk {
    failed: parking_lot::Mutex<std::collections::HashSet<String>>,
}

impl Module for Bulk {
    type Config = Nothing;
    const NAME: &'static str = "bulk";

    async fn open(_: Nothing, _: &Step) -> Result<Self> {
        Ok(Self { failed: parking_lot::Mutex::default() })
    }

    async fn process(&self, _: PipeDoc, _: &Step) -> Result<Output> {
        Err(Error::permanent("never called in batches"))
    }

    async fn process_batch(&self, docs: Vec<PipeDoc>, _: &Step) -> Vec<Result<Output>> {
        let size = docs.len() as i32;
        // Alone, so that the panic takes nobody along.
        assert!(size > 1 || docs[0].title != "panic", "oh no");
        let one = |doc: PipeDoc| match doc.title.as_str() {
            "panic" => Err(Error::retryable("alone")),
            "fail:1" if self.failed.lock().insert(doc.id.clone()) => Err(Error::retryable("not yet")),
            _ => Ok(Output::from(PipeDoc { parts: size, ..doc })),
        };
        docs.into_iter().map(one).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn an_authors_layers_stand_around_the_module() {
    let layers = Layers::new().layer(tower::util::MapRequestLayer::new(|mut request: Request| {
        if let Input::Document(doc) = &mut request.input {
            doc.language = format!("attempt {}", request.attempt);
        }
        request
    }));
    let log = pipedoc_transport::memory::MemoryLog::new();
    let bed = Bed::with(std::sync::Arc::new(log), Vec::new(), layers);
    bed.run(&[plan("s")]).await;
    bed.send("in", [doc("a", "fail:1")]).await;
    assert_eq!(bed.await_records("out", 1).await[0].doc().language, "attempt 1");
}

#[tokio::test(start_paused = true)]
async fn sinks_and_filters_are_done_without_sending() {
    let (bed, _) = Bed::memory();
    let mut sink = plan("t");
    sink.step_type = StepType::Sink;
    sink.outputs = Vec::new();
    bed.run(&[plan("s"), sink]).await;
    bed.send("in", [doc("a#7", "skip")]).await;
    bed.drained("s").await;
    bed.drained("t").await;
    let done = Event::Done { document: "a".into(), sent: 0, left: false, tombstone: false };
    until("both to be done", || (bed.events.count(|event| *event == done) == 2).then_some(())).await;
}
