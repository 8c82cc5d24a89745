//! How steps run: units, and what does not go together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::config::TopicPolicy;
use super::super::tree::Path;
use super::super::wire;
use super::Checker;
use crate::kafka::{self, Client, Place};
use crate::step::{Batch, Delivery, FailureRate, Hydration, OnExhausted, Ordering, Retries};
use crate::text::{parse_duration, parse_size};

/// Settings of a step with everything filled in.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub delivery: Delivery,
    pub ordering: Ordering,
    pub concurrency: usize,
    pub batch: Option<Batch>,
    pub retries: Retries,
    pub on_exhausted: OnExhausted,
    pub stop_at_failure_rate: Option<FailureRate>,
    pub timeout: Duration,
    pub revoke_grace: Duration,
    pub max_hops: Option<u32>,
    pub topics: TopicPolicy,
    pub claim_threshold: u64,
    pub hydration: Hydration,
    pub hydrate_max: u64,
    pub clients: Clients,
}

/// Settings of the Kafka clients.
#[derive(Debug, Clone, Default)]
pub(super) struct Clients {
    pub consumer: Side,
    pub producer: Side,
}

/// Settings of one kind of client.
#[derive(Debug, Clone, Default)]
pub(super) struct Side {
    settings: kafka::Settings,
    /// How each setting was called, by librdkafka's own name.
    written: BTreeMap<String, String>,
    /// What was said of them already.
    told: Vec<String>,
}

impl Side {
    /// As the plan carries them: by librdkafka's own names, but those that hold a
    /// secret as they were written. Whoever lacks the secret names the setting.
    pub(super) fn planned(self) -> kafka::Settings {
        let Self { settings, mut written, .. } = self;
        let named = |(name, value): (String, String)| match written.remove(&name) {
            Some(written) if kafka::holds_secret(&value) => (written, value),
            _ => (name, value),
        };
        settings.into_iter().map(named).collect()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delivery: Delivery::default(),
            ordering: Ordering::default(),
            concurrency: 0,
            batch: None,
            retries: Retries::default(),
            on_exhausted: OnExhausted::default(),
            stop_at_failure_rate: None,
            timeout: Duration::from_secs(60),
            revoke_grace: Duration::from_secs(5),
            max_hops: None,
            topics: TopicPolicy::default(),
            claim_threshold: 256 * 1024,
            hydration: Hydration::default(),
            hydrate_max: 64 * 1024 * 1024,
            clients: Clients::default(),
        }
    }
}

