//! The committed table of settings is the linked librdkafka's, and what we set
//! ourselves can be set.

use std::collections::BTreeSet;
use std::process::Command;

use pipedoc_model::kafka::{Entry, Kind, SETTINGS};

use super::*;
use crate::log::Subscription;

/// Whether librdkafka takes a value; what it says otherwise.
fn taken(name: &str, value: &str) -> Result<(), String> {
    let made = ClientConfig::new().set(name, value).create_native_config();
    made.map(drop).map_err(|error| error.to_string())
}

fn tried(entry: &Entry, good: &[String], bad: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for value in good {
        if let Err(said) = taken(entry.name, value) {
            wrong.push(format!("{}={value:?} is refused: {said}", entry.name));
        }
    }
    for value in bad {
        if taken(entry.name, value).is_ok() {
            wrong.push(format!("{}={value:?} is taken", entry.name));
        }
    }
    wrong
}

#[test]
fn the_linked_librdkafka_takes_what_the_table_says_and_no_more() {
    let mut wrong = Vec::new();
    for entry in SETTINGS {
        let (good, bad): (Vec<String>, Vec<String>) = match entry.kind {
            Kind::Number(from, to) => {
                (vec![from.to_string(), to.to_string()], vec![(from - 1).to_string(), (i128::from(to) + 1).to_string()])
            }
            Kind::Decimal(from, to) => {
                (vec![from.to_string(), to.to_string()], vec![(from - 1).to_string(), (to + 1).to_string()])
            }
            Kind::Switch => (vec!["true".to_owned(), "false".to_owned()], vec!["perhaps".to_owned()]),
            Kind::OneOf(words) => (words.iter().map(ToString::to_string).collect(), vec!["zebra".to_owned()]),
            Kind::Flags(words) => (words.iter().take(2).map(ToString::to_string).collect(), vec!["zebra".to_owned()]),
            // Any text is taken, but some name files to load, or brokers.
            Kind::Text | Kind::Callback => continue,
        };
        wrong.extend(tried(entry, &good, &bad));
    }
    // Parts of librdkafka that this build leaves out, which are refused by us too.
    wrong.retain(|line| !line.contains("oauthbearer.") && !line.starts_with("builtin.features"));
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn other_names_of_a_setting_are_the_ones_of_the_table() {
    for entry in SETTINGS {
        let Some(of) = entry.alias_of else { continue };
        // This build leaves them out, and we refuse them.
        if of.starts_with("sasl.oauthbearer.") {
            continue;
        }
        assert!(SETTINGS.iter().any(|other| other.name == of && other.alias_of.is_none()), "{of}");
        let value = match entry.kind {
            Kind::Number(from, _) => (from + 1).to_string(),
            Kind::Decimal(from, _) => (from + 1).to_string(),
            Kind::OneOf(words) => words[1].to_owned(),
            _ => "a:1".to_owned(),
        };
        let made = ClientConfig::new().set(entry.name, &value).create_native_config().unwrap();
        assert_eq!(made.get(of).unwrap(), made.get(entry.name).unwrap(), "{} is another name of {of}", entry.name);
    }
}

#[test]
fn every_setting_in_the_manual_of_the_linked_librdkafka_is_in_the_table() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    let metadata = String::from_utf8_lossy(&cargo.stdout).into_owned();
    // The path of the package's manifest stands in the text as it is.
    let manifest = metadata.split('"').find(|text| text.contains("/rdkafka-sys-") && text.ends_with("/Cargo.toml"));
    let manifest = manifest.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&cargo.stderr)));
    let manual = std::path::Path::new(manifest).with_file_name("librdkafka").join("CONFIGURATION.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let names = manual.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim);
        let (name, scope) = (cells.next()?, cells.next()?);
        matches!(scope, "*" | "C" | "P").then_some(name)
    });
    let manual: BTreeSet<&str> = names.collect();
    let table: BTreeSet<&str> = SETTINGS.iter().map(|entry| entry.name).collect();
    assert_eq!(table, manual);
    assert_eq!(table.len(), SETTINGS.len(), "no name stands twice");
}

fn cluster(process: &[(&str, &str)]) -> Cluster {
    let given: Settings = process.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let settings = kafka::check_process(&given).unwrap();
    Cluster {
        bootstrap: "127.0.0.1:1".to_owned(),
        settings,
        timeout: Duration::from_secs(1),
        patience: Duration::from_secs(60),
        statistics: StatisticsObserver::default(),
    }
}

