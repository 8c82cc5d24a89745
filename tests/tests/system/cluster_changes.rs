//! Changes of pipelines while documents flow: nothing is lost, who is not concerned
//! does not notice, and everybody runs what is new within seconds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{consul, eventually, kafka, wait_for};
use pipedoc_transport::log::{ConsumerConfig, Event, Log, Start, Subscription, TopicPartition};
use serde_json::Value;

use super::kafka_place::Place;
use super::load::{self, Watch};
use super::work::{PATIENCE, Work, number};

/// The first step is never changed, the second with every apply.
const CHANGED: &str = "
pipeline: load
defaults: {partitions: 4}
steps:
  - {name: echo, type: PIPELINE, module: echo, concurrency: 16, config: {delay: 2ms}, outputs: [{to: mark}]}
  - name: mark
    type: PIPELINE
    module: echo
    concurrency: WIDTH
    outputs: [{topic: CLUSTER-out}OUTPUT]
";

fn changed(edit: u64, output: &str) -> String {
    CHANGED.replace("WIDTH", &(16 + edit).to_string()).replace("OUTPUT", output)
}

/// The groups' generations, as Kafka keeps them in `__consumer_offsets`: records
/// whose key is version 2 and a group's name; the value is a version, the protocol's
/// type and the generation. (Kafka, `GroupMetadataKey.json`, `GroupMetadataValue.json`.)
async fn generations(kafka: &Kafka) -> BTreeMap<String, i32> {
    let log = load::log(&kafka.bootstrap()).await;
    let topic = Topic::new("__consumer_offsets").unwrap();
    let ends = log.ends(&topic).await.unwrap();
    let all = (0..ends.len() as i32).map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
    let consumer = log.consumer(ConsumerConfig::new("watch", Subscription::Assigned(all))).await.unwrap();
    let mut found = BTreeMap::new();
    // Members commit all the time: what was there when it began is enough, and an end is reached more than once.
    let mut left: BTreeMap<i32, i64> =
        (0..).zip(ends).filter(|(_, ends)| ends.end > ends.start).map(|(n, ends)| (n, ends.end)).collect();
    let end = Instant::now() + PATIENCE;
    while !left.is_empty() {
        let event = tokio::time::timeout(end.saturating_duration_since(Instant::now()), consumer.next()).await;
        match event.unwrap_or_else(|_| panic!("not read to the end: {left:?}")).unwrap() {
            Event::Records(batch) => {
                let read = batch.records.last().map_or(0, |record| record.offset + 1);
                left.retain(|partition, end| *partition != batch.source.partition || read < *end);
                for record in batch.records {
                    let (Some(key), Some(value)) = (record.key, record.value) else { continue };
                    if let Some(group) = key.strip_prefix(&[0, 2]).and_then(text)
                        && let Some((_, rest)) = value.get(2..).and_then(split_text)
                        && let Some(generation) = rest.first_chunk()
                    {
                        found.insert(group, i32::from_be_bytes(*generation));
                    }
                }
            }
            Event::EndOfPartition { source, .. } => drop(left.remove(&source.partition)),
            _ => {}
        }
    }
    consumer.close().await.unwrap();
    found
}

fn text(bytes: &[u8]) -> Option<String> {
    split_text(bytes).map(|(text, _)| text)
}

/// A text behind its length, and what follows.
fn split_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

/// `PIPEDOC_TEST_APPLIES` says how many (25).
#[tokio::test(flavor = "multi_thread")]
async fn many_applies_in_a_row_cost_no_document_and_disturb_no_other_step() {
    const TEST: &str = "many_applies_in_a_row_cost_no_document_and_disturb_no_other_step";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    let applies = number("PIPEDOC_TEST_APPLIES", 25);
    let place = Place::on_consul(&kafka.bootstrap(), &[consul.address(), consul.address()]);
    let _engines = [place.engine_at(0), place.engine_at(1)];
    wait_for("the engines answer", PATIENCE, || place.status_of(0).and(place.status_of(1)));
    place.apply(0, &changed(0, ""), &[]).unwrap();
    let _instances = [place.module("echo", "one"), place.module("echo", "two")];
    for step in ["echo", "mark"] {
        place.wait_for_owners(step, 2, 4, PATIENCE);
    }
    let work = Work::begin(&kafka.bootstrap(), place).await;
    let groups = [work.place.topic(".load.echo").to_string(), work.place.topic(".load.mark").to_string()];
    let before = generations(kafka).await;
    let begun = Instant::now();
    for edit in 1..=applies {
        work.place.apply((edit % 2) as usize, &changed(edit, ""), &[]).unwrap();
    }
    let applied = begun.elapsed().as_secs_f64();
    work.place.apply(0, &changed(0, ", {topic: CLUSTER-last}"), &[]).unwrap();
    let last = Instant::now();
    let log = load::log(&kafka.bootstrap()).await;
    let topic = work.place.topic("-last");
    eventually("the last apply's topic is made", PATIENCE, async || log.topic(&topic).await.ok().flatten()).await;
    let new_output = Watch::start(&log, &topic).await;
    let new_config = new_output.recovered(&work.load, last, PATIENCE).await.as_secs_f64();
    let everywhere = work.recovered_everywhere(Instant::now()).await;
    let after = generations(kafka).await;
    let [unchanged, changed] = groups.each_ref().map(|group| (before[group], after[group]));
    assert_eq!(unchanged.0, unchanged.1, "the step that was never changed had a rebalance");
    assert!(changed.1 > changed.0, "{changed:?}");
    let words = format!(
        "{applies} applies (applied, the last one's output flows, all partitions flow), generation {} stays, {} to {}",
        unchanged.0, changed.0, changed.1
    );
    work.end(&words, 0, &[applied, new_config, everywhere]).await;
}

