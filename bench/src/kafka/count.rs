//! Counts what has arrived in a topic: reads all of it, read committed, and looks
//! at each record's number. Ends of partitions prove nothing: duplicates and
//! transactions' markers move them as well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Message, Offset, TopicPartitionList};

use super::documents::Records;
use super::settings;

/// How long nothing may come before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// What has arrived: every record once, the versions of each document in order.
#[derive(Debug)]
pub struct Arrived {
    /// How many records the broker appended in which millisecond, since the Unix epoch.
    appended: BTreeMap<i64, u64>,
    /// Offset after the last record of each partition.
    pub ends: BTreeMap<i32, i64>,
}

impl Arrived {
    /// When the first `count` records had arrived, and how many had by the end of
    /// that millisecond.
    pub fn when(&self, count: u64) -> Option<(i64, u64)> {
        let mut sum = 0;
        self.appended.iter().find_map(|(at, appended)| {
            sum += appended;
            (sum >= count).then_some((*at, sum))
        })
    }

    /// When the last record arrived.
    pub fn end(&self) -> Option<i64> {
        self.appended.keys().next_back().copied()
    }
}

/// Reads a topic until every record has been seen.
///
/// # Errors
/// When records are lost, came twice, or came out of order.
pub fn count(bootstrap: &str, topic: &str, partitions: i32, records: Records) -> anyhow::Result<Arrived> {
    let mut config = settings::consumer(bootstrap, "bench.count");
    config.set("queued.max.messages.kbytes", "65536").set("queued.min.messages", "100000");
    let consumer: BaseConsumer = config.create().context("making a consumer")?;
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&list).context("assigning")?;

    let mut seen = vec![false; usize::try_from(records.count)?];
    let mut versions = vec![0_u64; usize::try_from(records.keys)?];
    let mut arrived = Arrived { appended: BTreeMap::new(), ends: BTreeMap::new() };
    let (mut left, mut heard) = (records.count, Instant::now());
    while left > 0 {
        let message = match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => message,
            None | Some(Err(KafkaError::PartitionEOF(_))) => {
                ensure!(heard.elapsed() < PATIENCE, "{left} of {} records are missing", records.count);
                continue;
            }
            Some(Err(error)) => return Err(error).context("reading"),
        };
        heard = Instant::now();
        let place = || format!("{topic}[{}] at offset {}", message.partition(), message.offset());
        let number = records.number(&message).with_context(|| format!("{} is no record of this run", place()))?;
        let slot = seen.get_mut(usize::try_from(number)?).context("numbers are below the count")?;
        ensure!(!*slot, "{} came twice, again as {}", number, place());
        *slot = true;
        let version = number / records.keys + 1;
        let before = versions.get_mut(usize::try_from(number % records.keys)?).context("keys are below the count")?;
        ensure!(version > *before, "{} is older than what came before it", place());
        *before = version;
        *arrived.appended.entry(message.timestamp().to_millis().unwrap_or(0)).or_default() += 1;
        arrived.ends.insert(message.partition(), message.offset() + 1);
        left -= 1;
    }
    Ok(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_record_is_that_of_its_millisecond() {
        let arrived = Arrived { appended: BTreeMap::from([(10, 5), (12, 5), (20, 1)]), ends: BTreeMap::new() };
        assert_eq!(arrived.when(1), Some((10, 5)));
        assert_eq!(arrived.when(6), Some((12, 10)));
        assert_eq!(arrived.when(12), None);
        assert_eq!(arrived.end(), Some(20));
    }
}
