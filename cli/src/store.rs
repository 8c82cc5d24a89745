//! Where `pipedoc engine` keeps configuration: a folder, or Consul.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args as ClapArgs;
use pipedoc_engine::consul::{ConsulSettings, ConsulStore, Token};
use pipedoc_engine::store::folder::FolderStore;
use pipedoc_engine::store::{Error, Store};
use pipedoc_model::names::ClusterName;
use pipedoc_sdk::units;

use crate::exit::Refused;

/// Pause between two tries to reach Consul at start.
const AGAIN: Duration = Duration::from_millis(500);

/// Where configuration is kept.
#[derive(Debug, ClapArgs)]
pub struct StoreArgs {
    /// Folder of pipeline files (`*.yaml`, `*.yml`, `*.json`), watched. Not used with
    /// --consul.
    #[arg(long, value_name = "DIR", env = "PIPEDOC_PIPELINES", default_value = "pipelines")]
    pub pipelines: PathBuf,
    /// Keep configuration in Consul, below `pipedoc/<cluster>/`: URL of its agent,
    /// such as http://127.0.0.1:8500. Any number of engines may share it.
    #[arg(long, value_name = "URL", env = "PIPEDOC_CONSUL")]
    pub consul: Option<String>,
    /// File that holds the Consul ACL token. `PIPEDOC_CONSUL_TOKEN` may hold the token itself.
    #[arg(long, value_name = "FILE", env = "PIPEDOC_CONSUL_TOKEN_FILE", requires = "consul")]
    pub consul_token_file: Option<PathBuf>,
    /// PEM file of the authorities that Consul's certificate is checked with.
    #[arg(long, value_name = "FILE", env = "PIPEDOC_CONSUL_CA", requires = "consul")]
    pub consul_ca: Option<PathBuf>,
    /// PEM file of this engine's certificate for Consul.
    #[arg(long, value_name = "FILE", env = "PIPEDOC_CONSUL_CERT", requires_all = ["consul", "consul_key"])]
    pub consul_cert: Option<PathBuf>,
    /// PEM file (PKCS #8) of that certificate's key.
    #[arg(long, value_name = "FILE", env = "PIPEDOC_CONSUL_KEY", requires_all = ["consul", "consul_cert"])]
    pub consul_key: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store; waits for Consul for `wait`, for ever when there is none.
    pub async fn open(
        &self,
        cluster: &ClusterName,
        data: &Path,
        wait: Option<Duration>,
    ) -> anyhow::Result<Arc<dyn Store>> {
        let Some(address) = &self.consul else {
            return Ok(Arc::new(FolderStore::open(cluster.clone(), &self.pipelines, data).await?));
        };
        let mut settings = ConsulSettings::new(address);
        settings.token = self.token()?;
        settings.ca_file.clone_from(&self.consul_ca);
        settings.identity = self.consul_cert.clone().zip(self.consul_key.clone());
        let store = ConsulStore::open(cluster.clone(), &settings).map_err(|error| refused(&error))?;
        let since = Instant::now();
        let mut told = false;
        loop {
            match store.probe().await {
                Ok(()) => return Ok(Arc::new(store)),
                Err(error) if !error.is_retryable() => return Err(refused(&error)),
                Err(error) if wait.is_some_and(|wait| since.elapsed() >= wait) => return Err(given_up(error)),
                Err(_) => {
                    // What is wrong with it is told in the log.
                    if !std::mem::replace(&mut told, true) {
                        let limit = wait.map_or_else(
                            || "--wait 30s would give up after that".to_owned(),
                            |wait| format!("for {} at most", units::Duration(wait)),
                        );
                        crate::show::tell!(
                            "waiting for Consul at {address}, {limit}; until it answers this engine does not listen, and `pipedoc status` does not find it"
                        );
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// The token, from its file or the environment. It is no flag: those are seen by
    /// every user of the machine.
    fn token(&self) -> anyhow::Result<Option<Token>> {
        let text = match &self.consul_token_file {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
            None => match std::env::var("PIPEDOC_CONSUL_TOKEN") {
                Ok(text) if !text.is_empty() => text,
                _ => return Ok(None),
            },
        };
        let from =
            self.consul_token_file.as_ref().map_or("PIPEDOC_CONSUL_TOKEN".into(), |path| path.display().to_string());
        Ok(Some(Token::new(&text).map_err(|error| Refused(format!("{from}: {error}")))?))
    }
}

/// Why the engine is not started; it speaks of nothing that runs, as a running one does.
fn given_up(error: Error) -> anyhow::Error {
    match error {
        Error::Unreachable { address, source, .. } => anyhow::Error::new(source)
            .context(format!("Consul at {address} did not answer within --wait; the engine is not started")),
        error => anyhow::Error::new(error).context("Consul cannot be used within --wait; the engine is not started"),
    }
}

fn refused(error: &dyn std::error::Error) -> anyhow::Error {
    Refused(pipedoc_model::problem::chain(error)).into()
}
