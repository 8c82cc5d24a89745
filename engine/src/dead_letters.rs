//! How many dead letters lie in a topic that transactions write to.
//!
//! The ends of its partitions do not tell: each transaction leaves a marker that has an
//! offset as well, so one dead letter may have two. They are read and counted instead,
//! each once: what was counted is remembered, and a look reads what came since. It reads
//! only so much and for so long; where that is not all, the number is the highest that
//! it can be, says so, and the next look goes on from there.
//!
//! Looks only; knows nothing of steps.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_model::problem::chain;
use pipedoc_transport::error::Result as LogResult;
use pipedoc_transport::log::{ConsumerConfig, Ends, Event, Log, Start, Subscription, TopicPartition};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::backlog::known;

/// So many offsets of a partition are read at most in one look.
const AT_A_LOOK: i64 = 2_000;
/// And all topics that one caller asks for are read for so long at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// What was counted before.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters(Mutex<HashMap<TopicPartition, Counted>>);

/// What is known of a partition.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Where it began then.
    start: i64,
    /// From there to here all were counted.
    until: i64,
    letters: i64,
}

/// How many dead letters there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    /// How many, or how many at most.
    pub(crate) letters: i64,
    /// Why it may be fewer, if it may.
    pub(crate) at_most: Option<String>,
}

impl DeadLetters {
    /// Counts those of a topic; one that does not exist has none. `deadline`: when
    /// reading ends.
    ///
    /// # Errors
    /// When the log does not tell its ends.
    pub(crate) async fn count(&self, log: &dyn Log, topic: &Topic, deadline: Instant) -> LogResult<Count> {
        let mut counted = self.0.lock().await;
        let ends = known(log.ends(topic).await)?;
        let places: Vec<_> = (0..).zip(ends).map(|(n, ends)| (TopicPartition::new(topic.clone(), n), ends)).collect();
        let mut open = BTreeMap::new();
        for (place, Ends { start, end }) in &places {
            let anew = Counted { start: *start, until: *start, letters: 0 };
            let before = counted.entry(place.clone()).or_insert(anew);
            // Records went from its beginning, or it was made anew.
            if before.start != *start || before.until > *end {
                *before = anew;
            }
            if before.until < *end {
                open.insert(place.clone(), (*end).min(before.until + AT_A_LOOK));
            }
        }
        let trouble = if Instant::now() < deadline {
            match timeout_at(deadline, read(log, open, &mut counted)).await {
                Ok(Ok(())) | Err(_) => None,
                Ok(Err(error)) => Some(format!("they cannot be read: {}", chain(&error))),
            }
        } else {
            None
        };
        let (mut letters, mut rest) = (0, 0);
        for (place, ends) in &places {
            let Some(counted) = counted.get(place) else { continue };
            letters += counted.letters;
            rest += ends.end - counted.until;
        }
        let why = |trouble: Option<String>| {
            let trouble = trouble.unwrap_or_else(|| "they are too much for one look; ask again".to_owned());
            format!("{rest} offsets are not counted yet, and some may be markers of transactions: {trouble}")
        };
        Ok(Count { letters: letters + rest, at_most: (rest > 0).then(|| why(trouble)) })
    }
}

/// Reads partitions up to these offsets, and counts.
async fn read(
    log: &dyn Log,
    mut open: BTreeMap<TopicPartition, i64>,
    counted: &mut HashMap<TopicPartition, Counted>,
) -> LogResult<()> {
    if open.is_empty() {
        return Ok(());
    }
    let from = |place: &TopicPartition| Some((place.clone(), Start::At(counted.get(place)?.until)));
    let subscription = Subscription::Assigned(open.keys().filter_map(from).collect());
    let consumer = log.consumer(ConsumerConfig::new("pipedoc-status", subscription)).await?;
    while !open.is_empty() {
        let (source, records, position) = match consumer.next().await? {
            Event::Records(batch) => {
                let position = batch.records.last().map_or(0, |record| record.offset + 1);
                (batch.source, batch.records, position)
            }
            Event::EndOfPartition { source, position } => (source, Vec::new(), position),
            _ => continue,
        };
        let (Some(target), Some(counted)) = (open.get(&source).copied(), counted.get_mut(&source)) else { continue };
        let letters = records.iter().filter(|record| record.offset < target).count();
        counted.letters += i64::try_from(letters).unwrap_or(i64::MAX);
        counted.until = position.min(target).max(counted.until);
        if position >= target {
            open.remove(&source);
        }
    }
    consumer.close().await
}
