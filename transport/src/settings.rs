//! Settings of a log's client: how they are shown, and those that every log
//! understands. Which there are is `pipedoc_model::kafka`'s to know.

use std::fmt;
use std::time::Duration;

use pipedoc_model::kafka::shown;

use crate::log::{ConsumerConfig, ProducerConfig, Start, Subscription, TransactionalConfig};

impl ConsumerConfig {
    /// Takes over those settings that this configuration has fields for:
    /// `auto.offset.reset` (where a group begins), `max.poll.records` and
    /// `max.poll.interval.ms`. They are meant for every log.
    #[must_use]
    pub fn tuned(mut self) -> Self {
        let found = |name: &str| self.settings.get(name).map(String::as_str);
        if let Some(records) = found("max.poll.records").and_then(|text| text.parse().ok()) {
            self.max_records = records;
        }
        if let Some(millis) = found("max.poll.interval.ms").and_then(|text| text.parse().ok()) {
            self.max_poll_interval = Duration::from_millis(millis);
        }
        let asked = match found("auto.offset.reset") {
            Some("latest") => Some(Start::Latest),
            Some("earliest") => Some(Start::Earliest),
            _ => None,
        };
        if let (Some(asked), Subscription::Group { start, .. }) = (asked, &mut self.subscription) {
            *start = asked;
        }
        self
    }
}

impl fmt::Debug for ConsumerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerConfig")
            .field("subscription", &self.subscription)
            .field("client_id", &self.client_id)
            .field("session_timeout", &self.session_timeout)
            .field("max_poll_interval", &self.max_poll_interval)
            .field("max_records", &self.max_records)
            .field("max_bytes", &self.max_bytes)
            .field("settings", &shown(&self.settings))
            .finish()
    }
}

impl fmt::Debug for ProducerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProducerConfig")
            .field("client_id", &self.client_id)
            .field("settings", &shown(&self.settings))
            .finish()
    }
}

impl fmt::Debug for TransactionalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalConfig")
            .field("transactional_id", &self.transactional_id)
            .field("timeout", &self.timeout)
            .field("settings", &shown(&self.settings))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let settings = [("sasl.password".to_owned(), "s3cret".to_owned())];
        let producer = ProducerConfig { client_id: "p".to_owned(), settings: settings.clone().into() };
        let mut consumer = ConsumerConfig::new("c", Subscription::Assigned(Vec::new()));
        consumer.settings = settings.clone().into();
        let mut transactional = TransactionalConfig::new("t");
        transactional.settings = settings.clone().into();
        let mut kafka = crate::kafka::KafkaConfig::new("b:1");
        kafka.settings = settings.into();
        for shown in
            [format!("{producer:?}"), format!("{consumer:?}"), format!("{transactional:?}"), format!("{kafka:?}")]
        {
            assert!(shown.contains("sasl.password") && !shown.contains("s3cret"), "{shown}");
        }
    }
}
