//! What a connector gives, on its way into the log.
//!
//! ```text
//! queue ─▶ making (in order) ─▶ sending its records ─▶ writing its state ─▶ settled
//! ```
//!
//! State changes are written in the order of what they belong to, each once all
//! records of its document are acknowledged. There is no log to read again from:
//! when a send fails that may succeed later, everything from there on is sent
//! again, in order, once nothing else is on its way.
//!
//! What cannot be sent at all is given up on, as the step's `on_exhausted` says. Where
//! the step stands still instead, nothing more is taken; what is on its way is
//! settled, and what was given up on is forgotten: its state is not written, so the
//! next run brings it again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{FuturesOrdered, StreamExt};
use pipedoc_model::step::OnExhausted;
use pipedoc_transport::log::{OutgoingRecord, Producer, TopicPartition};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::breaker::Breaker;
use super::dead_letter::{self, Reason};
use super::hop::root_id;
use super::outbox::{Outbox, Settled, is_of_the_record};
use super::status::{Board, PauseReason, PausedPartition};
use super::work::{About, Workshop};
use super::{Order, retry};
use crate::connector::{Emission, EmissionContent, State, StateChanges};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::output::Content;

/// At most so many documents are on their way at once.
const MOST_OPEN: usize = 1000;
/// And at most so many bytes of them, but at least one.
const MOST_BYTES: usize = 64 << 20;
/// So many are made into records at once.
const MOST_MAKING: usize = 8;

