//! An engine and modules as processes on one SQLite file, as on one machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pipedoc_proto::PipeDoc;
use pipedoc_proto::v1::SubmitRequest;
use pipedoc_proto::v1::intake_client::IntakeClient;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::program::{self, Process};

/// How long processes may take to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// The processes; they end with it.
pub struct Installation {
    // Fields are dropped in this order: processes before their folder.
    modules: Vec<Process>,
    engine: Process,
    folder: TempDir,
    address: String,
    program: PathBuf,
}

impl Installation {
    /// Starts an engine with one pipeline; `OUT` in its text is a folder for results.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: PathBuf, pipeline: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("pipedoc-bench-").tempdir()?;
        std::fs::create_dir(folder.path().join("pipelines"))?;
        let text = pipeline.replace("OUT", &folder.path().join("out").to_string_lossy());
        std::fs::write(folder.path().join("pipelines/bench.yaml"), text)?;
        let mut command = program::command(&program);
        command.current_dir(folder.path()).args(["engine", "--listen", "127.0.0.1:0"]);
        let mut engine = Process::start("engine", &mut command, folder.path())?;
        engine.wait_for("the engine serves")?;
        let printed = std::fs::read_to_string(folder.path().join("engine.log"))?;
        let address = printed.split_once("address=").and_then(|(_, rest)| rest.split_whitespace().next());
        let address = format!("http://{}", address.context("the engine does not say where it serves")?);
        Ok(Self { modules: Vec::new(), engine, folder, address, program })
    }

    /// Starts an instance of a module.
    ///
    /// # Errors
    /// When it does not start.
    pub fn module(&mut self, name: &'static str) -> anyhow::Result<()> {
        let mut command: Command = program::command(&self.program);
        command.current_dir(self.folder.path()).args(["module", name, "--engines", &self.address]);
        let mut module = Process::start(name, &mut command, self.folder.path())?;
        module.wait_for("ready")?;
        self.modules.push(module);
        Ok(())
    }

    /// Where the results are.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// The log's file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join(".pipedoc/log.db")
    }

    /// Id of the engine's process.
    #[must_use]
    pub fn engine_id(&self) -> u32 {
        self.engine.id()
    }

    /// Ids of the modules' processes.
    pub fn module_ids(&self) -> impl Iterator<Item = u32> {
        self.modules.iter().map(Process::id)
    }

    /// A client, once the engine knows the pipeline.
    ///
    /// # Errors
    /// When the engine cannot be reached.
    pub async fn intake(&self) -> anyhow::Result<Intake> {
        let client = IntakeClient::connect(self.address.clone()).await?;
        Ok(Intake { client })
    }
}

/// Sends documents to the only pipeline.
pub struct Intake {
    client: IntakeClient<Channel>,
}

impl Intake {
    /// Sends a document; returns when the log has it.
    ///
    /// # Errors
    /// When it was not taken.
    pub async fn submit(&mut self, pipeline: &str, step: &str, doc: PipeDoc) -> anyhow::Result<()> {
        let request = SubmitRequest {
            pipeline: pipeline.to_owned(),
            step: step.to_owned(),
            documents: vec![doc],
            ..SubmitRequest::default()
        };
        let answer = self.client.submit(request).await?.into_inner();
        let error = answer.reports.first().map_or("no report", |report| report.error.as_str());
        ensure!(error.is_empty(), "not taken: {error}");
        Ok(())
    }

    /// As [`submit`](Self::submit), for the first: tries until the pipeline is known.
    ///
    /// # Errors
    /// When it was not taken within a minute.
    pub async fn submit_first(&mut self, pipeline: &str, step: &str, doc: PipeDoc) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.submit(pipeline, step, doc.clone()).await {
                Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                result => return result,
            }
        }
    }
}

/// Waits until a file is there, looking often and cheaply.
///
/// # Errors
/// When it is not within a minute.
pub fn wait_for_file(file: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !file.exists() {
        ensure!(Instant::now() < end, "{} did not come", file.display());
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
