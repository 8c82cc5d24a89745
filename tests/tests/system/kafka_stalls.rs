//! Clients that are connected and of no use all the same are noticed and replaced;
//! the new one goes on from the committed place.

use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::names::Topic;
use pipedoc_tests::bed::kafka::Kafka;
use pipedoc_tests::bed::proxy::Weather;
use pipedoc_transport::error::Error;
use pipedoc_transport::kafka::{KafkaConfig, KafkaLog};
use pipedoc_transport::log::{
    Commit, Consumer, ConsumerConfig, Event, Log, OutgoingRecord, ProducerConfig, RecordBatch, Start, Subscription,
    TopicSettings, TopicSpec,
};

use super::kafka_faults::alone;

const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers of requests in Kafka's protocol.
const FETCH: u16 = 1;
const OFFSET_COMMIT: u16 = 8;
const OFFSET_FETCH: u16 = 9;

/// A topic with one partition, and a log whose clients go through the proxy and are
/// given up after five seconds.
struct Desk {
    log: KafkaLog,
    topic: Topic,
}

impl Desk {
    async fn new(kafka: &Kafka, name: &str) -> Self {
        let mut config = KafkaConfig::new(kafka.proxy().address());
        config.patience = Duration::from_secs(5);
        config.settings.insert("consumer.statistics.interval.ms".to_owned(), "200".to_owned());
        config.settings.insert("socket.timeout.ms".to_owned(), "10000".to_owned());
        let log = KafkaLog::connect(config).await.unwrap();
        let topic = Topic::new(&format!("{name}-{}", uuid::Uuid::new_v4())).unwrap();
        let settings = TopicSettings::default();
        log.ensure_topic(&TopicSpec { topic: topic.clone(), partitions: 1, replication: None, settings })
            .await
            .unwrap();
        Self { log, topic }
    }

    async fn send(&self, value: &'static str) {
        let producer = self.log.producer(ProducerConfig::default()).await.unwrap();
        let record = OutgoingRecord::new(self.topic.clone(), None, Some(value.into()));
        producer.send(vec![record]).await.unwrap().await.remove(0).unwrap();
    }

    async fn member(&self) -> Arc<dyn Consumer> {
        let topics = vec![self.topic.clone()];
        let group = format!("group-{}", self.topic);
        let subscription = Subscription::Group { group, topics, patterns: Vec::new(), start: Start::Earliest };
        let mut config = ConsumerConfig::new("reader", subscription);
        config.session_timeout = Some(Duration::from_secs(6));
        self.log.consumer(config).await.unwrap()
    }
}

/// The next records, whatever comes before them.
async fn records(consumer: &Arc<dyn Consumer>) -> RecordBatch {
    let records = async {
        loop {
            if let Event::Records(batch) = consumer.next().await.unwrap() {
                return batch;
            }
        }
    };
    tokio::time::timeout(PATIENCE, records).await.expect("records in time")
}

async fn commit(consumer: &Arc<dyn Consumer>, batch: &RecordBatch) -> Result<(), Error> {
    let offset = batch.records.last().unwrap().offset + 1;
    consumer.commit(vec![Commit { source: batch.source.clone(), offset, metadata: String::new() }]).await
}

/// Waits until the consumer is given up, and says why.
async fn given_up(consumer: &Arc<dyn Consumer>) -> String {
    let given_up = async {
        loop {
            if let Err(error @ Error::Stalled { .. }) = consumer.next().await {
                return error.to_string();
            }
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("it is noticed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_requests_for_records_vanish_is_replaced() {
    const TEST: &str = "a_consumer_whose_requests_for_records_vanish_is_replaced";
    let Some(kafka) = alone(TEST).await else { return };
    let desk = Desk::new(&kafka, "vanish").await;
    desk.send("first").await;
    let first = desk.member().await;
    let batch = records(&first).await;
    commit(&first, &batch).await.unwrap();
    kafka.proxy().set(Weather::Without(FETCH));
    desk.send("second").await;
    let told = given_up(&first).await;
    assert!(told.contains("has asked for no records for") && told.contains("committed place"), "{told}");
    kafka.proxy().set(Weather::Fair);
    drop(first);
    let batch = records(&desk.member().await).await;
    assert_eq!(batch.records[0].value.as_deref(), Some("second".as_bytes()), "from the committed place");
}

/// It holds up its whole group otherwise, which waits for it with each rebalance.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_learn_where_to_begin_is_replaced() {
    const TEST: &str = "a_member_that_does_not_learn_where_to_begin_is_replaced";
    let Some(kafka) = alone(TEST).await else { return };
    let desk = Desk::new(&kafka, "nowhere").await;
    desk.send("first").await;
    kafka.proxy().set(Weather::Without(OFFSET_FETCH));
    let first = desk.member().await;
    let told = given_up(&first).await;
    assert!(told.contains("could not learn where to begin for"), "{told}");
    kafka.proxy().set(Weather::Fair);
    drop(first);
    let batch = records(&desk.member().await).await;
    assert_eq!(batch.records[0].value.as_deref(), Some("first".as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_whose_commits_vanish_is_replaced() {
    let Some(kafka) = alone("a_consumer_whose_commits_vanish_is_replaced").await else { return };
    let desk = Desk::new(&kafka, "uncommitted").await;
    desk.send("first").await;
    let first = desk.member().await;
    let batch = records(&first).await;
    kafka.proxy().set(Weather::Without(OFFSET_COMMIT));
    assert!(commit(&first, &batch).await.is_err());
    let told = given_up(&first).await;
    assert!(told.contains("could not commit for"), "{told}");
    kafka.proxy().set(Weather::Fair);
    drop(first);
    let again = desk.member().await;
    let batch = records(&again).await;
    assert_eq!(batch.records[0].value.as_deref(), Some("first".as_bytes()), "it was not committed");
    commit(&again, &batch).await.unwrap();
}
