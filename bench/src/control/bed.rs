//! What the bench runs on: a Consul agent, two engines with a counting proxy each,
//! and simulated instances that are attached to both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use pipedoc_proto::v1;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_tests::bed::consul::Consul;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::counting::Counting;
use super::instance::Instance;
use super::lists::Lists;
use super::pipelines::{self, Size};
use crate::program::{self, Process};

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Prefix of the inbox's keys.
const INBOX: &str = "pipedoc/bench/pipelines";

/// Consul, engines, instances; all end with it.
pub struct Bed {
    // Fields are dropped in this order: engines before Consul and their folder.
    sessions: JoinSet<()>,
    instances: Vec<Arc<Instance>>,
    pub engines: Vec<Engine>,
    program: PathBuf,
    consul: Consul,
    size: Size,
    folder: TempDir,
}

/// An engine as a process.
pub struct Engine {
    process: Process,
    consul: Counting,
    listen: String,
    /// Sessions that were told something.
    told: Arc<AtomicU64>,
}

impl Engine {
    /// Id of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How many requests it has sent to Consul.
    pub fn requests(&self) -> u64 {
        self.consul.requests()
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
}

impl Bed {
    /// Starts Consul with all pipelines in its inbox.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    pub async fn start(size: Size) -> anyhow::Result<Self> {
        let program = program::pipedoc()?;
        let consul = Consul::start().map_err(|reason| anyhow!(reason))?;
        let folder = tempfile::Builder::new().prefix("pipedoc-bench-").tempdir()?;
        let bed = Self {
            sessions: JoinSet::new(),
            instances: Vec::new(),
            engines: Vec::new(),
            program,
            consul,
            size,
            folder,
        };
        for pipeline in 0..size.pipelines {
            bed.put(pipeline, &size.text(pipeline, 0, 0)).await?;
        }
        Ok(bed)
    }

    /// Writes a pipeline into the inbox, as `consul kv put` does.
    ///
    /// # Errors
    /// When Consul does not take it.
    pub async fn put(&self, pipeline: usize, text: &str) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.consul.port())).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "PUT /v1/kv/{INBOX}/{} HTTP/1.1\r\nHost: consul\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            pipelines::name(pipeline),
            text.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "Consul does not take a pipeline: {answer}");
        Ok(())
    }

    /// Starts one more engine; it need not know anything yet.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn start_engine(&mut self) -> anyhow::Result<()> {
        let name = ["engine-0", "engine-1"][self.engines.len()];
        let proxy = Counting::start(self.consul.port()).await?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let process = run_engine(&self.program, name, &proxy, &listen, self.folder.path())?;
        self.engines.push(Engine { process, consul: proxy, listen, told: Arc::default() });
        Ok(())
    }

    /// Kills an engine and starts it again in its place.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn restart_engine(&mut self, number: usize, name: &'static str) -> anyhow::Result<()> {
        let (program, folder) = (self.program.clone(), self.folder.path().to_owned());
        let engine = self.engines.get_mut(number).context("no such engine")?;
        engine.process.kill();
        engine.told.store(0, Ordering::Relaxed);
        engine.process = run_engine(&program, name, &engine.consul, &engine.listen, &folder)?;
        Ok(())
    }

    /// Attaches instances to all engines, until there are so many, the modules' in turn.
    pub fn attach(&mut self, instances: usize) {
        let lists = Arc::new(Lists::default());
        let modules: Vec<_> = self.size.modules().collect();
        let of = instances.div_ceil(modules.len());
        for number in self.instances.len()..instances {
            let place = (number / modules.len(), of);
            let instance = Arc::new(Instance::new(modules[number % modules.len()].clone(), place, Arc::clone(&lists)));
            for engine in &self.engines {
                self.sessions.spawn(Arc::clone(&instance).stay_attached(engine.url(), Arc::clone(&engine.told)));
            }
            self.instances.push(instance);
        }
    }

    /// The instances.
    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// How much there is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Waits until every instance is attached to every engine and runs all steps of
    /// its module.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn all_run(&self) -> anyhow::Result<()> {
        let steps = |instance: &Arc<Instance>| instance.confirmed().list.steps.len();
        let all = self.size.all() / self.size.modules;
        eventually("all instances run all their steps", || {
            let told = |engine: &Engine| engine.told.load(Ordering::Relaxed) >= self.instances.len() as u64;
            self.engines.iter().all(told) && self.instances.iter().all(|instance| steps(instance) >= all)
        })
        .await?;
        self.settle().await
    }

    /// Waits until all instances have confirmed one generation, and that for a while:
    /// modules that register change it.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let mut since = (0, Instant::now());
        eventually("all instances run one generation", || {
            let generations: Vec<_> = self.instances.iter().map(|instance| instance.confirmed().generation).collect();
            let (min, max) = (generations.iter().min().copied(), generations.iter().max().copied());
            if min != max || max != Some(since.0) {
                since = (max.unwrap_or(0), Instant::now());
            }
            since.1.elapsed() > Duration::from_secs(1)
        })
        .await
    }

    /// Waits until an engine knows the last pipeline and has planned it.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn planned(&self, number: usize) -> anyhow::Result<()> {
        let last = pipelines::name(self.size.pipelines - 1);
        let end = Instant::now() + PATIENCE;
        loop {
            let request = v1::StatusRequest { pipeline: last.clone() };
            let error = match self.control(number).await {
                Ok(mut control) => match control.status(request).await {
                    Ok(_) => return Ok(()),
                    Err(status) => status.message().to_owned(),
                },
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < end, "engine {number} did not plan: {error}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A client of an engine.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn control(&self, number: usize) -> anyhow::Result<PipelineControlClient<Channel>> {
        let engine = self.engines.get(number).context("no such engine")?;
        Ok(PipelineControlClient::connect(engine.url()).await?)
    }
}

fn run_engine(
    program: &Path,
    name: &'static str,
    consul: &Counting,
    listen: &str,
    folder: &Path,
) -> anyhow::Result<Process> {
    let mut command = program::command(program);
    command.current_dir(folder).args(["engine", "--cluster", "bench", "--listen", listen, "--consul", &consul.url()]);
    Process::start(name, &mut command, folder)
}

/// Looks for something often and cheaply until it is so.
///
/// # Errors
/// When it is not in time.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
