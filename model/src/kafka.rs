//! Settings of Kafka's clients: which there are, what each takes, which are not
//! to be set, and what does not go together. By librdkafka's names; those of the
//! Java client that differ are understood where both mean the same.
//!
//! Pure: a committed [`table`] stands in for the library, which a test of the
//! transport compares with the one that is linked. Opens no client and reads no
//! secret.

use std::collections::BTreeMap;

mod brokers;
mod rules;
mod table;
mod value;

pub use brokers::brokers;
pub use rules::CONNECTIONS;
pub use table::{Entry, SETTINGS};

/// Names with their values.
pub type Settings = BTreeMap<String, String>;

/// Which clients know a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Both,
    /// Those that read.
    Consumer,
    /// Those that write.
    Producer,
}

/// What a setting takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// A number from the first to the second, fractions too.
    Decimal(i64, i64),
    /// `true` or `false`.
    Switch,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Some of these words, separated by commas.
    Flags(&'static [&'static str]),
    /// Any text.
    Text,
    /// A function of the program, which no text can name.
    Callback,
}

/// A kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Reads.
    Consumer,
    /// Writes.
    Producer,
}

/// Whose settings they are, which decides what may be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Of a process, for all its clients; secrets are in place.
    Process,
    /// Of a step, as written: values may still hold `${env:…}` and `${file:…}`.
    Step {
        /// The step promises no more than AT_MOST_ONCE.
        at_most_once: bool,
    },
    /// Of one client, process and step together, secrets in place. Whether the
    /// step's promise allows its `acks` was checked before.
    Client,
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its name, as written.
    pub name: String,
    /// What was found and what would be right; never the value of a secret.
    pub message: String,
}

impl Finding {
    fn new(name: &str, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), message: message.into() }
    }
}

/// Settings by librdkafka's own names, and all that is wrong with the others.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// What can be used; `max.poll.records` and [`CONNECTIONS`] are among them,
    /// which librdkafka does not know.
    pub settings: Settings,
    /// How each was called, by librdkafka's own name.
    pub written: BTreeMap<String, String>,
    /// What cannot.
    pub findings: Vec<Finding>,
}

/// Settings of a process, by the client they are for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// For clients that neither read nor write records: what all know.
    pub common: Settings,
    /// For consumers, the common ones included.
    pub consumer: Settings,
    /// For producers, the common ones included.
    pub producer: Settings,
}

impl std::fmt::Debug for ProcessSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessSettings")
            .field("consumer", &shown(&self.consumer))
            .field("producer", &shown(&self.producer))
            .finish_non_exhaustive()
    }
}

/// Checks the settings of one client.
#[must_use]
pub fn check(client: Client, place: Place, given: &Settings) -> Checked {
    let mut checked = Checked::default();
    for (name, found) in given {
        match value::read(client, place, name, found) {
            Ok((canonical, value)) => match checked.written.get(canonical) {
                Some(other) => {
                    let message = format!("is another name of {other}; keep one");
                    checked.findings.push(Finding::new(name, message));
                }
                None => {
                    checked.written.insert(canonical.to_owned(), name.clone());
                    checked.settings.insert(canonical.to_owned(), value);
                }
            },
            Err(message) => checked.findings.push(Finding::new(name, message)),
        }
    }
    for (canonical, message) in rules::conflicts(client, place, &checked.settings) {
        let name = checked.written.get(canonical).map_or(canonical, String::as_str);
        checked.findings.push(Finding::new(name, message));
    }
    checked
}

/// Checks the settings of a process. A name may begin with `consumer.` or
/// `producer.`; without, a setting is for all clients that know it.
///
/// # Errors
/// All that is wrong with them.
pub fn check_process(given: &Settings) -> Result<ProcessSettings, Vec<Finding>> {
    let mut findings = Vec::new();
    let (mut both, mut consumer, mut producer) = (Given::default(), Given::default(), Given::default());
    for (name, value) in given {
        let (to, bare) = match (name.strip_prefix("consumer."), name.strip_prefix("producer.")) {
            (Some(bare), _) => (&mut consumer, bare),
            (_, Some(bare)) => (&mut producer, bare),
            (None, None) => match value::scope(name) {
                Some(Scope::Consumer) => (&mut consumer, name.as_str()),
                Some(Scope::Producer) => (&mut producer, name.as_str()),
                Some(Scope::Both) | None => (&mut both, name.as_str()),
            },
        };
        if to.insert(bare, (name, value)).is_some() {
            findings.push(Finding::new(name, format!("is the same as {bare}; keep one")));
        }
    }
    let mut checked = |client, given: &Given<'_>| {
        let plain = given.iter().map(|(bare, (_, value))| ((*bare).to_owned(), (*value).clone())).collect();
        let checked = check(client, Place::Process, &plain);
        // Under the names as they were given, prefix and all.
        findings.extend(checked.findings.into_iter().map(|finding| match given.get(finding.name.as_str()) {
            Some((name, _)) => Finding::new(name, finding.message),
            None => finding,
        }));
        checked.settings
    };
    let common = checked(Client::Consumer, &both);
    // What is said of one kind of client wins over what is said of all.
    let consumer = checked(Client::Consumer, &both.clone().into_iter().chain(consumer).collect());
    let producer = checked(Client::Producer, &both.into_iter().chain(producer).collect());
    // Common ones are told once.
    findings.sort();
    findings.dedup();
    if findings.is_empty() { Ok(ProcessSettings { common, consumer, producer }) } else { Err(findings) }
}

/// Settings of one kind of client by their bare names, each with its name as given.
type Given<'a> = BTreeMap<&'a str, (&'a str, &'a String)>;

/// Whether a value names a secret that is put in its place where the client runs.
#[must_use]
pub fn holds_secret(value: &str) -> bool {
    value.contains("${env:") || value.contains("${file:")
}

/// Whether the value of a setting must not be shown.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "secret", "passphrase", "jaas", "key.pem", "oauthbearer.config", "token"]
        .iter()
        .any(|word| name.contains(word))
        // An address, not a token.
        && !name.ends_with("token.endpoint.url")
}

/// Settings as they may be shown: secrets are replaced by `***`.
#[must_use]
pub fn shown(settings: &Settings) -> BTreeMap<&str, &str> {
    let hide = |name: &str, value| if is_secret(name) { "***" } else { value };
    settings.iter().map(|(name, value)| (name.as_str(), hide(name, value.as_str()))).collect()
}

#[cfg(test)]
mod tests;
