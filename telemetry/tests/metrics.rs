//! Metrics arrive at a collector that the environment names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

use std::sync::Mutex;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_sdk::Resource;
use pipedoc_telemetry::metrics::exported;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A collector that hands on the names that it is sent.
struct Collector(Mutex<mpsc::UnboundedSender<Vec<String>>>);

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let all = request.into_inner().resource_metrics;
        let metrics = all.into_iter().flat_map(|resource| resource.scope_metrics).flat_map(|scope| scope.metrics);
        let names = metrics.map(|metric| metric.name).collect();
        let _ = self.0.lock().expect("a lock").send(names);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn resource() -> Resource {
    Resource::builder_empty().build()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_named_gets_what_instruments_show() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, mut received) = mpsc::unbounded_channel();
    let service = MetricsServiceServer::new(Collector(Mutex::new(sender)));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let named = |name| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.clone());
    let provider = exported(resource(), named).expect("a good address").expect("a collector");
    let meter = provider.meter("test");
    meter.u64_observable_gauge("answer").with_callback(|out| out.observe(42, &[])).build();
    // What is left is sent at the end.
    let ended = tokio::task::spawn_blocking(move || provider.shutdown()).await.expect("an end");
    ended.expect("the collector answers");
    assert_eq!(received.recv().await.expect("metrics"), ["answer"]);
}

#[tokio::test]
async fn without_a_collector_nothing_is_made_and_a_bad_one_is_refused() {
    let exported = |name: &'static str, value: &str| {
        let value = value.to_owned();
        exported(resource(), move |asked| (asked == name).then(|| value.clone()))
    };
    assert!(exported("OTEL_EXPORTER_OTLP_ENDPOINT", " ").expect("nothing").is_none());
    assert!(exported("HOME", "x").expect("nothing").is_none());
    for (name, value, words) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317", "https is not supported yet"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "not an address", "is an address such as"),
    ] {
        let error = exported(name, value).expect_err("refused").to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
}
