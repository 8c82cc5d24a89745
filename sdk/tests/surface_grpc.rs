//! The gRPC surface of a module, over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod surface;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::grpc::Server;
use pipedoc_sdk::prelude::*;
use pipedoc_sdk::proto::v1;
use pipedoc_sdk::proto::v1::pipe_step_processor_client::PipeStepProcessorClient;
use pipedoc_sdk::proto::v1::process_data_response::Outcome;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// Counts what is opened and closed, as the surface promises to reuse.
static OPENED: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicUsize = AtomicUsize::new(0);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What to put before the title.
    prefix: String,
    /// How often.
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

struct Greeter {
    prefix: String,
}

impl Module for Greeter {
    type Config = Config;
    const NAME: &'static str = "greeter";
    const VERSION: &'static str = "1.2.3";
    const DESCRIPTION: &'static str = "greets";

    async fn open(config: Config, _: &Step) -> Result<Self> {
        OPENED.fetch_add(1, Ordering::SeqCst);
        Ok(Self { prefix: config.prefix.repeat(config.times as usize) })
    }

    async fn process(&self, mut doc: PipeDoc, _: &Step) -> Result<Output> {
        match doc.title.as_str() {
            "broken" => Err(Error::permanent("the document is broken")),
            "later" => Err(Error::retryable("nobody answers").context("greeting failed")),
            "panic" => panic!("cannot greet"),
            "skip" => Ok(Output::skip()),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(80)).await;
                Ok(doc.into())
            }
            _ => {
                doc.title = format!("{}{}", self.prefix, doc.title);
                Ok(Output::from(doc).to("friends"))
            }
        }
    }

    async fn close(self) {
        CLOSED.fetch_add(1, Ordering::SeqCst);
    }
}

struct Lister;

impl Connector for Lister {
    type Config = Config;
    const NAME: &'static str = "lister";

    async fn open(_: Config, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn run(&self, _: &Step, _: &Emitter, _: &State) -> Result<()> {
        Ok(())
    }
}

struct Served {
    channel: Channel,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
    _data: tempfile::TempDir,
}

impl Served {
    async fn new(factory: Factory) -> Self {
        let data = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let server = Server::new(factory, data.path()).kept_open(2).concurrency(4).grace(Duration::from_millis(300));
        let shutdown = stop.clone();
        let ended = tokio::spawn(async move { server.run(listener, shutdown).await.unwrap() });
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        Self { channel, stop, ended, _data: data }
    }

    fn client(&self) -> PipeStepProcessorClient<Channel> {
        PipeStepProcessorClient::new(self.channel.clone())
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.ended).await.expect("stops in time").unwrap();
    }
}

fn config(prefix: &str) -> prost_types::Struct {
    let text = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let number = |number| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(number)) };
    let fields = BTreeMap::from([("prefix".to_owned(), text(prefix)), ("times".to_owned(), number(2.0))]);
    prost_types::Struct { fields }
}

fn request(sequence: u64, title: &str) -> v1::ProcessDataRequest {
    let document = PipeDoc { id: format!("doc-{sequence}"), title: title.to_owned(), ..PipeDoc::default() };
    v1::ProcessDataRequest { document: Some(document), config: Some(config("ho ")), sequence, ..Default::default() }
}

#[tokio::test]
async fn surface_a_module_is_served_with_registration_documents_and_outcomes() {
    let served = Served::new(Factory::module::<Greeter>()).await;
    let mut client = served.client();

    let registration =
        client.get_service_registration(v1::GetServiceRegistrationRequest {}).await.unwrap().into_inner();
    assert_eq!((registration.module.as_str(), registration.version.as_str()), ("greeter", "1.2.3"));
    assert_eq!(registration.step_types, [v1::StepType::Pipeline as i32]);
    assert!(registration.config_schema.contains("What to put before the title"), "{}", registration.config_schema);

    let done = client.process_data(request(7, "Ann")).await.unwrap().into_inner();
    assert_eq!((done.sequence, done.outcome()), (7, Outcome::Done));
    let [v1::Result { kind: Some(v1::result::Kind::Document(document)), output }] = done.results.as_slice() else {
        panic!("{done:?}");
    };
    assert_eq!((document.title.as_str(), output.as_str()), ("ho ho Ann", "friends"));

    let outcomes = [
        ("broken", Outcome::Failed, vec!["the document is broken"]),
        ("later", Outcome::Retryable, vec!["greeting failed", "nobody answers"]),
        ("panic", Outcome::Failed, vec!["the module panicked", "cannot greet"]),
        ("skip", Outcome::Done, vec![]),
    ];
    for (title, outcome, error) in outcomes {
        let response = client.process_data(request(1, title)).await.unwrap().into_inner();
        assert_eq!((response.outcome(), response.error), (outcome, error.into_iter().map(str::to_owned).collect()));
        assert!(response.results.is_empty());
    }

    let deletion = v1::ProcessDataRequest { document: None, deleted_id: "gone".into(), ..request(2, "") };
    let deleted = client.process_data(deletion).await.unwrap().into_inner();
    assert!(
        matches!(&deleted.results[..], [v1::Result { kind: Some(v1::result::Kind::DeletedId(id)), .. }] if id == "gone")
    );
    assert_eq!(OPENED.load(Ordering::SeqCst), 1, "equal configurations are opened once");

    // Two are kept open, so a third and a fourth push the first two out.
    for prefix in ["a", "b"] {
        let other = v1::ProcessDataRequest { config: Some(config(prefix)), ..request(3, "x") };
        client.process_data(other).await.unwrap();
    }
    surface::eventually("the first is closed", || CLOSED.load(Ordering::SeqCst) == 1).await;
    drop(client);
    served.stop().await;
    assert_eq!((OPENED.load(Ordering::SeqCst), CLOSED.load(Ordering::SeqCst)), (3, 3), "the rest is closed at the end");
}

