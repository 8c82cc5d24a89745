//! `--retry-failed`: makes connectors forget the documents that were given up on,
//! so that they send them again.
//!
//! A connector's state says what it has sent. A dead letter names its document and
//! version; where the state still holds that version, its entry is removed, and the
//! connector finds the document new. Dead letters of older versions are left alone:
//! the document has changed, and was tried again, since.

use std::collections::BTreeMap;

use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_model::step::StepPlan;
use pipedoc_transport::log::{Log, OutgoingRecord, ProducerConfig, Record};

/// Writes a tombstone to the state topics for each document given up on; gives how many.
pub async fn forget_failed(log: &dyn Log, steps: &[StepPlan]) -> anyhow::Result<usize> {
    let mut failed: BTreeMap<String, i64> = BTreeMap::new();
    for step in steps {
        crate::dlq::read_all(log, &step.dead_letters, |record| {
            let Some(id) = record.headers.get_str(headers::DOCUMENT_ID) else { return };
            let version = record.headers.get_i64(headers::VERSION).unwrap_or(0);
            let newest = failed.entry(root(id).to_owned()).or_insert(version);
            *newest = version.max(*newest);
        })
        .await?;
    }
    let mut forgotten = Vec::new();
    for topic in steps.iter().filter_map(|step| step.state.as_ref()) {
        let mut state: BTreeMap<String, Option<i64>> = BTreeMap::new();
        crate::dlq::read_all(log, topic, |record| note(&mut state, record)).await?;
        forgotten.extend(
            state
                .into_iter()
                .filter(|(id, version)| version.is_some() && failed.get(id).copied() == *version)
                .map(|(id, _)| tombstone(topic, id)),
        );
    }
    let count = forgotten.len();
    let producer = log.producer(ProducerConfig::default()).await?;
    for report in producer.send(forgotten).await?.await {
        report?;
    }
    Ok(count)
}

/// Takes the newest version of a key over; state values are JSON with a `version`.
fn note(state: &mut BTreeMap<String, Option<i64>>, record: &Record) {
    let Some(key) = record.key.as_ref().and_then(|key| std::str::from_utf8(key).ok()) else { return };
    let version = record.value.as_ref().map(|value| {
        let value: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
        value["version"].as_i64().unwrap_or(0)
    });
    state.insert(key.to_owned(), version);
}

fn tombstone(topic: &Topic, key: String) -> OutgoingRecord {
    // The state topic has one partition.
    OutgoingRecord { partition: Some(0), ..OutgoingRecord::new(topic.clone(), Some(key.into_bytes().into()), None) }
}

/// Id of the whole document: `#` begins the number of a part, and is encoded elsewhere.
fn root(id: &str) -> &str {
    id.split_once('#').map_or(id, |(root, _)| root)
}
