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
pub use opentelemetry::metrics::{Counter, Meter};

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
/// `variable` gives the environment's. [`init`](crate::init) calls it.
///
/// # Errors
/// When the collector cannot be named so.
pub fn exported(
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