impl Checker<'_> {
    /// Settings as given at `at`, over those of `base`.
    pub(super) fn settings(&mut self, given: Option<&wire::Settings>, at: &Path, base: Option<&Settings>) -> Settings {
        let mut settings = base.cloned().unwrap_or_default();
        let Some(given) = given else { return settings };
        take(&mut settings.delivery, given.delivery);
        take(&mut settings.ordering, given.ordering);
        take(&mut settings.concurrency, given.concurrency.map(|n| n as usize));
        take(&mut settings.on_exhausted, given.on_exhausted);
        take(&mut settings.topics, given.topics);
        take(&mut settings.hydration, given.hydration);
        if let Some(text) = &given.stop_at_failure_rate {
            match text.parse::<FailureRate>() {
                Ok(rate) => settings.stop_at_failure_rate = Some(rate),
                Err(error) => self.error(&at.field("stop_at_failure_rate"), format!("{error}; found {text:?}")),
            }
        }
        settings.max_hops = given.max_hops.or(settings.max_hops);
        take(&mut settings.timeout, self.duration(given.timeout.as_deref(), &at.field("timeout"), 1));
        take(&mut settings.revoke_grace, self.duration(given.revoke_grace.as_deref(), &at.field("revoke_grace"), 0));
        take(&mut settings.claim_threshold, self.size(given.claim_threshold.as_ref(), &at.field("claim_threshold")));
        take(&mut settings.hydrate_max, self.size(given.hydrate_max.as_ref(), &at.field("hydrate_max")));
        if let Some(retries) = &given.retries {
            settings.retries = self.retries(retries, &at.field("retries"), settings.retries);
        }
        if let Some(batch) = &given.batch {
            settings.batch = Some(self.batch(batch, &at.field("batch"), settings.batch));
        }
        if let Some(kafka) = &given.kafka {
            let at = at.field("kafka");
            self.client(
                Client::Consumer,
                kafka.consumer.as_ref(),
                &at.field("consumer"),
                &mut settings.clients.consumer,
            );
            self.client(
                Client::Producer,
                kafka.producer.as_ref(),
                &at.field("producer"),
                &mut settings.clients.producer,
            );
        }
        settings
    }

    fn retries(&mut self, given: &wire::Retries, at: &Path, base: Retries) -> Retries {
        let mut retries = base;
        take(&mut retries.attempts, given.attempts);
        take(&mut retries.initial, self.duration(given.initial.as_deref(), &at.field("initial"), 0));
        take(&mut retries.max, self.duration(given.max.as_deref(), &at.field("max"), 0));
        take(&mut retries.factor, given.factor);
        take(&mut retries.jitter, given.jitter);
        if retries.max < retries.initial {
            let reason = "the longest wait is shorter than the first one; raise `max` or lower `initial`";
            self.error(&at.field(if given.max.is_some() { "max" } else { "initial" }), reason);
        }
        retries
    }

    fn batch(&mut self, given: &wire::Batch, at: &Path, base: Option<Batch>) -> Batch {
        let default = Batch { records: 100, bytes: 4 * 1024 * 1024, wait: Duration::from_millis(100) };
        let mut batch = base.unwrap_or(default);
        take(&mut batch.records, given.records.map(|n| n as usize));
        let bytes = self.size(given.bytes.as_ref(), &at.field("bytes"));
        take(&mut batch.bytes, bytes.and_then(|bytes| usize::try_from(bytes).ok()));
        take(&mut batch.wait, self.duration(given.wait.as_deref(), &at.field("wait"), 0));
        batch
    }

    /// Settings of one kind of Kafka client, over those of `settings`.
    fn client(
        &mut self,
        client: Client,
        given: Option<&BTreeMap<String, Option<wire::Scalar>>>,
        at: &Path,
        side: &mut Side,
    ) {
        let written =
            given.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), value.as_ref()?.to_string())));
        // Whether the promise allows them is looked at when it is known.
        let checked = kafka::check(client, Place::Step { at_most_once: true }, &written.collect());
        for finding in &checked.findings {
            self.error(&at.field(&finding.name), finding.message.clone());
        }
        side.told.extend(checked.findings.into_iter().map(|finding| finding.message));
        side.written.extend(checked.written);
        side.settings.extend(checked.settings);
    }

    /// What does not go together in a step, its defaults and its promise included.
    pub(super) fn clients_together(&mut self, settings: &Settings, at: &Path) {
        let place = Place::Step { at_most_once: settings.delivery == Delivery::AtMostOnce };
        let Clients { consumer, producer } = &settings.clients;
        for (client, field, side) in
            [(Client::Consumer, "consumer", consumer), (Client::Producer, "producer", producer)]
        {
            // What is wrong by itself was told where it was written.
            let findings = kafka::check(client, place, &side.settings).findings;
            for finding in findings.into_iter().filter(|finding| !side.told.contains(&finding.message)) {
                let name = side.written.get(&finding.name).unwrap_or(&finding.name);
                self.error(&at.field("kafka").field(field).field(name), finding.message);
            }
        }
    }

    fn duration(&mut self, text: Option<&str>, at: &Path, at_least_millis: u64) -> Option<Duration> {
        let text = text?;
        match parse_duration(text) {
            Some(duration) if duration >= Duration::from_millis(at_least_millis) => Some(duration),
            Some(_) => {
                self.error(at, format!("found {text:?}, expected at least {at_least_millis}ms"));
                None
            }
            None => {
                self.error(at, format!("found {text:?}, expected a duration such as `500ms`, `60s` or `5m`"));
                None
            }
        }
    }

    fn size(&mut self, size: Option<&wire::Size>, at: &Path) -> Option<u64> {
        match size? {
            wire::Size::Bytes(bytes) => Some(*bytes),
            wire::Size::Text(text) => {
                let bytes = parse_size(text);
                if bytes.is_none() {
                    let reason =
                        format!("found {text:?}, expected a size such as `8MiB`, `256KiB` or a number of bytes");
                    self.error(at, reason);
                }
                bytes
            }
        }
    }
}

fn take<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}
