//! What is PipeDoc's own to set, what does not go together, and the Java client's
//! names.

use super::{Client, Entry, Kind, Place, Scope, Settings};

/// Records in a batch at most: the Java client's name for it, which librdkafka
/// does not know.
pub(super) const MAX_POLL_RECORDS: &str = "max.poll.records";

/// Over how many clients, each with a connection of its own to each broker, a
/// plain producer shares out its partitions. PipeDoc's own; librdkafka does not
/// know it. Default 2.
pub const CONNECTIONS: &str = "connections";

const COMMITS: &str = "offsets are committed when their records are done, never by the clock";
const STORED: &str = "offsets are kept by the broker, and committed when their records are done";
const BROKERS: &str = "the address of the log says where the brokers are (`kafka:HOST:PORT,…`)";
const PLUGINS: &str = "it would load foreign code into the process";
const OF_THE_PROCESS: &str = "how the brokers are reached and who logs in is the process's to say (--kafka-settings, PIPEDOC_KAFKA_…); what stands in a pipeline lies readable in the store";

/// Why a setting is not to be set.
pub(super) fn forbidden(entry: &Entry, place: Place) -> Option<&'static str> {
    if entry.kind == Kind::Callback {
        return Some("it is a function of the program and has no text form");
    }
    let reason = match entry.alias_of.unwrap_or(entry.name) {
        "metadata.broker.list" => BROKERS,
        "group.id" => "a step's group is CLUSTER.PIPELINE.STEP, by which it is found again",
        "group.protocol.type" => "only consumers are members of a step's group",
        "enable.auto.commit" | "auto.commit.enable" | "auto.commit.interval.ms" => COMMITS,
        "enable.auto.offset.store" | "offset.store.method" | "offset.store.path" | "offset.store.sync.interval.ms" => {
            STORED
        }
        "isolation.level" => "records of transactions that were aborted must never be read",
        "enable.partition.eof" => "the end of a partition is how a step knows that it has read all",
        "consume.callback.max.messages" => "records are not read by callbacks; max.poll.records bounds a batch",
        "partitioner" => "one key must go to one partition, whoever writes it: murmur2_random, as Java clients do",
        "enable.idempotence" => {
            "without it a broken connection doubles records or changes their order; it is off only where acks is not all"
        }
        "enable.gapless.guarantee" => {
            "a step that fails begins again from its committed place; a producer that stops for good would keep it from that"
        }
        "transactional.id" => {
            "it is made from the step and the partition, so that the next owner fences the one before it"
        }
        "delivery.report.only.error" => "a record is done when its acknowledgement has come",
        "produce.offset.report" => "acknowledgements carry the offset",
        "queuing.strategy" => "records are written in the order in which they were sent",
        "message.max.bytes" => "the limit is the topic's own (max.message.bytes); what is larger travels as a claim",
        "allow.auto.create.topics" => "topics are made as the pipeline says, never by looking at them",
        "builtin.features" => "it is what the library was built with",
        "plugin.library.paths" | "ssl.engine.location" | "ssl.engine.id" | "ssl.providers" => PLUGINS,
        "enabled_events" | "log.queue" | "internal.termination.signal" | "log_level" => {
            "the library's events and log lines are handled by the process (PIPEDOC_LOG=librdkafka=trace shows them)"
        }
        "sasl.kerberos.service.name"
        | "sasl.kerberos.principal"
        | "sasl.kerberos.kinit.cmd"
        | "sasl.kerberos.keytab"
        | "sasl.kerberos.min.time.before.relogin" => "Kerberos (GSSAPI) is not supported yet",
        "https.ca.location" | "https.ca.pem" => "fetching tokens over HTTP (OIDC) is not supported yet",
        name if name.starts_with("sasl.oauthbearer.") && name != "sasl.oauthbearer.config" => {
            "fetching tokens over HTTP (OIDC) is not supported yet; sasl.oauthbearer.config holds what makes the token"
        }
        "auto.offset.reset" if place == Place::Process => {
            "where a group begins is said of a step (kafka: {consumer: {auto.offset.reset: latest}})"
        }
        name if matches!(place, Place::Step { .. }) && is_security(name) => OF_THE_PROCESS,
        _ => return None,
    };
    Some(reason)
}

