//! The engine: turns configuration into plans and tells module instances what to do.
//!
//! ```text
//! store ─▶ reconcile ─▶ view ─┬─▶ gateway: assignments to instances
//!   ▲                         ├─▶ control: status
//!   └── editor ◀── apply      └─▶ intake: documents into the log
//! ```
//!
//! Engines stand beside the road of documents, never on it (what callers submit
//! aside): instances read and write the log themselves. Knows nothing of modules
//! but what they register, and nothing of the SDK.

mod assignment;
mod backlog;
pub mod catalog;
mod clock;
pub mod consul;
mod dead_letters;
mod editor;
mod engine;
pub mod error;
mod grpc;
mod inbox;
mod intake;
mod offload;
mod prepared;
mod reconcile;
mod registration;
mod resumes;
mod sessions;
mod snapshot;
mod status;
pub mod store;
mod taking;
pub mod topics;
pub mod view;

pub use engine::{Engine, EngineConfig, ServeError};
