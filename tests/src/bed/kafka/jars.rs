//! Kafka's jars.

use std::path::PathBuf;

use super::VERSION;
use crate::bed::maven::{self, Dependency};

/// Parts of Connect, which the tools can do without.
const CONNECT: &[(&str, &str)] = &[
    ("org.apache.kafka", "connect-runtime"),
    ("org.apache.kafka", "connect-api"),
    ("org.apache.kafka", "connect-json"),
];

/// The folder with Kafka's jars.
pub(super) fn jars() -> Result<PathBuf, String> {
    let dependencies = [
        Dependency::new("org.apache.kafka", "kafka_2.13", VERSION),
        Dependency::new("org.apache.kafka", "kafka-tools", VERSION).without(CONNECT),
        Dependency::new("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4"),
    ];
    maven::jars(&format!("kafka-{VERSION}"), &dependencies)
}
