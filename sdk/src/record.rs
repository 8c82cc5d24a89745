//! What a record module is given: raw batches and a way to pipe them on.
//!
//! Nothing is decoded here; values, keys and foreign headers pass as they are.

pub use pipedoc_transport::log::{Record, RecordBatch};

/// What a record module may do with its batch.
#[derive(Debug)]
pub struct RecordContext {}
