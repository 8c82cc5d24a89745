//! What Kafka's clients tell of themselves, and how steps do, arrives at a collector as
//! metrics.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use pipedoc_tests::bed::process::Process;
use pipedoc_tests::bed::{eventually, kafka, pipedoc};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::kafka_place::Place;

/// A collector that keeps the names of what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<BTreeSet<String>>>);

impl Collector {
    /// One that serves, and its address.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, endpoint)
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let all = request.into_inner().resource_metrics;
        let metrics = all.into_iter().flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics);
        self.0.lock().unwrap().extend(metrics.map(|metric| metric.name));
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafkas_clients_tell_of_themselves_arrives_as_metrics() {
    const TEST: &str = "what_kafkas_clients_tell_of_themselves_arrives_as_metrics";
    let Some(kafka) = kafka::shared(TEST) else { return };
    let (collector, endpoint) = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    std::fs::write(folder.path().join("in/a.txt"), "a letter").unwrap();
    let pipeline = format!(
        "pipeline: m{}\ndefaults: {{partitions: 1}}\nsteps:\n\
         - {{name: files, type: CONNECTOR, module: filesystem-connector, config: {{folder: \"${{in}}\"}}, outputs: [{{to: store}}]}}\n\
         - {{name: store, type: SINK, module: object-sink, config: {{url: \"${{out}}\"}}}}\n",
        &uuid::Uuid::new_v4().simple().to_string()[..8]
    );
    std::fs::write(folder.path().join("pipeline.yaml"), pipeline).unwrap();
    let arguments = ["run", ".", "--kafka", &kafka.bootstrap(), "--kafka-setting", "statistics.interval.ms=100"];
    let mut command = pipedoc::command(arguments);
    command.current_dir(folder.path());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let received = collector.0.lock().unwrap().clone();
    for name in [
        "pipedoc.kafka.client.sent",
        "pipedoc.kafka.client.received.size",
        "pipedoc.kafka.client.queued",
        "pipedoc.kafka.broker.connected",
        "pipedoc.kafka.broker.round_trip.p99",
        "pipedoc.kafka.partition.lag",
    ] {
        assert!(received.contains(name), "{name} is not among {received:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_steps_do_and_what_happens_in_them_arrives_as_metrics() {
    let (collector, endpoint) = Collector::start().await;
    let place = Place::on_folder(None);
    let pipeline =
        "pipeline: shelf\nsteps:\n- {name: echo, type: PIPELINE, module: echo, output_kafka_topics: [CLUSTER-out]}\n";
    place.write("pipelines/shelf.yaml", pipeline);
    let _engine = place.engine();
    let address = place.address(0);
    let mut module = pipedoc::command(["module", "echo", "--engines", &address, "--cluster", place.cluster()]);
    module.current_dir(place.path());
    module.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_METRIC_EXPORT_INTERVAL", "100");
    let _module = Process::start("echo", &mut module, &place.path().join("echo.log"), None);
    let names = ["done", "failed", "lag", "open", "paused", "events"].map(|name| format!("pipedoc.step.{name}"));
    eventually("all of them", Duration::from_secs(90), async || {
        let received = collector.0.lock().unwrap().clone();
        names.iter().all(|name| received.contains(name)).then_some(())
    })
    .await;
}
