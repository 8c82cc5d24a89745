//! An engine: everything it holds, and what callers can ask of it.

mod pipelines;
mod resume;
mod unknown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::ClusterName;
use pipedoc_proto::v1;
use pipedoc_transport::log::Log;
use pipedoc_transport::objects::Objects;
use tokio::net::TcpListener;
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::TcpIncoming;

use crate::catalog::Catalog;
use crate::dead_letters::DeadLetters;
use crate::editor::Editor;
use crate::error::Error;
use crate::grpc;
use crate::intake::Intake;
use crate::reconcile::Reconciler;
use crate::sessions::Sessions;
use crate::status;
use crate::store::{Candidate, Leadership, Store};
use crate::view::View;

/// How long an instance that attaches waits until it is known which log this is.
const LOG_ANSWERS: Duration = Duration::from_secs(1);

/// How long an apply waits for the plan that follows from it, and a call to an
/// engine that has just started for its first one.
const PLANNED_WITHIN: Duration = Duration::from_secs(5);

/// How long the store's catalog of engines is waited for; status comes without it.
const CATALOG_ANSWERS: Duration = Duration::from_secs(1);

/// How long open connections may finish when the engine stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What an engine is made of.
pub struct EngineConfig {
    /// The installation.
    pub cluster: ClusterName,
    /// Where configuration and control state lie.
    pub store: Arc<dyn Store>,
    /// Where records lie.
    pub log: Arc<dyn Log>,
    /// Where large payloads of submitted documents go; the modules must reach the
    /// same stores.
    pub objects: Arc<Objects>,
    /// This engine, as others see it.
    pub candidate: Candidate,
    /// Values of variables for pipelines that are new in the inbox; those that a
    /// pipeline has already win. Default: none.
    pub variables: BTreeMap<String, String>,
}

/// Why an engine cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The services cannot be described for reflection.
    #[error("gRPC reflection cannot be set up")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server broke off.
    #[error("the gRPC server broke off")]
    Transport(#[from] tonic::transport::Error),
}

/// An engine. Cheap to clone; it reconciles as long as a clone lives.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    cluster: ClusterName,
    /// Where others reach it.
    address: String,
    catalog: Catalog,
    log: Arc<dyn Log>,
    log_identity: OnceCell<String>,
    editor: Arc<Editor>,
    intake: Intake,
    dead_letters: DeadLetters,
    sessions: Sessions,
    view: watch::Receiver<Arc<View>>,
    leadership: watch::Receiver<Leadership>,
    nudge: Arc<Notify>,
    _reconciling: AbortOnDropHandle<()>,
}

impl Engine {
    /// Makes an engine and begins to reconcile. Must be called within a runtime.
    #[must_use]
    pub fn new(config: EngineConfig) -> Self {
        let EngineConfig { cluster, store, log, objects, candidate, variables } = config;
        let address = candidate.address.clone();
        let leadership = store.campaign(candidate);
        let catalog = Catalog::new(store);
        let editor = Arc::new(Editor::new(cluster.clone(), catalog.clone(), Arc::clone(&log)));
        let nudge = Arc::new(Notify::new());
        let reconciler = Reconciler::new(
            cluster.clone(),
            catalog.clone(),
            Arc::clone(&log),
            Arc::clone(&editor),
            variables,
            leadership.clone(),
            Arc::clone(&nudge),
        );
        let view = reconciler.view();
        let reconciling = AbortOnDropHandle::new(tokio::spawn(reconciler.run(CancellationToken::new())));
        Self(Arc::new(Inner {
            intake: Intake::new(cluster.clone(), Arc::clone(&log), objects),
            cluster,
            address,
            catalog,
            log,
            log_identity: OnceCell::new(),
            editor,
            dead_letters: DeadLetters::default(),
            sessions: Sessions::default(),
            view,
            leadership,
            nudge,
            _reconciling: reconciling,
        }))
    }

    /// Serves gRPC on a listener until `shutdown`: `ModuleGateway`,
    /// `PipelineControl`, `Intake`, health and reflection.
    ///
    /// # Errors
    /// When the server cannot be set up or breaks off.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), ServeError> {
        let routes = grpc::routes(self.clone(), shutdown.clone()).await?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let too_long = async {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let served = tokio::select! {
            ended = server => ended.map_err(ServeError::from),
            () = too_long => Ok(()),
        };
        // Another engine leads at once, and nobody looks for us here.
        self.0.catalog.store().close().await;
        served
    }

    /// How everything is doing, or only one pipeline when `pipeline` is not empty.
    ///
    /// # Errors
    /// When there is no such pipeline.
    pub async fn status(&self, pipeline: &str) -> Result<v1::StatusResponse, Error> {
        // All of it is shown also while the store or the log is away: that is what is wrong then.
        let view = if pipeline.is_empty() { self.view().borrow().clone() } else { self.planned().await? };
        let only = match pipeline {
            "" => None,
            name => match view.pipeline(name) {
                Some(only) => Some(only),
                None => return Err(self.unknown(name.to_owned()).await),
            },
        };
        let instances = self.0.sessions.all();
        let Inner { cluster, log, dead_letters, .. } = &*self.0;
        let mut status = status::status(cluster, &view, &instances, log.as_ref(), dead_letters, only).await;
        let catalog = tokio::time::timeout(CATALOG_ANSWERS, self.0.catalog.store().engines()).await;
        // Whatever keeps it away, this engine and the one that leads are known.
        let catalog = catalog.ok().and_then(Result::ok).unwrap_or_default();
        let leadership = self.0.leadership.borrow().clone();
        status.engines = status::engines(&self.0.address, &leadership, catalog);
        if let Leadership::Hindered(reason) = leadership {
            status.problems.push(v1::Problem {
                message: format!("this engine can neither lead nor tell who does ({reason}); where no engine leads, edits of the configuration wait"),
                ..v1::Problem::default()
            });
        }
        Ok(status)
    }

    /// Puts documents into a step's input topic; a report for each.
    ///
    /// # Errors
    /// When the request cannot be right, or the log cannot be used.
    pub async fn submit(&self, request: v1::SubmitRequest) -> Result<Vec<v1::DeliveryReport>, Error> {
        let view = self.planned().await?;
        match self.0.intake.submit(&view, request).await {
            Err(Error::UnknownPipeline { found, .. }) => Err(self.unknown(found).await),
            submitted => submitted,
        }
    }

    /// What is planned. An engine that has just started first looks at its store.
    pub(crate) async fn planned(&self) -> Result<Arc<View>, Error> {
        let mut view = self.view();
        let looked = tokio::time::timeout(PLANNED_WITHIN, view.wait_for(|view| view.looked)).await;
        match looked {
            Ok(Ok(view)) => Ok(Arc::clone(&view)),
            _ => Err(Error::NotReady),
        }
    }

    /// What is planned, as it changes.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.0.view.clone()
    }

    /// Whether it leads the engines that share its store, as that changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// The installation it belongs to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// The log that we work on.
    pub(crate) fn log(&self) -> &dyn Log {
        self.0.log.as_ref()
    }

    /// Which log that is; empty while it does not say so.
    pub(crate) async fn log_identity(&self) -> String {
        let asked = self.0.log_identity.get_or_try_init(|| self.0.log.identity());
        match tokio::time::timeout(LOG_ANSWERS, asked).await {
            Ok(Ok(identity)) => identity.clone(),
            Ok(Err(_)) | Err(_) => String::new(),
        }
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    pub(crate) fn editor(&self) -> &Editor {
        &self.0.editor
    }

    /// Has all looked at soon.
    pub(crate) fn nudge(&self) {
        self.0.nudge.notify_one();
    }
}
