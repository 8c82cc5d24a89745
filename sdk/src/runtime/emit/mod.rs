//! What a connector gives, on its way into the log.
//!
//! ```text
//! queue ─▶ making (in order) ─▶ sending its records ─▶ writing its state ─▶ settled
//! ```
//!
//! State changes are written in the order of what they belong to, each once all
//! records of its document are acknowledged; under `EXACTLY_ONCE` in one transaction
//! with them ([`exact`]). There is no log to read again from: when a send fails that may
//! succeed later, everything from there on is sent again, in order, once nothing else is
//! on its way.
//!
//! What cannot be sent at all is given up on ([`unsent`]), as `on_exhausted` says. Where
//! the step stands still instead, nothing more is taken; what is on its way is
//! settled, and what was given up on is forgotten: its state is not written, so the
//! next run brings it again.

mod exact;
mod make;
mod unsent;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesOrdered, StreamExt};
use pipedoc_transport::log::OutgoingRecord;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::breaker::Breaker;
use super::dead_letter::Reason;
use super::exact::{COMMIT_EVERY, Ended};
use super::outbox::{Outbox, Settled, is_of_the_record};
use super::status::{Board, PausedPartition};
use super::work::{About, Workshop};
use super::{Order, retry};
use crate::connector::{Emission, EmissionContent, State, StateChanges};
use crate::error::{Error, Result};
use crate::event::Event;
pub(crate) use exact::Transactions;
use make::{Buried, Made};

/// At most so many documents are on their way at once.
const MOST_OPEN: usize = 1000;
/// And at most so many bytes of them, but at least one.
const MOST_BYTES: usize = 64 << 20;
/// So many are made into records at once.
const MOST_MAKING: usize = 8;
/// How soon a transaction follows another while nothing more is given.
const COMMIT_WHEN_QUIET: Duration = Duration::from_millis(20);

/// Where what comes of emissions goes.
pub(crate) enum Out {
    /// To a producer; state changes follow what is acknowledged.
    Plain(Outbox<Ticket>),
    /// Into transactions, with the state changes.
    Exact(Transactions),
}

/// What became of something that went out.
enum Sent {
    Settled(Vec<Settled<Ticket>>),
    Written(Result<Ended<()>>),
}

impl Out {
    /// Waits for what becomes of what went out; for ever when there is nothing.
    /// Cancelling it loses nothing.
    async fn next(&mut self) -> Sent {
        match self {
            Self::Plain(outbox) => Sent::Settled(outbox.settled().await),
            Self::Exact(transactions) => Sent::Written(transactions.written().await),
        }
    }
}

/// Sends what a connector gives.
pub(crate) struct Emissions {
    shop: Arc<Workshop>,
    board: Arc<Board>,
    state: State,
    out: Out,
    making: FuturesOrdered<tokio::task::JoinHandle<Made>>,
    /// Dead letters being made, in their order.
    burying: FuturesOrdered<tokio::task::JoinHandle<Buried>>,
    /// Records not acknowledged yet, or waiting for one that is not.
    sending: VecDeque<Entry>,
    /// State changes not acknowledged yet; none in transactions.
    writing: VecDeque<Entry>,
    next: u64,
    bytes: usize,
    failures: u32,
    /// When everything not acknowledged is sent again.
    again_at: Option<Instant>,
    breaker: Breaker,
    /// Why the step stands still, if it does.
    stopped: Option<PausedPartition>,
    /// What makes going on with these clients impossible.
    fatal: Option<Error>,
}

/// What is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ticket {
    Records(u64),
    State(u64),
}

/// One emission on its way.
struct Entry {
    number: u64,
    records: Vec<OutgoingRecord>,
    acknowledged: bool,
    changes: StateChanges,
    settled: oneshot::Sender<Result<()>>,
    about: About,
    /// Why it is a dead letter, if it is one.
    dead: Option<Reason>,
    /// Why it was dropped, if it was.
    skipped: Option<String>,
    /// The content, until it cannot become a dead letter any more.
    original: Option<EmissionContent>,
    /// Whether nothing is to be sent.
    silent: bool,
    /// Whether its dead letter is being made: there is nothing to send meanwhile.
    burying: bool,
}

impl Emissions {
    pub(crate) fn new(shop: Arc<Workshop>, board: Arc<Board>, out: Out, state: State) -> Self {
        let breaker = Breaker::new(shop.plan.stop_at_failure_rate);
        Self {
            shop,
            board,
            state,
            out,
            making: FuturesOrdered::new(),
            burying: FuturesOrdered::new(),
            sending: VecDeque::new(),
            writing: VecDeque::new(),
            next: 0,
            bytes: 0,
            failures: 0,
            again_at: None,
            breaker,
            stopped: None,
            fatal: None,
        }
    }