/// A pipeline with one step that is edited.
const EDITED: &str = "
pipeline: edited
defaults: {partitions: 3}
steps:
  - {name: echo, type: PIPELINE, module: echo, concurrency: WIDTH}
";

fn edited(edit: usize) -> String {
    EDITED.replace("WIDTH", &(edit + 1).to_string())
}

/// Generations that an engine plans and that its instances run.
fn running(place: &Place) -> Option<(u64, Vec<u64>)> {
    let number = |value: &Value| value.as_str().map_or(Some(0), |text| text.parse().ok());
    let status = place.status()?;
    let instances = status["instances"].as_array()?.iter();
    Some((number(&status["generation"])?, instances.map(|one| number(&one["generation"])).collect::<Option<_>>()?))
}

/// Seconds from a change until all three instances run it.
fn until_it_runs(place: &Place, change: impl FnOnce()) -> f64 {
    let settled = || running(place).filter(|(planned, run)| run.len() == 3 && run.iter().all(|one| one == planned));
    let (before, _) = wait_for("all run the same", PATIENCE, settled);
    let begun = Instant::now();
    change();
    wait_for("all run the change", PATIENCE, || settled().filter(|(planned, _)| *planned > before));
    begun.elapsed().as_secs_f64()
}

fn instances(place: &Place) -> [Process; 3] {
    ["one", "two", "three"].map(|name| place.module("echo", name))
}

/// `PIPEDOC_TEST_CHANGES` says how many of each kind (7).
#[test]
fn a_change_runs_everywhere_within_seconds_however_it_is_made() {
    const TEST: &str = "a_change_runs_everywhere_within_seconds_however_it_is_made";
    let (Some(kafka), Some(consul)) = (kafka::shared(TEST), consul::shared(TEST)) else { return };
    let each = number("PIPEDOC_TEST_CHANGES", 7) as usize;
    let on_consul = Place::on_consul(&kafka.bootstrap(), &[consul.address(), consul.address()]);
    let _engines = [on_consul.engine_at(0), on_consul.engine_at(1)];
    let _on_consul = instances(&on_consul);
    let on_folder = Place::new(&kafka.bootstrap(), &[&edited(0)]);
    let (_engine, _on_folder) = (on_folder.engine(), instances(&on_folder));
    on_consul.put(consul, "edited", &edited(0));
    for place in [&on_consul, &on_folder] {
        place.wait_for_owners("echo", 3, 3, PATIENCE);
    }
    let mut all = Vec::new();
    for edit in 1..=each {
        let applied = until_it_runs(&on_consul, || on_consul.apply(1, &edited(2 * edit), &[]).unwrap());
        let put = until_it_runs(&on_consul, || on_consul.put(consul, "edited", &edited(2 * edit + 1)));
        let saved = until_it_runs(&on_folder, || drop(on_folder.write("pipelines/p0.yaml", &edited(edit))));
        eprintln!("change {edit}: applied {applied:.2} s, put {put:.2} s, file edited {saved:.2} s");
        all.extend([applied, put, saved]);
    }
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all[((all.len() as f64 * share).ceil() as usize).clamp(1, all.len()) - 1];
    eprintln!(
        "{} changes run everywhere: p50 {:.2} s, p95 {:.2} s, most {:.2} s",
        all.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    );
    assert!(at(0.95) < Duration::from_secs(30).as_secs_f64(), "{all:?}");
}
