//! Serves a module over gRPC: `PipeStepProcessor` with health and reflection.
//!
//! ```text
//! service   the three calls, in terms of messages
//! programs  what was opened for a configuration, kept for the next call
//! convert   messages to what modules know, and back
//! error     what is refused, and the one place where it becomes a status
//! ```
//!
//! Says nothing of topics, outputs' targets or retries: those belong to whoever
//! calls. Secrets in a caller's configuration are not expanded, or a caller could
//! read this process's environment.

pub mod convert;
pub mod error;
mod programs;
mod service;

use std::path::PathBuf;
use std::time::Duration;

use pipedoc_proto::FILE_DESCRIPTOR_SET;
use pipedoc_proto::v1::pipe_step_processor_server::PipeStepProcessorServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::factory::Factory;
use crate::layers::Layers;

/// Largest message taken or sent: documents come with their originals.
pub const MESSAGE_LIMIT: usize = 64 << 20;

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The reflection service could not be made of our descriptors.
    #[error("the descriptors for gRPC reflection cannot be read")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The connection layer failed.
    #[error("serving gRPC failed")]
    Transport(#[source] tonic::transport::Error),
}

/// Serves one module.
#[derive(Debug)]
pub struct Server {
    factory: Factory,
    layers: Layers,
    data: PathBuf,
    concurrency: usize,
    kept_open: usize,
    grace: Duration,
}

impl Server {
    /// A server for a module. Steps get folders of their own below `data`, made
    /// by those that want one.
    #[must_use]
    pub fn new(factory: Factory, data: impl Into<PathBuf>) -> Self {
        let cores = std::thread::available_parallelism().map_or(4, usize::from);
        Self {
            factory,
            layers: Layers::new(),
            data: data.into(),
            concurrency: cores * 4,
            kept_open: 32,
            grace: Duration::from_secs(10),
        }
    }

    /// Layers that the author puts around the module. Default: none.
    #[must_use]
    pub fn layers(mut self, layers: Layers) -> Self {
        self.layers = layers;
        self
    }

    /// How many documents are processed at once; others wait. Default: four times
    /// the number of cores.
    #[must_use]
    pub fn concurrency(mut self, documents: usize) -> Self {
        self.concurrency = documents.max(1);
        self
    }

    /// For how many configurations the opened module is kept. Default 32.
    #[must_use]
    pub fn kept_open(mut self, configurations: usize) -> Self {
        self.kept_open = configurations.max(1);
        self
    }

    /// How long calls may finish after the shutdown. Default 10 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Serves until `shutdown`, then lets open calls finish and closes what was
    /// opened.
    ///
    /// # Errors
    /// When the connection layer fails.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), ServeError> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(ServeError::Reflection)?;
        let service = service::Service::new(
            self.factory,
            self.layers,
            self.data,
            self.concurrency,
            self.kept_open,
            shutdown.clone(),
        );
        let processor = PipeStepProcessorServer::new(service.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<PipeStepProcessorServer<service::Service>>().await;

        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_service(health)
            .add_service(reflection)
            .add_service(processor)
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        // Watchers of health never end by themselves, so the wait has a bound.
        let given_up = async {
            shutdown.cancelled().await;
            reporter.set_not_serving::<PipeStepProcessorServer<service::Service>>().await;
            tokio::time::sleep(self.grace).await;
        };
        let served = tokio::select! {
            served = serving => served.map_err(ServeError::Transport),
            () = given_up => Ok(()),
        };
        service.close().await;
        served
    }
}
