//! What nearly every module needs.

pub use std::process::ExitCode;

pub use pipedoc_model::step::StepType;
pub use pipedoc_proto::PipeDoc;
pub use schemars::JsonSchema;
pub use serde::Deserialize;

pub use crate::connector::{Emitter, State, StateChanges};
pub use crate::error::{Error, Result, ResultExt};
pub use crate::module::{Connector, Deletion, Module, RecordModule, Step};
pub use crate::output::Output;
pub use crate::record::{Message, Record, RecordBatch, RecordContext, Report, TopicPartition};