fn own(given: &[(&str, &str)]) -> Settings {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What librdkafka then has.
fn set(config: &ClientConfig, name: &str) -> String {
    config.create_native_config().unwrap().get(name).unwrap()
}

#[test]
fn a_steps_settings_win_over_the_processs_and_promises_over_both() {
    let cluster = cluster(&[("linger.ms", "7"), ("compression.type", "gzip"), ("fetch.min.bytes", "3")]);
    let producer = cluster.settings(Client::Producer, &own(&[("linger.ms", "9"), ("retries", "4")])).unwrap();
    let producer = super::producer(&cluster, "me", &producer, 500_000);
    for (name, value) in [
        ("linger.ms", "9"),
        ("compression.type", "gzip"),
        ("retries", "4"),
        ("batch.size", "500000"),
        ("enable.idempotence", "true"),
        ("partitioner", "murmur2_random"),
        ("acks", "-1"),
    ] {
        assert_eq!(set(&producer, name), value, "{name}");
    }
    let settings = cluster
        .settings(Client::Consumer, &own(&[("session.timeout.ms", "9000"), ("group.instance.id", "a-{instance}")]));
    let mut config = ConsumerConfig::new("me", Subscription::Assigned(Vec::new()));
    config.settings = settings.unwrap();
    let consumer = super::consumer(&cluster, &config, "g", true);
    for (name, value) in [
        ("fetch.min.bytes", "3"),
        ("session.timeout.ms", "9000"),
        ("group.instance.id", "a-me"),
        ("group.id", "g"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("partition.assignment.strategy", "cooperative-sticky"),
        ("auto.offset.reset", "error"),
    ] {
        assert_eq!(set(&consumer, name), value, "{name}");
    }
}

#[test]
fn records_gather_for_a_moment_unless_a_setting_says_otherwise() {
    let linger = |given: &[(&str, &str)]| {
        let cluster = cluster(given);
        let settings = cluster.settings(Client::Producer, &own(&[])).unwrap();
        set(&super::producer(&cluster, "me", &settings, BATCH_BYTES), "linger.ms")
    };
    assert_eq!(linger(&[]), "100");
    assert_eq!(linger(&[("linger.ms", "0")]), "0");
    assert_eq!(linger(&[("delivery.timeout.ms", "10")]), "5", "never longer than a record is tried");
    assert_eq!(linger(&[("delivery.timeout.ms", "0")]), "100", "tried for ever");
}

#[test]
fn rounds_of_transactions_are_not_held_up_by_gathering() {
    let linger = |given: &[(&str, &str)]| {
        let cluster = cluster(given);
        let settings = cluster.settings(Client::Producer, &own(&[])).unwrap();
        set(&super::transactional(&cluster, "t", Duration::from_secs(15), &settings, BATCH_BYTES), "linger.ms")
    };
    assert_eq!(linger(&[]), "5");
    assert_eq!(linger(&[("linger.ms", "80")]), "5");
    assert_eq!(linger(&[("linger.ms", "0.5")]), "0.5");
}

#[test]
fn fewer_acknowledgements_turn_idempotence_off_but_never_in_transactions() {
    let cluster = cluster(&[]);
    let settings = cluster.settings(Client::Producer, &own(&[("acks", "1")])).unwrap();
    let plain = super::producer(&cluster, "me", &settings, BATCH_BYTES);
    assert_eq!((set(&plain, "acks"), set(&plain, "enable.idempotence")), ("1".to_owned(), "false".to_owned()));
    let transactional = super::transactional(&cluster, "t", Duration::from_secs(15), &settings, BATCH_BYTES);
    assert_eq!(set(&transactional, "acks"), "-1");
    assert_eq!(set(&transactional, "enable.idempotence"), "true");
}

#[test]
fn what_does_not_go_together_is_told_with_the_processs_settings_too() {
    let cluster = cluster(&[("consumer.group.protocol", "consumer")]);
    let error =
        cluster.settings(Client::Consumer, &own(&[("session.timeout.ms", "9000"), ("no.such", "1")])).unwrap_err();
    let Error::Settings { source } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("no.such: is no setting that librdkafka knows"), "{source}");
    let error = cluster.settings(Client::Consumer, &own(&[("session.timeout.ms", "9000")])).unwrap_err();
    let Error::Settings { source } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("group.consumer.session.timeout.ms"), "{source}");
    assert!(!error.is_retryable());
}

