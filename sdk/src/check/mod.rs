//! The test kit: what a module makes of one document, with no log and no engine.
//!
//! ```
//! # use pipedoc_sdk::prelude::*;
//! # #[derive(Deserialize, JsonSchema)] struct Config { prefix: String }
//! # struct Greeter(String);
//! # impl Module for Greeter {
//! #     type Config = Config;
//! #     const NAME: &'static str = "greeter";
//! #     async fn open(config: Config, _: &Step) -> Result<Self> { Ok(Self(config.prefix)) }
//! #     async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
//! #         if doc.title.is_empty() { return Err(Error::permanent("nobody to greet")); }
//! #         doc.title = format!("{} {}", self.0, doc.title);
//! #         Ok(doc.into())
//! #     }
//! # }
//! use pipedoc_sdk::check::{check, fails};
//! use pipedoc_sdk::serde_json::json;
//!
//! let doc = |title: &str| PipeDoc { id: "1".into(), title: title.into(), ..Default::default() };
//! // Documents: just these must come out.
//! check::<Greeter>(json!({"prefix": "Hello"}), doc("Ann"), doc("Hello Ann"));
//! // An error: it must be permanent and say this.
//! check::<Greeter>(json!({"prefix": "Hello"}), doc(""), fails("nobody to greet"));
//! // Anything else: look yourself.
//! check::<Greeter>(json!({"prefix": "Hello"}), doc("Bob"), |result: Result<Output>| {
//!     assert_eq!(result.unwrap().items.len(), 1);
//! });
//! ```

mod diff;

use std::panic::resume_unwind;

use pipedoc_model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_model::step::StepType;
use pipedoc_proto::PipeDoc;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::factory::{Factory, Program};
use crate::module::{Deletion, Module, Step};
use crate::output::{Content, Output};

/// What a module is given.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one value a test")]
pub enum Input {
    /// A document.
    Document(PipeDoc),
    /// The deletion of one.
    Deletion(Deletion),
}

impl From<PipeDoc> for Input {
    fn from(doc: PipeDoc) -> Self {
        Self::Document(doc)
    }
}

impl From<Deletion> for Input {
    fn from(deletion: Deletion) -> Self {
        Self::Deletion(deletion)
    }
}

/// Opens a module with a configuration, gives it one document (or deletion), and
/// compares what comes of it with what is expected: documents, an [`Output`], an
/// error ([`fails`], [`retries`]), or a closure over the result that asserts for
/// itself. Works in plain tests and in asynchronous ones.
///
/// # Panics
/// When something else comes of it; the message shows the difference.
#[track_caller]
pub fn check<M: Module>(config: Value, input: impl Into<Input>, expected: impl Expected) {
    expected.compare(outcome::<M>(config, input));
}

/// What comes of one document: as [`check`], without comparing.
///
/// # Errors
/// Whatever the module's `open` or `process` fails with, the error of a wrong
/// configuration among them.
///
/// # Panics
/// When the module panics.
pub fn outcome<M: Module>(config: Value, input: impl Into<Input>) -> Result<Output> {
    let input = input.into();
    // A thread of its own, as the caller may be within a runtime already.
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(process(&Factory::module::<M>(), config, input))
        });
        work.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

async fn process(factory: &Factory, config: Value, input: Input) -> Result<Output> {
    let folder = Scratch::new();
    let step_type = factory.info().step_types.first().copied().unwrap_or(StepType::Pipeline);
    let id = StepId::new(PipelineName::new("check")?, StepName::new("check")?);
    let step = Step::new(ClusterName::new("check")?, id, step_type, folder.0.clone(), CancellationToken::new());
    let program = factory.open(config, &step).await?;
    let result = match (&program, input) {
        (Program::Documents(documents), Input::Document(doc)) => documents.process(doc, &step).await,
        (Program::Documents(documents), Input::Deletion(deletion)) => documents.deleted(deletion, &step).await,
        (Program::Connector(_) | Program::Records(_), _) => Err(Error::permanent("the module takes no documents")),
    };
    program.close().await;
    result
}

