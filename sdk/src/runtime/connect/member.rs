//! Whether this instance owns a connector's state: a member of the connector's group,
//! which reads nothing.

use std::sync::Arc;

use pipedoc_transport::log::{self, Consumer, Event as LogEvent, Revocation, TopicPartition};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::runtime::retry;
use crate::runtime::status::{Board, Obstacle};

/// This instance's membership in the connector's group.
pub(super) struct Member {
    pub(super) consumer: Arc<dyn Consumer>,
    board: Arc<Board>,
    home: TopicPartition,
    failures: u32,
}

/// What happens to the ownership of the state.
pub(super) enum Change {
    Owned,
    Taken(Revocation),
    Lost,
}

impl Member {
    /// A member that owns `home` or does not.
    pub(super) fn new(consumer: Arc<dyn Consumer>, board: Arc<Board>, home: TopicPartition) -> Self {
        Self { consumer, board, home, failures: 0 }
    }

    /// Waits for a change. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Result<Change> {
        loop {
            match self.consumer.next().await {
                Ok(event) => {
                    self.failures = 0;
                    self.board.heard(&event);
                    if let Some(change) = self.change(event) {
                        return Ok(change);
                    }
                }
                Err(error) if error.is_retryable() => {
                    self.failures = self.failures.saturating_add(1);
                    self.trouble(error);
                    tokio::time::sleep(retry::backoff(&retry::patient(), self.failures)).await;
                }
                Err(error) => return Err(Error::from(error).context("membership in the group ended")),
            }
        }
    }

    fn change(&self, event: LogEvent) -> Option<Change> {
        match event {
            LogEvent::Assigned(assigned) => {
                let sources: Vec<TopicPartition> = assigned.into_iter().map(|partition| partition.source).collect();
                // Membership says who runs; the records are read by another client.
                self.consumer.pause(&sources);
                let owned = sources.contains(&self.home);
                if owned {
                    self.board.progress(0, false, self.partitions(), Vec::new());
                }
                self.board.event(&Event::Assigned(sources));
                self.board.event(&Event::Rebalanced { owned: owned.then(|| self.home.clone()).into_iter().collect() });
                owned.then_some(Change::Owned)
            }
            LogEvent::Revoked(revocation) => {
                self.board.event(&Event::Revoked(revocation.partitions.clone()));
                if !revocation.partitions.contains(&self.home) {
                    return None;
                }
                self.board.progress(0, false, std::iter::empty(), Vec::new());
                self.board.event(&Event::Rebalanced { owned: Vec::new() });
                Some(Change::Taken(revocation))
            }
            LogEvent::Lost(sources) => {
                let home = sources.contains(&self.home);
                self.board.event(&Event::Lost(sources));
                if !home {
                    return None;
                }
                self.board.progress(0, false, std::iter::empty(), Vec::new());
                self.board.event(&Event::Rebalanced { owned: Vec::new() });
                Some(Change::Lost)
            }
            LogEvent::Records(_) | LogEvent::EndOfPartition { .. } | LogEvent::OffsetsGone { .. } => None,
        }
    }

    /// The partition owned. It has no lag: it is a ticket, not an input.
    pub(super) fn partitions(&self) -> impl Iterator<Item = (TopicPartition, i64)> + use<> {
        std::iter::once((self.home.clone(), i64::MAX))
    }

    fn trouble(&self, error: log::Error) {
        let obstacle = Obstacle::to_reading(&error);
        self.board.hindered(obstacle, &Error::from(error).context("the group cannot be reached; it is tried again"));
    }
}
