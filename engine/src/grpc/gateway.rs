//! `ModuleGateway`, as gRPC: one task for each attached instance.
//!
//! ```text
//! first report ─▶ registration taken in ─▶ ⟲ view changes: assignment out, by what changed
//!                                            report comes:  table, and bodies it lacks out
//!                                            resume asked:  the steps out
//! ```
//!
//! Bodies are sent when a report says that they are lacking, also once more: an
//! instance hears from several engines and may have dropped them meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::{Generation, ModuleName};
use pipedoc_model::registry::ModuleInfo;
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
use crate::store;
use crate::view::{ReadyStep, StepList, View, serves};

/// How long bodies that were asked for may be on their way before they are sent again.
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
        // To an engine that has just started all come at once. They are left alone until we
        // know what it is about; for ever they are not: what is wrong with the store must
        // not keep anyone out of `status`.
        let _ = self.engine.planned().await;
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
            generation: first.generation,
            session: self.engine.sessions().enter(info.module.clone(), first),
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
    /// Hash of the list that it held when the session began.
    began_with: String,
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
    /// Bodies of it that were asked for last, by their hashes, and when they were sent.
    sent_again: Option<(Vec<String>, Instant)>,
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
                resume = self.session.to_resume() => self.message(Kind::Resume(resume)).await,
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
            self.send_again(lacking).await?;
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
        match self.see_registered(info).await {
            Ok(()) => self.registered = self.registration.clone(),
            // The next report tries again.
            Err(error) => tracing::warn!(module = %self.module, %error, "the registration cannot be kept yet"),
        }
    }

    /// Sees to it that the store has a registration. Of a thousand instances that attach
    /// at once only the first makes us ask it.
    async fn see_registered(&self, info: ModuleInfo) -> store::Result<()> {
        let editor = self.engine.editor();
        let is_planned = self.view.borrow().modules.get(&info.module) == Some(&info);
        if !is_planned {
            let mut kept = self.engine.sessions().kept().lock().await;
            if kept.get(&info.module) != Some(&info) {
                if editor.register(&info).await? {
                    self.engine.nudge();
                }
                kept.insert(info.module.clone(), info);
                return Ok(());
            }
        }
        editor.remember(&info);
        Ok(())
    }

    /// Tells the assignment when it is another one than the last.
    async fn send_news(&mut self) -> Result<(), Gone> {
        let view = Arc::clone(&self.view.borrow());
        let Some(Generation(generation)) = view.generation else { return Ok(()) };
        let list = self.list(&view);
        if self.told.as_ref().is_some_and(|told| told.generation == generation && told.list == list) {
            return Ok(());
        }
        let nothing = StepList::default();
        let known = match &self.told {
            Some(told) if self.takes_changes => Known::List(&told.list),
            Some(told) => Known::Bodies(Some(&told.list)),
            None if !self.takes_changes => Known::Bodies(None),
            None if self.began_with == list.hash() => Known::List(&list),
            None if self.began_with == nothing.hash() => Known::List(&nothing),
            None => Known::OtherList,
        };
        let parts = assignment::tell(self.engine.cluster(), generation, &list, known);
        self.send(parts).await?;
        self.session.told(&list);
        self.told = Some(Told { generation, list, sent_again: None });
        Ok(())
    }

    /// Tells bodies that the instance says it lacks.
    async fn send_again(&mut self, lacking: Vec<String>) -> Result<(), Gone> {
        let Some(told) = &self.told else { return Ok(()) };
        let on_their_way = |(sent, at): &(Vec<String>, Instant)| *sent == lacking && at.elapsed() < ON_ITS_WAY;
        if told.sent_again.as_ref().is_some_and(on_their_way) {
            return Ok(());
        }
        let cluster = self.engine.cluster();
        let parts = assignment::tell_again(cluster, told.generation, &told.list, self.takes_changes, &lacking);
        self.send(parts).await?;
        if let Some(told) = &mut self.told {
            told.sent_again = Some((lacking, Instant::now()));
        }
        Ok(())
    }

    async fn send(&self, parts: Parts) -> Result<(), Gone> {
        for mut part in parts {
            part.log.clone_from(&self.log);
            part.log_name = self.engine.log().describe();
            self.message(Kind::Assignment(part)).await?;
        }
        Ok(())
    }

    async fn message(&self, kind: Kind) -> Result<(), Gone> {
        self.messages.send(Ok(v1::GatewayMessage { kind: Some(kind) })).await.map_err(|_| Gone)
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
