//! The desks of a step, and what each is writing.

use std::sync::Arc;

use futures::FutureExt;
use pipedoc_transport::log::{self, Consumer, TopicPartition};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::COMMIT_EVERY;
use super::desk::{Desk, Office, Unwritten};
use super::parcel::Parcel;
use crate::error::Error;
use crate::event::Event;
use crate::runtime::outbox::is_of_the_record;
use crate::runtime::retry;
use crate::runtime::status::{Board, Obstacle};

/// So many failures in a row that should not pass are taken for lasting.
const MOST_FAILURES: u32 = 5;

/// A transaction that has ended: at which desk, what it was to write, how it went.
#[derive(Debug)]
pub(crate) struct Ended<T> {
    desk: usize,
    parcel: Parcel<T>,
    outcome: Outcome,
}

/// What came of a parcel.
#[derive(Debug)]
enum Outcome {
    Written,
    /// Nothing was heard of its commit. Since then the log has told what is written, by
    /// claim.
    Settled(Vec<bool>, log::Error),
    /// Nothing of it is written.
    Aborted(log::Error),
    /// These clients cannot go on.
    Fatal(log::Error),
}

/// What a transaction that has ended means.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Which of the parcel's claims are written; one that is missing is not.
    written: Vec<bool>,
    /// Why the log refuses records of it, where it does.
    pub(crate) refusal: Option<log::Error>,
    /// What makes going on with these clients impossible.
    pub(crate) fatal: Option<Error>,
}

impl Verdict {
    /// Whether a claim is written.
    pub(crate) fn is_written(&self, claim: usize) -> bool {
        self.written.get(claim).copied().unwrap_or(false)
    }
}

/// The desks of a step.
pub(crate) struct Desks<T>(Vec<Booth<T>>);

/// A desk, and what it does.
struct Booth<T> {
    /// Away while it writes, and for good once it has broken.
    desk: Option<Desk>,
    writing: Option<Writing<T>>,
    /// When the last transaction began.
    last: Instant,
    failures: u32,
    not_before: Option<Instant>,
    /// How many entries are written on their own, as one of them was refused.
    singly: usize,
}

/// A transaction that is being written. Dropped, it is aborted.
struct Writing<T> {
    task: JoinHandle<(Desk, Parcel<T>, Outcome)>,
    sources: Vec<TopicPartition>,
    entries: usize,
    bytes: usize,
}

