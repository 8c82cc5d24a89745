//! What happens around a module's work: a stack, to which authors add `tower` layers.
//!
//! The runtime's own layers stand outside the author's: a span for the trace,
//! panics caught, the step's timeout. An author adds what is theirs inside of
//! these, next to the module:
//!
//! ```
//! use std::time::Duration;
//! use pipedoc_sdk::layers::Layers;
//! use pipedoc_sdk::tower::limit::RateLimitLayer;
//! use pipedoc_sdk::tower::timeout::TimeoutLayer;
//! use pipedoc_sdk::tower::util::MapRequestLayer;
//! use pipedoc_sdk::layers::{Input, Request};
//!
//! let layers = Layers::new()
//!     // The first one added is the outermost.
//!     .layer(TimeoutLayer::new(Duration::from_secs(5)))
//!     .layer(MapRequestLayer::new(|mut request: Request| {
//!         if let Input::Document(doc) = &mut request.input {
//!             doc.title = doc.title.trim().to_owned();
//!         }
//!         request
//!     }));
//! ```
//!
//! A layer's error is what the document fails with: [`Failure`] carries one of
//! the SDK's, `tower`'s `Elapsed` is a timeout, anything else may be retried.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use pipedoc_proto::PipeDoc;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service};

use crate::error::{Error, Result};
use crate::module::{Deletion, Step};
use crate::output::Output;

/// An error on its way through the stack.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The service that layers wrap.
pub type ProcessService = BoxCloneSyncService<Request, Answer, BoxError>;

/// Something for a module to do.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// What it is about.
    pub input: Input,
    /// The step it is done for.
    pub step: Step,
    /// How many times it was tried before; of a batch, the highest.
    pub attempt: u32,
    /// The span it is done in.
    pub span: tracing::Span,
}

impl Request {
    /// A first attempt, in the current span.
    #[must_use]
    pub fn new(input: Input, step: Step) -> Self {
        Self { input, step, attempt: 0, span: tracing::Span::current() }
    }
}

/// What a request is about.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "documents are the rule")]
pub enum Input {
    /// A document.
    Document(PipeDoc),
    /// Documents that share a batch.
    Batch(Vec<PipeDoc>),
    /// A deletion.
    Deletion(Deletion),
}

/// What came of a request: of a batch one result for each document, in order; of
/// anything else one. What fails as a whole is an error of the service instead.
pub type Answer = Vec<Result<Output>>;

/// An [`Error`] as a standard error, so that it can pass through layers.
#[derive(Debug)]
pub struct Failure(pub Error);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Failure {}

/// The SDK's error that came out of a stack.
pub(crate) fn error_of(error: BoxError) -> Error {
    match error.downcast::<Failure>() {
        Ok(failure) => failure.0,
        Err(error) if error.is::<tower::timeout::error::Elapsed>() => late(),
        Err(error) => Error::retryable(error),
    }
}

/// What is said of work that took longer than it may.
pub(crate) fn late() -> Error {
    Error::retryable("no answer in time").with_kind("timeout")
}

/// Layers that an author puts around a module.
#[derive(Clone, Default)]
pub struct Layers(Vec<Arc<dyn Fn(ProcessService) -> ProcessService + Send + Sync>>);

impl Layers {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer inside those added before.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<ProcessService> + Send + Sync + 'static,
        L::Service: Service<Request, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Error: Into<BoxError>,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.0.push(Arc::new(move |inner| {
            let service = layer.layer(inner);
            BoxCloneSyncService::new(tower::util::MapErr::new(service, Into::<BoxError>::into))
        }));
        self
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts all of them around a service.
    pub(crate) fn around(&self, service: ProcessService) -> ProcessService {
        self.0.iter().rev().fold(service, |inner, layer| layer(inner))
    }
}

impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layers({})", self.0.len())
    }
}
