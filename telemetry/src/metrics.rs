//! Metrics: numbers that are read when an exporter asks for them, and sent with
//! OTLP over gRPC where the environment names a collector.
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`) turns
//! it on; OpenTelemetry's other variables hold as its specification says
//! (`OTEL_METRIC_EXPORT_INTERVAL`: 60000 ms). Knows no instrument: those stand
//! where the numbers are.

use opentelemetry_otlp::{MetricExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};

pub use opentelemetry::KeyValue;
pub use opentelemetry::metrics::Meter;

/// Variables that name a collector; the first that is set wins.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Why metrics cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Over another protocol than gRPC.
    #[error("{variable}={found} is not supported yet; leave it out, and name the collector's gRPC port (4317)")]
    Protocol {
        /// The variable.
        variable: &'static str,
        /// Its value.
        found: String,
    },
    /// Over TLS.
    #[error("{variable}: https is not supported yet; name a collector nearby with http://HOST:4317")]
    Tls {
        /// The variable.
        variable: &'static str,
    },
    /// The collector cannot be named so.
    #[error("metrics cannot be sent to {endpoint:?}; {variable} is an address such as http://localhost:4317")]
    Endpoint {
        /// The variable.
        variable: &'static str,
        /// Its value.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
}

/// Sends what instruments show, for as long as it lives; `None` when no collector
/// is named. To be called within tokio's runtime, which carries the sending.
/// `variable` gives the environment's.
///
/// # Errors
/// When the collector cannot be named so.
pub(crate) fn exported(
    resource: Resource,
    variable: impl Fn(&'static str) -> Option<String>,
) -> Result<Option<SdkMeterProvider>, Error> {
    let given = |name: &'static str| Some((name, variable(name)?));
    let named = ENDPOINTS.into_iter().filter_map(given).find(|(_, endpoint)| !endpoint.trim().is_empty());
    let Some((variable, endpoint)) = named else { return Ok(None) };
    for variable in ["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if let Some((variable, found)) = given(variable).filter(|(_, found)| !matches!(found.as_str(), "" | "grpc")) {
            return Err(Error::Protocol { variable, found });
        }
    }
    if endpoint.starts_with("https:") {
        return Err(Error::Tls { variable });
    }
    let exporter = MetricExporter::builder().with_tonic().with_endpoint(endpoint.as_str()).build();
    let exporter = exporter.map_err(|source| Error::Endpoint { variable, endpoint, source })?;
    let reader = PeriodicReader::builder(exporter).build();
    Ok(Some(SdkMeterProvider::builder().with_resource(resource).with_reader(reader).build()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
        MetricsService, MetricsServiceServer,
    };
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    };
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;

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
        let gauge = meter.u64_observable_gauge("answer").with_callback(|out| out.observe(42, &[])).build();
        // What is left is sent at the end.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown()).await.expect("an end");
        ended.expect("the collector answers");
        assert_eq!(received.recv().await.expect("metrics"), ["answer"]);
        drop(gauge);
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
}
