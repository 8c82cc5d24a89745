//! Opens what a command talks to: the log of a data folder, an engine.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_sdk::process::{LogArgs, LogError, kafka_metrics};
use pipedoc_telemetry::Guard;
use pipedoc_transport::log::Log;
use tonic::transport::Channel;

use crate::args::EngineAddress;

/// Largest answer of an engine, as it sends them: 64 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// Opens the log that was named, or the file in the data folder. Numbers of Kafka's
/// clients become metrics where telemetry sends any.
pub async fn log(args: &LogArgs, data: &Path, telemetry: Option<&Guard>) -> anyhow::Result<Arc<dyn Log>> {
    let statistics = kafka_metrics(telemetry.and_then(Guard::meter).as_ref());
    args.open(data, statistics, &|waiting| crate::show::tell!("{waiting}")).await.map_err(|error| match error {
        LogError::TwoLogs { .. } => crate::exit::Refused(error.to_string()).into(),
        error => error.into(),
    })
}

/// As [`log`], for commands that only look: a log file that is not there is an
/// error, not made.
pub async fn existing_log(args: &LogArgs, data: &Path) -> anyhow::Result<Arc<dyn Log>> {
    if args.named().is_none() && !data.join("log.db").is_file() {
        let message = format!("there is no log in {}; name the data folder with --data", data.display());
        return Err(crate::exit::Refused(message).into());
    }
    log(args, data, None).await
}

/// Connects to an engine; tries for five seconds.
pub async fn engine(address: &str) -> anyhow::Result<tonic::transport::Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(address.to_owned())
        .with_context(|| format!("--engine {address} is no URL such as http://127.0.0.1:7400"))?
        .connect_timeout(std::time::Duration::from_secs(5));
    // An engine that was started a moment ago gets a chance.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(_) if std::time::Instant::now() < patience => {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            Err(error) => {
                let context = format!(
                    "no engine answers at {address}: start one with `pipedoc engine`; one that was started listens once Consul and the log answer it, and says in its log what it waits for"
                );
                return Err(anyhow::Error::new(error).context(context));
            }
        }
    }
}

/// Connects to an engine's control service.
pub async fn control(address: &EngineAddress) -> anyhow::Result<PipelineControlClient<Channel>> {
    Ok(PipelineControlClient::new(engine(&address.engine).await?).max_decoding_message_size(MAX_ANSWER))
}

/// Turns a gRPC status into an error that people can read.
pub fn said(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::InvalidArgument
        | tonic::Code::NotFound
        | tonic::Code::FailedPrecondition
        | tonic::Code::PermissionDenied
        | tonic::Code::Unimplemented => crate::exit::Refused(status.message().to_owned()).into(),
        code => anyhow::anyhow!("the engine answered {code:?}: {}", status.message()),
    }
}