/// What is said when a log with these settings is to be opened.
async fn told(bootstrap: &str, given: &[(&str, &str)]) -> String {
    let mut config = KafkaConfig::new(bootstrap);
    config.settings = own(given);
    match crate::kafka::KafkaLog::connect(config).await.unwrap_err() {
        Error::Settings { source } => source.to_string(),
        other => panic!("not told as settings that cannot be used: {other}"),
    }
}

#[tokio::test]
async fn bad_brokers_and_bad_settings_are_told_together_and_at_once() {
    let told = told("http://a:9092,b:9092,c:notaport", &[("lingr.ms", "5")]).await;
    for words in ["http://a:9092: is a URL", "c:notaport: ", "lingr.ms: is no setting"] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
}

#[tokio::test]
async fn every_file_that_cannot_be_read_is_named_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let gone = |name: &str| folder.path().join(name).display().to_string();
    let (authorities, certificate) = (gone("ca.pem"), gone("me.pem"));
    let here = folder.path().display().to_string();
    let given = [
        ("security.protocol", "ssl"),
        ("ssl.ca.location", authorities.as_str()),
        ("producer.ssl.certificate.location", &certificate),
        ("ssl.key.location", &here),
    ];
    let told = told("127.0.0.1:1", &given).await;
    let told: Vec<_> = told.lines().map(|line| line.replace(&here, "DIR")).collect();
    assert_eq!(
        told,
        [
            "ssl.ca.location: file DIR/ca.pem cannot be read: No such file or directory (os error 2)",
            "ssl.certificate.location: file DIR/me.pem cannot be read: No such file or directory (os error 2)",
            "ssl.key.location: DIR is a folder, expected a file",
        ]
    );
}

/// A key that no one uses, locked with the password `right`.
const KEY: &str = "\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAiieu1qF7po9QICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEN8I2MHdsE6HC4F1B7Sw/CcEgZAy
uS9emnHyINQ/p82nHSulxrrRDECy0fOSJSXl6bwDvjDJ7o71uamhK7Lp15JOs11K
su4AElRoYTAVJMdTZJM95C8/hkUXfhuS+hG7wXLCNvy4O/GFWOBWuVXzU0uniLKo
NJjZGSXiTA7ZNtb6jTbDZdWPnJGw4KdXnya3wYS+Wd87BRvHvTtGcxxMYPpQLgM=
-----END ENCRYPTED PRIVATE KEY-----
";

#[tokio::test]
async fn a_file_that_is_something_else_is_named_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let (rubbish, key) = (folder.path().join("rubbish.pem"), folder.path().join("key.pem"));
    std::fs::write(&rubbish, "rubbish").unwrap();
    std::fs::write(&key, KEY).unwrap();
    let (rubbish, key) = (rubbish.display().to_string(), key.display().to_string());
    for (setting, file, password, hint) in [
        ("ssl.ca.location", &rubbish, None, "expected certificates in PEM"),
        ("ssl.certificate.location", &rubbish, None, "expected certificates in PEM"),
        ("ssl.key.location", &rubbish, None, "ssl.key.password gives it"),
        ("ssl.key.location", &key, Some("wrong"), "check the file and ssl.key.password"),
    ] {
        let mut given = vec![("security.protocol", "ssl"), (setting, file.as_str())];
        given.extend(password.map(|password| ("ssl.key.password", password)));
        let told = told("127.0.0.1:1", &given).await;
        assert!(told.starts_with(&format!("{setting}: file {file} cannot be used: ")), "{told}");
        assert!(told.ends_with(hint) && !told.contains("wrong"), "{told}");
    }
}

#[test]
fn a_mistake_is_told_of_the_client_that_makes_it() {
    let cluster = cluster(&[("consumer.group.protocol", "consumer"), ("producer.linger.ms", "5")]);
    let told = |client, given: &[(&str, &str)]| match cluster.settings(client, &own(given)).unwrap_err() {
        Error::Settings { source } => source.to_string(),
        other => panic!("{other}"),
    };
    let consumer = told(Client::Consumer, &[("fetch.min.bytes", "many")]);
    assert!(consumer.starts_with("kafka.consumer.fetch.min.bytes: found"), "{consumer}");
    let producer = told(Client::Producer, &[("delivery.timeout.ms", "5")]);
    assert!(producer.starts_with("kafka.producer.delivery.timeout.ms: found 5"), "{producer}");
}
