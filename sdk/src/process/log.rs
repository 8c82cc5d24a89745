//! Which log a process works on, and the settings of its clients: from flags,
//! `PIPEDOC_*` variables and a file. The same for every command.
//!
//! ```text
//! --kafka-settings FILE        NAME=VALUE a line
//!   PIPEDOC_KAFKA_NAME=VALUE   over those; dots are written as underscores
//!     --kafka-setting NAME=VALUE  over those
//! ```
//!
//! Knows where settings come from; `pipedoc_model::kafka` knows which there are.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use pipedoc_model::kafka::{self, Settings};
use pipedoc_model::problem::{Problem, Problems};
use pipedoc_transport::kafka::StatisticsObserver;
use pipedoc_transport::log::Log;
use pipedoc_transport::open::{LogUrl, OpenOptions, UnknownLog};

use crate::{secrets, units};

/// What a variable's name begins with that is a setting of Kafka's clients.
const PREFIX: &str = "PIPEDOC_KAFKA_";

/// Arguments that say which log it is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct LogArgs {
    /// The log that the records are in: `sqlite:PATH`, `kafka:HOST:PORT,…` or
    /// `memory:`. Default: the file `log.db` in the data folder.
    #[arg(long, env = "PIPEDOC_LOG_URL", value_name = "URL")]
    pub log: Option<LogUrl>,

    /// Short for `--log kafka:HOST:PORT,…`; wins over PIPEDOC_LOG_URL.
    #[arg(long, value_name = "HOST:PORT,…", value_parser = brokers)]
    pub kafka: Option<LogUrl>,

    /// File of settings for Kafka's clients, `NAME=VALUE` a line, by librdkafka's
    /// names or the Java client's; `consumer.NAME` and `producer.NAME` for one kind
    /// of client. A value may be `${env:NAME}` or `${file:PATH}`. Variables
    /// `PIPEDOC_KAFKA_NAME` win over it (`PIPEDOC_KAFKA_SASL_USERNAME` is
    /// `sasl.username`).
    #[arg(long, env = "PIPEDOC_KAFKA_SETTINGS", value_name = "FILE")]
    pub kafka_settings: Option<PathBuf>,

    /// A setting for Kafka's clients, over those of file and variables; may be
    /// repeated.
    #[arg(long = "kafka-setting", value_name = "NAME=VALUE")]
    pub kafka_setting: Vec<KafkaSetting>,

    /// How long to wait at the start for a Kafka, and in an engine for a Consul, that
    /// cannot be reached (`30s`). Default: for as long as it takes.
    #[arg(long, env = "PIPEDOC_WAIT", value_name = "DURATION")]
    pub wait: Option<units::Duration>,
}

/// A setting given on the command line.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaSetting {
    name: String,
    value: String,
}

impl fmt::Debug for KafkaSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value may be a secret.
        write!(f, "{}=…", self.name)
    }
}

impl FromStr for KafkaSetting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok(Self { name: name.trim().to_owned(), value: value.to_owned() })
            }
            _ => Err("write NAME=VALUE, such as linger.ms=20".to_owned()),
        }
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that cannot be used, all of them.
    #[error("the settings of Kafka's clients cannot be used")]
    Settings(#[source] Problems),
    /// Two logs were named.
    #[error("--log {log} and --kafka {kafka} name two logs; give one")]
    TwoLogs {
        /// One.
        log: LogUrl,
        /// The other.
        kafka: LogUrl,
    },
    /// The log cannot be used.
    #[error("the log {url} cannot be opened")]
    Log {
        /// Which log.
        url: LogUrl,
        /// Why.
        #[source]
        source: pipedoc_transport::error::Error,
    },
}

impl Error {
    /// Whether what was given is wrong, and nothing was done.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Settings(_) | Self::TwoLogs { .. } => true,
            Self::Log { source, .. } => matches!(source, pipedoc_transport::error::Error::Settings { .. }),
        }
    }
}

impl LogArgs {
    /// The log that was named, if any.
    #[must_use]
    pub fn named(&self) -> Option<&LogUrl> {
        self.kafka.as_ref().or(self.log.as_ref())
    }

    /// The log: the one named, or the file in the data folder.
    #[must_use]
    pub fn url(&self, data: &Path) -> LogUrl {
        self.named().cloned().unwrap_or_else(|| LogUrl::Sqlite(data.join("log.db")))
    }

