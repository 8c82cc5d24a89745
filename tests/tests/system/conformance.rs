//! The suite every log must pass, on a real broker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pipedoc_tests::bed::kafka;
use pipedoc_transport::conformance::Bed;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::Log;

struct OnKafka(String);

#[async_trait]
impl Bed for OnKafka {
    async fn open(&self) -> Arc<dyn Log> {
        Arc::new(KafkaLog::connect(KafkaConfig::new(&self.0)).await.expect("the broker answers"))
    }

    /// Members that die without a word are noticed only after their session.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

macro_rules! on_kafka {
    ([] $($name:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(kafka) = kafka::shared(stringify!($name)) else { return };
                pipedoc_transport::conformance::$name(&OnKafka(kafka.bootstrap())).await;
            }
        )*
    };
}
pipedoc_transport::conformance_cases!(on_kafka,);
