//! The service stack around a module: span, panics, concurrency, timeout, the
//! author's layers, the module.
//!
//! ```text
//! span ─▶ catch panic ─▶ concurrency ─▶ timeout ─▶ author's layers ─▶ module
//! ```
//!
//! Knows documents; knows nothing of records.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::limit::ConcurrencyLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::{Service, ServiceBuilder, ServiceExt};
use tracing::Instrument;

use crate::error::{Error, Result};
use crate::factory::Documents;
use crate::layers::{Answer, BoxError, Failure, Input, Layers, ProcessService, Request, error_of};

/// The stack around a module.
pub(crate) fn stack(
    module: Arc<dyn Documents>,
    layers: &Layers,
    concurrency: usize,
    timeout: Duration,
) -> ProcessService {
    let inner = layers.around(ProcessService::new(Innermost(module)));
    let bounded = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(concurrency.max(1)))
        .layer(TimeoutLayer::new(timeout))
        .service(inner);
    ProcessService::new(Outermost(ProcessService::new(bounded)))
}

/// Runs a request through the stack.
pub(crate) async fn call(service: &ProcessService, request: Request) -> Result<Answer> {
    service.clone().oneshot(request).await.map_err(error_of)
}

/// Calls the module.
#[derive(Clone)]
struct Innermost(Arc<dyn Documents>);

impl Service<Request> for Innermost {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let module = Arc::clone(&self.0);
        Box::pin(async move {
            let step = &request.step;
            let one = match request.input {
                Input::Document(doc) => module.process(doc, step).await,
                Input::Deletion(deletion) => module.deleted(deletion, step).await,
                Input::Batch(docs) => return Ok(module.process_batch(docs, step).await),
            };
            one.map(|output| vec![Ok(output)]).map_err(|error| Failure(error).into())
        })
    }
}

/// Enters the span and makes a panic a permanent error.
#[derive(Clone)]
struct Outermost(ProcessService);

impl Service<Request> for Outermost {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let span = request.span.clone();
        // The service that is ready does the work; its clone is not ready yet.
        let clone = self.0.clone();
        let mut ready = std::mem::replace(&mut self.0, clone);
        let work = async move {
            let work = AssertUnwindSafe(async move { ready.call(request).await }).catch_unwind();
            work.await.unwrap_or_else(|panic| Err(Failure(panicked(panic.as_ref())).into()))
        };
        if span.is_disabled() { Box::pin(work) } else { Box::pin(work.instrument(span)) }
    }
}

/// What a panic of a module said, as a permanent error.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Error {
    panicked_in("the module", panic)
}

/// What a panic said, as a permanent error.
pub(crate) fn panicked_in(who: &str, panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::permanent(message).with_kind("panic").context(format!("{who} panicked"))
}
