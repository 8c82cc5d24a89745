//! A place for engines and made-up instances: a folder, a log, real sockets.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_engine::store::folder::FolderStore;
use pipedoc_engine::store::{Candidate, Store};
use pipedoc_engine::{Engine, EngineConfig};
use pipedoc_model::names::{ClusterName, Topic};
use pipedoc_proto::v1;
use pipedoc_proto::v1::intake_client::IntakeClient;
use pipedoc_proto::v1::module_gateway_client::ModuleGatewayClient;
use pipedoc_proto::v1::pipeline_control_client::PipelineControlClient;
use pipedoc_transport::log::{ConsumerConfig, Event, Log, Record, Start, Subscription, TopicPartition};
use pipedoc_transport::memory::MemoryLog;
use pipedoc_transport::objects::Objects;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub const SHELF: &str = "pipeline: shelf
defaults: {partitions: 3}
steps:
  - {name: parse, type: PIPELINE, module: parser, outputs: [{to: store}]}
  - {name: store, type: SINK, module: object-sink}
";

/// What engines of one installation share.
pub struct Bed {
    place: TempDir,
    pub log: MemoryLog,
}

impl Bed {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("pipelines")).unwrap();
        Self { place, log: MemoryLog::new() }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join("pipelines").join(name)
    }

    /// Renamed to its place: who reads meanwhile sees all of it or nothing.
    pub fn write(&self, name: &str, text: &str) {
        let draft = self.file(&format!(".{name}.draft"));
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, self.file(name)).unwrap();
    }

    pub fn data(&self) -> PathBuf {
        self.place.path().join("data")
    }

    /// The store as another process would open it.
    pub async fn store(&self) -> FolderStore {
        let cluster = ClusterName::new("local").unwrap();
        FolderStore::open(cluster, self.place.path().join("pipelines"), self.data()).await.unwrap()
    }

    pub async fn engine(&self) -> Running {
        self.engine_with(&[]).await
    }

    pub async fn engine_with(&self, variables: &[(&str, &str)]) -> Running {
        self.start(Arc::new(self.store().await), variables).await
    }

    /// An engine that sees the store in its own way.
    pub async fn engine_on(&self, store: Arc<dyn Store>) -> Running {
        self.start(store, &[]).await
    }

    async fn start(&self, store: Arc<dyn Store>, variables: &[(&str, &str)]) -> Running {
        let engine = Engine::new(EngineConfig {
            cluster: ClusterName::new("local").unwrap(),
            store,
            log: Arc::new(self.log.clone()),
            objects: Arc::new(Objects::local(&self.data().join("objects")).unwrap()),
            candidate: Candidate::new(""),
            variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { engine.serve(listener, shutdown).await.unwrap() }
        });
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Running { channel, shutdown, task }
    }

    /// All records of a topic.
    pub async fn records(&self, topic: &str) -> Vec<(i32, Record)> {
        let topic = Topic::new(topic).unwrap();
        let ends = self.log.ends(&topic).await.unwrap();
        let mut left: i64 = ends.iter().map(|ends| ends.end - ends.start).sum();
        let all = (0..).take(ends.len()).map(|n| (TopicPartition::new(topic.clone(), n), Start::Earliest)).collect();
        let consumer = self.log.consumer(ConsumerConfig::new("test", Subscription::Assigned(all))).await.unwrap();
        let mut records = Vec::new();
        while left > 0 {
            if let Event::Records(batch) = consumer.next().await.unwrap() {
                left -= i64::try_from(batch.records.len()).unwrap();
                records.extend(batch.records.into_iter().map(|record| (batch.source.partition, record)));
            }
        }
        records
    }
}

