//! An engine that says what a test tells it to say.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use parking_lot::Mutex;
use pipedoc_proto::v1;
use pipedoc_proto::v1::module_gateway_server::{ModuleGateway, ModuleGatewayServer};
use tokio::net::TcpSocket;
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
pub async fn serve(engine: &FakeEngine, stop: CancellationToken) -> String {
    Silent::at("127.0.0.1:0").await.serve(engine, stop)
}

/// An address where nobody listens, and that nobody else is given.
pub struct Silent(TcpSocket);

impl Silent {
    /// Takes the address as soon as nobody listens there any more.
    pub async fn at(address: &str) -> Self {
        let address = address.parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            match socket.bind(address) {
                Ok(()) => return Self(socket),
                Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// Has an engine serve there; gives its address.
    pub fn serve(self, engine: &FakeEngine, stop: CancellationToken) -> String {
        let address = self.address();
        let listener = self.0.listen(64).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(ModuleGatewayServer::new(engine.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(async move { stop.run_until_cancelled(server).await });
        address
    }
}
