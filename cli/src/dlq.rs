//! `pipedoc dlq list`: what was given up on, and why, read straight from the log.

use std::process::ExitCode;

use pipedoc_model::headers;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{ConsumerConfig, Ends, Event, Log, Record, Start, Subscription, TopicPartition};
use serde::Serialize;

use crate::args::{DlqListArgs, OutputFormat};
use crate::show::say;
use crate::{connect, show};

/// A dead letter as it is listed.
#[derive(Debug, Serialize)]
struct DeadLetter {
    topic: String,
    partition: i32,
    offset: i64,
    document: Option<String>,
    version: Option<i64>,
    step: Option<String>,
    kind: Option<String>,
    error: Option<String>,
    attempts: Option<i64>,
    failed_at: Option<String>,
    source: Option<String>,
}

/// Runs the command.
pub async fn list(args: DlqListArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let log = connect::existing_log(&args.log, &args.data).await?;
    let wanted = |topic: &Topic| {
        let mut parts = topic.as_str().split('.');
        let (cluster, pipeline, step, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        end == Some("dlq")
            && parts.next().is_none()
            && cluster == Some(args.cluster.as_str())
            && args.pipeline.as_deref().is_none_or(|name| pipeline == Some(name))
            && args.step.as_deref().is_none_or(|name| step == Some(name))
    };
    let topics: Vec<_> = log.topics().await?.into_iter().filter(wanted).collect();
    let mut letters = Vec::new();
    for topic in topics {
        read(log.as_ref(), &topic, Some(args.limit), |partition, record| {
            letters.push(DeadLetter::of(&topic, partition, record));
        })
        .await?;
    }
    letters.sort_by(|a, b| a.failed_at.cmp(&b.failed_at));
    match output {
        OutputFormat::Json => say!("{}", serde_json::to_string_pretty(&letters)?),
        OutputFormat::Text if letters.is_empty() => say!("no dead letters"),
        OutputFormat::Text => {
            let rows: Vec<_> = letters.iter().map(DeadLetter::row).collect();
            show::table(&["FAILED AT", "STEP", "DOCUMENT", "TRIES", "KIND", "REASON"], &rows);
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl DeadLetter {
    fn of(topic: &Topic, partition: i32, record: &Record) -> Self {
        let text = |name: &str| record.headers.get_str(name).map(str::to_owned);
        let source = || {
            let (topic, partition) = (text(headers::SOURCE_TOPIC)?, text(headers::SOURCE_PARTITION)?);
            Some(format!("{topic}[{partition}]@{}", text(headers::SOURCE_OFFSET)?))
        };
        Self {
            topic: topic.to_string(),
            partition,
            offset: record.offset,
            // Of what cannot be decoded, the key is all that is known.
            document: text(headers::DOCUMENT_ID).or_else(|| key_of(record)),
            version: record.headers.get_i64(headers::VERSION),
            step: text(headers::ERROR_STEP),
            kind: text(headers::ERROR_TYPE),
            error: text(headers::ERROR_MESSAGE),
            attempts: record.headers.get_i64(headers::SOURCE_ATTEMPTS),
            failed_at: text(headers::FAILED_AT),
            source: source(),
        }
    }

    fn row(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        vec![
            or_dash(&self.failed_at),
            or_dash(&self.step),
            show::first_line(&show::word(&or_dash(&self.document)), 60),
            self.attempts.map_or_else(|| "-".into(), |n| n.to_string()),
            or_dash(&self.kind),
            show::first_line(&or_dash(&self.error), 120),
        ]
    }
}

/// A record's key, if it is a text.
fn key_of(record: &Record) -> Option<String> {
    let key = std::str::from_utf8(record.key.as_deref()?).ok()?;
    (!key.is_empty()).then(|| key.to_owned())
}

/// Hands every record of a topic, as it is now, to a function; a missing topic has none.
pub async fn read_all(log: &dyn Log, topic: &Topic, mut each: impl FnMut(&Record)) -> anyhow::Result<()> {
    read(log, topic, None, |_, record| each(record)).await
}

/// Reads a topic to where it ends now; with a limit, at most so many offsets of each
/// partition, the last ones.
async fn read(
    log: &dyn Log,
    topic: &Topic,
    limit: Option<usize>,
    mut each: impl FnMut(i32, &Record),
) -> anyhow::Result<()> {
    if log.topic(topic).await?.is_none() {
        return Ok(());
    }
    let mut open = std::collections::BTreeMap::new();
    let mut assigned = Vec::new();
    for (partition, Ends { start, end }) in (0..).zip(log.ends(topic).await?) {
        if start < end {
            let from = limit.map_or(start, |limit| start.max(end - i64::try_from(limit).unwrap_or(i64::MAX)));
            let partition = TopicPartition::new(topic.clone(), partition);
            assigned.push((partition.clone(), Start::At(from)));
            open.insert(partition, end);
        }
    }
    if assigned.is_empty() {
        return Ok(());
    }
    let consumer = log.consumer(ConsumerConfig::new("pipedoc-read", Subscription::Assigned(assigned))).await?;
    while !open.is_empty() {
        match consumer.next().await? {
            Event::Records(batch) => {
                for record in &batch.records {
                    each(batch.source.partition, record);
                }
                let last = batch.records.last().map_or(0, |record| record.offset + 1);
                if open.get(&batch.source).is_some_and(|end| last >= *end) {
                    open.remove(&batch.source);
                }
            }
            Event::EndOfPartition { source, .. } => {
                open.remove(&source);
            }
            _ => {}
        }
    }
    consumer.close().await?;
    Ok(())
}
