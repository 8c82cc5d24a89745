//! What Kafka's clients tell of themselves, as metrics. docs/kafka.md lists them.
//!
//! The newest statistics of each client are kept, and read when an exporter asks.
//! Knows nothing of exporters, and nothing of what the clients do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pipedoc_telemetry::metrics::{KeyValue, Meter};
use pipedoc_transport::kafka::{BrokerStatistics, ClientStatistics, PartitionStatistics, StatisticsObserver};

/// A client that has told nothing for so long has ended.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);

/// Turns statistics into metrics; without a meter nobody is told.
#[must_use]
pub fn kafka_metrics(meter: Option<&Meter>) -> StatisticsObserver {
    let Some(meter) = meter else { return StatisticsObserver::default() };
    let clients = Clients::default();
    clients_of(meter, &clients);
    brokers_of(meter, &clients);
    partitions_of(meter, &clients);
    StatisticsObserver::new(move |statistics| clients.take(statistics))
}

/// What each client told last, by its name.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<BTreeMap<String, (Instant, ClientStatistics)>>>);

impl Clients {
    fn take(&self, statistics: &ClientStatistics) {
        let mut clients = self.0.lock();
        clients.retain(|_, (told, _)| told.elapsed() < FORGOTTEN_AFTER);
        clients.insert(statistics.name.clone(), (Instant::now(), statistics.clone()));
    }

    fn each(&self, mut look: impl FnMut(&ClientStatistics, Vec<KeyValue>)) {
        for (_, statistics) in self.0.lock().values() {
            let mut labels = vec![KeyValue::new("client", statistics.name.clone())];
            labels.extend(statistics.group.clone().map(|group| KeyValue::new("group", group)));
            look(statistics, labels);
        }
    }

    fn each_broker(&self, mut look: impl FnMut(&BrokerStatistics, &[KeyValue])) {
        self.each(|client, labels| {
            for broker in &client.brokers {
                let mut labels = labels.clone();
                labels.push(KeyValue::new("broker", broker.name.clone()));
                look(broker, &labels);
            }
        });
    }

    fn each_partition(&self, mut look: impl FnMut(&PartitionStatistics, &[KeyValue])) {
        self.each(|client, labels| {
            for partition in &client.partitions {
                let mut labels = labels.clone();
                labels.push(KeyValue::new("topic", partition.source.topic.to_string()));
                labels.push(KeyValue::new("partition", i64::from(partition.source.partition)));
                look(partition, &labels);
            }
        });
    }
}

fn clients_of(meter: &Meter, clients: &Clients) {
    type Read = fn(&ClientStatistics) -> u64;
    let totals: [(&'static str, &'static str, &'static str, Read); 6] = [
        ("pipedoc.kafka.client.sent", "{record}", "Records written.", |client| client.sent_records),
        ("pipedoc.kafka.client.sent.size", "By", "Bytes of records written.", |client| client.sent_bytes),
        ("pipedoc.kafka.client.received", "{record}", "Records read.", |client| client.received_records),
        ("pipedoc.kafka.client.received.size", "By", "Bytes of records read.", |client| client.received_bytes),
        ("pipedoc.kafka.client.requests", "{request}", "Requests sent to brokers.", |client| client.requests),
        ("pipedoc.kafka.client.rebalances", "{rebalance}", "Times the group was divided anew.", |client| {
            client.rebalances
        }),
    ];
    for (name, unit, description, read) in totals {
        let clients = clients.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        counter.with_callback(move |out| clients.each(|client, labels| out.observe(read(client), &labels))).build();
    }
    let now: [(&'static str, &'static str, &'static str, Read); 2] = [
        ("pipedoc.kafka.client.queued", "{record}", "Records that wait to be written.", |client| client.queued_records),
        ("pipedoc.kafka.client.queued.size", "By", "Bytes of records that wait to be written.", |client| {
            client.queued_bytes
        }),
    ];
    for (name, unit, description, read) in now {
        let clients = clients.clone();
        let gauge = meter.u64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge.with_callback(move |out| clients.each(|client, labels| out.observe(read(client), &labels))).build();
    }
}

fn brokers_of(meter: &Meter, clients: &Clients) {
    type Total = fn(&BrokerStatistics) -> u64;
    let totals: [(&'static str, &'static str, &'static str, Total); 4] = [
        ("pipedoc.kafka.broker.connects", "{connection}", "Connections tried.", |broker| broker.connects),
        ("pipedoc.kafka.broker.disconnects", "{connection}", "Connections lost.", |broker| broker.disconnects),
        ("pipedoc.kafka.broker.timeouts", "{request}", "Requests not answered in time.", |broker| broker.timeouts),
        ("pipedoc.kafka.broker.errors", "{request}", "Requests that failed to be sent.", |broker| broker.errors),
    ];
    for (name, unit, description, read) in totals {
        let clients = clients.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        counter
            .with_callback(move |out| clients.each_broker(|broker, labels| out.observe(read(broker), labels)))
            .build();
    }
    type Now = fn(&BrokerStatistics) -> Option<f64>;
    let now: [(&'static str, &'static str, &'static str, Now); 3] = [
        ("pipedoc.kafka.broker.connected", "1", "1 while there is a connection, else 0.", |broker| {
            Some(if broker.up { 1.0 } else { 0.0 })
        }),
        ("pipedoc.kafka.broker.round_trip.p99", "s", "From request to answer, 99th percentile.", |broker| {
            broker.round_trip_p99_micros.map(|micros| micros as f64 / 1e6)
        }),
        ("pipedoc.kafka.broker.throttled", "s", "How long the broker makes the client wait, on average.", |broker| {
            broker.throttled_millis.map(|millis| millis as f64 / 1e3)
        }),
    ];
    for (name, unit, description, read) in now {
        let clients = clients.clone();
        let gauge = meter.f64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge
            .with_callback(move |out| {
                clients.each_broker(|broker, labels| {
                    if let Some(value) = read(broker) {
                        out.observe(value, labels);
                    }
                });
            })
            .build();
    }
}

fn partitions_of(meter: &Meter, clients: &Clients) {
    type Read = fn(&PartitionStatistics) -> Option<i64>;
    let now: [(&'static str, &'static str, Read); 2] = [
        ("pipedoc.kafka.partition.lag", "Records between what was handed out and the last stable end.", |partition| {
            partition.lag
        }),
        ("pipedoc.kafka.partition.prefetched", "Records read ahead.", |partition| Some(partition.prefetched)),
    ];
    for (name, description, read) in now {
        let clients = clients.clone();
        let gauge = meter.i64_observable_gauge(name).with_unit("{record}").with_description(description);
        gauge
            .with_callback(move |out| {
                clients.each_partition(|partition, labels| {
                    if let Some(value) = read(partition) {
                        out.observe(value, labels);
                    }
                });
            })
            .build();
    }
}
