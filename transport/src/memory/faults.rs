//! Faults on demand, so that hard cases are unit tests. Knows only what is to
//! fail; the log asks at the places where it can.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Where a fault can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Send,
    Commit,
    Transaction,
    Read,
    Ack,
    LostAck,
}

impl Place {
    fn operation(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Commit => "commit",
            Self::Transaction => "transaction",
            Self::Read => "read",
            Self::Ack | Self::LostAck => "acknowledge",
        }
    }
}

#[derive(Debug, Default)]
struct Planned {
    left: usize,
    retryable: bool,
}

/// Fault switches of a [`MemoryLog`](super::MemoryLog); clones share them.
///
/// Each `fail_…` replaces what was asked for before at the same place; 0 turns
/// it off. Faults strike as [`Error::Injected`].
#[derive(Debug, Clone)]
pub struct Faults {
    planned: Arc<Mutex<[Planned; 6]>>,
    hold: Arc<watch::Sender<bool>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: Arc::default(), hold: Arc::new(watch::Sender::new(false)) }
    }
}

impl Faults {
    /// The next `n` calls of a producer's `send` fail; nothing of them is taken.
    pub fn fail_sends(&self, n: usize, retryable: bool) {
        self.plan(Place::Send, n, retryable);
    }

    /// The next `n` records sent outside transactions are reported as failed and
    /// are not stored.
    pub fn fail_acks(&self, n: usize, retryable: bool) {
        self.plan(Place::Ack, n, retryable);
    }

    /// The next `n` records sent outside transactions are stored and yet
    /// reported as failed, as when an acknowledgement is lost on its way.
    pub fn lose_acks(&self, n: usize, retryable: bool) {
        self.plan(Place::LostAck, n, retryable);
    }

    /// The next `n` commits of consumers fail; nothing of them is written.
    pub fn fail_commits(&self, n: usize, retryable: bool) {
        self.plan(Place::Commit, n, retryable);
    }

    /// The next `n` commits of transactions fail; nothing of them is written.
    pub fn fail_transactions(&self, n: usize, retryable: bool) {
        self.plan(Place::Transaction, n, retryable);
    }

    /// The next `n` reads fail; consumers' `next` reports them.
    pub fn fail_reads(&self, n: usize, retryable: bool) {
        self.plan(Place::Read, n, retryable);
    }

    /// From now on records are stored, but their receipts wait for
    /// [`release_acks`](Self::release_acks).
    pub fn hold_acks(&self) {
        self.hold.send_replace(true);
    }

    /// Settles all held receipts, and later ones at once again.
    pub fn release_acks(&self) {
        self.hold.send_replace(false);
    }

    fn plan(&self, place: Place, left: usize, retryable: bool) {
        self.planned.lock()[place as usize] = Planned { left, retryable };
    }

    /// Fails if a fault is planned here.
    pub(super) fn strike(&self, place: Place) -> Result<()> {
        let planned = &mut self.planned.lock()[place as usize];
        if planned.left == 0 {
            return Ok(());
        }
        planned.left -= 1;
        Err(Error::Injected { operation: place.operation(), retryable: planned.retryable })
    }

    /// Waits while acknowledgements are held.
    pub(super) async fn acknowledged(&self) {
        // The sender lives as long as self, so waiting cannot fail.
        let _ = self.hold.subscribe().wait_for(|held| !held).await;
    }
}
