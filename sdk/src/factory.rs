//! Makes a module's programs for steps: the erased form in which the runtime,
//! the gRPC service and the test kit hold what an author wrote.
//!
//! Knows the three traits of [`crate::module`]; knows nothing of logs or engines.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use pipedoc_model::names::ModuleName;
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_model::registry::ModuleInfo;
use pipedoc_model::step::StepType;
use pipedoc_proto::PipeDoc;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::connector::{Emitter, State};
use crate::error::{Error, Result};
use crate::module::{Connector, Deletion, Module, RecordModule, Step};
use crate::output::Output;
use crate::record::{Message, Record, RecordBatch, RecordContext, TopicPartition};

/// What an author's program has become for one step.
#[derive(Clone)]
pub enum Program {
    /// Takes documents.
    Documents(Arc<dyn Documents>),
    /// Brings documents in.
    Connector(Arc<dyn Connects>),
    /// Works on records.
    Records(Arc<dyn WorksOnRecords>),
}

impl Program {
    /// Ends the program: call this when all work has ended. What was aborted may
    /// hold it for a moment longer; a program that is held for more than a second
    /// is let go without its `close`.
    pub async fn close(self) {
        match self {
            Self::Documents(program) => alone(&program).then(|()| program.close()).await,
            Self::Connector(program) => alone(&program).then(|()| program.close()).await,
            Self::Records(program) => alone(&program).then(|()| program.close()).await,
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Documents(_) => "Documents",
            Self::Connector(_) => "Connector",
            Self::Records(_) => "Records",
        })
    }
}

/// A [`Module`], erased.
pub trait Documents: Send + Sync {
    /// [`Module::process`].
    fn process<'a>(&'a self, doc: PipeDoc, step: &'a Step) -> BoxFuture<'a, Result<Output>>;
    /// [`Module::process_batch`].
    fn process_batch<'a>(&'a self, docs: Vec<PipeDoc>, step: &'a Step) -> BoxFuture<'a, Vec<Result<Output>>>;
    /// [`Module::deleted`].
    fn deleted<'a>(&'a self, deletion: Deletion, step: &'a Step) -> BoxFuture<'a, Result<Output>>;
    /// [`Module::close`], when this is the last reference.
    fn close(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// A [`Connector`], erased.
pub trait Connects: Send + Sync {
    /// [`Connector::run`].
    fn run<'a>(&'a self, step: &'a Step, out: &'a Emitter, state: &'a State) -> BoxFuture<'a, Result<()>>;
    /// [`Connector::close`], when this is the last reference.
    fn close(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// A [`RecordModule`], erased.
pub trait WorksOnRecords: Send + Sync {
    /// [`RecordModule::process`].
    fn process<'a>(&'a self, batch: &'a RecordBatch, context: &'a RecordContext) -> BoxFuture<'a, Result<()>>;
    /// [`RecordModule::enhance`].
    fn enhance(&self, message: &mut Message, record: &Record);
    /// [`RecordModule::assigned`].
    fn assigned<'a>(&'a self, partition: &'a TopicPartition, step: &'a Step) -> BoxFuture<'a, Result<()>>;
    /// [`RecordModule::revoked`].
    fn revoked<'a>(&'a self, partition: &'a TopicPartition, step: &'a Step) -> BoxFuture<'a, Result<()>>;
    /// [`RecordModule::shutdown`].
    fn shutdown<'a>(&'a self, step: &'a Step) -> BoxFuture<'a, Result<()>>;
    /// [`RecordModule::close`], when this is the last reference.
    fn close(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// Makes programs of one module.
#[derive(Clone)]
pub struct Factory {
    info: Arc<ModuleInfo>,
    open: Arc<Open>,
}

type Open = dyn Fn(Value, Step) -> BoxFuture<'static, Result<Program>> + Send + Sync;

impl Factory {
    /// Makes programs of a [`Module`]. A `NAME` that no module may have does not
    /// compile.
    #[must_use]
    pub fn module<M: Module>() -> Self {
        const { assert!(is_module_name(M::NAME), "NAME must be 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends") };
        Self {
            info: info::<M::Config>(M::NAME, M::VERSION, M::DESCRIPTION, M::STEP_TYPES),
            open: Arc::new(|config, step| {
                Box::pin(async move {
                    let module = M::open(decode(config)?, &step).await?;
                    Ok(Program::Documents(Arc::new(Erased(module))))
                })
            }),
        }
    }

    /// Makes programs of a [`Connector`].
    #[must_use]
    pub fn connector<C: Connector>() -> Self {
        const { assert!(is_module_name(C::NAME), "NAME must be 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends") };
        Self {
            info: info::<C::Config>(C::NAME, C::VERSION, C::DESCRIPTION, &[StepType::Connector]),
            open: Arc::new(|config, step| {
                Box::pin(async move {
                    let connector = C::open(decode(config)?, &step).await?;
                    Ok(Program::Connector(Arc::new(Erased(connector))))
                })
            }),
        }
    }

    /// Makes programs of a [`RecordModule`].
    #[must_use]
    pub fn records<R: RecordModule>() -> Self {
        const { assert!(is_module_name(R::NAME), "NAME must be 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends") };
        Self {
            info: info::<R::Config>(R::NAME, R::VERSION, R::DESCRIPTION, R::STEP_TYPES),
            open: Arc::new(|config, step| {
                Box::pin(async move {
                    let module = R::open(decode(config)?, &step).await?;
                    Ok(Program::Records(Arc::new(Erased(module))))
                })
            }),
        }
    }

    /// What the module says of itself, with the JSON Schema of its configuration.
    #[must_use]
    pub fn info(&self) -> &ModuleInfo {
        &self.info
    }

    /// Makes the program of one step. Secrets in the configuration must have been
    /// expanded.
    ///
    /// # Errors
    /// A configuration that does not fit the schema is a permanent error that
    /// names every field that is wrong; values are not repeated, as they may be
    /// secrets. Everything else is the module's own.
    pub async fn open(&self, config: Value, step: &Step) -> Result<Program> {
        // A step without configuration means one with nothing set.
        let config = if config.is_null() { Value::Object(serde_json::Map::new()) } else { config };
        self.check(&config).map_err(|problems| {
            Error::permanent(problems).with_kind("config").context(format!("configuration of {} is wrong", step.id()))
        })?;
        (self.open)(config, step.clone()).await
    }

    /// Checks a configuration against the module's schema.
    fn check(&self, config: &Value) -> Result<(), Problems> {
        let schema = jsonschema::validator_for(&self.info.config_schema).map_err(|error| {
            Problems(vec![Problem {
                message: format!("the module's own schema is wrong: {error}"),
                ..Problem::default()
            }])
        })?;
        let problems: Vec<Problem> = schema
            .iter_errors(config)
            .map(|error| Problem {
                field: field_path(error.instance_path().as_str()),
                message: error.masked().to_string(),
                ..Problem::default()
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }
}

impl fmt::Debug for Factory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factory").field("module", &self.info.module).finish_non_exhaustive()
    }
}

/// Waits until nobody else holds a program, for a while.
fn alone<T: ?Sized>(program: &Arc<T>) -> impl Future<Output = ()> + use<T> {
    let program = Arc::downgrade(program);
    async move {
        for _ in 0..100 {
            if program.strong_count() <= 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Holds what an author wrote.
struct Erased<T>(T);

impl<M: Module> Documents for Erased<M> {
    fn process<'a>(&'a self, doc: PipeDoc, step: &'a Step) -> BoxFuture<'a, Result<Output>> {
        Box::pin(self.0.process(doc, step))
    }

    fn process_batch<'a>(&'a self, docs: Vec<PipeDoc>, step: &'a Step) -> BoxFuture<'a, Vec<Result<Output>>> {
        Box::pin(self.0.process_batch(docs, step))
    }

    fn deleted<'a>(&'a self, deletion: Deletion, step: &'a Step) -> BoxFuture<'a, Result<Output>> {
        Box::pin(self.0.deleted(deletion, step))
    }

    fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(Erased(module)) = Arc::try_unwrap(self) {
                module.close().await;
            }
        })
    }
}

impl<C: Connector> Connects for Erased<C> {
    fn run<'a>(&'a self, step: &'a Step, out: &'a Emitter, state: &'a State) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.run(step, out, state))
    }

    fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(Erased(connector)) = Arc::try_unwrap(self) {
                connector.close().await;
            }
        })
    }
}

