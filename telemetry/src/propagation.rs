//! Reads and writes the W3C trace context in record headers.
//!
//! A context that cannot be read is no error: the headers travel on as they are.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use pipedoc_model::headers::{Headers, TRACEPARENT, TRACESTATE};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes the span a child of the trace that the headers carry. Call it before the
/// span is entered. Without a readable context, or where the span is not
/// recorded, nothing happens.
pub fn continue_trace(span: &Span, headers: &Headers) {
    if span.is_disabled() || !headers.contains(TRACEPARENT) {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(headers));
    if context.span().span_context().is_valid() {
        // Fails only when no tracer is set up; then there is no trace to go on with.
        let _ = span.set_parent(context);
    }
}

/// Writes the span's place in its trace into the headers, replacing what was
/// there. Where the span is not recorded the headers stay as they are, so that a
/// trace passes through processes that do not take part in it.
pub fn write_trace(span: &Span, headers: &mut Headers) {
    if span.is_disabled() {
        return;
    }
    TraceContextPropagator::new().inject_context(&span.context(), &mut Writer(headers));
}

/// As [`write_trace`], for the span entered now.
pub fn write_current_trace(headers: &mut Headers) {
    write_trace(&Span::current(), headers);
}

/// The trace id that the headers carry, 32 hex digits; `None` when there is none
/// that can be read.
#[must_use]
pub fn trace_id(headers: &Headers) -> Option<String> {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Reader(headers));
    let span = context.span();
    span.span_context().is_valid().then(|| span.span_context().trace_id().to_string())
}

struct Reader<'a>(&'a Headers);

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get_str(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|header| header.name()).collect()
    }
}

struct Writer<'a>(&'a mut Headers);

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        match key {
            TRACEPARENT => self.0.set(TRACEPARENT, value),
            // An empty state means none, and none is not worth a header.
            TRACESTATE if value.is_empty() => self.0.remove(TRACESTATE),
            TRACESTATE => self.0.set(TRACESTATE, value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traced(parent: &str, state: Option<&str>) -> Headers {
        let mut headers = Headers::new();
        headers.append("foreign", Some("kept".into()));
        headers.append(TRACEPARENT, Some(parent.to_owned().into()));
        if let Some(state) = state {
            headers.append(TRACESTATE, Some(state.to_owned().into()));
        }
        headers
    }

    fn with_tracer(test: impl FnOnce()) {
        let (_provider, layer) = crate::trace_layer(opentelemetry_sdk::Resource::builder_empty().build());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), test);
    }

    #[test]
    fn a_trace_goes_on_through_a_span() {
        with_tracer(|| {
            let incoming = traced(PARENT, Some("vendor=1"));
            let span = tracing::info_span!("process");
            continue_trace(&span, &incoming);
            let mut outgoing = incoming.clone();
            write_trace(&span, &mut outgoing);
            assert_eq!(trace_id(&outgoing).as_deref(), Some("0af7651916cd43dd8448eb211c80319c"));
            assert_ne!(outgoing.get_str(TRACEPARENT), Some(PARENT), "the span is a child of its own");
            assert_eq!(outgoing.get_str(TRACESTATE), Some("vendor=1"));
            assert_eq!(outgoing.get_str("foreign"), Some("kept"));
            assert_eq!(outgoing.len(), 3, "replaced, not repeated");
        });
    }

    #[test]
    fn the_current_span_begins_a_trace_where_there_is_none() {
        with_tracer(|| {
            let mut headers = Headers::new();
            tracing::info_span!("connect").in_scope(|| write_current_trace(&mut headers));
            assert!(trace_id(&headers).is_some());
            assert!(!headers.contains(TRACESTATE), "an empty state is not written");
        });
    }

    #[test]
    fn an_unreadable_context_is_ignored() {
        with_tracer(|| {
            let span = tracing::info_span!("process");
            continue_trace(&span, &traced("rubbish", None));
            let mut headers = Headers::new();
            write_trace(&span, &mut headers);
            assert!(trace_id(&headers).is_some(), "a trace of its own");
        });
    }

    #[test]
    fn without_a_tracer_headers_stay_as_they_are() {
        let mut headers = traced(PARENT, Some("vendor=1"));
        let before = headers.clone();
        let span = tracing::info_span!("process");
        continue_trace(&span, &headers);
        write_trace(&span, &mut headers);
        assert_eq!(headers, before);
    }
}
