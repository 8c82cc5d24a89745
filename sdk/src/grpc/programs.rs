//! What was opened for a configuration, kept for the next call with an equal one.
//!
//! Bounded: the one not used for longest is closed, once nobody uses it any more.
//!
//! ```text
//! Empty ── open ─▶ Open ── pushed out, last user gone ─▶ Closed
//!   └── open fails: stays Empty, the next call tries again
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::error::Result;
use crate::factory::{Factory, Program};
use crate::layers::Layers;
use crate::module::Step;
use crate::runtime::process::Stack;

/// Callers bound their calls by deadlines of their own; this is for those who set none.
const LONGEST: Duration = Duration::from_secs(3600);

/// What tells configurations apart: hash of step and configuration.
pub(super) type Key = [u8; 32];

/// A program in use; while somebody holds this it is not closed.
pub(super) type InUse = OwnedRwLockReadGuard<State, Opened>;

/// A program with the step it was opened for.
pub(super) struct Opened {
    pub(super) step: Step,
    /// The stack around a module; none around what takes no documents.
    pub(super) service: Option<Stack>,
    program: Program,
}

pub(super) enum State {
    Empty,
    Open(Opened),
    Closed,
}

/// The programs, the one used last at the back.
pub(super) struct Programs {
    factory: Factory,
    layers: Layers,
    most: usize,
    entries: Mutex<VecDeque<(Key, Arc<RwLock<State>>)>>,
}

impl Programs {
    pub(super) fn new(factory: Factory, layers: Layers, most: usize) -> Self {
        Self { factory, layers, most, entries: Mutex::new(VecDeque::new()) }
    }

    /// The program for a configuration, opened now or before. Equal calls at the
    /// same time open it once.
    pub(super) async fn get(&self, key: Key, wanted: impl Fn() -> (Value, Step) + Send) -> Result<InUse> {
        loop {
            let entry = self.entry(key);
            if let Ok(opened) = in_use(Arc::clone(&entry).read_owned().await) {
                return Ok(opened);
            }
            let mut state = entry.write_owned().await;
            if let State::Empty = &*state {
                let (config, step) = wanted();
                let program = self.factory.open(config, &step).await?;
                let service = match &program {
                    Program::Documents(documents) => Some(Stack::new(Arc::clone(documents), &self.layers, LONGEST)),
                    Program::Connector(_) | Program::Records(_) => None,
                };
                *state = State::Open(Opened { step, service, program });
            }
            if let Ok(opened) = in_use(OwnedRwLockWriteGuard::downgrade(state)) {
                return Ok(opened);
            }
            // Pushed out and closed between two lines of ours: there is a new entry for it.
        }
    }

    /// Closes all of them, each when its last user is gone.
    pub(super) async fn close(&self) {
        let entries = std::mem::take(&mut *self.entries.lock());
        for (_, entry) in entries {
            close(entry).await;
        }
    }

    /// The entry of a key, moved to the back; one too many is pushed out.
    fn entry(&self, key: Key) -> Arc<RwLock<State>> {
        let mut entries = self.entries.lock();
        let entry = match entries.iter().position(|(held, _)| *held == key).and_then(|at| entries.remove(at)) {
            Some((_, entry)) => entry,
            None => Arc::new(RwLock::new(State::Empty)),
        };
        entries.push_back((key, Arc::clone(&entry)));
        if entries.len() > self.most
            && let Some((_, oldest)) = entries.pop_front()
        {
            tokio::spawn(close(oldest));
        }
        entry
    }
}

fn in_use(state: OwnedRwLockReadGuard<State>) -> Result<InUse, OwnedRwLockReadGuard<State>> {
    OwnedRwLockReadGuard::try_map(state, |state| match state {
        State::Open(opened) => Some(opened),
        State::Empty | State::Closed => None,
    })
}

async fn close(entry: Arc<RwLock<State>>) {
    let state = std::mem::replace(&mut *entry.write().await, State::Closed);
    if let State::Open(Opened { program, service, .. }) = state {
        // The stack holds the module too, and only its last holder can close it.
        drop(service);
        program.close().await;
    }
}