impl<R: RecordModule> WorksOnRecords for Erased<R> {
    fn process<'a>(&'a self, batch: &'a RecordBatch, context: &'a RecordContext) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.process(batch, context))
    }

    fn enhance(&self, message: &mut Message, record: &Record) {
        self.0.enhance(message, record);
    }

    fn assigned<'a>(&'a self, partition: &'a TopicPartition, step: &'a Step) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.assigned(partition, step))
    }

    fn revoked<'a>(&'a self, partition: &'a TopicPartition, step: &'a Step) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.revoked(partition, step))
    }

    fn shutdown<'a>(&'a self, step: &'a Step) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.0.shutdown(step))
    }

    fn close(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Ok(Erased(module)) = Arc::try_unwrap(self) {
                module.close().await;
            }
        })
    }
}

fn decode<C: DeserializeOwned>(config: Value) -> Result<C> {
    serde_json::from_value(config)
        .map_err(|error| Error::permanent(error).with_kind("config").context("configuration cannot be read"))
}

fn info<C: schemars::JsonSchema>(
    name: &'static str,
    version: &str,
    description: &str,
    step_types: &[StepType],
) -> Arc<ModuleInfo> {
    #[allow(clippy::expect_used, reason = "every caller has checked the name at compile time")]
    let module = ModuleName::new(name).expect("a checked name");
    Arc::new(ModuleInfo {
        module,
        version: version.to_owned(),
        step_types: step_types.to_vec(),
        config_schema: schemars::schema_for!(C).to_value(),
        description: description.to_owned(),
    })
}

/// What [`ModuleName::new`] checks, where the compiler can ask it.
const fn is_module_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > 63 || bytes[0] == b'-' || bytes[bytes.len() - 1] == b'-' {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() {
        if !(bytes[at].is_ascii_lowercase() || bytes[at].is_ascii_digit() || bytes[at] == b'-') {
            return false;
        }
        at += 1;
    }
    true
}

/// A JSON pointer as people write paths: `/outputs/0/url` is `outputs[0].url`.
fn field_path(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        if part.parse::<usize>().is_ok() {
            path.push_str(&format!("[{part}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&part.replace("~1", "/").replace("~0", "~"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_that_compiles_is_a_module_name() {
        for name in ["a", "echo", "filesystem-connector", "", "-", "a-", "A", "a_b", &"x".repeat(63), &"x".repeat(64)] {
            assert_eq!(is_module_name(name), ModuleName::new(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn pointers_become_paths() {
        assert_eq!(field_path("/outputs/0/url"), "outputs[0].url");
        assert_eq!(field_path(""), "");
    }
}
