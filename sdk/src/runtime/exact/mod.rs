//! Transactions: outputs, dead letters and the offsets of exactly the records that
//! they were made of, all or nothing.
//!
//! ```text
//!  worked ─▶ row (of its partition) ─▶ parcel ─▶ desk ─▶ written ─▶ done
//!             ▲                          │ not written
//!             └──────────────────────────┘
//! ```
//!
//! A [`Row`] gathers what is to be written for a partition; a [`Parcel`] is what one
//! transaction writes for some partitions; a [`Desk`] is a transactional producer
//! that writes one parcel after the other. Work goes on meanwhile: what comes is the
//! next parcel. A partition has one desk for good, so no two transactions over it
//! are ever open. All commits of such a step are transactions, so none overtakes
//! another. A connector has one desk, and its state's partition stands for its input.
//!
//! Knows logs; knows nothing of modules.

mod desk;
mod desks;
mod parcel;
mod row;

use std::time::Duration;

pub(crate) use desk::{Desk, Office, Unwritten};
pub(crate) use desks::{Desks, Ended, Verdict};
pub(crate) use parcel::{Claim, Parcel};
pub(crate) use row::{Entry, Row};

/// How often transactions are committed while work goes on.
pub(crate) const COMMIT_EVERY: Duration = Duration::from_millis(100);

/// A transaction holds at most so many bytes of values, but at least one entry.
pub(crate) const PARCEL_BYTES: usize = 8 << 20;
