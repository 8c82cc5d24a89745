//! `ModuleGateway`, as gRPC: one task for each attached instance.
//!
//! ```text
//! first report ─▶ registration taken in ─▶ ⟲ view changes: assignment out, by what changed
//!                                            report comes:  table, and bodies it lacks out
//! ```
//!
//! Bodies are repeated when a report says that they are lacking all the same: an
//! instance hears from several engines and may have dropped them meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::{Generation, ModuleName};
use pipedoc_proto::v1;
use pipedoc_proto::v1::gateway_message::Kind;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::assignment::{self, Known, Parts};
use crate::engine::Engine;
use crate::registration;
use crate::sessions::Session;
use crate::view::{ReadyStep, StepList, View, serves};

/// How long bodies that were sent once more may be on their way before they are
/// sent again.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// How long an instance may take to send its first report.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// `ModuleGateway`, as gRPC.
pub(crate) struct Gateway {
    engine: Engine,
    shutdown: CancellationToken,
}

impl Gateway {
    pub(crate) fn new(engine: Engine, shutdown: CancellationToken) -> Self {
        Self { engine, shutdown }
    }
}

#[tonic::async_trait]
impl v1::module_gateway_server::ModuleGateway for Gateway {
    type AttachStream = ReceiverStream<Result<v1::GatewayMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::InstanceReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut reports = request.into_inner();
        // To an engine that has just started all come at once, with all that they have to
        // say. It is left unread until we know what it is about; for ever it is not: what
        // is wrong with the store must not keep anyone out of `status`.
        let _ = self.engine.planned().await;
        // A whole report is large while it is read, so few are read at once.
        let _turn = self.engine.sessions().turn_to_enter().await;
        let first = tokio::time::timeout(FIRST_WITHIN, reports.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("a session begins with a report; none came in time"))??;
        let mut first = first.ok_or_else(|| Status::invalid_argument("a session begins with a report; none came"))?;
        let info = registration::read(&first).map_err(Status::from)?;
        let log = self.engine.log_identity().await;
        // Parts are made as they are sent; one waits here while another travels.
        let (messages, outgoing) = mpsc::channel(1);
        let instance = Instance {
            view: self.engine.view(),
            id: first.instance_id.clone(),
            serve: first.serve.clone(),
            registration: first.registration.clone(),
            takes_changes: !first.list_hash.is_empty(),
            began_with: std::mem::take(&mut first.list_hash),
            held: std::mem::take(&mut first.held_hashes).into_iter().collect(),
            generation: first.generation,
            session: self.enter(&info.module, first),
            engine: self.engine.clone(),
            module: info.module,
            registered: None,
            narrowed: None,
            told: None,
            log,
            messages,
        };
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(instance.serve(reports)).await });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

impl Gateway {
    fn enter(&self, module: &ModuleName, first: v1::InstanceReport) -> Session {
        let view = self.engine.view();
        let list = view.borrow().list(module).cloned();
        self.engine.sessions().enter(module.clone(), first, list.as_deref())
    }
}

/// An attached instance.
struct Instance {
    session: Session,
    engine: Engine,
    view: watch::Receiver<Arc<View>>,
    module: ModuleName,
    id: String,
    /// Steps it is narrowed to; empty: all of its module.
    serve: Vec<String>,
    /// Generation that it reported last.
    generation: u64,
    /// The registration that it reported last, and the one that was taken in.
    registration: Option<v1::ServiceRegistration>,
    registered: Option<v1::ServiceRegistration>,
    /// Whether it can be told changes of a list, and parts.
    takes_changes: bool,
    /// Hash of the list that it held when the session began, and the hashes of all
    /// bodies that it held; of no more use once it was told something.
    began_with: String,
    held: BTreeSet<String>,
    /// The list of its module that was narrowed to `serve`, and what came of it.
    narrowed: Option<(Arc<StepList>, Arc<StepList>)>,
    told: Option<Told>,
    /// Which log we work on; empty when it did not say so yet.
    log: String,
    messages: mpsc::Sender<Result<v1::GatewayMessage, Status>>,
}

/// What was told last.
struct Told {
    generation: u64,
    list: Arc<StepList>,
    /// When bodies of it were sent once more.
    repeated: Option<Instant>,
}

