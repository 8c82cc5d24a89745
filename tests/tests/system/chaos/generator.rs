//! Sends records with known keys and numbers at a steady rate, and keeps account of
//! what the log has acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_model::names::Topic;
use pipedoc_proto::PipeDoc;
use pipedoc_transport::log::{Log, OutgoingRecord, Producer, ProducerConfig};
use prost::Message;
use tokio::task::{JoinHandle, JoinSet};

use super::account::{Generated, Mark};

/// How many keys there are.
const KEYS: u32 = 60;
const TICK: Duration = Duration::from_millis(20);
/// How many records a tick sends; some 200 a second.
const A_TICK: u32 = 4;

/// Sends until it is stopped.
pub struct Generator {
    sent: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    sending: JoinHandle<Generated>,
}

impl Generator {
    /// Begins to send to a topic.
    pub fn start(log: &Arc<dyn Log>, topic: &Topic) -> Self {
        let (sent, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let sending = tokio::spawn(send(Arc::clone(log), topic.clone(), Arc::clone(&sent), Arc::clone(&stop)));
        Self { sent, stop, sending }
    }

    /// How many records it has sent.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it, and waits until the log has told of everything.
    pub async fn stop(self) -> Generated {
        self.stop.store(true, Ordering::Relaxed);
        let sent = tokio::time::timeout(Duration::from_secs(180), self.sending).await;
        sent.expect("the log tells of everything in time").expect("the generator lives")
    }
}

async fn send(log: Arc<dyn Log>, topic: Topic, sent: Arc<AtomicU32>, stop: Arc<AtomicBool>) -> Generated {
    let generated = Arc::new(Mutex::new(Generated::default()));
    let mut producer = open(&*log).await;
    let mut receipts = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let first = sent.fetch_add(A_TICK, Ordering::Relaxed);
        let marks: Vec<Mark> = (first..first + A_TICK).map(|n| Mark { key: n % KEYS, number: n / KEYS }).collect();
        let records = marks.iter().map(|mark| record(*mark, &topic)).collect();
        let Ok(receipt) = producer.send(records).await else {
            generated.lock().unsure.extend(marks);
            producer = open(&*log).await;
            continue;
        };
        let generated = Arc::clone(&generated);
        receipts.spawn(async move {
            let reports = receipt.await;
            let mut generated = generated.lock();
            for (mark, report) in marks.into_iter().zip(reports) {
                let list = if report.is_ok() { &mut generated.acknowledged } else { &mut generated.unsure };
                list.insert(mark);
            }
        });
        while receipts.try_join_next().is_some() {}
    }
    while receipts.join_next().await.is_some() {}
    let generated = generated.lock();
    generated.clone()
}

async fn open(log: &dyn Log) -> Arc<dyn Producer> {
    loop {
        if let Ok(producer) = log.producer(ProducerConfig::default()).await {
            return producer;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn record(mark: Mark, topic: &Topic) -> OutgoingRecord {
    let doc = document(mark);
    OutgoingRecord::new(topic.clone(), Some(doc.id.clone().into()), Some(doc.encode_to_vec().into()))
}

/// The document of a mark.
pub fn document(mark: Mark) -> PipeDoc {
    let Mark { key, number } = mark;
    let body = format!("{key}/{number} ").repeat(5);
    PipeDoc { id: format!("key-{key}"), title: number.to_string(), body, ..PipeDoc::default() }
}
