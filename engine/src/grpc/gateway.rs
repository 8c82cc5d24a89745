//! `ModuleGateway`, as gRPC: one task for each attached instance.
//!
//! ```text
//! first report ─▶ registration taken in ─▶ ⟲ view changes: assignment out
//!                                            report comes:  table, and bodies it lacks out
//! ```
//!
//! An assignment is repeated when a report shows that bodies it names never
//! arrived, unless the instance says that it refused them.

use std::time::{Duration, Instant};

use pipedoc_model::names::{Generation, ModuleName};
use pipedoc_proto::v1;
use pipedoc_proto::v1::gateway_message::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::assignment;
use crate::engine::Engine;
use crate::registration;
use crate::sessions::Session;

/// How long an assignment may be on its way before a report without its bodies
/// means that they are lost.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

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
        let first = reports.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a session begins with a report; none came"))?;
        let info = registration::read(&first).map_err(Status::from)?;
        let (messages, outgoing) = mpsc::channel(4);
        let instance = Instance {
            session: self.engine.sessions().enter(info.module.clone(), first.clone()),
            engine: self.engine.clone(),
            module: info.module,
            last: first,
            registered: None,
            sent: None,
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
    module: ModuleName,
    /// Its last report.
    last: v1::InstanceReport,
    /// The registration that was taken in last.
    registered: Option<v1::ServiceRegistration>,
    sent: Option<Sent>,
    messages: mpsc::Sender<Result<v1::GatewayMessage, Status>>,
}

/// What was sent last.
struct Sent {
    generation: u64,
    steps: Vec<v1::AssignedStep>,
    at: Instant,
}

impl Instance {
    /// Serves the instance until either side leaves.
    async fn serve(mut self, mut reports: Streaming<v1::InstanceReport>) {
        let mut view = self.engine.view();
        tracing::info!(instance = self.last.instance_id, module = %self.module, "attached");
        self.take_in().await;
        if self.send_news().await.is_err() {
            return;
        }
        loop {
            let went_well = tokio::select! {
                changed = view.changed() => if changed.is_err() { break } else { self.send_news().await },
                report = reports.message() => match report {
                    Ok(Some(report)) => self.reported(report).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(instance = self.last.instance_id, %error, "the session broke off");
                        break;
                    }
                },
                () = self.messages.closed() => break,
            };
            if went_well.is_err() {
                break;
            }
        }
        tracing::info!(instance = self.last.instance_id, module = %self.module, "left");
    }

    async fn reported(&mut self, report: v1::InstanceReport) -> Result<(), Gone> {
        self.last = report.clone();
        self.session.report(report);
        self.take_in().await;
        let lost = self.sent.as_ref().is_some_and(|sent| {
            let held = |step: &v1::AssignedStep| self.last.held_hashes.contains(&step.hash);
            sent.at.elapsed() > ON_ITS_WAY && self.last.refusals.is_empty() && !sent.steps.iter().all(held)
        });
        if lost {
            self.sent = None;
        }
        self.send_news().await
    }

    /// Notes what a report says beside states: the module's registration, the
    /// generation that the instance remembers.
    async fn take_in(&mut self) {
        if self.engine.editor().heard_of(Generation(self.last.generation)) {
            self.engine.nudge();
        }
        if self.registered == self.last.registration {
            return;
        }
        let info = match registration::read(&self.last) {
            Ok(info) if info.module == self.module => info,
            Ok(_) | Err(_) => {
                tracing::warn!(
                    instance = self.last.instance_id,
                    "a changed registration cannot be read; the first one stands"
                );
                self.registered = self.last.registration.clone();
                return;
            }
        };
        match self.engine.editor().register(&info).await {
            Ok(news) => {
                self.registered = self.last.registration.clone();
                if news {
                    self.engine.nudge();
                }
            }
            // The next report tries again.
            Err(error) => tracing::warn!(module = %self.module, %error, "the registration cannot be kept yet"),
        }
    }

    /// Sends the assignment when it is another one than the last.
    async fn send_news(&mut self) -> Result<(), Gone> {
        let view = self.engine.view().borrow().clone();
        let cluster = self.engine.cluster();
        let Some(assignment) = assignment::of(cluster, &view, &self.module, &self.last.serve, &self.last.held_hashes)
        else {
            return Ok(());
        };
        let known = self
            .sent
            .as_ref()
            .is_some_and(|sent| sent.generation == assignment.generation && sent.steps == assignment.steps);
        if known {
            return Ok(());
        }
        self.sent =
            Some(Sent { generation: assignment.generation, steps: assignment.steps.clone(), at: Instant::now() });
        let message = v1::GatewayMessage { kind: Some(Kind::Assignment(assignment)) };
        self.messages.send(Ok(message)).await.map_err(|_| Gone)
    }
}

/// The instance has left.
struct Gone;
