//! The session of this process: one heartbeat for all its members.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::embedded::MemberId;

/// Time between heartbeats, at most; less where a member's session is short.
const HEARTBEAT: Duration = Duration::from_millis(1500);

/// The session of one handle on the log.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: i64,
    began: Instant,
    /// Milliseconds from `began` to the last heartbeat that was written.
    beat_at: AtomicU64,
    /// The session timeouts of the members it carries.
    members: Mutex<BTreeMap<MemberId, Duration>>,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            id: rand::random_range(1..i64::MAX),
            began: Instant::now(),
            beat_at: AtomicU64::new(0),
            members: Mutex::default(),
        }
    }

    pub(super) fn joined(&self, member: MemberId, timeout: Duration) {
        self.members.lock().insert(member, timeout);
        self.beat(Instant::now());
    }

    pub(super) fn left(&self, member: MemberId) {
        self.members.lock().remove(&member);
    }

    /// Whether it carries any member.
    pub(super) fn is_needed(&self) -> bool {
        !self.members.lock().is_empty()
    }

    fn shortest(&self) -> Option<Duration> {
        self.members.lock().values().min().copied()
    }

    /// Time between heartbeats.
    pub(super) fn interval(&self) -> Duration {
        self.shortest().map_or(HEARTBEAT, |timeout| HEARTBEAT.min(timeout / 4)).max(Duration::from_millis(50))
    }

    /// A heartbeat that was begun then is in the file.
    pub(super) fn beat(&self, begun: Instant) {
        let since = begun.duration_since(self.began).as_millis();
        self.beat_at.fetch_max(u64::try_from(since).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Time since the last heartbeat that was written was begun.
    fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.beat_at.load(Ordering::Acquire)))
    }

    /// Whether no member can have been taken for dead.
    pub(super) fn is_fresh(&self) -> bool {
        self.shortest().is_none_or(|timeout| self.age() < timeout.mul_f64(0.8))
    }

    /// Whether its heartbeats get into the file, as far as it has any to write.
    pub(super) fn is_regular(&self) -> bool {
        !self.is_needed() || self.age() < self.interval() * 2
    }
}
