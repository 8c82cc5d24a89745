//! How a module's steps do, as metrics. docs/events.md lists them.
//!
//! Events are counted as they come, numbers are read from the steps when an exporter
//! asks. Knows nothing of exporters.

use std::sync::Arc;

use pipedoc_model::names::StepId;
use pipedoc_telemetry::metrics::{Counter, KeyValue, Meter};

use crate::event::{Event, Observer};
use crate::instance::{Instance, StepStatus};

/// Counts events by step and name, and passes them on; without a meter nobody counts.
pub(super) fn counted(meter: Option<&Meter>, observer: Arc<dyn Observer>) -> Arc<dyn Observer> {
    let Some(meter) = meter else { return observer };
    let events = meter.u64_counter("pipedoc.step.events").with_unit("{event}");
    let events = events.with_description("What happened, but for documents that went their way.").build();
    Arc::new(Counted { events, observer })
}

struct Counted {
    events: Counter<u64>,
    observer: Arc<dyn Observer>,
}

impl Observer for Counted {
    fn event(&self, step: &StepId, event: &Event) {
        if !event.is_routine() {
            let mut labels = labels(step);
            labels.push(KeyValue::new("event", event.name()));
            self.events.add(1, &labels);
        }
        self.observer.event(step, event);
    }

    fn heeds_documents(&self) -> bool {
        self.observer.heeds_documents()
    }
}

/// Shows the numbers of an instance's steps.
pub(super) fn show(meter: Option<&Meter>, instance: &Instance) {
    let Some(meter) = meter else { return };
    type Total = fn(&StepStatus) -> u64;
    let totals: [(&'static str, &'static str, Total); 2] = [
        ("pipedoc.step.done", "Deliveries done.", |status| status.done),
        ("pipedoc.step.failed", "Deliveries given up on.", |status| status.failed),
    ];
    for (name, description, read) in totals {
        let instance = instance.clone();
        let counter = meter.u64_observable_counter(name).with_unit("{delivery}").with_description(description);
        counter
            .with_callback(move |out| {
                instance.status().iter().for_each(|status| out.observe(read(status), &labels(&status.id)));
            })
            .build();
    }
    type Now = fn(&StepStatus) -> i64;
    let now: [(&'static str, &'static str, &'static str, Now); 3] = [
        ("pipedoc.step.lag", "{record}", "Records that wait, in partitions owned here.", |status| status.lag),
        ("pipedoc.step.open", "{delivery}", "Deliveries open.", |status| count(status.in_flight)),
        ("pipedoc.step.paused", "{partition}", "Partitions that stand still by themselves.", |status| {
            count(status.paused.len() as u64)
        }),
    ];
    for (name, unit, description, read) in now {
        let instance = instance.clone();
        let gauge = meter.i64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge
            .with_callback(move |out| {
                instance.status().iter().for_each(|status| out.observe(read(status), &labels(&status.id)));
            })
            .build();
    }
}

fn labels(step: &StepId) -> Vec<KeyValue> {
    vec![KeyValue::new("pipeline", step.pipeline.to_string()), KeyValue::new("step", step.step.to_string())]
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
