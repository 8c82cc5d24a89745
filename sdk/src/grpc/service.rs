//! The calls of `PipeStepProcessor`, for one module.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use pipedoc_model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_model::step::StepType;
use pipedoc_proto::v1;
use pipedoc_proto::v1::pipe_step_processor_server::PipeStepProcessor;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::error::Error;
use super::programs::{InUse, Key, Programs};
use crate::error::{Error as ModuleError, Result as ModuleResult};
use crate::factory::{Factory, Program};
use crate::module::{Deletion, Step};
use crate::output::Output;

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
        data: PathBuf,
        concurrency: usize,
        kept_open: usize,
        stopping: CancellationToken,
    ) -> Self {
        let programs = Programs::new(factory.clone(), kept_open);
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
        Ok(Response::new(convert::registration(self.0.factory.info())))
    }

    async fn process_data(
        &self,
        request: Request<v1::ProcessDataRequest>,
    ) -> Result<Response<v1::ProcessDataResponse>, Status> {
        Ok(Response::new(Arc::clone(&self.0).answer(request.into_inner()).await?))
    }

    type ProcessStreamStream = Pin<Box<dyn Stream<Item = Result<v1::ProcessDataResponse, Status>> + Send>>;

    async fn process_stream(
        &self,
        request: Request<Streaming<v1::ProcessDataRequest>>,
    ) -> Result<Response<Self::ProcessStreamStream>, Status> {
        let inner = Arc::clone(&self.0);
        // At the shutdown no more is taken, and what was taken is answered.
        let requests = request.into_inner().take_until(inner.stopping.clone().cancelled_owned());
        let concurrency = inner.concurrency;
        let answers = requests.map(move |request| {
            let inner = Arc::clone(&inner);
            async move { Ok(inner.answer(request?).await?) }
        });
        Ok(Response::new(Box::pin(answers.buffered(concurrency))))
    }
}

impl Inner {
    /// Answers one request, when there is room for it.
    ///
    /// The work has a task of its own: a panic ends it alone, documents of one
    /// stream run side by side, and a caller that goes away ends it.
    async fn answer(self: Arc<Self>, request: v1::ProcessDataRequest) -> Result<v1::ProcessDataResponse, Error> {
        let sequence = request.sequence;
        let task = Work::of(request)?;
        let stopping = || Error::Stopping { module: self.factory.info().module.clone() };
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| stopping())?;
        let inner = Arc::clone(&self);
        let work = AbortOnDropHandle::new(tokio::spawn(async move {
            let _room = room;
            let opened = inner.open(task.config, task.step).await?;
            inner.run(&opened, task.subject).await
        }));
        let result = match work.await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => return Err(error),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(ModuleError::permanent(panic_message(panic.as_ref())).with_kind("panic")),
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

    async fn run(&self, opened: &InUse, subject: Subject) -> Result<ModuleResult<Output>, Error> {
        let module = || self.factory.info().module.clone();
        let documents = match &opened.program {
            Program::Documents(documents) => documents,
            Program::Connector(_) => return Err(Error::Connector { module: module() }),
            Program::Records(_) => return Err(Error::Records { module: module() }),
        };
        Ok(match subject {
            Subject::Document(document) => documents.process(*document, &opened.step).await,
            Subject::Deleted(id) => documents.deleted(Deletion { id, version: 0 }, &opened.step).await,
        })
    }
}

/// A request whose shape was checked.
struct Work {
    subject: Subject,
    config: prost_types::Struct,
    step: v1::StepIdentity,
}

enum Subject {
    Document(Box<v1::PipeDoc>),
    Deleted(String),
}

impl Work {
    fn of(request: v1::ProcessDataRequest) -> Result<Self, Error> {
        let subject = match (request.document, request.deleted_id) {
            (None, id) if id.is_empty() => return Err(Error::NothingGiven),
            (None, id) => Subject::Deleted(id),
            (Some(_), id) if !id.is_empty() => return Err(Error::BothGiven),
            (Some(document), _) if document.id.is_empty() => return Err(Error::NoId),
            (Some(document), _) => Subject::Document(Box::new(document)),
        };
        let config = request.config.unwrap_or_default();
        Ok(Self { subject, config, step: request.step.unwrap_or_default() })
    }
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

/// What a panic said.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    match said {
        Some(said) => format!("the module panicked: {said}"),
        None => "the module panicked".to_owned(),
    }
}
