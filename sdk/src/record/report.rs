//! What became of what was sent, for whoever wants to know.
//!
//! Most reports are dropped unseen, so that one costs no more than a reference:
//! results are kept in a ledger, and only while somebody may ask for them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pipedoc_transport::log::{self, Delivered};

use crate::error::{Error, Result};

/// Results of what was sent, by the numbers of the sends.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Reports that may still ask.
    readers: AtomicUsize,
    page: Mutex<Page>,
}

#[derive(Debug, Default)]
struct Page {
    /// Results that were asked for or may be, by the first number of each.
    settled: BTreeMap<u64, Settled>,
    /// Nothing more is settled.
    closed: bool,
    wakers: Vec<Waker>,
}

/// Results of what was sent together, in order.
#[derive(Debug)]
pub(crate) enum Settled {
    /// One result for each record.
    Reports(log::Reports),
    /// All of them were taken, but where they lie is not known yet.
    Taken(usize),
}

impl Settled {
    fn len(&self) -> usize {
        match self {
            Self::Reports(reports) => reports.len(),
            Self::Taken(count) => *count,
        }
    }
}

impl Ledger {
    /// A report about these numbers. They must be settled together.
    pub(crate) fn report(self: &Arc<Self>, numbers: Range<u64>) -> Report {
        self.readers.fetch_add(1, Ordering::AcqRel);
        Report(Inner::Open { ledger: Arc::clone(self), numbers })
    }

    /// Results of the records from this number on.
    pub(crate) fn settle(&self, first: u64, settled: Settled) {
        if self.readers.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut page = self.page.lock();
        page.settled.insert(first, settled);
        page.wakers.drain(..).for_each(Waker::wake);
    }

    /// Nothing more is settled: whoever still asks hears that the step has stopped.
    pub(crate) fn close(&self) {
        let mut page = self.page.lock();
        page.closed = true;
        page.wakers.drain(..).for_each(Waker::wake);
    }

    fn poll(&self, numbers: &Range<u64>, context: &Context<'_>) -> Poll<Result<Vec<Delivered>>> {
        let mut page = self.page.lock();
        if let Some((first, settled)) = page.settled.range(..=numbers.start).next_back()
            && numbers.end <= first + settled.len() as u64
        {
            let reports = match settled {
                Settled::Taken(_) => return Poll::Ready(Ok(Vec::new())),
                Settled::Reports(reports) => reports,
            };
            let places = (numbers.start - first) as usize..(numbers.end - first) as usize;
            let delivered = reports.get(places).unwrap_or_default().iter().cloned().collect::<log::Result<_>>();
            return Poll::Ready(delivered.map_err(of_log));
        }
        if page.closed {
            return Poll::Ready(Err(Error::retryable("the batch was dropped before this was acknowledged")));
        }
        page.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

/// Resolves when the log has acknowledged what was sent: where each record lies,
/// in order; or why one could not be written. Under `delivery: EXACTLY_ONCE` it
/// resolves when the log has taken the records, and tells no places.
///
/// It may be dropped: nothing is taken back, and the commit waits all the same.
pub struct Report(Inner);

enum Inner {
    Open { ledger: Arc<Ledger>, numbers: Range<u64> },
    Failed(Option<Error>),
}

impl Report {
    pub(crate) fn failed(error: Error) -> Self {
        Self(Inner::Failed(Some(error)))
    }
}

impl Future for Report {
    type Output = Result<Vec<Delivered>>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Open { ledger, numbers } => ledger.poll(numbers, context),
            Inner::Failed(error) => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| Error::permanent("the report was taken already"))))
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Inner::Open { ledger, .. } = &self.0 {
            ledger.readers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Open { numbers, .. } => f.debug_tuple("Report").field(numbers).finish(),
            Inner::Failed(error) => f.debug_tuple("Report").field(error).finish(),
        }
    }
}

/// An error of the log as a module sees it.
pub(crate) fn of_log(error: log::Error) -> Error {
    if error.is_retryable() { Error::retryable(error) } else { Error::permanent(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(offset: i64) -> Delivered {
        Delivered { partition: 0, offset, timestamp: 0 }
    }

    #[tokio::test]
    async fn each_report_tells_of_its_own_records() {
        let ledger = Arc::new(Ledger::default());
        let (one, rest, later) = (ledger.report(0..1), ledger.report(1..3), ledger.report(3..4));
        ledger.settle(3, Settled::Reports(vec![Err(log::Error::Closed { what: "producer" })]));
        ledger.settle(0, Settled::Reports((0..3).map(|offset| Ok(delivered(offset))).collect()));
        assert_eq!(one.await.unwrap(), [delivered(0)]);
        assert_eq!(rest.await.unwrap(), [delivered(1), delivered(2)]);
        assert!(!later.await.unwrap_err().is_retryable());
    }

    #[tokio::test]
    async fn nothing_is_kept_when_nobody_asks() {
        let ledger = Arc::new(Ledger::default());
        drop(ledger.report(0..1));
        ledger.settle(0, Settled::Reports(vec![Ok(delivered(0))]));
        assert!(ledger.page.lock().settled.is_empty());
        let report = ledger.report(1..2);
        ledger.close();
        assert!(report.await.unwrap_err().is_retryable(), "an end is an answer too");
    }
}
