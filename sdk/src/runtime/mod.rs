//! Moves documents through modules, in order of their keys: at least once, or as the
//! step's `delivery` says.
//!
//! ```text
//! record ─▶ window ─▶ lane (by key) ─▶ work ─▶ outbox ─▶ done ─▶ commit
//! ```
//!
//! One task for each step owns its consumer, windows, lanes and outbox
//! ([`pump`]); work runs in tasks of its own ([`work`]). What becomes of a
//! delivery:
//!
//! ```text
//!  admitted
//!     │
//!     ▼
//!  Waiting ◀───────────────────────────┐
//!     │ its turn in its lane, room     │ the attempt failed, or was dropped
//!     ▼                                │ without an answer; after a backoff
//!  Working ────────────────────────────┤
//!     │      └─ permanent, or no attempts left ─▶ Burying ─▶ SendingDeadLetter
//!     │ outputs, in their order                      ▲              │
//!     ▼                                              │              │
//!  Sending ── one can never be written ──────────────┘              │
//!     │                                                             │
//!     │ all acknowledged ◀──────────────────────────────────────────┘
//!     ▼
//!   done: its offset is settled, and the watermark may pass it
//! ```
//!
//! At any stage a delivery may be dropped: its partition was revoked and its
//! grace is over, it was lost, or a send failed that may succeed later, so that
//! the partition starts again at its watermark. It then comes again, here or
//! elsewhere. A task that is still at work on a dropped delivery is aborted and
//! keeps its lane until it has ended: one key is never at work twice.
//!
//! Sends follow each other without waiting for acknowledgements. When one fails
//! and a later one of the same key was stored, the later one is stored again
//! after it: by their last deliveries, the records of a key are always in order.
//!
//! Under `EXACTLY_ONCE` the outbox is a row for each partition, of which transactions
//! take what is there, with the offsets ([`exact`]): nothing is stored but in its
//! place, and nothing twice. Under `AT_MOST_ONCE` records wait at a gate until their
//! offset is committed, and what was sent is not sent again.

mod breaker;
pub(crate) mod claims;
mod clients;
mod connect;
mod dead_letter;
mod deliveries;
mod emit;
mod exact;
mod format;
mod hop;
mod lanes;
mod outbox;
pub(crate) mod pace;
pub(crate) mod partitions;
pub(crate) mod process;
mod pump;
pub(crate) mod records;
mod results;
mod retry;
mod ring;
mod route;
pub(crate) mod status;
pub(crate) mod step;
mod topics;
mod window;
mod work;

use tokio::time::Instant;

/// What a step is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Work.
    Run,
    /// Keep membership and position, begin nothing.
    Pause,
    /// Finish what is in flight until then, commit, leave.
    Stop { by: Instant },
}
