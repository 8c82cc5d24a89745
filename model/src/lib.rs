//! What engine and SDK must agree on: names, headers, pipelines, plans,
//! conditions, partitions. Pure: no IO, no clock, no async.

pub mod assignment;
pub mod claim;
pub mod condition;
pub mod headers;
pub mod kafka;
pub mod names;
pub mod partition;
pub mod pipeline;
pub mod plan;
pub mod problem;
pub mod registry;
pub mod step;
mod text;
