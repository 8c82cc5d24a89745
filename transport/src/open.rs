//! Opens a log by its URL. Knows which logs there are; everything above knows
//! only the contract.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use pipedoc_model::kafka::{self, Settings};
use pipedoc_model::problem::Problems;

use crate::error::Result;
use crate::kafka::{KafkaConfig, KafkaLog, StatisticsObserver};
use crate::log::Log;
use crate::memory::MemoryLog;
use crate::sqlite::{Options, SqliteLog, Sync};

/// Where a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogUrl {
    /// `memory:`: within this process, gone with it.
    Memory,
    /// `sqlite:PATH`: one file, shared by the processes of a machine.
    Sqlite(PathBuf),
    /// `kafka:HOST:PORT,…`: Apache Kafka, by some of its brokers.
    Kafka(String),
}

/// A URL that names no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownLog {
    /// It begins like none.
    #[error("{found:?} names no log; write sqlite:PATH, kafka:HOST:PORT,… or memory:")]
    Scheme {
        /// The URL.
        found: String,
    },
    /// Brokers that are none, all of them.
    #[error("{}", one_line(.0))]
    Brokers(Problems),
}

/// Problems in one line, for whoever shows errors so.
fn one_line(problems: &Problems) -> String {
    let problems: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
    problems.join("; ")
}

impl FromStr for LogUrl {
    type Err = UnknownLog;
    fn from_str(text: &str) -> Result<Self, UnknownLog> {
        let unknown = || UnknownLog::Scheme { found: text.to_owned() };
        let (scheme, rest) = text.split_once(':').ok_or_else(unknown)?;
        match scheme {
            "memory" if rest.is_empty() => Ok(Self::Memory),
            "sqlite" if !rest.is_empty() => Ok(Self::Sqlite(rest.into())),
            "kafka" => {
                let brokers = kafka::brokers(rest.strip_prefix("//").unwrap_or(rest));
                brokers.map(Self::Kafka).map_err(|findings| UnknownLog::Brokers(Problems::from(findings)))
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for LogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Kafka(brokers) => write!(f, "kafka:{brokers}"),
        }
    }
}

impl LogUrl {
    /// Opens the log, without settings of its client. A file is made where it is
    /// missing; its folder must exist.
    ///
    /// # Errors
    /// When the log cannot be used.
    pub async fn open(&self) -> Result<Arc<dyn Log>> {
        self.open_with(&OpenOptions::default()).await
    }

    /// As [`open`](Self::open). Where no broker answers, it waits for one, and says
    /// so once to `told`, and again whenever the reason changes.
    ///
    /// # Errors
    /// When the log cannot be used, or was not to be reached in time.
    pub async fn open_with(&self, options: &OpenOptions<'_>) -> Result<Arc<dyn Log>> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryLog::new()),
            Self::Sqlite(path) => {
                let options = Options { sync: sync_from_env()? };
                Arc::new(SqliteLog::open(path, options).await?)
            }
            Self::Kafka(brokers) => {
                let (settings, statistics) = (options.kafka.clone(), options.statistics.clone());
                let config = KafkaConfig { settings, statistics, ..KafkaConfig::new(brokers) };
                Arc::new(KafkaLog::wait_for(config, options.wait, options.told).await?)
            }
        })
    }
}

/// How a log is opened.
#[derive(Clone)]
pub struct OpenOptions<'a> {
    /// Settings of Kafka's clients; see [`KafkaConfig::settings`].
    pub kafka: &'a Settings,
    /// How long to wait for a log that cannot be reached; none: for ever.
    /// Default 10 s.
    pub wait: Option<Duration>,
    /// Hears what Kafka's clients tell of themselves. Default: nobody.
    pub statistics: StatisticsObserver,
    /// Hears what is waited for.
    pub told: &'a (dyn Fn(&crate::error::Error) + Send + std::marker::Sync),
}

impl Default for OpenOptions<'_> {
    fn default() -> Self {
        const NONE: &Settings = &Settings::new();
        Self {
            kafka: NONE,
            wait: Some(Duration::from_secs(10)),
            statistics: StatisticsObserver::default(),
            told: &|_| {},
        }
    }
}

/// How much of what a SQLite file acknowledges survives a loss of power.
fn sync_from_env() -> Result<Sync> {
    match std::env::var("PIPEDOC_SYNC").as_deref() {
        Err(_) | Ok("" | "full") => Ok(Sync::Full),
        Ok("normal") => Ok(Sync::Normal),
        Ok(_) => Err(crate::error::Error::Misuse {
            operation: "opening the log",
            reason: "PIPEDOC_SYNC must be `full` (the default) or `normal`",
        }),
    }
}

/// Why a URL could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It names no log.
    #[error(transparent)]
    Unknown(#[from] UnknownLog),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] crate::error::Error),
}

/// Opens the log that a URL names.
///
/// # Errors
/// When it names no log, or the log cannot be used.
pub async fn open(url: &str) -> Result<Arc<dyn Log>, Error> {
    Ok(url.parse::<LogUrl>()?.open().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_logs() {
        let good = [
            ("memory:", LogUrl::Memory),
            ("sqlite:data/log.db", LogUrl::Sqlite("data/log.db".into())),
            ("sqlite:/var/lib/log.db", LogUrl::Sqlite("/var/lib/log.db".into())),
            ("kafka:a:9092,b:9093", LogUrl::Kafka("a:9092,b:9093".into())),
        ];
        for (text, url) in good {
            assert_eq!(text.parse(), Ok(url.clone()), "{text}");
            assert_eq!(url.to_string(), text);
        }
        assert_eq!("kafka://a:9092".parse(), Ok(LogUrl::Kafka("a:9092".into())));
        for bad in ["", "log.db", "sqlite:", "kafka:", "kafka:a", "kafka:a:b", "kafka:a:9092,", "memory:x", "redis:a:1"]
        {
            assert!(bad.parse::<LogUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_entry_that_is_no_broker_is_named() {
        let told = "kafka:http://a:9092,b:9092,c:notaport,".parse::<LogUrl>().unwrap_err().to_string();
        for entry in ["http://a:9092: is a URL", "c:notaport: ", "entry 4: is empty"] {
            assert!(told.contains(entry), "{entry} is not in {told}");
        }
        assert!(!told.contains("b:9092"), "{told}");
    }
}
