//! Events as a stream that whoever wants to can subscribe to.
//!
//! Bounded: nobody who is slow holds up a step, or more than [`CAPACITY`] events in
//! memory. Knows nothing of what events mean.

use std::sync::Arc;
use std::time::SystemTime;

use pipedoc_model::names::StepId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};

use super::Event;

/// So many events wait for a subscriber. One that is slower loses the oldest, and is
/// told how many.
pub const CAPACITY: usize = 1024;

/// Something that happened in a step, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The step.
    pub step: StepId,
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
}

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Something happened.
    Event(Arc<Happened>),
    /// So many events went by unheard: the subscriber was too slow. They are the
    /// oldest ones; what follows is newer.
    Missed(u64),
}

/// Where events can be subscribed to. Clones are the same stream.
#[derive(Debug, Clone)]
pub struct Events {
    notable: Sender<Arc<Happened>>,
    all: Sender<Arc<Happened>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { notable: Sender::new(CAPACITY), all: Sender::new(CAPACITY) }
    }
}

impl Events {
    /// From now on, all events but those of each single document that goes its way
    /// ([`Event::is_routine`]): so few that none is missed.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription { events: self.notable.subscribe(), only: None }
    }

    /// From now on, all events, those of each single document included.
    #[must_use]
    pub fn subscribe_to_all(&self) -> Subscription {
        Subscription { events: self.all.subscribe(), only: None }
    }

    /// Tells subscribers, if there are any. Never waits.
    pub(crate) fn tell(&self, step: &StepId, event: &Event) {
        let notable = self.notable.receiver_count() > 0 && !event.is_routine();
        let all = self.all.receiver_count() > 0;
        if !notable && !all {
            return;
        }
        let happened = Arc::new(Happened { step: step.clone(), at: SystemTime::now(), event: event.clone() });
        for sender in [notable.then_some(&self.notable), all.then_some(&self.all)].into_iter().flatten() {
            // The last subscriber may have gone meanwhile.
            let _ = sender.send(Arc::clone(&happened));
        }
    }

    /// Whether somebody wants to hear of each document.
    pub(crate) fn heeds_documents(&self) -> bool {
        self.all.receiver_count() > 0
    }
}

/// A subscription to events: ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    events: Receiver<Arc<Happened>>,
    /// Only of this step.
    only: Option<StepId>,
}

impl Subscription {
    /// Only events of one step.
    #[must_use]
    pub fn of_step(self, step: StepId) -> Self {
        Self { only: Some(step), ..self }
    }

    /// Waits for the next event; `None` when there will be none any more, as the
    /// instance has ended. Events that were missed are counted over all steps.
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.events.recv().await {
                Ok(happened) if self.only.as_ref().is_some_and(|only| *only != happened.step) => {}
                Ok(happened) => return Some(Heard::Event(happened)),
                Err(RecvError::Lagged(missed)) => return Some(Heard::Missed(missed)),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
