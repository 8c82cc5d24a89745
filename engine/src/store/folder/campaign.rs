//! Who leads the engines of one machine: the one that holds a lock on a file, in which
//! its address stands. The lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::blocking;
use crate::store::{Candidate, Leadership, Lease};

/// How often those that follow try the lock: a leader that went away is missed for so
/// long.
const AGAIN: Duration = Duration::from_millis(500);

/// A candidate's campaign; runs until it is dropped, which lets the lock go.
pub(super) struct Campaign {
    pub(super) lock: PathBuf,
    pub(super) candidate: Candidate,
    /// Whether the engine may lead now.
    pub(super) may_lead: watch::Receiver<bool>,
}

impl Campaign {
    /// Tries the lock at once, so that an engine that is alone leads from the start;
    /// gives what came of it, and what is to be awaited then.
    pub(super) fn start(self) -> (watch::Receiver<Leadership>, impl Future<Output = ()>) {
        let (held, news) = self.attempt();
        let (leadership, receiver) = watch::channel(Leadership::Follows(None));
        news.tell(&leadership);
        (receiver, self.run(held, leadership))
    }

    async fn run(mut self, mut held: Option<File>, leadership: watch::Sender<Leadership>) {
        loop {
            if held.is_some() {
                // Whoever waits for the lock gets it when this one may not lead.
                let _ = self.may_lead.wait_for(|may| !may).await;
                leadership.send_replace(Leadership::Follows(None));
                drop(held.take());
            }
            let _ = self.may_lead.wait_for(|may| *may).await;
            tokio::time::sleep(AGAIN).await;
            let tried = blocking(move || {
                let tried = self.attempt();
                Ok((self, tried))
            });
            // Only a runtime that ends breaks a blocking call off.
            let Ok((campaign, (file, news))) = tried.await else { return };
            (self, held) = (campaign, file);
            news.tell(&leadership);
        }
    }

    fn attempt(&self) -> (Option<File>, Leadership) {
        match self.take() {
            Ok(Some(file)) => (Some(file), Leadership::Leads(Lease(self.candidate.name.clone()))),
            // Who holds it may not have written its address yet.
            Ok(None) => {
                let leader = std::fs::read_to_string(&self.lock).unwrap_or_default();
                (None, Leadership::Follows(Some(leader).filter(|leader| !leader.is_empty())))
            }
            Err(error) => (None, Leadership::Hindered(format!("{} cannot be locked: {error}", self.lock.display()))),
        }
    }

    /// The lock; none: another engine has it.
    fn take(&self) -> io::Result<Option<File>> {
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.write_all(self.candidate.address.as_bytes())?;
        Ok(Some(file))
    }
}