/// A folder that goes with the test.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("pipedoc-check-{}", uuid::Uuid::new_v4())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Most modules never make it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a test expects.
pub trait Expected {
    /// Compares, and panics where it differs.
    fn compare(self, result: Result<Output>);
}

impl<F: FnOnce(Result<Output>)> Expected for F {
    #[track_caller]
    fn compare(self, result: Result<Output>) {
        self(result);
    }
}

/// These documents, in this order, and nothing else; the outputs that they are
/// sent to do not matter.
impl Expected for Vec<PipeDoc> {
    #[track_caller]
    fn compare(self, result: Result<Output>) {
        let made = succeeded(result);
        differ(&render(&Output::many(self), false), &render(&made, false));
    }
}

impl<const N: usize> Expected for [PipeDoc; N] {
    #[track_caller]
    fn compare(self, result: Result<Output>) {
        Vec::from(self).compare(result);
    }
}

impl Expected for PipeDoc {
    #[track_caller]
    fn compare(self, result: Result<Output>) {
        vec![self].compare(result);
    }
}

/// All of this, the outputs that it is sent to included.
impl Expected for Output {
    #[track_caller]
    fn compare(self, result: Result<Output>) {
        differ(&render(&self, true), &render(&succeeded(result), true));
    }
}

/// An error that is expected; see [`fails`] and [`retries`].
#[derive(Debug, Clone)]
pub struct Failure {
    says: String,
    retryable: bool,
}

/// A permanent error whose chain contains this text.
pub fn fails(says: impl Into<String>) -> Failure {
    Failure { says: says.into(), retryable: false }
}

/// A retryable error whose chain contains this text.
pub fn retries(says: impl Into<String>) -> Failure {
    Failure { says: says.into(), retryable: true }
}

impl Expected for Failure {
    #[track_caller]
    #[allow(clippy::panic, reason = "a test kit fails by panicking")]
    fn compare(self, result: Result<Output>) {
        let kind = |retryable| if retryable { "retryable" } else { "permanent" };
        let wanted = format!("a {} error that says {:?}", kind(self.retryable), self.says);
        match result {
            Ok(made) => panic!("expected {wanted}, but the module succeeded with\n{}", render(&made, true)),
            Err(error) if error.is_retryable() != self.retryable || !error.to_string().contains(&self.says) => {
                panic!("expected {wanted}, but the error is {}: {error}", kind(error.is_retryable()));
            }
            Err(_) => {}
        }
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a test kit fails by panicking")]
fn succeeded(result: Result<Output>) -> Output {
    match result {
        Ok(output) => output,
        Err(error) => panic!("expected the module to succeed, but it failed: {error:?}"),
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a test kit fails by panicking")]
fn differ(expected: &str, made: &str) {
    if expected != made {
        panic!("what came out differs (- expected, + came out):\n{}", diff::lines(expected, made));
    }
}

/// An output as text that is compared and shown.
fn render(output: &Output, with_targets: bool) -> String {
    let mut text = String::new();
    for item in &output.items {
        match &item.content {
            Content::Document(doc) => text.push_str(&document(doc)),
            Content::Deletion(id) => text.push_str(&format!("deletion of {id:?}")),
            Content::Outdated(id) => text.push_str(&format!("deletion of what is older of {id:?}")),
        }
        if let (true, Some(to)) = (with_targets, &item.to) {
            text.push_str(&format!("\nto {to:?}"));
        }
        text.push('\n');
    }
    if let Some(loss) = &output.partial {
        text.push_str(&format!("partial: {loss}\n"));
    }
    if text.is_empty() { "nothing\n".to_owned() } else { text }
}

fn document(doc: &PipeDoc) -> String {
    let json = pipedoc_proto::json::to_json(doc).ok().and_then(|json| serde_json::to_string_pretty(&json).ok());
    // What JSON cannot say (a time out of range) is shown as it is in memory.
    json.unwrap_or_else(|| format!("{doc:#?}"))
}