    /// Opens it. Where no broker answers, it waits, and `told` hears of it.
    /// `statistics` hears what Kafka's clients tell of themselves; see
    /// [`kafka_metrics`](super::kafka_metrics).
    ///
    /// # Errors
    /// When the settings are wrong (all problems at once), or the log cannot be used.
    pub async fn open(
        &self,
        data: &Path,
        statistics: StatisticsObserver,
        told: &(dyn Fn(String) + Send + Sync),
    ) -> Result<Arc<dyn Log>, Error> {
        if let (Some(log), Some(kafka)) = (&self.log, &self.kafka)
            && log != kafka
            && std::env::var("PIPEDOC_LOG_URL").ok().and_then(|url| url.parse().ok()).as_ref() != Some(log)
        {
            return Err(Error::TwoLogs { log: log.clone(), kafka: kafka.clone() });
        }
        let url = self.url(data);
        let settings = match &url {
            LogUrl::Kafka(_) => self.settings(std::env::vars_os()).map_err(Error::Settings)?,
            LogUrl::Memory | LogUrl::Sqlite(_) => Settings::new(),
        };
        let limit = self
            .wait
            .map_or_else(|| "--wait 30s would give up after that".to_owned(), |wait| format!("for {wait} at most"));
        let told = |error: &pipedoc_transport::error::Error| told(format!("waiting for the log, {limit}: {error}"));
        let options = OpenOptions { kafka: &settings, wait: self.wait.map(|wait| wait.0), statistics, told: &told };
        url.open_with(&options).await.map_err(|source| Error::Log { url, source })
    }

    /// The settings of Kafka's clients, secrets in place, checked.
    fn settings(
        &self,
        variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    ) -> Result<Settings, Problems> {
        let mut given = Given::default();
        if let Some(path) = &self.kafka_settings {
            given.file(path);
        }
        for (name, value) in variables {
            given.variable(&name, &value);
        }
        for setting in &self.kafka_setting {
            let place = Problem { field: format!("--kafka-setting {}", setting.name), ..Problem::default() };
            given.put(setting.name.clone(), setting.value.clone(), place);
        }
        given.checked()
    }
}

/// Settings with where each was given.
#[derive(Default)]
struct Given {
    settings: BTreeMap<String, (String, Problem)>,
    problems: Vec<Problem>,
}

impl Given {
    fn put(&mut self, name: String, value: String, place: Problem) {
        self.settings.insert(name, (value, place));
    }

    /// Lines of `NAME=VALUE`; empty ones and those that begin with `#` are nothing.
    fn file(&mut self, path: &Path) {
        let file = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("the file of settings cannot be read: {error}");
                self.problems.push(Problem { file, message, ..Problem::default() });
                return;
            }
        };
        for (line, text) in (1..).zip(text.lines()) {
            let place = Problem { file: file.clone(), line, column: 1, ..Problem::default() };
            let text = text.trim();
            match text.split_once('=') {
                _ if text.is_empty() || text.starts_with('#') => {}
                Some((name, value)) if !name.trim().is_empty() => {
                    let name = name.trim().to_owned();
                    let place = Problem { field: name.clone(), ..place };
                    if let Some((_, other)) = self.settings.get(&name) {
                        let message = format!("stands in line {} already; keep one", other.line);
                        self.problems.push(Problem { message, ..place.clone() });
                    }
                    self.put(name, value.trim().to_owned(), place);
                }
                _ => {
                    let message = "this line is no setting; write NAME=VALUE, or # before a remark".to_owned();
                    self.problems.push(Problem { message, ..place });
                }
            }
        }
    }

    fn variable(&mut self, name: &std::ffi::OsStr, value: &std::ffi::OsStr) {
        let Some(name) = name.to_str() else { return };
        let Some(bare) = name.strip_prefix(PREFIX) else { return };
        // Not settings: the file's own variable, and those that Kubernetes makes of a
        // Service called `pipedoc-kafka`.
        let made_by_kubernetes = bare.starts_with("SERVICE_") || bare == "PORT" || bare.starts_with("PORT_");
        if bare == "SETTINGS" || made_by_kubernetes {
            return;
        }
        let place = Problem { field: name.to_owned(), ..Problem::default() };
        match value.to_str() {
            Some(value) => self.put(bare.to_ascii_lowercase().replace('_', "."), value.to_owned(), place),
            None => self.problems.push(Problem { message: "its value is not UTF-8".to_owned(), ..place }),
        }
    }

    fn checked(mut self) -> Result<Settings, Problems> {
        let mut settings = Settings::new();
        for (name, (value, place)) in &self.settings {
            match secrets::expand(&serde_json::Value::String(value.clone())) {
                Ok(serde_json::Value::String(value)) => drop(settings.insert(name.clone(), value)),
                Ok(_) => {}
                Err(found) => self
                    .problems
                    .extend(found.into_iter().map(|problem| Problem { message: problem.message, ..place.clone() })),
            }
        }
        if let Err(findings) = kafka::check_process(&settings) {
            for finding in findings {
                let place = self.settings.get(&finding.name).map(|(_, place)| place.clone());
                let place = place.unwrap_or_else(|| Problem { field: finding.name.clone(), ..Problem::default() });
                self.problems.push(Problem { message: finding.message, ..place });
            }
        }
        if self.problems.is_empty() {
            return Ok(settings);
        }
        self.problems.sort();
        self.problems.dedup();
        Err(Problems(self.problems))
    }
}

