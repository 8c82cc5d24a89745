//! Our log without the SDK: one consumer, one producer, a few batches on their
//! way, positions committed once their records are acknowledged.

use std::collections::BTreeMap;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use pipedoc_transport::log::{
    Commit, ConsumerConfig, Event, Log, OutgoingRecord, RecordBatch, Reports, Start, Subscription, TopicPartition,
};

use crate::cpu;
use crate::echo::{self, EchoStep, Took};

/// Batches on their way at once.
const ON_THEIR_WAY: usize = 8;

/// A batch that was sent: up to where it goes, and what became of it.
type Sent = ((TopicPartition, i64), Reports);

/// Moves all that lies in the step's input to its output.
///
/// # Errors
/// When the log fails.
pub async fn run(step: &EchoStep, log: &dyn Log) -> anyhow::Result<Took> {
    let goal = echo::ends(log, &step.input).await?;
    let subscription = Subscription::Group {
        group: step.group().to_owned(),
        topics: vec![step.input.clone()],
        patterns: Vec::new(),
        start: Start::Earliest,
    };
    let consumer = log.consumer(ConsumerConfig::new("bench", subscription)).await?;
    let producer = log.producer(Default::default()).await?;
    let mut begun = None;
    let mut sent: FuturesOrdered<BoxFuture<'static, Sent>> = FuturesOrdered::new();
    let mut done: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    while done != goal {
        tokio::select! {
            event = consumer.next(), if sent.len() < ON_THEIR_WAY => match event? {
                Event::Assigned(_) if begun.is_none() => {
                    begun = Some((Instant::now(), cpu::of_process(std::process::id())?));
                }
                Event::Records(batch) => {
                    let upto = batch.records.last().map_or(0, |record| record.offset + 1);
                    let source = batch.source.clone();
                    let receipt = producer.send(passed_on(step, batch)).await?;
                    sent.push_back(Box::pin(async move { ((source, upto), receipt.await) }));
                }
                _ => {}
            },
            Some(((source, offset), reports)) = sent.next(), if !sent.is_empty() => {
                reports.into_iter().collect::<Result<Vec<_>, _>>()?;
                consumer.commit(vec![Commit { source: source.clone(), offset, metadata: String::new() }]).await?;
                done.insert(source, offset);
            }
        }
    }
    let (start, cpu) = begun.unwrap_or((Instant::now(), Default::default()));
    let took = Took { wall: start.elapsed(), cpu: cpu::of_process(std::process::id())?.saturating_sub(cpu) };
    consumer.close().await?;
    Ok(took)
}

fn passed_on(step: &EchoStep, batch: RecordBatch) -> Vec<OutgoingRecord> {
    let output = |record: pipedoc_transport::log::Record| OutgoingRecord {
        topic: step.output.clone(),
        partition: None,
        timestamp: None,
        key: record.key,
        value: record.value,
        headers: record.headers,
    };
    batch.records.into_iter().map(output).collect()
}