/// Whether a setting says how the brokers are reached, or who logs in.
fn is_security(canonical: &str) -> bool {
    canonical == "security.protocol"
        || ["ssl.", "sasl.", "enable.ssl.", "enable.sasl."].iter().any(|group| canonical.starts_with(group))
}

/// Settings whose values have rules of their own; `None` for all others.
pub(super) fn special(canonical: &str, text: &str) -> Option<Result<String, String>> {
    let one_of = |words: &[&str], right: &str| match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
        Some(word) => Ok((*word).to_owned()),
        None => Err(format!("found {text:?}, expected {right}")),
    };
    match canonical {
        "request.required.acks" => Some(match text {
            "all" | "-1" => Ok("all".to_owned()),
            "0" | "1" => Ok(text.to_owned()),
            _ => Err(format!("found {text:?}, expected all, 1 or 0")),
        }),
        "auto.offset.reset" => Some(match text.to_ascii_lowercase().as_str() {
            "earliest" | "smallest" | "beginning" => Ok("earliest".to_owned()),
            "latest" | "largest" | "end" => Ok("latest".to_owned()),
            _ => Err(format!("found {text:?}, expected earliest or latest")),
        }),
        "sasl.mechanisms" => {
            let known = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];
            Some(if text.eq_ignore_ascii_case("GSSAPI") {
                Err("Kerberos (GSSAPI) is not supported yet; use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
                    .to_owned())
            } else {
                one_of(&known, "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER")
            })
        }
        "partition.assignment.strategy" => Some(strategies(text)),
        "group.instance.id" => Some(if text.contains("{instance}") {
            Ok(text.to_owned())
        } else {
            Err(format!(
                "found {text:?}, expected a text with `{{instance}}`, in whose place each instance puts its own id: two members of one id push each other out"
            ))
        }),
        "compression.level" => Some(match text.parse::<i64>() {
            Ok(level) if (-1..=12).contains(&level) => Ok(text.to_owned()),
            _ => Err(format!("found {text:?}, expected a whole number from -1 to 12")),
        }),
        _ => None,
    }
}

fn strategies(text: &str) -> Result<String, String> {
    const RIGHT: &str = "cooperative-sticky (the default), or range and roundrobin";
    let read = |word: &str| match word.trim().trim_start_matches("org.apache.kafka.clients.consumer.") {
        "cooperative-sticky" | "CooperativeStickyAssignor" => Ok("cooperative-sticky"),
        "range" | "RangeAssignor" => Ok("range"),
        "roundrobin" | "RoundRobinAssignor" => Ok("roundrobin"),
        other => Err(format!("found {other:?}, expected {RIGHT}")),
    };
    let words = text.split(',').map(read).collect::<Result<Vec<_>, _>>()?;
    if words.len() > 1 && words.contains(&"cooperative-sticky") {
        return Err(format!("found {text:?}: cooperative-sticky and the others do not mix; expected {RIGHT}"));
    }
    Ok(words.join(","))
}