    /// Sends what comes out of the queue until `run` has ended, and all of it is
    /// settled. Takes nothing while paused. Ends before `run` has where the step is to
    /// stand still, and says why.
    ///
    /// # Errors
    /// When the clients cannot be used any more.
    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Emission>,
        mut ended: watch::Receiver<bool>,
        mut orders: watch::Receiver<Order>,
    ) -> Result<Option<PausedPartition>> {
        let mut open = true;
        loop {
            if let Some(error) = self.fatal.take() {
                return Err(error);
            }
            self.send_again();
            self.board.set_in_flight(self.making.len() + self.sending.len() + self.writing.len());
            let is_done = !open || self.stopped.is_some();
            if is_done && self.making.is_empty() && self.sending.is_empty() && self.writing.is_empty() {
                return Ok(self.stopped);
            }
            let paused = *orders.borrow_and_update() == Order::Pause;
            let takes = open && !paused && self.stopped.is_none() && self.has_room();
            let deadline = self.next_deadline(takes, !queue.is_empty());
            tokio::select! {
                emission = queue.recv(), if takes => match emission {
                    Some(emission) => self.make(emission),
                    None => open = false,
                },
                // What was sent before the end is still in the queue.
                true = is_ended(&mut ended), if open && !*ended.borrow() => {}
                Some(made) = self.making.next(), if !self.making.is_empty() => match made {
                    Ok(made) => self.made(made),
                    Err(error) => return Err(Error::retryable(error)),
                },
                Some(buried) = self.burying.next(), if !self.burying.is_empty() => match buried {
                    Ok(buried) => self.buried(buried),
                    Err(error) => return Err(Error::retryable(error)),
                },
                sent = self.out.next() => match sent {
                    Sent::Settled(settled) => settled.into_iter().for_each(|settled| self.settled(settled)),
                    Sent::Written(ended) => self.written(ended),
                },
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                Ok(()) = orders.changed() => {}
            }
            if *ended.borrow() {
                queue.close();
            }
        }
    }

    fn has_room(&self) -> bool {
        self.making.len() < MOST_MAKING
            && self.sending.len() + self.writing.len() < MOST_OPEN
            && (self.bytes < MOST_BYTES || self.sending.is_empty())
            && self.again_at.is_none()
    }

    /// When the loop must look again though nothing has happened. Begins a transaction
    /// that is due. `takes`: more may be taken; `more`: more is given already.
    fn next_deadline(&mut self, takes: bool, more: bool) -> Option<Instant> {
        let transactions = match &mut self.out {
            Out::Plain(outbox) => return self.again_at.filter(|_| outbox.is_empty()),
            Out::Exact(transactions) => transactions,
        };
        let comes = !self.making.is_empty() || !self.burying.is_empty() || (takes && more);
        let every = match (comes, takes) {
            (true, _) => COMMIT_EVERY,
            (false, true) => COMMIT_WHEN_QUIET,
            (false, false) => Duration::ZERO,
        };
        transactions.begin_due(every, Instant::now())
    }

    /// Makes records of an emission, beside this task but in order.
    fn make(&mut self, emission: Emission) {
        let (shop, board) = (Arc::clone(&self.shop), Arc::clone(&self.board));
        self.making.push_back(tokio::spawn(async move { make::make(&shop, &board, emission).await }));
    }

    /// Gives away what is to be written of an emission.
    fn send(&mut self, number: u64) {
        let Some(entry) = find(&mut self.sending, number) else { return };
        match &mut self.out {
            Out::Plain(outbox) => outbox.push(Ticket::Records(number), entry.records.clone()),
            Out::Exact(transactions) => {
                let mut records = entry.records.clone();
                records.extend(state_records(&self.shop, &entry.changes));
                entry.acknowledged = records.is_empty();
                if entry.acknowledged {
                    transactions.forgive(number);
                } else {
                    transactions.push(number, records);
                }
            }
        }
    }

    fn made(&mut self, made: Made) {
        let Made { emission, about, came } = made;
        let document = about.document.clone();
        let (records, unable, error) = match came {
            Ok((records, unable)) => (records, unable, None),
            Err(error) => (Vec::new(), Vec::new(), Some(error)),
        };
        match &emission.content {
            EmissionContent::Document(_) | EmissionContent::Unreadable { .. } => {
                self.board.event(&Event::Found { document });
            }
            EmissionContent::Unchanged { .. } => {
                self.board.event(&Event::Found { document: document.clone() });
                self.board.event(&Event::Unchanged { document });
            }
            EmissionContent::Deletion { .. } => {
                self.board.event(&Event::Deleted { document: document.clone() });
                for output in unable {
                    self.board.event(&Event::DeletionEnded { document: document.clone(), output });
                }
            }
        }
        self.next += 1;
        let number = self.next;
        let silent = matches!(emission.content, EmissionContent::Unchanged { .. });
        self.bytes += OutgoingRecord::bytes_of(&records);
        self.sending.push_back(Entry {
            number,
            records,
            acknowledged: false,
            changes: emission.changes,
            settled: emission.settled,
            about,
            dead: None,
            skipped: None,
            original: Some(emission.content),
            silent,
            burying: error.is_some(),
        });
        match error {
            Some(error) => self.give_up(number, &error),
            None => {
                if !silent {
                    // Counted as early as failures are: acknowledgements come late.
                    self.breaker.done(1);
                }
                self.send(number);
                self.advance();
            }
        }
    }

    fn settled(&mut self, settled: Settled<Ticket>) {
        let entries = match settled.ticket {
            Ticket::Records(_) => &mut self.sending,
            Ticket::State(_) => &mut self.writing,
        };
        let (Ticket::Records(number) | Ticket::State(number)) = settled.ticket;
        let Some(entry) = find(entries, number) else { return };
        match settled.result {
            Ok(_) => {
                entry.acknowledged = true;
                self.failures = 0;
            }
            Err(error)
                if is_of_the_record(&error) && matches!(settled.ticket, Ticket::Records(_)) && entry.dead.is_none() =>
            {
                self.refused(number, &Error::permanent(error).with_kind("refused"));
            }
            Err(error) => {
                let passing = error.is_retryable() || is_of_the_record(&error);
                let error = Error::from(error).context("sending failed");
                if passing {
                    self.failures = self.failures.saturating_add(1);
                    let wait = retry::backoff(&retry::patient(), self.failures);
                    self.again_at.get_or_insert(Instant::now() + wait);
                    self.board.trouble(&error);
                } else {
                    self.fatal = Some(error);
                }
            }
        }
        self.advance();
    }

    /// Passes on what is acknowledged, in order.
    fn advance(&mut self) {
        while self.sending.front().is_some_and(|entry| entry.acknowledged) {
            let Some(mut entry) = self.sending.pop_front() else { return };
            self.bytes -= OutgoingRecord::bytes_of(&entry.records);
            self.tell(&entry);
            match &mut self.out {
                Out::Plain(outbox) if !entry.changes.is_empty() => {
                    entry.records = state_records(&self.shop, &entry.changes);
                    entry.original = None;
                    entry.acknowledged = false;
                    outbox.push(Ticket::State(entry.number), entry.records.clone());
                    self.writing.push_back(entry);
                }
                Out::Plain(_) | Out::Exact(_) => self.conclude(entry),
            }
        }
        while self.writing.front().is_some_and(|entry| entry.acknowledged) {
            let Some(entry) = self.writing.pop_front() else { return };
            self.conclude(entry);
        }
    }

    /// All that is to be written of an emission is.
    fn conclude(&self, entry: Entry) {
        let Entry { changes, settled, .. } = entry;
        let applied = match changes.is_empty() {
            true => Ok(()),
            false => self.state.apply(changes.iter().map(|(key, value)| (key.as_str(), value.as_deref()))),
        };
        if let Err(error) = &applied {
            self.board.trouble(error);
        }
        // Nobody need wait for it.
        let _ = settled.send(applied);
    }

    fn tell(&mut self, entry: &Entry) {
        if entry.silent {
            return;
        }
        let About { document, version, tombstone } = entry.about.clone();
        match (&entry.dead, &entry.skipped) {
            (None, None) => {
                self.board.done();
                let sent = entry.records.len();
                let left = entry.records.iter().any(|record| self.shop.router.leaves(&record.topic));
                self.board.event(&Event::Done { document, sent, left, tombstone });
            }
            (None, Some(error)) => {
                self.board.failed();
                self.board.event(&Event::Skipped { document, error: error.clone() });
            }
            (Some(Reason { kind, message, .. }), _) => {
                self.board.failed();
                let (kind, error) = ((*kind).to_owned(), message.clone());
                self.board.event(&Event::DeadLetter { document, version, kind, error });
            }
        }
    }

    /// Sends everything again that is not acknowledged, from the first on, so that
    /// no older record of a key comes after a newer one for good.
    fn send_again(&mut self) {
        let Out::Plain(outbox) = &mut self.out else { return };
        if !outbox.is_empty() || self.again_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.again_at = None;
        for (entries, ticket) in [
            (&mut self.sending, Ticket::Records as fn(u64) -> Ticket),
            (&mut self.writing, Ticket::State as fn(u64) -> Ticket),
        ] {
            for entry in entries.iter_mut().skip_while(|entry| entry.acknowledged).filter(|entry| !entry.burying) {
                entry.acknowledged = false;
                outbox.push(ticket(entry.number), entry.records.clone());
            }
        }
    }
}

async fn is_ended(ended: &mut watch::Receiver<bool>) -> bool {
    // When the sender is gone, its run was dropped, and so is this soon.
    ended.wait_for(|ended| *ended).await.is_ok()
}

/// Where an emission stands among others, which are in order.
fn place(entries: &VecDeque<Entry>, number: u64) -> Option<usize> {
    entries.binary_search_by_key(&number, |entry| entry.number).ok()
}

fn find(entries: &mut VecDeque<Entry>, number: u64) -> Option<&mut Entry> {
    let at = place(entries, number)?;
    entries.get_mut(at)
}

/// State changes as they are written.
fn state_records(shop: &Workshop, changes: &StateChanges) -> Vec<OutgoingRecord> {
    let Some(topic) = &shop.plan.state else { return Vec::new() };
    let record = |(key, value): &(String, Option<Bytes>)| {
        OutgoingRecord::new(topic.clone(), Some(Bytes::copy_from_slice(key.as_bytes())), value.clone())
    };
    changes.iter().map(record).collect()
}
