//! Reads records for an application, as a member of a group.
//!
//! What was marked is committed once a second, when partitions move, and at the end.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    self, Commit, ConsumerConfig, Event, Log, Record, RecordBatch, Start, Subscription, TopicPartition,
};
use tokio::time::Instant;

use crate::error::Result;
use crate::record::of_log;

/// How often marks are committed while records come.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// What a consumer reads, and how.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// The group that shares the topics' partitions and whose offsets are kept.
    pub group: String,
    /// Topics by name. One that does not exist yet is awaited.
    pub topics: Vec<Topic>,
    /// Topics by pattern: whole names, Rust regex syntax. Dead letters, connector
    /// state and replies never match.
    pub patterns: Vec<regex::Regex>,
    /// Where a partition begins in which the group has no offset. Default: earliest.
    pub start: Start,
    /// Name of the member, for people. Default: the group's.
    pub client_id: String,
    /// A batch holds at most so many records. Default 500.
    pub max_records: usize,
    /// Further settings of the log's client, by its own names.
    pub settings: BTreeMap<String, String>,
}

impl ConsumerOptions {
    /// A member of a group that reads these topics.
    #[must_use]
    pub fn new(group: impl Into<String>, topics: impl IntoIterator<Item = Topic>) -> Self {
        let group = group.into();
        Self {
            client_id: group.clone(),
            group,
            topics: topics.into_iter().collect(),
            patterns: Vec::new(),
            start: Start::Earliest,
            max_records: 500,
            settings: BTreeMap::new(),
        }
    }
}

/// Reads batches of records, one partition's at a time.
pub struct Consumer {
    log: Arc<dyn log::Consumer>,
    /// What was marked and is not committed yet: the offset after it.
    marked: BTreeMap<TopicPartition, i64>,
    last_commit: Instant,
    news: VecDeque<PartitionNews>,
}

/// What has happened to a consumer's partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionNews {
    /// They came.
    Assigned(Vec<TopicPartition>),
    /// They went; what was marked in them is committed.
    Revoked(Vec<TopicPartition>),
    /// They were lost; what was marked in them may come again elsewhere.
    Lost(Vec<TopicPartition>),
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("marked", &self.marked).finish()
    }
}

impl Consumer {
    /// Joins a group.
    ///
    /// # Errors
    /// When the log cannot be used, or does not know a setting.
    pub async fn open(log: &Arc<dyn Log>, options: ConsumerOptions) -> Result<Self> {
        let ConsumerOptions { group, topics, patterns, start, client_id, max_records, settings } = options;
        let mut config = ConsumerConfig::new(client_id, Subscription::Group { group, topics, patterns, start });
        config.max_records = max_records;
        config.settings = settings;
        let log = log.consumer(config).await.map_err(of_log)?;
        Ok(Self { log, marked: BTreeMap::new(), last_commit: Instant::now(), news: VecDeque::new() })
    }

    /// Waits for the next batch; never empty. Commits now and then what was marked
    /// before. Cancelling it loses nothing.
    ///
    /// # Errors
    /// One that may be retried leaves the consumer usable; after any other, open a
    /// new one.
    pub async fn next(&mut self) -> Result<RecordBatch> {
        loop {
            let due = (!self.marked.is_empty()).then_some(self.last_commit + COMMIT_EVERY);
            if due.is_some_and(|due| due <= Instant::now()) {
                self.commit().await?;
                continue;
            }
            let event = tokio::select! {
                event = self.log.next() => event.map_err(of_log)?,
                () = sleep_until(due) => continue,
            };
            match event {
                Event::Records(batch) => return Ok(batch),
                Event::Assigned(partitions) => {
                    let sources: Vec<_> = partitions.into_iter().map(|partition| partition.source).collect();
                    self.marked.retain(|source, _| !sources.contains(source));
                    self.news.push_back(PartitionNews::Assigned(sources));
                }
                Event::Revoked(revocation) => {
                    let sources = revocation.partitions.clone();
                    let committed = self.commit().await;
                    self.marked.retain(|source, _| !sources.contains(source));
                    revocation.release();
                    self.news.push_back(PartitionNews::Revoked(sources));
                    committed?;
                }
                Event::Lost(sources) => {
                    self.marked.retain(|source, _| !sources.contains(source));
                    self.news.push_back(PartitionNews::Lost(sources));
                }
                Event::EndOfPartition { .. } => {}
                Event::OffsetsGone { source, wanted, resumed_at } => {
                    tracing::warn!(%source, wanted, resumed_at, "records are gone that were to be read");
                }
            }
        }
    }

    /// What has happened to partitions meanwhile, oldest first.
    pub fn partition_news(&mut self) -> Option<PartitionNews> {
        self.news.pop_front()
    }

    /// Marks all of a batch, and with it all that came before it in its partition.
    pub fn mark_as_consumed(&mut self, batch: &RecordBatch) {
        if let Some(last) = batch.records.last() {
            self.mark_record_as_consumed(&batch.source, last);
        }
    }

    /// Marks a record, and with it all that came before it in its partition.
    pub fn mark_record_as_consumed(&mut self, source: &TopicPartition, record: &Record) {
        let marked = self.marked.entry(source.clone()).or_insert(0);
        *marked = (*marked).max(record.offset + 1);
    }

    /// Commits now what was marked.
    ///
    /// # Errors
    /// When it could not be committed; it is tried again with the next commit.
    pub async fn commit(&mut self) -> Result<()> {
        self.last_commit = Instant::now();
        let commit = |(source, offset): (&TopicPartition, &i64)| {
            let metadata = String::new();
            Commit { source: source.clone(), offset: *offset, metadata }
        };
        let commits: Vec<Commit> = self.marked.iter().map(commit).collect();
        if commits.is_empty() {
            return Ok(());
        }
        self.log.commit(commits).await.map_err(of_log)?;
        self.marked.clear();
        Ok(())
    }

    /// Hands out nothing of these partitions until [`resume`](Self::resume).
    pub fn pause(&self, partitions: &[TopicPartition]) {
        self.log.pause(partitions);
    }

    /// Takes [`pause`](Self::pause) back.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        self.log.resume(partitions);
    }

    /// Goes on at another place of a partition.
    ///
    /// # Errors
    /// When the partition is not this member's, or the log cannot be used.
    pub async fn seek(&mut self, partition: &TopicPartition, to: Start) -> Result<()> {
        self.marked.remove(partition);
        self.log.seek(partition, to).await.map_err(of_log)
    }

    /// Commits what was marked and leaves the group.
    ///
    /// # Errors
    /// When it could not be committed; the group is left all the same.
    pub async fn close(mut self) -> Result<()> {
        let committed = self.commit().await;
        let closed = self.log.close().await.map_err(of_log);
        committed.and(closed)
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
