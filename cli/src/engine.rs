//! `pipedoc engine`: reads pipelines from a folder or Consul and tells modules what to do.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use pipedoc_engine::store::Candidate;
use pipedoc_engine::{Engine, EngineConfig};
use pipedoc_model::names::ClusterName;
use pipedoc_sdk::process::Signals;
use pipedoc_telemetry::TelemetryConfig;
use pipedoc_transport::objects::{Objects, ObjectsUrl};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::args::EngineArgs;
use crate::connect;

/// So many instances and connections may be open at once, where the system allows it.
const MOST_FILES: u64 = 65_536;

/// Runs the command.
pub async fn main(args: EngineArgs) -> anyhow::Result<ExitCode> {
    // Each attached instance holds a file open; many systems allow 1,024 unless asked
    // for more. Where more is not allowed, so many instances do.
    let _ = rlimit::increase_nofile_limit(MOST_FILES);
    let telemetry = pipedoc_telemetry::init(&TelemetryConfig::new("pipedoc-engine"))?;
    let cluster = ClusterName::new(&args.cluster)?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("making data folder {}", args.data.display()))?;
    let wait = args.log.wait.map(|wait| wait.0);
    let store = args.store.open(&cluster, &args.data, wait).await?;
    let place = store.describe();
    let log = connect::log(&args.log, &args.data, Some(&telemetry)).await?;
    let objects = args.objects.unwrap_or_else(|| ObjectsUrl::Folder(args.data.join("objects")));
    let objects = Objects::open(&objects).await?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listening on {}; give another --listen when it is taken", args.listen))?;
    let address = listener.local_addr()?;

    let engine = Engine::new(EngineConfig {
        cluster: cluster.clone(),
        store,
        log,
        objects: Arc::new(objects),
        candidate: Candidate::new(args.advertise.unwrap_or_else(|| address.to_string())),
        variables: args.variables.into_iter().collect(),
    });
    tracing::info!(%cluster, %address, configuration = place, "the engine serves");

    let shutdown = CancellationToken::new();
    let mut signals = Signals::new()?;
    let stop = shutdown.clone();
    let watching = tokio::spawn(async move {
        signals.next().await;
        stop.cancel();
    });
    let served = engine.serve(listener, shutdown).await;
    watching.abort();
    served.context("serving gRPC")?;
    Ok(ExitCode::SUCCESS)
}
