//! An engine that says what a test tells it to say.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use parking_lot::Mutex;
use pipedoc_proto::v1;
use pipedoc_proto::v1::module_gateway_server::{ModuleGateway, ModuleGatewayServer};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// An engine that says what a test tells it to say.
#[derive(Clone, Default)]
pub struct FakeEngine(Arc<Said>);

#[derive(Default)]
struct Said {
    reports: Mutex<v1::InstanceReport>,
    /// Every report as it came.
    raw: Mutex<Vec<v1::InstanceReport>>,
    sessions: Mutex<Vec<mpsc::UnboundedSender<Result<v1::GatewayMessage, Status>>>>,
}

impl FakeEngine {
    /// Sends an assignment to whoever attached last.
    pub fn send(&self, assignment: v1::Assignment) {
        let message = v1::GatewayMessage { kind: Some(v1::gateway_message::Kind::Assignment(assignment)) };
        let sessions = self.0.sessions.lock();
        sessions.last().expect("somebody is attached").send(Ok(message)).expect("the session is open");
    }

    /// Tells whoever attached last to resume steps (`pipeline/step`).
    pub fn resume(&self, steps: &[&str]) {
        let name = |name: &&str| {
            let (pipeline, step) = name.split_once('/').expect("a pipeline and a step");
            v1::StepName { pipeline: pipeline.to_owned(), step: step.to_owned() }
        };
        let resume = v1::Resume { steps: steps.iter().map(name).collect() };
        let message = v1::GatewayMessage { kind: Some(v1::gateway_message::Kind::Resume(resume)) };
        let sessions = self.0.sessions.lock();
        sessions.last().expect("somebody is attached").send(Ok(message)).expect("the session is open");
    }

    /// Sends an assignment to all that attached, some of which may be gone.
    pub fn send_all(&self, assignment: &v1::Assignment) {
        for session in self.0.sessions.lock().iter() {
            let message = v1::GatewayMessage { kind: Some(v1::gateway_message::Kind::Assignment(assignment.clone())) };
            let _ = session.send(Ok(message));
        }
    }

    /// How many sessions there were.
    pub fn attached(&self) -> usize {
        self.0.sessions.lock().len()
    }

    /// Every report as it came, of all sessions.
    pub fn reports(&self) -> Vec<v1::InstanceReport> {
        self.0.raw.lock().clone()
    }

    /// The newest report, put together with those before it in its session where it is
    /// partial.
    pub fn last_report(&self) -> v1::InstanceReport {
        self.0.reports.lock().clone()
    }
}

/// A report with what it leaves out because it was reported before.
fn together(before: &v1::InstanceReport, report: v1::InstanceReport) -> v1::InstanceReport {
    if !report.partial {
        return report;
    }
    let mut steps = before.steps.clone();
    steps.retain(|step| !report.gone.contains(&format!("{}/{}", step.pipeline, step.step)));
    for news in report.steps {
        steps.retain(|step| (&step.pipeline, &step.step) != (&news.pipeline, &news.step));
        steps.push(news);
    }
    v1::InstanceReport {
        registration: before.registration.clone(),
        endpoint: before.endpoint.clone(),
        started_at: before.started_at,
        serve: before.serve.clone(),
        list_hash: before.list_hash.clone(),
        steps,
        partial: false,
        ..report
    }
}

#[tonic::async_trait]
impl ModuleGateway for FakeEngine {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<v1::GatewayMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<v1::InstanceReport>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut reports = request.into_inner();
        let mut whole = reports.message().await?.expect("a session begins with a report");
        self.0.raw.lock().push(whole.clone());
        *self.0.reports.lock() = whole.clone();
        let (messages, outgoing) = mpsc::unbounded_channel();
        self.0.sessions.lock().push(messages);
        let said = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(Ok(report)) = reports.next().await {
                said.raw.lock().push(report.clone());
                whole = together(&whole, report);
                *said.reports.lock() = whole.clone();
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outgoing))))
    }
}

/// Serves the engine on an address until the token is cancelled, connections
/// included.
pub async fn serve(engine: &FakeEngine, address: &str, stop: CancellationToken) -> String {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(ModuleGatewayServer::new(engine.clone()))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(async move { stop.run_until_cancelled(server).await });
    address
}
