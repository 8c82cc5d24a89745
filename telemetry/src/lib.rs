//! Sets a process up to tell what it does: one call for logging, tracing and
//! metrics, and the trace context in record headers.
//!
//! Knows `tracing`, OpenTelemetry and header names; knows nothing of documents,
//! steps or logs. Spans get their identity from an in-process tracer provider;
//! they are not exported, and one that the filter leaves out costs one load.
//! Metrics are sent where the environment names a collector.

pub mod metrics;
pub mod propagation;

use std::io::IsTerminal;

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// Environment variable that holds the filter (`info`, `warn,pipedoc_sdk=debug`).
pub const FILTER_VARIABLE: &str = "PIPEDOC_LOG";

/// The filter where none is given.
pub const DEFAULT_FILTER: &str = "info";

/// Why a process could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter cannot be read.
    #[error("log filter {filter:?} cannot be read; write it like `info` or `warn,pipedoc_sdk=debug`")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Metrics cannot be sent where the environment says.
    #[error(transparent)]
    Metrics(#[from] metrics::Error),
    /// Something else in this process has taken the place.
    #[error("telemetry is set up already in this process")]
    Taken(#[source] tracing_subscriber::util::TryInitError),
}

impl Error {
    /// Whether what was given is wrong, and nothing was done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Filter { .. } | Self::Metrics(_) => true,
            Self::Taken(_) => false,
        }
    }
}

/// How lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; with colours on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = UnknownFormat;
    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(UnknownFormat { found: text.to_owned() }),
        }
    }
}

/// Libraries that log what we handle ourselves, as errors and with whole URLs. A
/// filter that names them wins.
const SILENT: &str = "consulrs=off,rustify=off";

/// A format that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log format {found:?} does not exist; there are `text` and `json`")]
pub struct UnknownFormat {
    /// What was asked for.
    pub found: String,
}

/// How a process tells what it does.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Name of the program, as traces show it.
    pub service: String,
    /// How lines are written. Default: text.
    pub format: Format,
    /// Which lines and spans are taken; none: what [`FILTER_VARIABLE`] says, else
    /// `default_filter`.
    pub filter: Option<String>,
    /// The filter where nobody gives one. Default: [`DEFAULT_FILTER`].
    pub default_filter: &'static str,
}

impl TelemetryConfig {
    /// The defaults, under this name.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self { service: service.into(), format: Format::Text, filter: None, default_filter: DEFAULT_FILTER }
    }

    /// For a command that shows its progress and sums up itself: errors only, unless
    /// the filter says otherwise.
    #[must_use]
    pub fn quiet(service: impl Into<String>) -> Self {
        Self { default_filter: "error", ..Self::new(service) }
    }
}

/// Keeps telemetry going; dropping it at the end of the process flushes what is
/// still on its way.
#[derive(Debug)]
#[must_use = "telemetry ends when the guard is dropped"]
pub struct Guard {
    traces: SdkTracerProvider,
    metrics: Option<SdkMeterProvider>,
}

impl Guard {
    /// Makes instruments; `None` when nobody would read them.
    #[must_use]
    pub fn meter(&self) -> Option<Meter> {
        self.metrics.as_ref().map(|provider| provider.meter("pipedoc"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Without an exporter there is nothing that could fail to arrive.
        let _ = self.traces.shutdown();
        if let Some(Err(error)) = self.metrics.take().map(|provider| provider.shutdown()) {
            tracing::warn!(%error, "the last metrics could not be sent");
        }
    }
}

/// Sets the process up: lines of `tracing` and `log` go to standard error, spans
/// get trace ids, metrics go where the environment says. Call it once, first thing
/// in `main`, within tokio's runtime.
///
/// # Errors
/// When the filter or the collector's address cannot be read, or the process was
/// set up already.
pub fn init(config: &TelemetryConfig) -> Result<Guard, Error> {
    let given = config.filter.clone().or_else(|| std::env::var(FILTER_VARIABLE).ok());
    let filter = given.filter(|filter| !filter.trim().is_empty()).unwrap_or_else(|| config.default_filter.to_owned());
    let env_filter = EnvFilter::try_new(format!("{SILENT},{filter}"))
        .map_err(|source| Error::Filter { filter: filter.clone(), source })?;
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name(config.service.clone()).build();
    let metrics = metrics::exported(resource.clone(), |name| std::env::var(name).ok())?;
    let (provider, traces) = trace_layer(resource);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        Format::Json => lines.json().with_current_span(true).with_span_list(false).boxed(),
    };
    tracing_subscriber::registry().with(env_filter).with(lines).with(traces).try_init().map_err(Error::Taken)?;
    Ok(Guard { traces: provider, metrics })
}

/// The provider that gives spans their identity, and the layer that asks it.
fn trace_layer<S>(resource: opentelemetry_sdk::Resource) -> (SdkTracerProvider, impl Layer<S> + use<S>)
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
{
    let provider = SdkTracerProvider::builder().with_resource(resource).build();
    let tracer = provider.tracer("pipedoc");
    // Nobody reads where a span was made or which thread made it, so it is not gathered.
    let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
    (provider, layer)
}
