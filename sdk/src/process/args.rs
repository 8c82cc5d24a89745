//! What can be set for a module's process, by flags and `PIPEDOC_*` variables.
//! Every value is checked here; what follows need not look again.

use std::net::SocketAddr;
use std::path::PathBuf;

use pipedoc_model::names::{ClusterName, PipelineName, StepId, StepName};
use pipedoc_transport::objects::ObjectsUrl;

use super::log::LogArgs;
use crate::units;

/// Arguments of a module's process; `pipedoc module NAME` takes the same.
#[derive(Debug, Clone, clap::Args)]
pub struct ProcessArgs {
    /// Shows who the module is and the schema of its configuration as JSON, and
    /// ends.
    #[arg(long)]
    pub describe: bool,

    /// Engines to learn from what to do, all of them, separated by commas. Empty:
    /// none; then what the instance was last told runs.
    #[arg(
        long,
        env = "PIPEDOC_ENGINES",
        value_name = "URL,…",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7400",
        value_parser = engine
    )]
    pub engines: Vec<String>,

    /// Folder shared by the processes of this machine; made if it is missing. Each
    /// instance has a folder of its own in it, with its id and what it was told.
    #[arg(long, env = "PIPEDOC_DATA", value_name = "DIR", default_value = ".pipedoc")]
    pub data: PathBuf,

    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,

    /// Where large payloads lie: `s3://BUCKET[/PREFIX]` (address and keys in AWS_*
    /// variables) or a folder; the same for all processes of an installation.
    /// Default: `objects` in the data folder.
    #[arg(long, env = "PIPEDOC_OBJECTS", value_name = "URL")]
    pub objects: Option<ObjectsUrl>,

    /// Name of the installation; must be that of the engines.
    #[arg(long, env = "PIPEDOC_CLUSTER", value_name = "NAME", default_value = "local")]
    pub cluster: ClusterName,

    /// Address to serve gRPC on; port 0: any free one.
    #[arg(long, env = "PIPEDOC_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,

    /// How others reach this instance (`http://HOST:PORT`). Default: where it
    /// listens.
    #[arg(long, env = "PIPEDOC_ADVERTISE", value_name = "URL", value_parser = engine)]
    pub advertise: Option<String>,

    /// Runs only these steps (`PIPELINE/STEP`), separated by commas. Default: all
    /// steps of the module.
    #[arg(long, env = "PIPEDOC_SERVE", value_name = "STEP,…", value_delimiter = ',', value_parser = step)]
    pub serve: Vec<StepId>,

    /// How long what is in flight may finish after the first SIGTERM or SIGINT
    /// (`500ms`, `30s`). A second one ends the process at once.
    #[arg(long, env = "PIPEDOC_GRACE", value_name = "DURATION", default_value = "30s")]
    pub grace: units::Duration,

    /// Which lines are logged to standard error: `warn`, `info`,
    /// `info,pipedoc_sdk=debug`.
    #[arg(long, env = "PIPEDOC_LOG", value_name = "FILTER", default_value = "info")]
    pub log_filter: String,

    /// How lines are logged: text for people, json for machines.
    #[arg(long, env = "PIPEDOC_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How lines are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for pipedoc_telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl ProcessArgs {
    /// The object store.
    pub(super) fn objects(&self) -> ObjectsUrl {
        self.objects.clone().unwrap_or_else(|| ObjectsUrl::Folder(self.data.join("objects")))
    }

    /// The engines, without what an empty list leaves.
    pub(super) fn engines(&self) -> Vec<String> {
        self.engines.iter().filter(|engine| !engine.is_empty()).cloned().collect()
    }
}

/// An `http` or `https` address, or nothing.
fn engine(text: &str) -> Result<String, String> {
    let text = text.trim();
    let uri: Result<tonic::transport::Uri, _> = text.parse();
    match uri {
        _ if text.is_empty() => Ok(String::new()),
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => Ok(text.to_owned()),
        _ => Err("write an address like http://127.0.0.1:7400".to_owned()),
    }
}

fn step(text: &str) -> Result<StepId, String> {
    let (pipeline, step) = text.trim().split_once('/').ok_or("write PIPELINE/STEP, such as library/parse")?;
    let pipeline = PipelineName::new(pipeline).map_err(|error| error.to_string())?;
    let step = StepName::new(step).map_err(|error| error.to_string())?;
    Ok(StepId::new(pipeline, step))
}
