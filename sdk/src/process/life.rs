//! The life of a module's process: telemetry, slot, log, instance, serve, attach,
//! wait, drain. Holds the order of things and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_telemetry::TelemetryConfig;
use pipedoc_transport::kafka::StatisticsObserver;
use pipedoc_transport::log::Log;
use pipedoc_transport::objects::Objects;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::args::ProcessArgs;
use super::kafka_metrics;
use super::signal::Signals;
use super::step_metrics;
use crate::attach::{self, AttachConfig, KeptFile, LogName, Slot, attach};
use crate::event::Observer;
use crate::factory::Factory;
use crate::grpc::Server;
use crate::instance::{Instance, InstanceConfig};
use crate::layers::Layers;

/// Why a process could not live.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Telemetry could not be set up.
    #[error(transparent)]
    Telemetry(#[from] pipedoc_telemetry::Error),
    /// The process got no slot of its own.
    #[error(transparent)]
    Slot(#[from] attach::slot::Error),
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] super::log::Error),
    /// The object store could not be opened.
    #[error(transparent)]
    Objects(#[from] pipedoc_transport::objects::Error),
    /// The address to serve on is not to be had.
    #[error("cannot listen on {address}; give another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The operating system does not hand signals over.
    #[error("signals cannot be caught")]
    Signals(#[source] std::io::Error),
    /// Serving gRPC failed.
    #[error(transparent)]
    Serve(#[from] crate::grpc::ServeError),
}

impl Error {
    /// Whether what was given is wrong, and nothing was done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Log(error) => error.is_refusal(),
            Self::Telemetry(error) => error.is_refusal(),
            _ => false,
        }
    }
}

/// How a process ended that lived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What was in flight is finished and committed.
    Drained,
    /// A second signal came while it drained.
    AtOnce,
}

/// Lives until a signal comes.
pub(super) async fn live(
    factory: Factory,
    layers: Layers,
    observer: Arc<dyn Observer>,
    args: ProcessArgs,
) -> Result<End, Error> {
    let telemetry = telemetry(&factory, &args)?;
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let slot = Slot::take(&args.data, &factory.info().module)?;
    let meter = telemetry.meter();
    let statistics = kafka_metrics(meter.as_ref());
    let observer = step_metrics::counted(meter.as_ref(), observer);
    let (instance, log) = instance(&factory, &layers, &args, &slot, statistics, observer).await?;
    step_metrics::show(meter.as_ref(), &instance);
    let (endpoint, serving, stop_serving) = serve(&factory, &layers, &args, &slot).await?;
    let (attached, detach) = attach_to_engines(&factory, &args, &slot, &endpoint, log, &instance);
    tracing::info!(
        module = %factory.info().module,
        instance = %slot.id(),
        slot = slot.number(),
        endpoint,
        log = %args.log.url(&args.data),
        engines = args.engines().join(","),
        "ready"
    );

    let mut serving = serving;
    let signal = tokio::select! {
        signal = signals.next() => signal,
        served = &mut serving => {
            // Serving ends by itself only when it fails.
            instance.stop(args.grace.0).await;
            served.unwrap_or(Ok(()))?;
            return Ok(End::Drained);
        }
    };

    tracing::info!(signal, grace = ?args.grace.0, "stopping; a second signal ends at once");
    let drain = async {
        stop_serving.cancel();
        instance.stop(args.grace.0).await;
        // Engines see the steps stop, then the session ends.
        detach.cancel();
        let _ = attached.await;
        serving.await.unwrap_or(Ok(()))
    };
    tokio::select! {
        served = drain => served?,
        signal = signals.next() => {
            tracing::warn!(signal, "ending at once; what was in flight comes again");
            return Ok(End::AtOnce);
        }
    }
    tracing::info!("stopped");
    Ok(End::Drained)
}

fn telemetry(factory: &Factory, args: &ProcessArgs) -> Result<pipedoc_telemetry::Guard, pipedoc_telemetry::Error> {
    pipedoc_telemetry::init(&TelemetryConfig {
        format: args.log_format.into(),
        filter: Some(args.log_filter.clone()),
        ..TelemetryConfig::new(factory.info().module.as_str())
    })
}

/// Opens the log and the object store, and makes what runs steps on them.
async fn instance(
    factory: &Factory,
    layers: &Layers,
    args: &ProcessArgs,
    slot: &Slot,
    statistics: StatisticsObserver,
    observer: Arc<dyn Observer>,
) -> Result<(Instance, LogName), Error> {
    let log = args.log.open(&args.data, statistics, &|waiting| tracing::warn!("{waiting}")).await?;
    let name = name_of(log.as_ref()).await;
    let objects = Objects::open(&args.objects()).await?;
    let instance = Instance::start(InstanceConfig {
        log,
        objects: Arc::new(objects),
        id: slot.id().to_string(),
        data: slot.folder().to_path_buf(),
        factories: vec![factory.clone()],
        observer,
        layers: layers.clone(),
    });
    Ok((instance, name))
}

/// Which log it is. One that does not say so is taken for the right one.
async fn name_of(log: &dyn Log) -> LogName {
    let name = log.describe();
    match log.identity().await {
        Ok(identity) => LogName { identity, name },
        Err(error) => {
            tracing::warn!(%error, "whether engines work on the same log cannot be told");
            LogName { identity: String::new(), name }
        }
    }
}

type Serving = AbortOnDropHandle<Result<(), crate::grpc::ServeError>>;

/// Serves gRPC in the background: where, the task, and what ends it.
async fn serve(
    factory: &Factory,
    layers: &Layers,
    args: &ProcessArgs,
    slot: &Slot,
) -> Result<(String, Serving, CancellationToken), Error> {
    let listening = async {
        let listener = TcpListener::bind(args.listen).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let (listener, address) = listening.await.map_err(|source| Error::Listen { address: args.listen, source })?;
    let stop = CancellationToken::new();
    let grace = args.grace.0.min(Duration::from_secs(10));
    let server =
        Server::new(factory.clone(), slot.folder()).layers(layers.clone()).grace(grace).run(listener, stop.clone());
    let endpoint = args.advertise.clone().unwrap_or_else(|| format!("http://{address}"));
    Ok((endpoint, AbortOnDropHandle::new(tokio::spawn(server)), stop))
}

/// Attaches to the engines in the background: the task and what ends it.
fn attach_to_engines(
    factory: &Factory,
    args: &ProcessArgs,
    slot: &Slot,
    endpoint: &str,
    log: LogName,
    instance: &Instance,
) -> (AbortOnDropHandle<()>, CancellationToken) {
    let info = factory.info();
    let config = AttachConfig {
        engines: args.engines(),
        log,
        endpoint: endpoint.to_owned(),
        serve: args.serve.iter().cloned().collect(),
        ..AttachConfig::new(args.cluster.clone(), info.module.clone(), info.into(), slot.id().to_string())
    };
    let detach = CancellationToken::new();
    let work = attach(config, KeptFile::in_folder(slot.folder()), Arc::new(instance.clone()), detach.clone());
    (AbortOnDropHandle::new(tokio::spawn(work)), detach)
}
