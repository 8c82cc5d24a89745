//! The instance and its engines: who it is, what it was told to do, and the
//! sessions in which it learns of changes and reports.
//!
//! ```text
//! slot     which instance this process is, by a file lock held for its life
//! kept     the assignment on disk, so that a restart needs no engine
//! ledger   which assignment is taken: pure, no IO
//! news     what of a report an engine does not know yet, in parts: pure, no IO
//! client   one session with every engine
//! address  where the engines are, names that stand for several included
//! ```
//!
//! Knows the gateway's messages; knows nothing of records. What runs the steps
//! stands behind [`Runs`].

mod address;
pub mod client;
pub mod kept;
pub mod ledger;
pub mod news;
mod report;
pub mod slot;

use pipedoc_model::names::{Generation, StepId};
use pipedoc_model::step::StepPlan;
use pipedoc_proto::v1;

pub use client::{AttachConfig, attach};
pub use kept::{Kept, KeptFile};
pub use ledger::LogName;
pub use slot::Slot;

/// What runs the steps of an assignment.
pub trait Runs: Send + Sync + 'static {
    /// Makes what runs agree with these steps, in the background: steps whose
    /// plan has not changed go on untouched, those that are missing stop.
    fn apply(&self, generation: Generation, steps: Vec<StepPlan>);

    /// How each step is doing.
    fn reports(&self) -> Vec<v1::StepReport>;

    /// Lets a step go on that stands still by itself; nothing where it does not.
    fn resume(&self, step: &StepId);
}
