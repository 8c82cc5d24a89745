//! Opens what a command talks to: the log of a data folder, an engine.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use pipedoc_sdk::process::{LogArgs, LogError};
use pipedoc_transport::log::Log;

/// Opens the log that was named, or the file in the data folder.
pub async fn log(args: &LogArgs, data: &Path) -> anyhow::Result<Arc<dyn Log>> {
    args.open(data, &|waiting| crate::show::tell!("{waiting}")).await.map_err(|error| match error {
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
    log(args, data).await
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
                let context = format!("no engine answers at {address}; start one with `pipedoc engine`");
                return Err(anyhow::Error::new(error).context(context));
            }
        }
    }
}

/// Turns a gRPC status into an error that people can read.
pub fn said(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::InvalidArgument
        | tonic::Code::NotFound
        | tonic::Code::FailedPrecondition
        | tonic::Code::Unimplemented => crate::exit::Refused(status.message().to_owned()).into(),
        code => anyhow::anyhow!("the engine answered {code:?}: {}", status.message()),
    }
}