impl Instance {
    /// Serves the instance until either side leaves.
    async fn serve(mut self, mut reports: Streaming<v1::InstanceReport>) {
        tracing::info!(instance = self.id, module = %self.module, "attached");
        self.view.mark_unchanged();
        self.take_in().await;
        if self.send_news().await.is_err() {
            return;
        }
        loop {
            let went_well = tokio::select! {
                changed = self.view.changed() => if changed.is_err() { break } else { self.send_news().await },
                report = reports.message() => match report {
                    Ok(Some(report)) => self.reported(report).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(instance = self.id, %error, "the session broke off");
                        break;
                    }
                },
                () = self.messages.closed() => break,
            };
            if went_well.is_err() {
                break;
            }
        }
        tracing::info!(instance = self.id, module = %self.module, "left");
    }

    async fn reported(&mut self, mut report: v1::InstanceReport) -> Result<(), Gone> {
        self.generation = report.generation;
        if !report.partial {
            self.registration.clone_from(&report.registration);
            self.serve.clone_from(&report.serve);
            self.narrowed = None;
        }
        let lacking = std::mem::take(&mut report.lacking_hashes);
        let refuses = !report.refusals.is_empty();
        self.session.report(report, self.told.as_ref().map(|told| &*told.list));
        self.take_in().await;
        if !lacking.is_empty() && !refuses {
            self.send_again(&lacking).await?;
        }
        self.send_news().await
    }

    /// Notes what a report says beside states: the module's registration, the
    /// generation that the instance remembers.
    async fn take_in(&mut self) {
        let seen = self.view.borrow().seen;
        let reported = Generation(self.generation);
        if self.engine.editor().heard_of(reported) && reported > seen {
            self.engine.nudge();
        }
        if self.registered == self.registration {
            return;
        }
        let info = match self.registration.as_ref().map(registration::info) {
            Some(Ok(info)) if info.module == self.module => info,
            Some(_) | None => {
                tracing::warn!(instance = self.id, "a changed registration cannot be read; the first one stands");
                self.registered = self.registration.clone();
                return;
            }
        };
        let known = Arc::clone(&self.view.borrow().modules);
        if known.get(&info.module) == Some(&info) {
            // Of a thousand instances only the first makes us ask the store.
            self.engine.editor().remember(&info);
            self.registered = self.registration.clone();
            return;
        }
        let mut kept = self.engine.sessions().kept().lock().await;
        if kept.get(&info.module) == Some(&info) {
            self.engine.editor().remember(&info);
            self.registered = self.registration.clone();
            return;
        }
        match self.engine.editor().register(&info).await {
            Ok(news) => {
                self.registered = self.registration.clone();
                kept.insert(info.module.clone(), info);
                if news {
                    self.engine.nudge();
                }
            }
            // The next report tries again.
            Err(error) => tracing::warn!(module = %self.module, %error, "the registration cannot be kept yet"),
        }
    }

    /// Tells the assignment when it is another one than the last.
    async fn send_news(&mut self) -> Result<(), Gone> {
        let view = Arc::clone(&self.view.borrow());
        let Some(Generation(generation)) = view.generation else { return Ok(()) };
        let list = self.list(&view);
        if self.told.as_ref().is_some_and(|told| told.generation == generation && told.list == list) {
            return Ok(());
        }
        let known = match &self.told {
            Some(told) => Some(&*told.list),
            None => Some(&*list).filter(|list| list.hash() == self.began_with),
        };
        let known = Known { list: known, takes_changes: self.takes_changes, held: &self.held };
        let parts = assignment::tell(self.engine.cluster(), generation, &list, known);
        self.send(parts).await?;
        self.session.told(&list);
        self.told = Some(Told { generation, list, repeated: None });
        self.held = BTreeSet::new();
        Ok(())
    }

    /// Tells bodies again that the instance says it lacks.
    async fn send_again(&mut self, lacking: &[String]) -> Result<(), Gone> {
        let takes_changes = self.takes_changes;
        let Some(told) = &mut self.told else { return Ok(()) };
        if told.repeated.is_some_and(|at| at.elapsed() < ON_ITS_WAY) {
            return Ok(());
        }
        told.repeated = Some(Instant::now());
        let cluster = self.engine.cluster();
        let parts = assignment::tell_again(cluster, told.generation, &told.list, takes_changes, lacking);
        self.send(parts).await
    }

    async fn send(&self, parts: Parts) -> Result<(), Gone> {
        for mut part in parts {
            part.log.clone_from(&self.log);
            part.log_name = self.engine.log().describe();
            let message = v1::GatewayMessage { kind: Some(Kind::Assignment(part)) };
            self.messages.send(Ok(message)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// The steps that the instance is to run.
    fn list(&mut self, view: &View) -> Arc<StepList> {
        let all = view.list(&self.module).cloned().unwrap_or_default();
        if self.serve.is_empty() {
            return all;
        }
        match &self.narrowed {
            Some((from, list)) if *from == all => Arc::clone(list),
            _ => {
                let served = |step: &&Arc<ReadyStep>| serves(&step.plan, &self.module, &self.serve);
                let list = Arc::new(StepList::new(all.steps().iter().filter(served).cloned().collect()));
                Arc::clone(&self.narrowed.insert((all, list)).1)
            }
        }
    }
}

/// The instance has left.
struct Gone;
