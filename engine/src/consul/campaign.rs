//! Who leads: the engine whose Consul session holds the key `leader`.
//!
//! ```text
//!            free ─▶ session made ─▶ key acquired ─▶ leads ⟲ renewed every 3 s
//! follows ⟲ blocking query on the key                   │ not renewed for 8 s, lost, or it may not
//!    ▲───────────────────────────────────────────────────┘
//! ```
//!
//! A session lives for [`TTL`] after its last renewal, at Consul's worst twice
//! that, and its key then stays locked for [`LOCK_DELAY`]: another leads within
//! 30 s. The leader counts from when it *sent* its last good renewal and steps
//! down [`MARGIN`] before the session can end, and Consul checks the session with
//! every write it makes (`check-session`). (Consul, "Application Leader Elections
//! with Sessions".)

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::error::Failure;
use crate::store::{self, Candidate, Leadership, Lease};

const TTL: Duration = Duration::from_secs(10);
const LOCK_DELAY: Duration = Duration::from_secs(5);
const RENEW_EVERY: Duration = Duration::from_secs(3);
const MARGIN: Duration = Duration::from_secs(2);
/// Pause after a try that failed, or while the key is kept from others.
const AGAIN: Duration = Duration::from_secs(1);
/// What a token needs to stand for leadership, beside the key.
const SESSION_RIGHT: &str = "session:write on the agent's node (session_prefix \"\" { policy = \"write\" })";

/// A candidate's campaign; runs until it is stopped.
pub(super) struct Campaign {
    pub(super) client: Arc<Client>,
    /// The key to hold.
    pub(super) key: String,
    pub(super) candidate: Candidate,
    /// Whether the engine may lead now.
    pub(super) may_lead: watch::Receiver<bool>,
    pub(super) leadership: watch::Sender<Leadership>,
}