#[tokio::test]
async fn surface_wrong_calls_are_refused_with_a_reason() {
    let served = Served::new(Factory::module::<Broken>()).await;
    let mut client = served.client();
    let both = v1::ProcessDataRequest { deleted_id: "x".into(), ..request(1, "") };
    let nameless = v1::ProcessDataRequest { document: Some(PipeDoc::default()), ..request(1, "") };
    let badly_named = v1::StepIdentity { step: "dlq".into(), ..Default::default() };
    let cases = [
        (v1::ProcessDataRequest::default(), Code::InvalidArgument, "neither `document` nor `deleted_id`"),
        (both, Code::InvalidArgument, "both `document` and `deleted_id`"),
        (nameless, Code::InvalidArgument, "`document.id` is empty"),
        (
            v1::ProcessDataRequest { step: Some(badly_named), ..request(1, "") },
            Code::InvalidArgument,
            "\"dlq\" is reserved",
        ),
        (v1::ProcessDataRequest { config: None, ..request(1, "") }, Code::InvalidArgument, "prefix"),
        (request(1, ""), Code::Unavailable, "broken could not be opened: no table yet"),
    ];
    for (request, code, reason) in cases {
        let status = client.process_data(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{:?} does not say {reason:?}", status.message());
    }
    drop(client);
    served.stop().await;
}

struct Broken;

impl Module for Broken {
    type Config = Config;
    const NAME: &'static str = "broken";

    async fn open(_: Config, _: &Step) -> Result<Self> {
        Err(Error::retryable("no table yet"))
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        Ok(doc.into())
    }
}

#[tokio::test]
async fn surface_a_stream_is_answered_in_order_and_side_by_side() {
    let served = Served::new(Factory::module::<Sleeper>()).await;
    let requests: Vec<_> = (0..20).map(|n| request(n, if n % 4 == 0 { "slow" } else { "x" })).collect();
    let mut responses = served.client().process_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut sequences = Vec::new();
    while let Some(response) = responses.message().await.unwrap() {
        sequences.push(response.sequence);
    }
    assert_eq!(sequences, (0..20).collect::<Vec<_>>());
    let most = MOST_AT_ONCE.load(Ordering::SeqCst);
    assert!(most > 1, "one after the other");
    served.stop().await;
}

static ASLEEP: AtomicUsize = AtomicUsize::new(0);
static MOST_AT_ONCE: AtomicUsize = AtomicUsize::new(0);

struct Sleeper;

impl Module for Sleeper {
    type Config = Config;
    const NAME: &'static str = "sleeper";

    async fn open(_: Config, _: &Step) -> Result<Self> {
        Ok(Self)
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        // Later ones are faster, so that order is not by chance.
        let number: u64 = doc.id.trim_start_matches("doc-").parse().unwrap_or(0);
        MOST_AT_ONCE.fetch_max(ASLEEP.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(60 - 2 * number)).await;
        ASLEEP.fetch_sub(1, Ordering::SeqCst);
        Ok(doc.into())
    }
}

#[tokio::test]
async fn surface_a_connector_tells_who_it_is_and_takes_no_documents() {
    let served = Served::new(Factory::connector::<Lister>()).await;
    let mut client = served.client();
    let registration =
        client.get_service_registration(v1::GetServiceRegistrationRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (registration.module.as_str(), registration.step_types),
        ("lister", vec![v1::StepType::Connector as i32])
    );
    let status = client.process_data(request(1, "x")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("lister is a connector"), "{}", status.message());
    drop(client);
    served.stop().await;
}

#[tokio::test]
async fn surface_health_and_reflection_answer() {
    let served = Served::new(Factory::module::<Sleeper>()).await;

    let mut health = tonic_health::pb::health_client::HealthClient::new(served.channel.clone());
    for service in ["", "pipedoc.v1.PipeStepProcessor"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving, "{service:?}");
    }

    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = tokio_stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("pipedoc.v1.PipeDoc".into())),
    ]);
    let mut reflection = ServerReflectionClient::new(served.channel.clone());
    let mut answers = reflection.server_reflection_info(questions).await.unwrap().into_inner();
    let Some(ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(services)), ..
    }) = answers.message().await.unwrap()
    else {
        panic!("services are listed");
    };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"pipedoc.v1.PipeStepProcessor"), "{names:?}");
    let file = answers.message().await.unwrap().unwrap();
    assert!(matches!(file.message_response, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");

    // An open watcher must not keep the server from stopping.
    let watch = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let _watcher = health.watch(watch).await.unwrap();
    served.stop().await;
}