fn brokers(text: &str) -> Result<LogUrl, UnknownLog> {
    format!("kafka:{}", text.strip_prefix("kafka:").unwrap_or(text)).parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(given: &[(&str, &str)]) -> Vec<(std::ffi::OsString, std::ffi::OsString)> {
        given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn flags_win_over_variables_and_these_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("password");
        std::fs::write(&secret, "s3cret\n").unwrap();
        let file = folder.path().join("kafka.properties");
        let text = format!(
            "# who we are\nsecurity.protocol = SASL_SSL\nsasl.mechanism=PLAIN\nsasl.username=file\n\nlinger.ms=1\nsasl.password=${{file:{}}}\n",
            secret.display()
        );
        std::fs::write(&file, text).unwrap();
        let args = LogArgs {
            kafka_settings: Some(file),
            kafka_setting: vec!["linger.ms=3".parse().unwrap()],
            ..LogArgs::default()
        };
        let from = variables(&[
            ("PIPEDOC_KAFKA_SASL_USERNAME", "variable"),
            ("PIPEDOC_KAFKA_LINGER_MS", "2"),
            ("PIPEDOC_KAFKA_CONSUMER_FETCH_MIN_BYTES", "7"),
            ("PIPEDOC_KAFKA_SETTINGS", "file"),
            ("PIPEDOC_KAFKA_SERVICE_HOST", "10.0.0.1"),
            ("PIPEDOC_KAFKA_PORT_9092_TCP", "tcp://10.0.0.1:9092"),
            ("OTHER", "x"),
        ]);
        let found = args.settings(from).unwrap();
        let shown: Vec<_> = found.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "consumer.fetch.min.bytes=7",
                "linger.ms=3",
                "sasl.mechanism=PLAIN",
                "sasl.password=s3cret",
                "sasl.username=variable",
                "security.protocol=SASL_SSL"
            ]
        );
        assert!(
            !format!("{:?}", LogArgs { kafka_setting: vec!["sasl.password=s3cret".parse().unwrap()], ..args })
                .contains("s3cret")
        );
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kafka.properties");
        std::fs::write(&file, "lingr.ms=5\nnothing\nacks=1\nacks=all\nsasl.password=${env:PIPEDOC_TEST_NOT_THERE}\n")
            .unwrap();
        let args = LogArgs {
            kafka_settings: Some(file.clone()),
            kafka_setting: vec!["group.id=mine".parse().unwrap()],
            ..LogArgs::default()
        };
        let problems = args.settings(variables(&[("PIPEDOC_KAFKA_FETCH_MIN_BYTES", "many")])).unwrap_err().to_string();
        let problems = problems.replace(&file.display().to_string(), "FILE");
        let expected = [
            "--kafka-setting group.id: is not to be set: a step's group is CLUSTER.PIPELINE.STEP, by which it is found again",
            "PIPEDOC_KAFKA_FETCH_MIN_BYTES: found \"many\", expected a whole number from 1 to 100000000",
            "FILE:1:1: lingr.ms: is no setting that librdkafka knows; did you mean linger.ms?",
            "FILE:2:1: this line is no setting; write NAME=VALUE, or # before a remark",
            "FILE:4:1: acks: stands in line 3 already; keep one",
            "FILE:5:1: sasl.password: environment variable PIPEDOC_TEST_NOT_THERE is not set; set it where the module runs",
        ];
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected);
    }
}
