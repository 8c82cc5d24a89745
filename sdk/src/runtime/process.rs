//! The stack around a module: span, panics, timeout, the author's layers, the module.
//!
//! ```text
//! span ─▶ catch panic ─▶ timeout ─▶ author's layers ─▶ module
//! ```
//!
//! How many are at work at once is bounded by whoever calls.
//! Only the author's are `tower` services. A document passes through all of it, so
//! what is always the same is plain code, and nothing is boxed where there are no
//! layers. Knows documents; knows nothing of records.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use pipedoc_proto::PipeDoc;
use tower::{Service, ServiceExt};
use tracing::{Instrument, Span};

use crate::error::{Error, Result};
use crate::factory::Documents;
use crate::layers::{Answer, BoxError, Failure, Input, Layers, ProcessService, Request, error_of, late};
use crate::module::Step;
use crate::output::Output;

/// The stack around a module.
#[derive(Clone)]
pub(crate) struct Stack {
    module: Arc<dyn Documents>,
    /// The author's layers around the module, if there are any.
    layered: Option<ProcessService>,
    timeout: Duration,
}

impl Stack {
    pub(crate) fn new(module: Arc<dyn Documents>, layers: &Layers, timeout: Duration) -> Self {
        let layered = (!layers.is_empty()).then(|| layers.around(ProcessService::new(Innermost(Arc::clone(&module)))));
        Self { module, layered, timeout }
    }

    /// Runs one document or deletion through the stack. A panic is a permanent error, no
    /// answer in time a retryable one.
    pub(crate) async fn one(&self, input: Input, step: &Step, attempt: u32, span: &Span) -> Result<Output> {
        // Pinned where it lies: it is large, and would be moved into what is around it.
        let work = pin!(async {
            let work = pin!(async {
                match &self.layered {
                    Some(service) => only(through(service, input, step, attempt, span).await?),
                    None => single(self.module.as_ref(), input, step).await,
                }
            });
            self.in_time(work).await
        });
        guarded(work, span).await
    }

    /// The same for documents that share a batch.
    pub(crate) async fn batch(&self, docs: Vec<PipeDoc>, step: &Step, attempt: u32, span: &Span) -> Result<Answer> {
        let work = pin!(async {
            let work = pin!(async {
                match &self.layered {
                    Some(service) => through(service, Input::Batch(docs), step, attempt, span).await,
                    None => Ok(self.module.process_batch(docs, step).await),
                }
            });
            self.in_time(work).await
        });
        guarded(work, span).await
    }

    async fn in_time<T>(&self, mut work: Pin<&mut impl Future<Output = Result<T>>>) -> Result<T> {
        // Most modules answer at once, and need no clock.
        if let Poll::Ready(answer) = futures::poll!(work.as_mut()) {
            return answer;
        }
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Does work in its span. A panic in it, or in what it drops, is an error.
async fn guarded<T>(work: Pin<&mut impl Future<Output = Result<T>>>, span: &Span) -> Result<T> {
    let work = AssertUnwindSafe(work).catch_unwind();
    let done = if span.is_disabled() { work.await } else { work.instrument(span.clone()).await };
    done.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

/// Runs something through the author's layers.
async fn through(service: &ProcessService, input: Input, step: &Step, attempt: u32, span: &Span) -> Result<Answer> {
    let request = Request { input, step: step.clone(), attempt, span: span.clone() };
    service.clone().oneshot(request).await.map_err(error_of)
}

fn only(answer: Answer) -> Result<Output> {
    let none = || Err(Error::permanent("the module's layers gave no result").with_kind("wrong-answer"));
    answer.into_iter().next().unwrap_or_else(none)
}

/// What the module makes of one thing; of a batch, of its first.
fn single<'a>(module: &'a dyn Documents, input: Input, step: &'a Step) -> BoxFuture<'a, Result<Output>> {
    match input {
        Input::Document(doc) => module.process(doc, step),
        Input::Deletion(deletion) => module.deleted(deletion, step),
        Input::Batch(docs) => module.process_batch(docs, step).map(only).boxed(),
    }
}

async fn work(module: &dyn Documents, Request { input, step, .. }: Request) -> Result<Answer> {
    match input {
        Input::Batch(docs) => Ok(module.process_batch(docs, &step).await),
        input => single(module, input, &step).await.map(|output| vec![Ok(output)]),
    }
}

/// Calls the module, as a service that layers wrap.
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
        Box::pin(async move { work(module.as_ref(), request).await.map_err(|error| Failure(error).into()) })
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