/// Sends what a connector gives.
pub(crate) struct Emissions {
    shop: Arc<Workshop>,
    board: Arc<Board>,
    state: State,
    outbox: Outbox<Ticket>,
    making: FuturesOrdered<tokio::task::JoinHandle<Made>>,
    /// Dead letters being made, in their order.
    burying: FuturesOrdered<tokio::task::JoinHandle<Buried>>,
    /// Records not acknowledged yet, or waiting for one that is not.
    sending: VecDeque<Entry>,
    /// State changes not acknowledged yet.
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
enum Ticket {
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

/// The dead letter of an emission.
struct Buried {
    number: u64,
    letter: OutgoingRecord,
    content: EmissionContent,
}

/// An emission made into records.
struct Made {
    emission: Emission,
    about: About,
    /// Its records, and the outputs that could not carry a deletion.
    came: Result<(Vec<OutgoingRecord>, Vec<String>)>,
}

impl Emissions {
    pub(crate) fn new(shop: Arc<Workshop>, board: Arc<Board>, producer: Arc<dyn Producer>, state: State) -> Self {
        let breaker = Breaker::new(shop.plan.stop_at_failure_rate);
        Self {
            shop,
            board,
            state,
            outbox: Outbox::new(producer),
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
            let again_at = if self.outbox.is_empty() { self.again_at } else { None };
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
                settled = self.outbox.settled() => {
                    for settled in settled {
                        self.settled(settled);
                    }
                }
                () = tokio::time::sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {}
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

    /// Makes records of an emission, beside this task but in order.
    fn make(&mut self, emission: Emission) {
        let (shop, board) = (Arc::clone(&self.shop), Arc::clone(&self.board));
        self.making.push_back(tokio::spawn(async move { make(&shop, &board, emission).await }));
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
        if error.is_none() {
            self.outbox.push(Ticket::Records(number), records.clone());
        }
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
        if let Some(error) = error {
            self.give_up(number, &error);
        }
    }

    fn settled(&mut self, settled: Settled<Ticket>) {
        let entries = match settled.ticket {
            Ticket::Records(_) => &mut self.sending,
            Ticket::State(_) => &mut self.writing,
        };
        let (Ticket::Records(number) | Ticket::State(number)) = settled.ticket;
        let Some(entry) = entries.iter_mut().find(|entry| entry.number == number) else { return };
        match settled.result {
            Ok(_) => {
                entry.acknowledged = true;
                self.failures = 0;
            }
            Err(error)
                if is_of_the_record(&error) && matches!(settled.ticket, Ticket::Records(_)) && entry.dead.is_none() =>
            {
                let error = Error::permanent(error).with_kind("refused");
                self.give_up(number, &error);
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

    /// A document can never be sent.
    fn give_up(&mut self, number: u64, error: &Error) {
        self.board.error(&error.to_string());
        let on_exhausted = self.shop.plan.on_exhausted;
        let trips = self.breaker.count(true);
        let rate = self.breaker.reason();
        if rate.is_some() || on_exhausted == OnExhausted::Pause {
            return self.stop(number, error, rate, trips);
        }
        match on_exhausted {
            OnExhausted::Skip => {
                let Some(entry) = self.sending.iter_mut().find(|entry| entry.number == number) else { return };
                self.bytes -= OutgoingRecord::bytes_of(&entry.records);
                entry.records = Vec::new();
                entry.skipped = Some(error.to_string());
                entry.burying = false;
                entry.acknowledged = true;
                self.advance();
            }
            // PAUSE has stopped the step.
            OnExhausted::DeadLetter | OnExhausted::Pause => self.bury(number, Reason::new(error, 1)),
        }
    }

    /// The step stands still, for a document that is forgotten. `rate`: because too many
    /// failed; `trips`: this one was one too many.
    fn stop(&mut self, number: u64, error: &Error, rate: Option<String>, trips: bool) {
        let Some(at) = self.sending.iter().position(|entry| entry.number == number) else { return };
        let Some(entry) = self.sending.remove(at) else { return };
        self.bytes -= OutgoingRecord::bytes_of(&entry.records);
        if let Some(rate) = rate.as_ref().filter(|_| trips) {
            self.board.error(rate);
            self.board.event(&Event::FailureRateReached { reason: rate.clone() });
        }
        if let Some(topic) = self.shop.plan.state.clone().filter(|_| self.stopped.is_none()) {
            self.stopped = Some(PausedPartition {
                partition: TopicPartition::new(topic, 0),
                since: SystemTime::now(),
                reason: if rate.is_some() { PauseReason::FailureRate } else { PauseReason::Exhausted },
                offset: None,
                document: entry.about.document,
                error: rate.map_or_else(|| error.to_string(), |rate| format!("{rate}; at last: {error}")),
            });
        }
        self.advance();
    }

    /// A document that can never be written becomes a dead letter. It keeps its
    /// place in the row, so that states stay in order.
    fn bury(&mut self, number: u64, reason: Reason) {
        let Some(entry) = self.sending.iter_mut().find(|entry| entry.number == number) else { return };
        let Some(content) = entry.original.take() else { return };
        self.bytes -= OutgoingRecord::bytes_of(&entry.records);
        entry.records = Vec::new();
        entry.burying = true;
        entry.dead = Some(reason.clone());
        let (shop, board, about) = (Arc::clone(&self.shop), Arc::clone(&self.board), entry.about.clone());
        self.burying.push_back(tokio::spawn(async move {
            let letter = bury(&shop, &board, &content, &about, &reason).await;
            Buried { number, letter, content }
        }));
    }

    fn buried(&mut self, buried: Buried) {
        let Buried { number, letter, content } = buried;
        let Some(entry) = self.sending.iter_mut().find(|entry| entry.number == number) else { return };
        entry.records = vec![letter];
        entry.original = Some(content);
        entry.burying = false;
        self.bytes += OutgoingRecord::bytes_of(&entry.records);
        self.outbox.push(Ticket::Records(number), entry.records.clone());
    }

    /// Passes on what is acknowledged, in order.
    fn advance(&mut self) {
        while self.sending.front().is_some_and(|entry| entry.acknowledged) {
            let Some(mut entry) = self.sending.pop_front() else { return };
            self.bytes -= OutgoingRecord::bytes_of(&entry.records);
            self.tell(&entry);
            if entry.changes.is_empty() {
                // Nobody need wait for it.
                let _ = entry.settled.send(Ok(()));
                continue;
            }
            entry.records = self.state_records(&entry.changes);
            entry.original = None;
            entry.acknowledged = false;
            self.outbox.push(Ticket::State(entry.number), entry.records.clone());
            self.writing.push_back(entry);
        }
        while self.writing.front().is_some_and(|entry| entry.acknowledged) {
            let Some(entry) = self.writing.pop_front() else { return };
            let changes = entry.changes.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
            let applied = self.state.apply(changes);
            if let Err(error) = &applied {
                self.board.trouble(error);
            }
            let _ = entry.settled.send(applied);
        }
    }

    fn tell(&mut self, entry: &Entry) {
        if entry.silent {
            return;
        }
        let About { document, version, tombstone } = entry.about.clone();
        match (&entry.dead, &entry.skipped) {
            (None, None) => {
                self.breaker.count(false);
                self.board.done();
                self.board.event(&Event::Done { document, sent: entry.records.len(), tombstone });
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

    fn state_records(&self, changes: &StateChanges) -> Vec<OutgoingRecord> {
        let Some(topic) = &self.shop.plan.state else { return Vec::new() };
        changes
            .iter()
            .map(|(key, value)| {
                let key = Bytes::copy_from_slice(key.as_bytes());
                OutgoingRecord::new(topic.clone(), Some(key), value.clone())
            })
            .collect()
    }

    /// Sends everything again that is not acknowledged, from the first on, so that
    /// no older record of a key comes after a newer one for good.
    fn send_again(&mut self) {
        if !self.outbox.is_empty() || self.again_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.again_at = None;
        for (entries, ticket) in [
            (&mut self.sending, Ticket::Records as fn(u64) -> Ticket),
            (&mut self.writing, Ticket::State as fn(u64) -> Ticket),
        ] {
            for entry in entries.iter_mut().skip_while(|entry| entry.acknowledged).filter(|entry| !entry.burying) {
                entry.acknowledged = false;
                self.outbox.push(ticket(entry.number), entry.records.clone());
            }
        }
    }
}

async fn is_ended(ended: &mut watch::Receiver<bool>) -> bool {
    // When the sender is gone, its run was dropped, and so is this soon.
    ended.wait_for(|ended| *ended).await.is_ok()
}

async fn make(shop: &Arc<Workshop>, board: &Board, emission: Emission) -> Made {
    let span = tracing::info_span!("connect", step = %shop.plan.id);
    let (content, version) = match &emission.content {
        EmissionContent::Document(doc) => (Content::Document(doc.clone()), doc.version),
        EmissionContent::Deletion { id, version } => (Content::Deletion(id.clone()), *version),
        EmissionContent::Unchanged { id } => {
            let about = About { document: root_id(id).to_owned(), ..About::default() };
            return Made { emission, about, came: Ok((Vec::new(), Vec::new())) };
        }
        EmissionContent::Unreadable { id, version, error } => {
            let about = About { document: root_id(id).to_owned(), version: *version, tombstone: false };
            let came = Err(error.duplicate());
            return Made { emission, about, came };
        }
    };
    let mut failures = 0_u32;
    loop {
        match shop.bring_in(copy(&content), version, &span).await {
            Ok(worked) => {
                return Made { emission, about: worked.about, came: Ok((worked.records, worked.unable)) };
            }
            Err(failed) if failed.patient => {
                failures = failures.saturating_add(1);
                board.trouble(&failed.error);
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
            Err(failed) => return Made { emission, about: failed.about, came: Err(failed.error) },
        }
    }
}

/// Makes a dead letter, for as long as it takes.
async fn bury(
    shop: &Workshop,
    board: &Board,
    content: &EmissionContent,
    about: &About,
    reason: &Reason,
) -> OutgoingRecord {
    let mut failures = 0_u32;
    loop {
        let letter = match content {
            EmissionContent::Document(doc) => dead_letter::of_document(shop, doc, reason).await,
            EmissionContent::Deletion { id, version } | EmissionContent::Unreadable { id, version, .. } => {
                dead_letter::of_unreadable(shop, id, *version, reason).await
            }
            EmissionContent::Unchanged { id } => dead_letter::of_unreadable(shop, id, about.version, reason).await,
        };
        match letter {
            Ok(letter) => return letter,
            Err(error) => {
                failures = failures.saturating_add(1);
                board.trouble(&error.context("a dead letter cannot be made"));
                tokio::time::sleep(retry::backoff(&retry::patient(), failures)).await;
            }
        }
    }
}

fn copy(content: &Content) -> Content {
    match content {
        Content::Document(doc) => Content::Document(doc.clone()),
        Content::Deletion(id) => Content::Deletion(id.clone()),
        Content::Outdated(id) => Content::Outdated(id.clone()),
    }
}
