//! What Kafka's clients tell of themselves arrives at a collector as metrics.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use pipedoc_tests::bed::{kafka, pipedoc};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A collector that keeps the names of what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<BTreeSet<String>>>);

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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(collector.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

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
