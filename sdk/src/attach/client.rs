//! Sessions with the engines: one task for each, attached as long as the
//! instance lives.
//!
//! ```text
//!  connect ─▶ Attach ─▶ first report ─▶ ⟲ assignments in, a report a second out
//!     ▲                                      │ stream ends
//!     └────────────── backoff ◀──────────────┘
//! ```
//!
//! The first report says who the instance is. What its steps do it tells once the
//! engine has answered: one that has just started is not flooded.
//!
//! Losing engines stops nothing. When none has sent an assignment soon after the
//! start, the one on disk runs until a newer one comes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pipedoc_model::assignment::{self, Told};
use pipedoc_model::names::{ClusterName, ModuleName, StepId};
use pipedoc_model::problem::chain;
use pipedoc_proto::v1;
use pipedoc_proto::v1::module_gateway_client::ModuleGatewayClient;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Runs;
use super::address::{Address, follow};
use super::kept::KeptFile;
use super::ledger::{Ledger, LogName, Taken, Verdict, step_id};
use super::news::{self, News};

/// Assignments carry whole plans; far more than they need is allowed.
const MESSAGE_LIMIT: usize = 64 << 20;

/// Shortest and longest wait before an engine is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How an instance attaches.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// Addresses of the engines (`http://host:port`). A host name that stands for
    /// several engines means all of them. None: what is on disk runs at once.
    pub engines: Vec<String>,
    /// Cluster that the instance belongs to.
    pub cluster: ClusterName,
    /// Module that the instance is.
    pub module: ModuleName,
    /// Its registration.
    pub registration: v1::ServiceRegistration,
    /// Its id.
    pub instance_id: String,
    /// The log that it works on. Engines on another one are refused.
    pub log: LogName,
    /// Where it serves gRPC (`http://host:port`); empty when it does not.
    pub endpoint: String,
    /// Steps it is narrowed to; empty: all of its module.
    pub serve: BTreeSet<StepId>,
    /// Time between two reports. Default 1 s.
    pub report_every: Duration,
    /// When so long after the start no engine has sent an assignment, the one on
    /// disk runs. Default 3 s.
    pub disk_after: Duration,
}

impl AttachConfig {
    /// An instance without engines, endpoint or narrowing, on a log that is not known,
    /// with the defaults.
    #[must_use]
    pub fn new(
        cluster: ClusterName,
        module: ModuleName,
        registration: v1::ServiceRegistration,
        instance_id: impl Into<String>,
    ) -> Self {
        Self {
            engines: Vec::new(),
            cluster,
            module,
            registration,
            instance_id: instance_id.into(),
            log: LogName::default(),
            endpoint: String::new(),
            serve: BTreeSet::new(),
            report_every: Duration::from_secs(1),
            disk_after: Duration::from_secs(3),
        }
    }
}

/// Attaches to every engine and runs what they assign, until `shutdown`. What
/// runs then goes on running: stopping it is the caller's.
pub async fn attach(config: AttachConfig, kept: KeptFile, runs: Arc<dyn Runs>, shutdown: CancellationToken) {
    let on_disk = match kept.load() {
        Ok(on_disk) => on_disk,
        Err(error) => {
            let file = kept.path().display();
            tracing::warn!(%file, %error, "the kept assignment cannot be read; waiting for an engine");
            None
        }
    };
    let kept_for_another = on_disk.as_ref().filter(|kept| config.log.is_another(&kept.log));
    if let Some(other) = kept_for_another {
        tracing::warn!(kept = other.log, now = %config.log, "what was kept is for another log; waiting for an engine");
    }
    let ledger = Ledger::new(config.cluster.clone(), config.module.clone(), config.serve.clone(), on_disk);
    let ledger = ledger.on_log(config.log.clone());
    let engines = config.engines.clone();
    let shared = Arc::new(Attached {
        state: Mutex::new(State { ledger, from_disk: false, is_kept: true }),
        config,
        kept,
        runs,
        changed: watch::Sender::new(()),
        started_at: SystemTime::now(),
    });
    let sessions = engines.iter().map(|engine| follow(engine, |address| Arc::clone(&shared).stay_attached(address)));
    let work = async { tokio::join!(futures::future::join_all(sessions), shared.fall_back_to_disk()) };
    // Dropping the sessions ends their streams.
    shutdown.run_until_cancelled(work).await;
}

