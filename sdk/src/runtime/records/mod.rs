//! Moves raw records through record modules, a batch of one partition at a time.
//!
//! ```text
//! consumer ─▶ pump ─▶ worker of the partition ─▶ module ─▶ producer
//!              ▲                                              │
//!              └── watermark ◀── reports, in order of batches ◀┘
//! ```
//!
//! Decodes nothing. One task ([`pump`]) owns the consumer, the flow and the
//! commits; each partition has a task of its own ([`worker`]) that holds its open
//! batches and tries, marks, buries and settles them; [`pipe`] makes records of
//! what a module pipes. Batches of a partition follow each other without waiting
//! for acknowledgements; when something could not be written, that batch and all
//! after it are done anew, from memory, in order.
//!
//! A partition that stands still (`on_exhausted: PAUSE`, `stop_at_failure_rate`)
//! keeps what it has in memory; resumed, it tries that again, with all attempts.
//! Under `AT_MOST_ONCE` a batch waits until its end is committed, what it pipes is
//! sent when it has returned, and whatever becomes of that, it is not sent again.

mod attempt;
mod counter;
mod exact;
mod first;
mod fuse;
mod owned;
mod pipe;
mod progress;
mod pump;
mod sending;
mod stops;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use exact::Exact;
use fuse::Fuse;
use parking_lot::Mutex;
pub(crate) use pipe::Pipe;
use pipedoc_model::step::Delivery;
use pipedoc_transport::log::Producer;
pub(crate) use pump::RecordPump;
use tokio::sync::{Notify, Semaphore};

use super::status::Board;
use super::work::Workshop;
use crate::error::Error;
use crate::factory::WorksOnRecords;

/// What the tasks of a step share.
pub(crate) struct Station {
    shop: Arc<Workshop>,
    program: Arc<dyn WorksOnRecords>,
    producer: Arc<dyn Producer>,
    board: Arc<Board>,
    /// Batches that may be in the module's hands at once.
    hands: Arc<Semaphore>,
    /// A worker has news for the pump.
    news: Notify,
    /// How often something came, went, came to stand still or went on.
    changes: AtomicU64,
    /// What makes going on with these clients impossible.
    fatal: Mutex<Option<Error>>,
    /// Under `delivery: EXACTLY_ONCE`.
    exact: Option<Arc<Exact>>,
    fuse: Fuse,
}

impl Station {
    /// `concurrency` is at least 1.
    pub(crate) fn new(
        shop: Arc<Workshop>,
        program: Arc<dyn WorksOnRecords>,
        producer: Arc<dyn Producer>,
        board: Arc<Board>,
        concurrency: usize,
        exact: Option<Exact>,
    ) -> Self {
        let exact = exact.map(Arc::new);
        let hands = Arc::new(Semaphore::new(concurrency.max(1)));
        let fuse = Fuse::new(shop.plan.stop_at_failure_rate);
        let (news, changes, fatal) = (Notify::new(), AtomicU64::new(0), Mutex::default());
        Self { shop, program, producer, board, hands, news, changes, fatal, exact, fuse }
    }

    /// A partition came, went, came to stand still or went on.
    fn has_changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Grows with each such change.
    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Whether batches are committed before they are worked on.
    fn commits_first(&self) -> bool {
        self.shop.plan.delivery == Delivery::AtMostOnce
    }

    /// Whether what a batch pipes is kept until it has returned without error.
    fn gathers(&self) -> bool {
        self.exact.is_some() || self.commits_first()
    }
}
