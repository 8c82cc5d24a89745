//! The calls of `PipeStepProcessor`, for one module.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use pipedoc_model::headers::{Headers, TRACEPARENT, TRACESTATE};
use pipedoc_model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_model::step::StepType;
use pipedoc_proto::v1;
use pipedoc_proto::v1::pipe_step_processor_server::PipeStepProcessor;
use pipedoc_telemetry::propagation::continue_trace;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::convert;
use super::error::Error;
use super::programs::{InUse, Key, Opened, Programs};
use crate::error::Result as ModuleResult;
use crate::factory::Factory;
use crate::layers::{Input, Layers};
use crate::module::{Deletion, Step};
use crate::output::Output;
use crate::runtime::process::panicked;

/// Serves one module.
#[derive(Clone)]
pub(super) struct Service(Arc<Inner>);

struct Inner {
    factory: Factory,
    data: PathBuf,
    programs: Programs,
    concurrency: usize,
    room: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Service {
    pub(super) fn new(
        factory: Factory,
        layers: Layers,
        data: PathBuf,
        concurrency: usize,
        kept_open: usize,
        stopping: CancellationToken,
    ) -> Self {
        let programs = Programs::new(factory.clone(), layers, kept_open);
        let room = Arc::new(Semaphore::new(concurrency));
        Self(Arc::new(Inner { factory, data, programs, concurrency, room, stopping }))
    }

    /// Closes what was opened.
    pub(super) async fn close(&self) {
        self.0.programs.close().await;
    }
}

#[tonic::async_trait]
impl PipeStepProcessor for Service {
    async fn get_service_registration(
        &self,
        _: Request<v1::GetServiceRegistrationRequest>,
    ) -> Result<Response<v1::ServiceRegistration>, Status> {
        Ok(Response::new(self.0.factory.info().into()))
    }

    async fn process_data(
        &self,
        request: Request<v1::ProcessDataRequest>,
    ) -> Result<Response<v1::ProcessDataResponse>, Status> {
        let trace = trace(request.metadata());
        Ok(Response::new(Arc::clone(&self.0).answer(request.into_inner(), &trace).await?))
    }

    type ProcessStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ProcessDataResponse, Status>> + Send>>;

    async fn process_stream(
        &self,
        request: Request<Streaming<v1::ProcessDataRequest>>,
    ) -> Result<Response<Self::ProcessStreamStream>, Status> {
        let inner = Arc::clone(&self.0);
        let trace = Arc::new(trace(request.metadata()));
        // At the shutdown no more is taken, and what was taken is answered.
        let requests = request.into_inner().take_until(inner.stopping.clone().cancelled_owned());
        let concurrency = inner.concurrency;
        let answers = requests.map(move |request| {
            let (inner, trace) = (Arc::clone(&inner), Arc::clone(&trace));
            async move { Ok(inner.answer(request?, &trace).await?) }
        });
        Ok(Response::new(Box::pin(answers.buffered(concurrency))))
    }
}

impl Inner {
    /// Answers one request, when there is room for it.
    ///
    /// The work has a task of its own: a panic ends it alone, documents of one
    /// stream run side by side, and a caller that goes away ends it.
    async fn answer(
        self: Arc<Self>,
        request: v1::ProcessDataRequest,
        trace: &Headers,
    ) -> Result<v1::ProcessDataResponse, Error> {
        let (sequence, attempt) = (request.sequence, request.attempt);
        let span = tracing::info_span!(
            "process_data",
            pipeline = request.step.as_ref().map(|step| step.pipeline.as_str()),
            step = request.step.as_ref().map(|step| step.step.as_str()),
            attempt,
        );
        continue_trace(&span, trace);
        let task = Work::of(request)?;
        let stopping = || Error::Stopping { module: self.factory.info().module.clone() };
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| stopping())?;
        let inner = Arc::clone(&self);
        let work = async move {
            let _room = room;
            let opened = inner.open(task.config, task.step).await?;
            inner.run(&opened, task.input, attempt).await
        };
        let work = AbortOnDropHandle::new(tokio::spawn(work.instrument(span)));
        let result = match work.await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(error),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(panicked(panic.as_ref())),
                // Aborted, which only the end of the runtime does.
                Err(_) => return Err(stopping()),
            },
        };
        Ok(convert::response(sequence, result))
    }

    async fn open(&self, config: prost_types::Struct, step: v1::StepIdentity) -> Result<InUse, Error> {
        let module = &self.factory.info().module;
        if self.factory.info().step_types == [StepType::Connector] {
            return Err(Error::Connector { module: module.clone() });
        }
        let key = key(&config, &step);
        let (cluster, id) = names(&step)?;
        let wanted = || {
            let folder = self.data.join("grpc").join(id.group(&cluster));
            let step_type = self.factory.info().step_types.first().copied().unwrap_or(StepType::Pipeline);
            let step = Step::new(cluster.clone(), id.clone(), step_type, folder, self.stopping.clone());
            (convert::json(config.clone()), step)
        };
        let opened = self.programs.get(key, wanted).await;
        opened.map_err(|error| Error::Open { module: module.clone(), error })
    }

    async fn run(&self, opened: &Opened, input: Input, attempt: u32) -> Result<ModuleResult<Output>, Error> {
        let module = || self.factory.info().module.clone();
        let Some(service) = &opened.service else { return Err(Error::Records { module: module() }) };
        Ok(service.one(input, &opened.step, attempt, &tracing::Span::current()).await)
    }
}

/// A request whose shape was checked.
struct Work {
    input: Input,
    config: prost_types::Struct,
    step: v1::StepIdentity,
}

impl Work {
    fn of(request: v1::ProcessDataRequest) -> Result<Self, Error> {
        let input = match (request.document, request.deleted_id) {
            (None, id) if id.is_empty() => return Err(Error::NothingGiven),
            (None, id) => Input::Deletion(Deletion { id, version: 0 }),
            (Some(_), id) if !id.is_empty() => return Err(Error::BothGiven),
            (Some(document), _) if document.id.is_empty() => return Err(Error::NoId),
            (Some(document), _) => Input::Document(document),
        };
        let config = request.config.unwrap_or_default();
        Ok(Self { input, config, step: request.step.unwrap_or_default() })
    }
}

/// The caller's trace context, as record headers carry it.
fn trace(metadata: &tonic::metadata::MetadataMap) -> Headers {
    let mut headers = Headers::new();
    for name in [TRACEPARENT, TRACESTATE] {
        if let Some(value) = metadata.get(name) {
            headers.set(name, bytes::Bytes::copy_from_slice(value.as_bytes()));
        }
    }
    headers
}

/// What tells the configurations of steps apart. Encoding a `Struct` is
/// deterministic, as its fields are sorted.
fn key(config: &prost_types::Struct, step: &v1::StepIdentity) -> Key {
    let mut hash = Sha256::new();
    hash.update(step.encode_length_delimited_to_vec());
    hash.update(config.encode_to_vec());
    hash.finalize().into()
}

/// Names of the step; those that a caller left out get names of their own.
fn names(step: &v1::StepIdentity) -> Result<(ClusterName, StepId), Error> {
    let or = |name: &'_ str, default: &'static str| if name.is_empty() { default.to_owned() } else { name.to_owned() };
    let cluster = ClusterName::new(&or(&step.cluster, "local")).map_err(Error::Step)?;
    let pipeline = PipelineName::new(&or(&step.pipeline, "direct")).map_err(Error::Step)?;
    let step = StepName::new(&or(&step.step, "call")).map_err(Error::Step)?;
    Ok((cluster, StepId::new(pipeline, step)))
}
