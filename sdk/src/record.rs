//! What a record module is given: raw batches and a way to pipe them on.
//!
//! Nothing is decoded here; values, keys and foreign headers pass as they are.
//!
//! ```no_run
//! use pipedoc_sdk::prelude::*;
//! # #[derive(Deserialize, JsonSchema)]
//! # struct Config {}
//! struct Router;
//!
//! impl RecordModule for Router {
//!     type Config = Config;
//!     const NAME: &'static str = "router";
//! #   async fn open(_: Config, _: &Step) -> Result<Self> { Ok(Self) }
//!
//!     async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
//!         for record in &batch.records {
//!             let to = if record.value.is_none() { "deletions" } else { "documents" };
//!             context.pipe(record, to); // the commit waits for it
//!         }
//!         Ok(())
//!     }
//! }
//! ```

mod message;
mod report;
mod transaction;

use std::fmt;

pub use message::Message;
pub use pipedoc_transport::log::{Delivered, Record, RecordBatch, TopicPartition};
pub use report::Report;
pub(crate) use report::{Ledger, Settled, of_log};

pub use transaction::Transaction;

use crate::error::{Error, Result};
use crate::module::Step;
use crate::runtime::records::Pipe;

/// What a record module may do with its batch.
pub struct RecordContext {
    pub(crate) pipe: Pipe,
}

impl RecordContext {
    pub(crate) fn new(pipe: Pipe) -> Self {
        Self { pipe }
    }

    /// The step that the module works for.
    #[must_use]
    pub fn step(&self) -> &Step {
        self.pipe.step()
    }

    /// The partition that the batch is of.
    #[must_use]
    pub fn partition(&self) -> &TopicPartition {
        self.pipe.source()
    }

    /// How many times this batch was tried before; 0 at first.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.pipe.attempt()
    }

    /// Pipes a record on, to the output or the allowed topic of this name: value,
    /// key and foreign headers as they are, the `source_*` headers set to where it
    /// came from, one more hop. Without a key, its partition follows the source's.
    /// [`RecordModule::enhance`](crate::module::RecordModule::enhance) may change it first.
    ///
    /// Await the report to know where the record lies (piping synchronously); drop
    /// it to go on at once. The commit waits for the acknowledgement either way, and
    /// a record that could not be piped fails the batch.
    pub fn pipe(&self, record: &Record, to: &str) -> Report {
        self.pipe.pipe(std::iter::once(record), to)
    }

    /// Pipes several records on, in order, with one report for all.
    pub fn pipe_many<'a>(&self, records: impl IntoIterator<Item = &'a Record>, to: &str) -> Report {
        self.pipe.pipe(records.into_iter(), to)
    }

    /// Sends something of the module's own, to the output or the allowed topic of
    /// this name, as it is. Reports and the commit are as with [`pipe`](Self::pipe).
    pub fn send(&self, message: Message, to: &str) -> Report {
        self.pipe.send(vec![message], to)
    }

    /// Sends several messages, in order, with one report for all.
    pub fn send_many(&self, messages: impl IntoIterator<Item = Message>, to: &str) -> Report {
        self.pipe.send(messages.into_iter().collect(), to)
    }

    /// Marks one record of the batch as done: it does not come again when the batch
    /// fails, provided that everything that the batch has piped was acknowledged.
    ///
    /// # Errors
    /// Permanent: the record is not of this batch.
    pub fn mark_as_consumed(&self, record: &Record) -> Result<()> {
        if self.pipe.mark(record.offset) { Ok(()) } else { Err(not_in_batch(&self.pipe, record)) }
    }

    /// Does what the closure pipes, sends and marks as one: all of it is seen at once,
    /// or none of it when the closure fails or [aborts](Transaction::abort). Gives
    /// where the records lie. What stands outside the closure belongs to the batch's
    /// own transaction, which follows when the batch is done.
    ///
    /// ```no_run
    /// # use pipedoc_sdk::prelude::*;
    /// # async fn process(batch: &RecordBatch, context: &RecordContext) -> Result<()> {
    /// for record in &batch.records {
    ///     context
    ///         .transaction(|tx| async move {
    ///             tx.pipe(record, "out").await?;
    ///             tx.mark_as_consumed(record)
    ///         })
    ///         .await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The closure's own; what could not be committed. Permanent in a step without
    /// `delivery: EXACTLY_ONCE`.
    pub async fn transaction<F, Fut>(&self, work: F) -> Result<Vec<Delivered>>
    where
        F: FnOnce(Transaction) -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let Some(branch) = self.pipe.branch() else {
            let (step, delivery) = (self.step().id(), self.pipe.delivery());
            return Err(Error::permanent(format!(
                "a transaction needs `delivery: EXACTLY_ONCE`; step {step} has `delivery: {delivery}`"
            ))
            .with_kind("no-transactions"));
        };
        let transaction = Transaction::new(branch);
        work(transaction.clone()).await?;
        if transaction.is_aborted() {
            transaction.pipe_of().end();
            return Ok(Vec::new());
        }
        self.pipe.commit(transaction.pipe_of()).await
    }
}

/// Says that a record is not of a batch.
fn not_in_batch(pipe: &Pipe, record: &Record) -> Error {
    let (offset, source) = (record.offset, pipe.source());
    Error::permanent(format!("offset {offset} is not one of this batch of {source}")).with_kind("not-in-batch")
}

impl fmt::Debug for RecordContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordContext")
            .field("step", self.step().id())
            .field("partition", self.partition())
            .field("attempt", &self.attempt())
            .finish()
    }
}