impl Campaign {
    /// Runs until `stop`; a session that is held then is given back, so that another
    /// engine leads at once.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut session = None;
        stop.run_until_cancelled(self.keep_trying(&mut session)).await;
        self.leadership.send_replace(Leadership::Follows(None));
        if let Some(id) = session {
            let given_back = tokio::time::timeout(MARGIN, self.give_back(&id)).await;
            if !matches!(given_back, Ok(Ok(()))) {
                tracing::debug!("the session could not be given back; it ends by itself");
            }
        }
    }

    async fn keep_trying(&self, session: &mut Option<String>) {
        loop {
            if let Err(error) = self.term(session).await {
                self.hindered(&error);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Says what hinders it, once; an agent that is away is told of elsewhere.
    fn hindered(&self, error: &store::Error) {
        let news = match error {
            store::Error::Unreachable { .. } => Leadership::Follows(None),
            other => Leadership::Hindered(pipedoc_model::problem::chain(other)),
        };
        news.tell(&self.leadership);
    }

    /// Waits for the key to be free, holds it as long as it can, and follows again.
    async fn term(&self, session: &mut Option<String>) -> store::Result<()> {
        if let Some(left) = session.as_deref() {
            // One that could not be given back keeps the key from all, us included.
            self.give_back(left).await.map_err(|failure| super::writing(failure, &self.key))?;
            *session = None;
        }
        self.follow_until_free().await.map_err(|failure| super::reading(failure, &self.key))?;
        if !*self.may_lead.borrow() {
            // Others may be faster then: look again.
            self.until_it_may(true).await;
            return Ok(());
        }
        let made = Instant::now();
        let id = self.client.create_session(&self.candidate.name, TTL, LOCK_DELAY).await;
        let id = id.map_err(|failure| failure.into_store("making", "a session", SESSION_RIGHT))?;
        let held = session.insert(id).clone();
        let outcome = self.take_and_hold(&held, made).await.map_err(|failure| super::writing(failure, &self.key));
        self.leadership.send_if_modified(|known| {
            let led = matches!(known, Leadership::Leads(_));
            if led {
                *known = Leadership::Follows(None);
            }
            led
        });
        // It is of no more use, whatever became of it.
        if self.give_back(&held).await.is_ok() {
            *session = None;
        }
        outcome
    }

    /// Lets the key go, so that it is free at once, and ends the session, which alone
    /// would keep the key from others for [`LOCK_DELAY`]. Writes that are still on
    /// their way are refused: the session no longer holds the key.
    async fn give_back(&self, session: &str) -> Result<(), Failure> {
        self.client.release(&self.key, self.candidate.address.as_bytes(), session).await?;
        self.client.destroy_session(session).await
    }

    async fn follow_until_free(&self) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let answer = self.client.read(&self.key, after).await?;
            let Some(held) = answer.value.filter(|pair| pair.session.is_some()) else { return Ok(()) };
            let leader = String::from_utf8_lossy(&held.value).into_owned();
            Leadership::Follows(Some(leader)).tell(&self.leadership);
            after = (after.is_none_or(|after| answer.index >= after)).then_some(answer.index.max(1));
        }
    }

    /// Takes the key, trying again while it is kept from others, and holds it.
    async fn take_and_hold(&self, session: &str, made: Instant) -> Result<(), Failure> {
        let mut renewed = made;
        loop {
            if self.client.acquire(&self.key, self.candidate.address.as_bytes(), session).await? {
                break;
            }
            let taken = self.client.read(&self.key, None).await?.value.is_some_and(|pair| pair.session.is_some());
            if taken {
                return Ok(());
            }
            tokio::time::sleep(AGAIN).await;
            let sent = Instant::now();
            if !self.client.renew_session(session).await? {
                return Ok(());
            }
            renewed = sent;
        }
        tracing::info!(engine = self.candidate.name, "leads");
        self.leadership.send_replace(Leadership::Leads(Lease(session.to_owned())));
        self.hold(session, renewed).await;
        tracing::warn!(engine = self.candidate.name, "leads no more");
        Ok(())
    }

    /// Returns once the engine may lead, or may not.
    async fn until_it_may(&self, may: bool) {
        let mut may_lead = self.may_lead.clone();
        if may_lead.wait_for(|now| *now == may).await.is_err() {
            // The store is gone, and with it whatever could be decided.
            std::future::pending::<()>().await
        }
    }

    /// Returns when the session is lost, or may be soon, and when the engine may not lead.
    async fn hold(&self, session: &str, mut renewed: Instant) {
        loop {
            let end = renewed + TTL - MARGIN;
            tokio::select! {
                () = tokio::time::sleep(RENEW_EVERY.min(end.saturating_duration_since(Instant::now()))) => {}
                () = self.until_it_may(false) => {
                    tracing::warn!(engine = self.candidate.name, "gives its leadership away: it cannot do what leaders do");
                    return;
                }
            }
            let sent = Instant::now();
            let left = end.saturating_duration_since(sent);
            if left.is_zero() {
                return;
            }
            match tokio::time::timeout(left, self.client.renew_session(session)).await {
                Ok(Ok(true)) => renewed = sent,
                Ok(Ok(false)) => return,
                Ok(Err(failure)) => {
                    tracing::debug!(%failure, "the session is not renewed yet");
                    tokio::time::sleep(AGAIN.min(end.saturating_duration_since(Instant::now()))).await;
                }
                Err(_) => return,
            }
            if !self.still_ours(session).await {
                return;
            }
        }
    }

    /// Whether the key is held by the session, as far as can be told: it may have been
    /// taken away by hand. Where only its value is another's, as after an import of what
    /// was exported before, it is put right.
    async fn still_ours(&self, session: &str) -> bool {
        let Ok(answer) = self.client.read(&self.key, None).await else { return true };
        let Some(held) = answer.value.filter(|pair| pair.session.as_deref() == Some(session)) else { return false };
        let address = self.candidate.address.as_bytes();
        if held.value != address
            && let Err(failure) = self.client.acquire(&self.key, address, session).await
        {
            tracing::debug!(%failure, "the leader's key names another engine still");
        }
        true
    }
}
