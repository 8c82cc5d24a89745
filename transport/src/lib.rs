//! Moves records and large payloads: the log contract and its three logs, the
//! object stores and claims.
//!
//! Knows topics, records, groups and objects; knows nothing of pipelines, steps
//! or documents.

#[cfg(feature = "conformance")]
pub mod conformance;
mod embedded;
pub mod error;
pub mod kafka;
pub mod log;
pub mod memory;
pub mod objects;
pub mod open;
mod settings;
pub mod size;
pub mod sqlite;