impl<T> Drop for Writing<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: Send + 'static> Desks<T> {
    /// Several, to write for partitions side by side: while one commits, others take
    /// what comes. Takes their transactional ids, so that what an earlier life of their
    /// holder left open has ended before anything is read.
    ///
    /// # Errors
    /// When the log refuses.
    pub(crate) async fn several(office: Office) -> log::Result<Self> {
        Self::open(office, std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, 4)).await
    }

    /// As [`several`](Self::several), but one alone, whose transactions follow each other.
    ///
    /// # Errors
    /// When the log refuses.
    pub(crate) async fn one(office: Office) -> log::Result<Self> {
        Self::open(office, 1).await
    }

    async fn open(office: Office, number: usize) -> log::Result<Self> {
        let office = Arc::new(office);
        let now = Instant::now();
        let mut booths = Vec::new();
        for _ in 0..number {
            let mut desk = office.desk();
            desk.open().await?;
            let last = now.checked_sub(COMMIT_EVERY).unwrap_or(now);
            booths.push(Booth { desk: Some(desk), writing: None, last, failures: 0, not_before: None, singly: 0 });
        }
        Ok(Self(booths))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a desk takes no parcel now.
    pub(crate) fn is_busy(&self, desk: usize) -> bool {
        self.0.get(desk).is_none_or(|booth| booth.desk.is_none())
    }

    /// Whether a transaction over a partition is open.
    pub(crate) fn is_writing(&self, source: &TopicPartition) -> bool {
        self.writings().any(|writing| writing.sources.contains(source))
    }

    /// Whether a desk has failed the last time.
    pub(crate) fn is_failing(&self) -> bool {
        self.0.iter().any(|booth| booth.failures > 0)
    }

    /// How many deliveries are in open transactions.
    pub(crate) fn entries(&self) -> usize {
        self.writings().map(|writing| writing.entries).sum()
    }

    /// Bytes of values in open transactions.
    pub(crate) fn bytes(&self) -> usize {
        self.writings().map(|writing| writing.bytes).sum()
    }

    fn writings(&self) -> impl Iterator<Item = &Writing<T>> {
        self.0.iter().filter_map(|booth| booth.writing.as_ref())
    }

    /// When a desk's last transaction began.
    pub(crate) fn last(&self, desk: usize) -> Option<Instant> {
        self.0.get(desk).map(|booth| booth.last)
    }

    /// Until when a desk rests, as it has failed.
    pub(crate) fn rests_until(&self, desk: usize) -> Option<Instant> {
        self.0.get(desk).and_then(|booth| booth.not_before)
    }

    /// How many entries a transaction may hold, as one of many may be refused.
    pub(crate) fn most(&self, desk: usize) -> usize {
        if self.0.get(desk).is_some_and(|booth| booth.singly > 0) { 1 } else { usize::MAX }
    }

    /// Begins to write a parcel; an empty one is not written, but was looked for.
    pub(crate) fn begin(&mut self, desk: usize, parcel: Parcel<T>, consumer: &Arc<dyn Consumer>, now: Instant) {
        let Some(booth) = self.0.get_mut(desk) else { return };
        booth.last = now;
        // Where nothing can be named for now, it is looked again later.
        booth.not_before = parcel.is_empty().then(|| now + COMMIT_EVERY);
        if parcel.is_empty() {
            return;
        }
        let Some(mut desk) = booth.desk.take() else { return };
        booth.singly = booth.singly.saturating_sub(parcel.len());
        // As the member is now: a transaction over what it does not own later is fenced.
        let member = consumer.group_metadata();
        let sources = parcel.claims.iter().map(|claim| claim.commit.source.clone()).collect();
        let (entries, bytes) = (parcel.len(), parcel.bytes());
        let task = tokio::spawn(async move {
            let commits = parcel.commits();
            let written = desk.write(&parcel.records, commits.clone(), member).await;
            let outcome = match written {
                Ok(_) => Outcome::Written,
                Err(Unwritten { error, .. }) if is_lasting(&error) => Outcome::Fatal(error),
                Err(Unwritten { error, in_doubt: false }) => Outcome::Aborted(error),
                Err(Unwritten { error, in_doubt: true }) => settle(&mut desk, &commits, error).await,
            };
            (desk, parcel, outcome)
        });
        booth.writing = Some(Writing { task, sources, entries, bytes });
    }

    /// Waits until a transaction has ended; for ever while none is open. Cancelling it
    /// loses nothing.
    ///
    /// # Errors
    /// When a desk has broken.
    pub(crate) async fn written(&mut self) -> Result<Ended<T>, Error> {
        let ended = std::future::poll_fn(|context| {
            for (at, booth) in self.0.iter_mut().enumerate() {
                let Some(writing) = &mut booth.writing else { continue };
                let std::task::Poll::Ready(ended) = writing.task.poll_unpin(context) else { continue };
                booth.writing = None;
                return std::task::Poll::Ready(ended.map(|(desk, parcel, outcome)| {
                    booth.desk = (!matches!(outcome, Outcome::Fatal(_))).then_some(desk);
                    Ended { desk: at, parcel, outcome }
                }));
            }
            std::task::Poll::Pending
        });
        ended.await.map_err(|error: JoinError| Error::retryable(error).context("a transaction broke off"))
    }

    /// What a transaction that has ended means for its parcel: written, or to be written
    /// again. A failure is told on the board.
    pub(crate) fn judge(&mut self, ended: Ended<T>, board: &Board, now: Instant) -> (Parcel<T>, Verdict) {
        let Ended { desk, parcel, outcome } = ended;
        let verdict = match outcome {
            Outcome::Written => {
                self.has_written(desk, board);
                Verdict { written: vec![true; parcel.claims.len()], ..Verdict::default() }
            }
            Outcome::Settled(written, error) => {
                let fatal = if written.iter().all(|written| *written) {
                    self.has_written(desk, board);
                    None
                } else {
                    self.has_failed(desk, error, board, now)
                };
                Verdict { written, fatal, ..Verdict::default() }
            }
            Outcome::Aborted(error)
                if is_of_the_record(&error) || matches!(error, log::Error::TransactionTooLarge { .. }) =>
            {
                if parcel.culprits(&error).is_empty()
                    && let Some(booth) = self.0.get_mut(desk)
                {
                    // One of them can never be written, and it is not known which: each
                    // is tried on its own.
                    booth.singly = parcel.len();
                }
                Verdict { refusal: Some(error), ..Verdict::default() }
            }
            Outcome::Aborted(error) => {
                Verdict { fatal: self.has_failed(desk, error, board, now), ..Verdict::default() }
            }
            Outcome::Fatal(error) => {
                let fatal = Error::from(error).context("the transactional producer cannot be used any more");
                Verdict { fatal: Some(fatal), ..Verdict::default() }
            }
        };
        (parcel, verdict)
    }

    fn has_written(&mut self, desk: usize, board: &Board) {
        board.is_over(|obstacle| *obstacle == Obstacle::Committing);
        if let Some(booth) = self.0.get_mut(desk) {
            booth.failures = 0;
        }
    }

    /// A desk's transaction was not written. Gives the error where it should not be tried
    /// again.
    fn has_failed(&mut self, desk: usize, error: log::Error, board: &Board, now: Instant) -> Option<Error> {
        let booth = self.0.get_mut(desk)?;
        booth.failures = booth.failures.saturating_add(1);
        booth.not_before = Some(now + retry::backoff(&retry::patient(), booth.failures));
        let goes_on =
            error.is_retryable() || matches!(error, log::Error::Fenced { .. }) || booth.failures < MOST_FAILURES;
        let error = Error::from(error).context("a transaction failed; it is tried again");
        board.note(Obstacle::Committing, error.to_string());
        board.tell_of_storage(&error);
        board.event(&Event::CommitFailed { error: error.to_string() });
        (!goes_on).then_some(error)
    }
}

/// Whether an error says that this producer will never write again.
fn is_lasting(error: &log::Error) -> bool {
    match error {
        log::Error::Fenced { who } => who.starts_with("transactional id"),
        log::Error::Authentication { .. }
        | log::Error::Unauthorized { .. }
        | log::Error::UnsupportedBroker { .. }
        | log::Error::Stalled { .. }
        | log::Error::Closed { .. } => true,
        _ => false,
    }
}

/// Finds out what became of a transaction, for as long as it takes.
async fn settle(desk: &mut Desk, commits: &[log::Commit], error: log::Error) -> Outcome {
    let mut failures = 0_u32;
    loop {
        match desk.settle(commits).await {
            Ok(written) => return Outcome::Settled(written, error),
            Err(error) if !error.is_retryable() => return Outcome::Fatal(error),
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::debug!(%error, "what became of a transaction is asked again");
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
        }
    }
}