/// An engine that serves.
pub struct Running {
    pub channel: Channel,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        drop(self.channel);
        tokio::time::timeout(Duration::from_secs(60), self.task).await.expect("the engine stops").unwrap();
    }

    pub fn control(&self) -> PipelineControlClient<Channel> {
        PipelineControlClient::new(self.channel.clone())
    }

    pub fn intake(&self) -> IntakeClient<Channel> {
        IntakeClient::new(self.channel.clone())
    }

    pub async fn apply(&self, text: &str) -> v1::ApplyResponse {
        let request = v1::ApplyRequest { text: text.into(), file: "test.yaml".into(), ..Default::default() };
        self.control().apply(request).await.unwrap().into_inner()
    }

    /// Applies a text if that revision is the current one.
    pub async fn apply_expecting(&self, text: &str, expected: u64) -> v1::ApplyResponse {
        let request = v1::ApplyRequest {
            text: text.into(),
            file: "test.yaml".into(),
            expected_revision: Some(expected),
            by: "ann@host".into(),
            ..Default::default()
        };
        self.control().apply(request).await.unwrap().into_inner()
    }

    /// Rolls back to a revision; none: to the one before.
    pub async fn rollback(&self, pipeline: &str, revision: Option<u64>) -> Result<v1::ApplyResponse, tonic::Status> {
        let request = v1::RollbackRequest { pipeline: pipeline.into(), revision, ..Default::default() };
        self.control().rollback(request).await.map(tonic::Response::into_inner)
    }

    pub async fn delete(&self, pipeline: &str, abandon: bool) -> Result<v1::DeleteResponse, tonic::Status> {
        let request = v1::DeleteRequest { pipeline: pipeline.into(), abandon, ..Default::default() };
        self.control().delete(request).await.map(tonic::Response::into_inner)
    }

    pub async fn history(&self, pipeline: &str) -> v1::HistoryResponse {
        let request = v1::HistoryRequest { pipeline: pipeline.into() };
        self.control().history(request).await.unwrap().into_inner()
    }

    pub async fn get(&self, pipeline: &str) -> Result<v1::GetResponse, tonic::Status> {
        let request = v1::GetRequest { pipeline: pipeline.into(), revision: None };
        self.control().get(request).await.map(tonic::Response::into_inner)
    }

    pub async fn status(&self) -> v1::StatusResponse {
        self.control().status(v1::StatusRequest::default()).await.unwrap().into_inner()
    }

    /// Waits until the status is as it should be.
    pub async fn wait_for_status(&self, what: &str, fits: impl Fn(&v1::StatusResponse) -> bool) -> v1::StatusResponse {
        wait_for(what, Duration::from_secs(60), async || {
            let status = self.status().await;
            if fits(&status) { Ok(status) } else { Err(format!("{status:#?}")) }
        })
        .await
    }

    pub async fn attach(&self, report: v1::InstanceReport) -> Instance {
        let (reports, outgoing) = mpsc::channel(4);
        reports.send(report.clone()).await.unwrap();
        let mut client = ModuleGatewayClient::new(self.channel.clone());
        let messages = client.attach(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        Instance { report, reports, messages }
    }
}

/// A made-up instance.
pub struct Instance {
    pub report: v1::InstanceReport,
    reports: mpsc::Sender<v1::InstanceReport>,
    messages: tonic::Streaming<v1::GatewayMessage>,
}

impl Instance {
    pub async fn report(&self) {
        self.reports.send(self.report.clone()).await.unwrap();
    }

    /// The next assignment, within some time.
    pub async fn assignment_within(&mut self, limit: Duration) -> Option<v1::Assignment> {
        let message = tokio::time::timeout(limit, self.messages.message()).await.ok()?.ok()??;
        match message.kind {
            Some(v1::gateway_message::Kind::Assignment(assignment)) => Some(assignment),
            other => panic!("unexpected message {other:?}"),
        }
    }

    /// The steps that it is told next to resume; assignments on the way are passed over.
    pub async fn resumed(&mut self) -> Vec<String> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let message = tokio::time::timeout_at(deadline, self.messages.message()).await;
            let message = message.expect("it is told to resume").unwrap().expect("the session is open");
            if let Some(v1::gateway_message::Kind::Resume(resume)) = message.kind {
                return resume.steps.iter().map(|step| format!("{}/{}", step.pipeline, step.step)).collect();
            }
        }
    }

    /// The first assignment to come that fits. Generations must grow on the way.
    pub async fn assignment(&mut self, what: &str, fits: impl Fn(&v1::Assignment) -> bool) -> v1::Assignment {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut last = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(assignment) = self.assignment_within(left).await else { panic!("{what} did not come") };
            assert!(assignment.generation >= last, "generation went back from {last} to {}", assignment.generation);
            last = assignment.generation;
            if fits(&assignment) {
                return assignment;
            }
        }
    }

    /// Does what an instance does with an assignment: holds it and says so.
    pub async fn take(&mut self, assignment: &v1::Assignment) {
        self.report.generation = assignment.generation;
        self.report().await;
    }
}

/// Names of an assignment's steps.
pub fn steps(assignment: &v1::Assignment) -> Vec<String> {
    assignment.steps.iter().map(|step| format!("{}/{}", step.pipeline, step.step)).collect()
}

/// The first report of an instance.
pub fn instance(id: &str, module: &str) -> v1::InstanceReport {
    let types = if module == "object-sink" { v1::StepType::Sink } else { v1::StepType::Pipeline };
    v1::InstanceReport {
        instance_id: id.into(),
        registration: Some(v1::ServiceRegistration {
            module: module.into(),
            version: "1.0.0".into(),
            step_types: vec![types.into()],
            config_schema: r#"{"type": "object"}"#.into(),
            description: "Made up.".into(),
        }),
        ..Default::default()
    }
}

/// Polls until something holds.
pub async fn wait_for<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => panic!("{what}: not within {limit:?}; at last: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
