//! The suite every log must pass, on a real broker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipedoc_tests::bed::kafka;
use pipedoc_transport::conformance::{self, Bed};
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::Log;

struct OnKafka(String);

#[async_trait]
impl Bed for OnKafka {
    async fn open(&self) -> Arc<dyn Log> {
        Arc::new(KafkaLog::connect(KafkaConfig::new(&self.0)).await.expect("the broker answers"))
    }

    /// Members that die without a word are noticed only after their session, and
    /// many cases run at once.
    fn patience(&self) -> Duration {
        Duration::from_secs(90)
    }
}

/// Cases that wait for the broker's own timers leave room for others meanwhile.
const AT_ONCE: usize = 12;

/// `PIPEDOC_TEST_CASES=end,latest` runs those whose names hold these words.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kafka_keeps_every_promise_of_a_log() {
    let Some(kafka) = kafka::shared("kafka_keeps_every_promise_of_a_log") else { return };
    conformance::run_all(Arc::new(OnKafka(kafka.bootstrap())), AT_ONCE).await;
}
