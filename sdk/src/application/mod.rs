//! Reading and writing topics from applications that are no modules: a service that
//! puts records in, a tool that reads results.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use pipedoc_sdk::application::{Consumer, ConsumerOptions, Producer};
//! # use pipedoc_sdk::record::Message;
//! # use pipedoc_model::names::Topic;
//! # async fn run(log: Arc<dyn pipedoc_transport::log::Log>) -> pipedoc_sdk::error::Result<()> {
//! let producer = Producer::open(&log, "shop").await?;
//! let orders = Topic::new("orders")?;
//! let delivered = producer.send_sync(&orders, Message::new("4711", "{}")).await?; // acknowledged
//! producer.send(&orders, Message::new("4712", "{}")).await?; // on its way
//! let left = producer.close(Duration::from_secs(10)).await; // waits for it
//! assert!(left.is_empty(), "{left:?}");
//!
//! let mut consumer = Consumer::open(&log, ConsumerOptions::new("billing", [orders])).await?;
//! loop {
//!     let batch = consumer.next().await?;
//!     for record in &batch.records { /* … */ }
//!     consumer.mark_as_consumed(&batch);
//! }
//! # }
//! ```
//!
//! Knows the log; knows nothing of steps, retries or dead letters.

mod consumer;
mod producer;

pub use consumer::{Consumer, ConsumerOptions, PartitionNews};
pub use producer::{Pending, Producer, Unsent};