/// A setting by the Java client's name, where that differs and means the same.
pub(super) fn from_java(client: Client, name: &str, value: &str) -> Result<(String, String), String> {
    let same = |to: &str| Ok((to.to_owned(), value.to_owned()));
    match (name, client) {
        ("fetch.max.wait.ms", _) => same("fetch.wait.max.ms"),
        ("request.timeout.ms", Client::Consumer) => same("socket.timeout.ms"),
        ("send.buffer.bytes", _) => same("socket.send.buffer.bytes"),
        ("receive.buffer.bytes", _) => same("socket.receive.buffer.bytes"),
        ("check.crcs", _) => same("check.crcs"),
        ("buffer.memory", Client::Producer) => match value.trim().parse::<u64>() {
            Ok(bytes) if bytes >= 1024 => Ok(("queue.buffering.max.kbytes".to_owned(), (bytes / 1024).to_string())),
            _ => Err(format!("found {value:?}, expected a whole number of bytes, at least 1024")),
        },
        ("sasl.jaas.config", _) => {
            Err("is the Java client's; write sasl.mechanism, sasl.username and sasl.password".to_owned())
        }
        ("ssl.truststore.location" | "ssl.truststore.password" | "ssl.truststore.type" | "ssl.truststore.certificates", _) => {
            Err("is the Java client's; write ssl.ca.location with a file of certificates in PEM".to_owned())
        }
        ("ssl.keystore.type" | "ssl.keystore.key" | "ssl.keystore.certificate.chain", _) => {
            Err("is the Java client's; write ssl.key.location and ssl.certificate.location (PEM), or ssl.keystore.location (PKCS#12)".to_owned())
        }
        ("max.request.size", _) => {
            Err("is the Java client's; the limit is the topic's own (max.message.bytes), and what is larger travels as a claim".to_owned())
        }
        ("key.serializer" | "value.serializer" | "key.deserializer" | "value.deserializer", _) => {
            Err("is the Java client's; records are PipeDocs, which the runtime encodes".to_owned())
        }
        ("partitioner.class" | "interceptor.classes" | "metric.reporters", _) => {
            Err("names a Java class, which this client cannot load; leave it out".to_owned())
        }
        ("default.api.timeout.ms" | "max.block.ms", _) => {
            Err("is the Java client's; calls that wait try again by themselves, so leave it out".to_owned())
        }
        _ => same(name),
    }
}

/// Which clients know a name of the Java client's.
pub(super) fn java_scope(name: &str) -> Option<Scope> {
    match name {
        "fetch.max.wait.ms" => Some(Scope::Consumer),
        "buffer.memory" => Some(Scope::Producer),
        _ => None,
    }
}

/// What does not go together: the setting to blame and why.
pub(super) fn conflicts(client: Client, place: Place, settings: &Settings) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match client {
        Client::Consumer => consumer(settings, &mut found),
        Client::Producer => producer(place, settings, &mut found),
    }
    order(settings, "reconnect.backoff.ms", "reconnect.backoff.max.ms", &mut found);
    order(settings, "retry.backoff.ms", "retry.backoff.max.ms", &mut found);
    // A step alone does not say how the brokers are reached.
    if !matches!(place, Place::Step { .. }) {
        security(settings, &mut found);
    }
    found
}

