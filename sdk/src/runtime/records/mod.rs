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

mod attempt;
mod counter;
mod exact;
mod owned;
mod pipe;
mod progress;
mod pump;
mod sending;
mod worker;

use std::sync::Arc;

pub(crate) use exact::Exact;
use parking_lot::Mutex;
pub(crate) use pipe::Pipe;
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
    /// What makes going on with these clients impossible.
    fatal: Mutex<Option<Error>>,
    /// Under `delivery: EXACTLY_ONCE`.
    exact: Option<Arc<Exact>>,
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
        Self { shop, program, producer, board, hands, news: Notify::new(), fatal: Mutex::default(), exact }
    }
}
