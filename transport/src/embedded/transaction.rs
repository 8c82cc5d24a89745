//! Transactions of the embedded logs: buffered here, written at once by the
//! backend when they commit. What they may hold is bounded, since it is held in
//! memory.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::consumer::check_metadata;
use super::outgoing::weight;
use super::{Backend, MemberOffsets, MemberSnapshot, OwnedCommit};
use crate::error::{Error, Result};
use crate::log::{Commit, Delivered, GroupMetadata, OutgoingRecord, Transactional, TransactionalConfig};

/// Bytes that a transaction may hold.
const LIMIT: usize = 128 << 20;

/// A transactional producer over some backend.
///
/// ```text
///   Idle ──begin──▶ Open ──commit, abort──▶ Idle
///                    │ error
///                    ▼
///                  Failed ──abort──▶ Idle         any ──fenced──▶ Fenced
/// ```
pub(crate) struct Buffered<B: Backend> {
    backend: Arc<B>,
    config: TransactionalConfig,
    epoch: i64,
    state: State,
}

enum State {
    Idle,
    Open(Opened),
    Failed,
    Fenced,
}

/// What an open transaction has taken.
struct Opened {
    since: Instant,
    /// Bytes of the records, about.
    weight: usize,
    records: Vec<OutgoingRecord>,
    offsets: Vec<MemberOffsets>,
}

impl<B: Backend> Buffered<B> {
    /// Takes the transactional id.
    pub(crate) async fn open(backend: Arc<B>, config: TransactionalConfig) -> Result<Self> {
        let epoch = backend.fence(&config.transactional_id).await?;
        Ok(Self { backend, config, epoch, state: State::Idle })
    }

    fn fenced(&self) -> Error {
        Error::Fenced { who: format!("transactional id {}", self.config.transactional_id) }
    }

    /// What an operation that needs an open transaction gets without one.
    fn misuse(&self, operation: &'static str) -> Error {
        match self.state {
            State::Fenced => self.fenced(),
            State::Failed => Error::Misuse { operation, reason: "the transaction has failed; abort it" },
            State::Idle | State::Open(_) => Error::Misuse { operation, reason: "no transaction is open" },
        }
    }
}

#[async_trait]
impl<B: Backend> Transactional for Buffered<B> {
    async fn begin(&mut self) -> Result<()> {
        match self.state {
            State::Idle => {
                self.state =
                    State::Open(Opened { since: Instant::now(), weight: 0, records: Vec::new(), offsets: Vec::new() });
                Ok(())
            }
            State::Open(_) => Err(Error::Misuse { operation: "begin", reason: "a transaction is open already" }),
            State::Failed | State::Fenced => Err(self.misuse("begin")),
        }
    }

    async fn send(&mut self, more: Vec<OutgoingRecord>) -> Result<()> {
        let State::Open(opened) = &mut self.state else { return Err(self.misuse("send")) };
        opened.weight += more.iter().map(weight).sum::<usize>();
        let checked = if opened.weight > LIMIT {
            Err(Error::TransactionTooLarge {
                who: format!("transactional id {}", self.config.transactional_id),
                limit: LIMIT,
            })
        } else {
            self.backend.check(&more).await
        };
        match checked {
            Ok(()) => opened.records.extend(more),
            // What it held is let go at once.
            Err(_) => self.state = State::Failed,
        }
        checked
    }

    async fn send_offsets(&mut self, commits: Vec<Commit>, member: &GroupMetadata) -> Result<()> {
        if !matches!(self.state, State::Open(_)) {
            return Err(self.misuse("send_offsets"));
        }
        let Some(snapshot) = member.0.downcast_ref::<MemberSnapshot>() else {
            self.state = State::Failed;
            return Err(Error::Misuse { operation: "send_offsets", reason: "the group metadata is another log's" });
        };
        let owned: Result<Vec<OwnedCommit>> = check_metadata(&commits).and_then(|()| {
            let with_epoch = commits.into_iter().map(|commit| match snapshot.epochs.get(&commit.source) {
                Some(epoch) => Ok(OwnedCommit { commit, epoch: *epoch }),
                None => Err(Error::Fenced { who: format!("a member of group {}", snapshot.group) }),
            });
            with_epoch.collect()
        });
        match (owned, &mut self.state) {
            (Ok(commits), State::Open(opened)) => {
                opened.offsets.push(MemberOffsets { group: snapshot.group.clone(), member: snapshot.member, commits });
                Ok(())
            }
            (Ok(_), _) => Err(self.misuse("send_offsets")),
            (Err(error), _) => {
                self.state = State::Failed;
                Err(error)
            }
        }
    }

    async fn commit(&mut self) -> Result<Vec<Delivered>> {
        // Until the backend has answered the outcome is open: a commit that is
        // cancelled in between leaves a transaction that can only be aborted.
        let Opened { since, records, offsets, .. } = match std::mem::replace(&mut self.state, State::Failed) {
            State::Open(opened) => opened,
            other => {
                self.state = other;
                return Err(self.misuse("commit"));
            }
        };
        if since.elapsed() > self.config.timeout {
            return Err(Error::TimedOut {
                operation: "commit",
                target: format!("transactional id {}", self.config.transactional_id),
                waited: self.config.timeout,
            });
        }
        let written = self.backend.write(&self.config.transactional_id, self.epoch, records, offsets).await;
        match &written {
            Ok(_) => self.state = State::Idle,
            Err(Error::Fenced { who }) if who.starts_with("transactional id") => self.state = State::Fenced,
            Err(_) => {}
        }
        written
    }

    async fn abort(&mut self) -> Result<()> {
        match self.state {
            State::Open(_) | State::Failed => {
                self.state = State::Idle;
                Ok(())
            }
            State::Idle | State::Fenced => Err(self.misuse("abort")),
        }
    }
}
