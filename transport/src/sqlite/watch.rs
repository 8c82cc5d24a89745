//! The one thread of a process that watches: the bell file for what others
//! write, the clock for heartbeats and for members that died.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use notify::{EventKind, RecursiveMode, Watcher};
use rusqlite::Connection;

use super::judge::Judge;
use super::problem::Fault;
use super::turn::beside;
use super::{Shared, clean, file, groups};

/// How often the file is looked at although no bell rang: somebody may have
/// died before ringing it.
const SLOW_POLL: Duration = Duration::from_secs(1);
/// How often what need not be kept is cleaned away.
const CLEAN: Duration = Duration::from_secs(5);

/// How often members are looked at that may have died.
const JUDGE: Duration = Duration::from_millis(900);
/// Time between two such looks beyond which this process, or all of them, slept.
const ASLEEP: Duration = Duration::from_secs(4);

/// Ends the watching when it is dropped.
pub(super) struct Watch {
    /// Stops the file events when dropped; none where the system has none.
    _events: Option<notify::RecommendedWatcher>,
    _stop: SyncSender<()>,
}

/// Begins to watch.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Watch> {
    // One waiting message is enough: it says "look".
    let (bell, bells) = sync_channel(1);
    let ring = bell.clone();
    let events = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| matches!(event.kind, EventKind::Modify(_) | EventKind::Any | EventKind::Other)) {
            let _ = ring.try_send(());
        }
    });
    let events = events.and_then(|mut events| {
        events.watch(&beside(&shared.path, ".bell"), RecursiveMode::NonRecursive)?;
        Ok(events)
    });
    let events = events.map_err(|error| {
        tracing::warn!(%error, "file events are not available; other processes' records are noticed within a second");
    });
    let weak = Arc::downgrade(shared);
    std::thread::Builder::new().name("log-watcher".to_owned()).spawn(move || watch(&weak, &bells))?;
    Ok(Watch { _events: events.ok(), _stop: bell })
}

/// What the thread has to do at its times.
struct Duties {
    beat_due: Instant,
    judge_due: Instant,
    judge: Judge,
}

fn watch(shared: &Weak<Shared>, bells: &Receiver<()>) {
    let mut connection = None;
    let now = Instant::now();
    let mut duties = Duties { beat_due: now, judge_due: now, judge: Judge::default() };
    let mut clean_due = Instant::now() + CLEAN;
    let mut cleaner = clean::Cleaner::default();
    loop {
        let wait = shared.upgrade().map_or(Duration::ZERO, |shared| {
            let beat = if shared.session.is_needed() { shared.session.interval() } else { SLOW_POLL };
            duties.beat_due.saturating_duration_since(Instant::now()).min(SLOW_POLL).min(beat)
        });
        match bells.recv_timeout(wait) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = look(&shared, &mut connection, &mut duties) {
            tracing::warn!(path = %shared.path.display(), error = %error, "could not look at the log file");
            connection = None;
        }
        if Instant::now() >= clean_due {
            clean_due = Instant::now() + CLEAN;
            // Heartbeats and bells do not wait until everything is clean.
            let mut meanwhile = |connection: &Connection| {
                if let Err(error) = attend(&shared, connection, &mut duties) {
                    tracing::warn!(path = %shared.path.display(), %error, "could not look at the log file");
                }
            };
            if let Some(connection) = &connection
                && let Err(error) = cleaner.step(&shared, connection, &mut meanwhile)
            {
                tracing::warn!(path = %shared.path.display(), %error, "could not clean the log file");
            }
        }
    }
}

fn look(shared: &Shared, connection: &mut Option<Connection>, duties: &mut Duties) -> rusqlite::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => match file::reader(&shared.path) {
            Ok(reader) => connection.insert(reader),
            Err(error) => {
                // Who cannot read for a moment is alive all the same.
                beat_if_due(shared, &mut duties.beat_due);
                return Err(error);
            }
        },
    };
    attend(shared, connection, duties)
}

/// Looks for what others wrote and, now and then, for members that died.
fn attend(shared: &Shared, connection: &Connection, duties: &mut Duties) -> rusqlite::Result<()> {
    beat_if_due(shared, &mut duties.beat_due);
    if shared.bell.hub.has_ears() {
        shared.bell.look(connection)?;
    }
    let now = Instant::now();
    if now >= duties.judge_due {
        duties.judge_due = now + JUDGE;
        let watched = groups::watched(connection)?;
        let silent = duties.judge.look(now, shared.session.is_regular(), ASLEEP, &watched);
        if !silent.is_empty() || !groups::gone(connection)?.is_empty() {
            let expire = move |tx: &mut super::tx::Tx<'_>| {
                groups::expire_gone(tx)?;
                Ok(groups::expire_silent(tx, &silent)?)
            };
            shared.writer.later(false, expire, |_| {});
        }
    }
    Ok(())
}

/// Sends a heartbeat if one is due and anybody needs it.
fn beat_if_due(shared: &Shared, beat_due: &mut Instant) {
    if Instant::now() < *beat_due {
        return;
    }
    *beat_due = Instant::now() + shared.session.interval();
    if shared.session.is_needed() {
        beat(shared);
    }
}

/// Says that this process is alive.
fn beat(shared: &Shared) {
    let (session, begun) = (shared.session.clone(), Instant::now());
    let id = session.id;
    shared.writer.later(
        false,
        move |tx| groups::see(tx.sql(), id).map_err(Fault::from),
        move |result| {
            if result.is_ok() {
                session.beat(begun);
            }
        },
    );
}
