//! A transaction within a batch, as a module sees it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Message, Record, Report, not_in_batch};
use crate::error::Result;
use crate::runtime::records::Pipe;

/// What is piped, sent and marked here is done as one, or not at all. Clones are the
/// same transaction.
#[derive(Clone)]
pub struct Transaction(Arc<Inner>);

struct Inner {
    pipe: Pipe,
    aborted: AtomicBool,
}

impl Transaction {
    pub(crate) fn new(pipe: Pipe) -> Self {
        Self(Arc::new(Inner { pipe, aborted: AtomicBool::new(false) }))
    }

    pub(crate) fn pipe_of(&self) -> &Pipe {
        &self.0.pipe
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.0.aborted.load(Ordering::Acquire)
    }

    /// As [`RecordContext::pipe`](super::RecordContext::pipe). Awaiting the report
    /// waits only until the record is taken, and gives no place: those are the result
    /// of the transaction.
    pub fn pipe(&self, record: &Record, to: &str) -> Report {
        self.0.pipe.pipe(std::iter::once(record), to)
    }

    /// As [`RecordContext::pipe_many`](super::RecordContext::pipe_many).
    pub fn pipe_many<'a>(&self, records: impl IntoIterator<Item = &'a Record>, to: &str) -> Report {
        self.0.pipe.pipe(records.into_iter(), to)
    }

    /// As [`RecordContext::send`](super::RecordContext::send).
    pub fn send(&self, message: Message, to: &str) -> Report {
        self.0.pipe.send(vec![message], to)
    }

    /// As [`RecordContext::send_many`](super::RecordContext::send_many).
    pub fn send_many(&self, messages: impl IntoIterator<Item = Message>, to: &str) -> Report {
        self.0.pipe.send(messages.into_iter().collect(), to)
    }

    /// Marks one record of the batch as done, together with everything else here.
    ///
    /// # Errors
    /// Permanent: the record is not of this batch.
    pub fn mark_as_consumed(&self, record: &Record) -> Result<()> {
        if self.0.pipe.mark(record.offset) { Ok(()) } else { Err(not_in_batch(&self.0.pipe, record)) }
    }

    /// Undoes all of it when the closure returns, also without an error.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("aborted", &self.is_aborted()).finish_non_exhaustive()
    }
}
