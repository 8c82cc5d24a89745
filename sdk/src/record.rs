//! What a record module is given: raw batches and a way to pipe them on.
//!
//! Nothing is decoded here; values, keys and foreign headers pass as they are.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

pub use pipedoc_transport::log::{Delivered, Record, RecordBatch};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::module::Step;
use crate::runtime::records::Pipe;

/// What a record module may do with its batch.
pub struct RecordContext {
    step: Step,
    attempt: u32,
    pub(crate) pipe: Pipe,
}

impl RecordContext {
    pub(crate) fn new(step: Step, attempt: u32, pipe: Pipe) -> Self {
        Self { step, attempt, pipe }
    }

    /// The step that the module works for.
    #[must_use]
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// How many times this batch was tried before; 0 at first.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Pipes a record on, to the output or the allowed topic of this name: value,
    /// key and foreign headers as they are, the `source_*` headers set to where it
    /// came from, one more hop. Without a key, its partition follows the source's.
    ///
    /// The report may be dropped: the commit waits for the acknowledgement all the
    /// same, and a record that could not be piped fails the batch.
    pub fn pipe(&self, record: &Record, to: &str) -> Report {
        self.pipe.send([record], to)
    }

    /// Pipes several records on, in order, with one report for all.
    pub fn pipe_many<'a>(&self, records: impl IntoIterator<Item = &'a Record>, to: &str) -> Report {
        self.pipe.send(records, to)
    }
}

impl fmt::Debug for RecordContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordContext").field("step", self.step.id()).field("attempt", &self.attempt).finish()
    }
}

/// Resolves when the log has acknowledged what was piped: where each record lies,
/// in order; or why one could not be written.
#[derive(Debug)]
pub struct Report(Inner);

#[derive(Debug)]
enum Inner {
    Open(oneshot::Receiver<pipedoc_transport::log::Result<Vec<Delivered>>>),
    Failed(Option<Error>),
}

impl Report {
    pub(crate) fn new(report: oneshot::Receiver<pipedoc_transport::log::Result<Vec<Delivered>>>) -> Self {
        Self(Inner::Open(report))
    }

    pub(crate) fn failed(error: Error) -> Self {
        Self(Inner::Failed(Some(error)))
    }
}

impl Future for Report {
    type Output = Result<Vec<Delivered>>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Open(report) => Pin::new(report).poll(context).map(|result| match result {
                Ok(Ok(delivered)) => Ok(delivered),
                Ok(Err(error)) if error.is_retryable() => Err(Error::retryable(error)),
                Ok(Err(error)) => Err(Error::permanent(error)),
                Err(_) => Err(Error::retryable("the step has stopped")),
            }),
            Inner::Failed(error) => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| Error::permanent("the report was taken already"))))
            }
        }
    }
}