fn consumer(settings: &Settings, found: &mut Vec<(&'static str, String)>) {
    if settings.get("group.protocol").is_some_and(|protocol| protocol == "consumer") {
        let broker = |setting| format!("is the broker's to say with group.protocol=consumer ({setting}); leave it out");
        if settings.contains_key("session.timeout.ms") {
            found.push(("session.timeout.ms", broker("group.consumer.session.timeout.ms")));
        }
        if settings.contains_key("heartbeat.interval.ms") {
            found.push(("heartbeat.interval.ms", broker("group.consumer.heartbeat.interval.ms")));
        }
        if settings.contains_key("partition.assignment.strategy") {
            let reason = "belongs to group.protocol=classic; with group.protocol=consumer group.remote.assignor names the broker's";
            found.push(("partition.assignment.strategy", reason.to_owned()));
        }
    } else if settings.contains_key("group.remote.assignor") {
        found.push(("group.remote.assignor", "needs group.protocol=consumer".to_owned()));
    }
    if let (Some(heartbeat), Some(session)) =
        (number(settings, "heartbeat.interval.ms"), number(settings, "session.timeout.ms"))
        && heartbeat * 2 > session
    {
        let reason = format!(
            "found {heartbeat}, expected at most half of session.timeout.ms ({session}): one lost heartbeat must not end a membership"
        );
        found.push(("heartbeat.interval.ms", reason));
    }
    order(settings, "session.timeout.ms", "max.poll.interval.ms", found);
    if let Some(bytes) = number(settings, "fetch.max.bytes") {
        if bytes < 1_000_000 {
            found.push((
                "fetch.max.bytes",
                format!("found {bytes}, expected at least 1000000; max.partition.fetch.bytes may be less"),
            ));
        }
        if let Some(room) = number(settings, "receive.message.max.bytes")
            && room < bytes + 512
        {
            let reason = format!("found {room}, expected at least fetch.max.bytes + 512 = {}", bytes + 512);
            found.push(("receive.message.max.bytes", reason));
        }
    }
}

fn producer(place: Place, settings: &Settings, found: &mut Vec<(&'static str, String)>) {
    let acks = settings.get("request.required.acks").map_or("all", String::as_str);
    if acks != "all" {
        match place {
            Place::Step { at_most_once: false } => {
                let reason = format!(
                    "found {acks}, expected all: fewer acknowledgements lose records, which only delivery AT_MOST_ONCE may"
                );
                found.push(("request.required.acks", reason));
            }
            Place::Process => {
                let reason = format!(
                    "found {acks}, expected all; a step with delivery AT_MOST_ONCE may say less, under kafka.producer"
                );
                found.push(("request.required.acks", reason));
            }
            Place::Step { at_most_once: true } | Place::Client => {}
        }
    } else {
        if let Some(count) = number(settings, "max.in.flight.requests.per.connection")
            && count > 5
        {
            let reason = format!("found {count}, expected at most 5: with more the broker cannot keep the order");
            found.push(("max.in.flight.requests.per.connection", reason));
        }
        if number(settings, "message.send.max.retries") == Some(0) {
            let reason = "found 0, expected at least 1: a connection that breaks must not lose records".to_owned();
            found.push(("message.send.max.retries", reason));
        }
        if number(settings, "queue.buffering.backpressure.threshold").is_some_and(|count| count > 1) {
            found.push(("queue.buffering.backpressure.threshold", "expected 1, which idempotence needs".to_owned()));
        }
    }
    // Where it is not given, it is short enough.
    if let Some(linger) = settings.get("queue.buffering.max.ms").and_then(|text| text.parse::<f64>().ok())
        && let Some(limit) = number(settings, "message.timeout.ms")
        && limit > 0
        && limit as f64 <= linger
    {
        let reason = format!("found {limit}, expected more than linger.ms ({linger}), and 0 for no limit");
        found.push(("message.timeout.ms", reason));
    }
}

fn security(settings: &Settings, found: &mut Vec<(&'static str, String)>) {
    let protocol = settings.get("security.protocol").map_or("plaintext", String::as_str);
    let (tls, sasl) = (protocol.ends_with("ssl"), protocol.starts_with("sasl"));
    let named = |prefix: &'static str| {
        super::SETTINGS.iter().map(|entry| entry.name).filter(move |name| name.starts_with(prefix))
    };
    if !tls {
        for name in named("ssl.").filter(|name| settings.contains_key(*name)) {
            let reason = format!("has no effect with security.protocol={protocol}; write ssl or sasl_ssl");
            found.push((name, reason));
        }
    }
    if !sasl {
        for name in named("sasl.").filter(|name| settings.contains_key(*name)) {
            let reason = format!("has no effect with security.protocol={protocol}; write sasl_ssl or sasl_plaintext");
            found.push((name, reason));
        }
        return;
    }
    match settings.get("sasl.mechanisms").map(String::as_str) {
        None => {
            let reason = format!("{protocol} needs sasl.mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER");
            found.push(("security.protocol", reason));
        }
        Some("OAUTHBEARER") => {}
        Some(mechanism) => {
            for name in ["sasl.username", "sasl.password"].into_iter().filter(|name| !settings.contains_key(*name)) {
                found.push(("sasl.mechanisms", format!("{mechanism} needs {name}")));
            }
        }
    }
    if settings.contains_key("ssl.keystore.location") && !settings.contains_key("ssl.keystore.password") {
        found.push(("ssl.keystore.location", "needs ssl.keystore.password".to_owned()));
    }
}

/// The first must not be larger than the second.
fn order(settings: &Settings, low: &'static str, high: &'static str, found: &mut Vec<(&'static str, String)>) {
    if let (Some(least), Some(most)) = (number(settings, low), number(settings, high))
        && least > most
    {
        found.push((low, format!("found {least}, expected at most {high} ({most})")));
    }
}

fn number(settings: &Settings, name: &str) -> Option<i64> {
    settings.get(name)?.parse().ok()
}