/// What the sessions share.
struct Attached {
    config: AttachConfig,
    kept: KeptFile,
    runs: Arc<dyn Runs>,
    state: Mutex<State>,
    /// Tells all sessions that a report is worth sending now.
    changed: watch::Sender<()>,
    started_at: SystemTime,
}

struct State {
    ledger: Ledger,
    from_disk: bool,
    /// Whether what is held lies on disk, but for its generation.
    is_kept: bool,
}

impl Attached {
    /// Runs what is on disk when no engine has sent anything in time.
    async fn fall_back_to_disk(&self) {
        if !self.config.engines.is_empty() {
            tokio::time::sleep(self.config.disk_after).await;
        }
        let mut state = self.state.lock().await;
        match state.ledger.take_from_disk() {
            Ok(Some(Taken { kept, steps, changed: _ })) => {
                tracing::info!(generation = %kept.generation, steps = steps.len(), "no engine has answered; running the kept assignment");
                state.from_disk = true;
                self.runs.apply(kept.generation, steps);
                self.changed.send_replace(());
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the kept assignment cannot be used; waiting for an engine")
            }
        }
    }

    /// One session after the other with an engine, for ever.
    async fn stay_attached(self: Arc<Self>, address: Address) {
        let engine = address.to_string();
        let engine = engine.as_str();
        let mut wait = BACKOFF.0;
        let mut last_error = String::new();
        loop {
            let began = tokio::time::Instant::now();
            let error = match self.session(engine, &address).await {
                Ok(()) => "the engine ended the session".to_owned(),
                Err(error) => chain(error.as_ref()),
            };
            // The same trouble again and again is told once.
            if error == last_error {
                tracing::debug!(engine, error, "not attached");
            } else {
                tracing::warn!(engine, error, "not attached; what runs goes on, and the engine is tried again");
            }
            last_error = error;
            if began.elapsed() > BACKOFF.1 {
                wait = BACKOFF.0;
                last_error.clear();
            }
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.8..1.2))).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    async fn session(&self, engine: &str, address: &Address) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let channel = address
            .endpoint()?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .connect()
            .await?;
        let mut client = ModuleGatewayClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        // A session that was told of a change before it began need not be told again.
        let mut changed = self.changed.subscribe();
        let (reports, outgoing) = mpsc::channel(1);
        let mut refusals = Vec::new();
        let (mut told, first) = self.first_report().await;
        reports.send(first).await?;
        let mut messages = client.attach(ReceiverStream::new(outgoing)).await?.into_inner();
        tracing::info!(engine, "attached");
        let mut tick = tokio::time::interval(self.config.report_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut news = News::default();
        // Parts of a report that are still to be sent, and whether another report is due.
        let (mut parts, mut due) = (VecDeque::new(), false);
        loop {
            tokio::select! {
                message = messages.message() => match message? {
                    None => return Ok(()),
                    Some(message) => due |= self.take(engine, message, &mut told, &mut refusals).await?,
                },
                _ = tick.tick() => due = true,
                _ = changed.changed() => due = true,
                // An engine that does not read gets one report when it does, not all that were due.
                place = reports.reserve(), if due || !parts.is_empty() => {
                    let Ok(place) = place else { return Ok(()) };
                    if parts.is_empty() {
                        due = false;
                        parts = news::parts(news.only(self.report(&refusals).await));
                    }
                    if let Some(part) = parts.pop_front() {
                        place.send(part);
                    }
                }
            }
        }
    }

    /// Takes a message in; tells whether a report is due.
    async fn take(
        &self,
        engine: &str,
        message: v1::GatewayMessage,
        told: &mut Told,
        refusals: &mut Vec<String>,
    ) -> Result<bool, assignment::Error> {
        match message.kind {
            Some(v1::gateway_message::Kind::Assignment(part)) => {
                let Some(assignment) = told.take(part)? else { return Ok(false) };
                self.take_assignment(engine, assignment, refusals).await;
                Ok(true)
            }
            Some(v1::gateway_message::Kind::Endpoints(endpoints)) => {
                // Only steps with gRPC outputs need them, and those are refused before they are planned.
                tracing::debug!(engine, steps = endpoints.steps.len(), "endpoints are not used yet");
                Ok(false)
            }
            Some(v1::gateway_message::Kind::Resume(resume)) => {
                for v1::StepName { pipeline, step } in &resume.steps {
                    match step_id(pipeline, step) {
                        Ok(step) => {
                            tracing::info!(engine, %step, "told to resume");
                            self.runs.resume(&step);
                        }
                        Err(error) => tracing::warn!(engine, error = %chain(&error), "told to resume what is no step"),
                    }
                }
                Ok(true)
            }
            None => {
                tracing::debug!(engine, "a message of a kind that this version does not know");
                Ok(false)
            }
        }
    }

    async fn take_assignment(&self, engine: &str, assignment: v1::Assignment, refusals: &mut Vec<String>) {
        let generation = assignment.generation;
        refusals.clear();
        // Held until the assignment is kept and applied, so that of two engines' the newer comes last.
        let mut state = self.state.lock().await;
        match state.ledger.offer(assignment) {
            Ok(Verdict::Run(Taken { kept, changed, steps })) => {
                tracing::info!(engine, generation, steps = steps.len(), "assignment taken");
                state.from_disk = false;
                let generation = kept.generation;
                // A change elsewhere makes a new generation for all; it is no reason to write.
                if changed || !state.is_kept {
                    state.is_kept = self.keep(kept).await;
                }
                self.runs.apply(generation, steps);
                self.changed.send_replace(());
            }
            Ok(Verdict::Nothing) => state.from_disk = false,
            Ok(Verdict::Wait(bodies)) => tracing::debug!(engine, generation, bodies, "waiting for step bodies"),
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(engine, generation, reason, "assignment refused");
                refusals.push(reason);
            }
        }
    }

    /// Keeps an assignment on disk; tells whether it is there. Where not it runs all
    /// the same.
    async fn keep(&self, kept: super::Kept) -> bool {
        let file = self.kept.clone();
        let saved =
            tokio::task::spawn_blocking(move || file.save(&kept)).await.unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = &saved {
            let file = self.kept.path().display();
            tracing::warn!(%file, %error, "the assignment cannot be kept; a restart will need an engine");
        }
        saved.is_ok()
    }

    /// A session's first report, and the list of steps that the session begins with.
    async fn first_report(&self) -> (Told, v1::InstanceReport) {
        let told = Told::new(self.state.lock().await.ledger.list());
        let list_hash = told.hash().to_owned();
        (told, v1::InstanceReport { list_hash, steps: Vec::new(), ..self.report(&[]).await })
    }

    async fn report(&self, refusals: &[String]) -> v1::InstanceReport {
        let state = self.state.lock().await;
        v1::InstanceReport {
            instance_id: self.config.instance_id.clone(),
            registration: Some(self.config.registration.clone()),
            endpoint: self.config.endpoint.clone(),
            generation: state.ledger.generation().0,
            steps: self.runs.reports(),
            started_at: Some(self.started_at.into()),
            from_disk: state.from_disk,
            refusals: refusals.to_vec(),
            serve: self.config.serve.iter().map(ToString::to_string).collect(),
            lacking_hashes: state.ledger.lacking(),
            ..v1::InstanceReport::default()
        }
    }
}
