//! Counts what has arrived in a topic by looking at each record's number. Ends of
//! partitions prove nothing: duplicates and transactions' markers move them too.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::documents::Records;

/// How long nothing may come before what is missing counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What has arrived: every record once, the versions of each document in order.
#[derive(Debug, Default)]
pub struct Arrived {
    /// How many records arrived in which millisecond, since the Unix epoch.
    at: BTreeMap<i64, u64>,
    /// Offset after the last record of each partition.
    pub ends: BTreeMap<i32, i64>,
}

impl Arrived {
    /// When the first `count` records had arrived, and how many had by the end of
    /// that millisecond.
    pub fn when(&self, count: u64) -> Option<(i64, u64)> {
        let mut sum = 0;
        self.at.iter().find_map(|(at, arrived)| {
            sum += arrived;
            (sum >= count).then_some((*at, sum))
        })
    }

    /// When the last record arrived.
    pub fn end(&self) -> Option<i64> {
        self.at.keys().next_back().copied()
    }
}

/// Counts the records of one topic.
#[derive(Debug)]
pub struct Tally {
    records: Records,
    seen: Vec<bool>,
    /// Newest version seen of each document.
    versions: Vec<u64>,
    left: u64,
    arrived: Arrived,
}

impl Tally {
    /// Of a run with these records.
    ///
    /// # Errors
    /// When they are more than memory can hold.
    pub fn new(records: Records) -> anyhow::Result<Self> {
        Ok(Self {
            records,
            seen: vec![false; usize::try_from(records.count)?],
            versions: vec![0; usize::try_from(records.keys)?],
            left: records.count,
            arrived: Arrived::default(),
        })
    }

    /// Takes a record: its number, when it arrived, in milliseconds since the Unix
    /// epoch, and where it lies.
    ///
    /// # Errors
    /// When it is no record of this run, came before, or is older than one of its
    /// document that came before.
    pub fn take(&mut self, number: Option<u64>, at: i64, partition: i32, offset: i64) -> anyhow::Result<()> {
        let place = || format!("the record at offset {offset} of partition {partition}");
        let number = number.with_context(|| format!("{} is none of this run", place()))?;
        let seen = self.seen.get_mut(usize::try_from(number)?).context("a number above the count")?;
        ensure!(!*seen, "{} came before", place());
        *seen = true;
        let version = number / self.records.keys + 1;
        let newest = usize::try_from(number % self.records.keys)?;
        let newest = self.versions.get_mut(newest).context("a key above the count")?;
        ensure!(version > *newest, "{} is older than one of its key before it", place());
        *newest = version;
        *self.arrived.at.entry(at).or_default() += 1;
        self.arrived.ends.insert(partition, offset + 1);
        self.left -= 1;
        Ok(())
    }

    /// Whether all records have come.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }

    /// The error for those that have not.
    pub fn missing(&self) -> anyhow::Error {
        anyhow::anyhow!("{} of {} records are missing", self.left, self.records.count)
    }

    /// What has arrived.
    pub fn end(self) -> Arrived {
        self.arrived
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may")]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_record_is_that_of_its_millisecond() {
        let arrived = Arrived { at: BTreeMap::from([(10, 5), (12, 5), (20, 1)]), ends: BTreeMap::new() };
        assert_eq!(arrived.when(1), Some((10, 5)));
        assert_eq!(arrived.when(6), Some((12, 10)));
        assert_eq!(arrived.when(12), None);
        assert_eq!(arrived.end(), Some(20));
    }

    #[test]
    fn what_is_lost_twice_or_out_of_order_is_noticed() {
        // Two documents, each with two versions.
        let records = Records { count: 4, keys: 2 };
        let take = |tally: &mut Tally, number| tally.take(Some(number), 1, 0, 0).map_err(|error| error.to_string());
        let mut tally = Tally::new(records).unwrap();
        for number in [0, 2, 1] {
            assert_eq!(take(&mut tally, number), Ok(()));
        }
        assert!(!tally.is_complete() && tally.missing().to_string().starts_with("1 of 4"));
        assert!(take(&mut tally, 2).unwrap_err().contains("came before"));
        assert_eq!(take(&mut tally, 3), Ok(()));
        assert!(tally.is_complete());
        let mut tally = Tally::new(records).unwrap();
        assert_eq!(take(&mut tally, 2), Ok(()));
        assert!(take(&mut tally, 0).unwrap_err().contains("older"));
        assert!(tally.take(None, 1, 0, 0).is_err());
    }
}
