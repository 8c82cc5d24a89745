//! Settings are taken, renamed and refused as documented.

use super::*;

fn settings(given: &[(&str, &str)]) -> Settings {
    given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn step(client: Client, given: &[(&str, &str)]) -> Checked {
    check(client, Place::Step { at_most_once: false }, &settings(given))
}

fn told(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("{}: {}\n", finding.name, finding.message)).collect()
}

#[test]
fn settings_are_taken_by_librdkafkas_names_and_by_javas() {
    let consumer = step(
        Client::Consumer,
        &[
            ("fetch.max.wait.ms", "100"),
            ("max.partition.fetch.bytes", " 65536 "),
            ("max.poll.records", "50"),
            ("auto.offset.reset", "latest"),
            ("partition.assignment.strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"),
            ("fetch.min.bytes", "${env:LEAST}"),
        ],
    );
    assert_eq!(told(&consumer.findings), "");
    assert_eq!(
        consumer.settings,
        settings(&[
            ("auto.offset.reset", "latest"),
            ("fetch.message.max.bytes", "65536"),
            ("fetch.min.bytes", "${env:LEAST}"),
            ("fetch.wait.max.ms", "100"),
            ("max.poll.records", "50"),
            ("partition.assignment.strategy", "cooperative-sticky"),
        ])
    );
    let producer = step(
        Client::Producer,
        &[
            ("acks", "-1"),
            ("linger.ms", "2.5"),
            ("compression.type", "ZSTD"),
            ("buffer.memory", "33554432"),
            ("retries", "7"),
        ],
    );
    assert_eq!(told(&producer.findings), "");
    assert_eq!(
        producer.settings,
        settings(&[
            ("compression.codec", "zstd"),
            ("message.send.max.retries", "7"),
            ("queue.buffering.max.kbytes", "32768"),
            ("queue.buffering.max.ms", "2.5"),
            ("request.required.acks", "all"),
        ])
    );
}

#[test]
fn what_cannot_be_taken_is_told_all_at_once_with_what_would_be_right() {
    let consumer = step(
        Client::Consumer,
        &[
            ("enable.auto.commit", "true"),
            ("group.id", "mine"),
            ("group.instance.id", "one"),
            ("isolation.level", "read_uncommitted"),
            ("linger.ms", "5"),
            ("fetch.min.bytez", "1"),
            ("session.timeout.ms", "0"),
            ("check.crcs", "yes"),
            ("zebra", "1"),
            ("rebalance_cb", "f"),
            ("partition.assignment.strategy", "range,cooperative-sticky"),
        ],
    );
    insta::assert_snapshot!(told(&consumer.findings));
    let producer = step(
        Client::Producer,
        &[
            ("acks", "1"),
            ("request.required.acks", "1"),
            ("partitioner", "random"),
            ("transactional.id", "t"),
            ("enable.idempotence", "false"),
            ("max.in.flight", "6"),
            ("retries", "0"),
            ("delivery.timeout.ms", "5"),
            ("linger.ms", "5"),
            ("compression.type", "brotli"),
            ("debug", "broker,nothing"),
            ("sasl.mechanism", "GSSAPI"),
            ("key.serializer", "x"),
            ("lingr.ms", "x"),
        ],
    );
    insta::assert_snapshot!(told(&producer.findings));
}

#[test]
fn fewer_acknowledgements_are_for_at_most_once_alone() {
    let asked = settings(&[("acks", "1")]);
    assert_eq!(check(Client::Producer, Place::Step { at_most_once: true }, &asked).findings, []);
    assert_eq!(check(Client::Producer, Place::Step { at_most_once: false }, &asked).findings.len(), 1);
    assert_eq!(check(Client::Producer, Place::Process, &asked).findings.len(), 1);
}

#[test]
fn settings_of_the_other_group_protocol_are_refused() {
    let both = [("group.protocol", "consumer"), ("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "500")];
    insta::assert_snapshot!(told(&step(Client::Consumer, &both).findings));
    assert_eq!(
        told(&step(Client::Consumer, &[("group.remote.assignor", "uniform")]).findings),
        "group.remote.assignor: needs group.protocol=consumer\n"
    );
    assert_eq!(
        step(Client::Consumer, &[("group.protocol", "consumer"), ("group.remote.assignor", "uniform")]).findings,
        []
    );
}

#[test]
fn a_processs_settings_go_to_the_clients_that_know_them() {
    let found = check_process(&settings(&[
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "scram-sha-512"),
        ("sasl.username", "me"),
        ("sasl.password", "open"),
        ("linger.ms", "5"),
        ("producer.statistics.interval.ms", "0"),
        ("consumer.fetch.min.bytes", "10"),
    ]));
    let found = found.unwrap_or_else(|findings| panic!("{}", told(&findings)));
    let common = [
        ("sasl.mechanisms", "SCRAM-SHA-512"),
        ("sasl.password", "open"),
        ("sasl.username", "me"),
        ("security.protocol", "sasl_ssl"),
    ];
    assert_eq!(found.common, settings(&common));
    let with = |more: &[(&str, &str)]| settings(&[&common, more].concat());
    assert_eq!(found.consumer, with(&[("fetch.min.bytes", "10")]));
    assert_eq!(found.producer, with(&[("queue.buffering.max.ms", "5"), ("statistics.interval.ms", "0")]));
}

#[test]
fn a_processs_mistakes_are_told_once_and_under_the_names_given() {
    let found = check_process(&settings(&[
        ("sasl.username", "me"),
        ("ssl.ca.location", "/ca.pem"),
        ("bootstrap.servers", "a:1"),
        ("consumer.linger.ms", "5"),
        ("producer.acks", "0"),
        ("auto.offset.reset", "latest"),
        ("securty.protocol", "ssl"),
    ]));
    insta::assert_snapshot!(told(&found.unwrap_err()));
}

/// A mistake of one kind of client is told of that kind, though the other has the
/// setting as well.
#[test]
fn a_processs_mistakes_are_told_of_the_clients_that_make_them() {
    let found = check_process(&settings(&[
        ("consumer.security.protocol", "plaintext"),
        ("producer.security.protocol", "sasl_ssl"),
        ("consumer.retries", "5"),
        ("producer.retries", "0"),
    ]));
    let told = told(&found.unwrap_err());
    assert_eq!(
        told.lines().map(|line| line.split(':').next().unwrap()).collect::<Vec<_>>(),
        ["consumer.retries", "producer.retries", "producer.security.protocol"],
        "{told}"
    );
}

#[test]
fn how_brokers_are_reached_is_not_a_steps_to_say() {
    for (name, value) in [
        ("security.protocol", "ssl"),
        ("sasl.username", "me"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.password", "${env:PASSWORD}"),
        ("ssl.ca.location", "/ca.pem"),
        ("ssl.key.password", "open"),
        ("enable.ssl.certificate.verification", "false"),
        ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ("bootstrap.servers", "a:1"),
    ] {
        for client in [Client::Consumer, Client::Producer] {
            let told = told(&step(client, &[(name, value)]).findings);
            assert!(told.starts_with(&format!("{name}: is not to be set: ")), "{told}");
        }
    }
}

#[test]
fn no_message_tells_a_secret() {
    for name in
        ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.jaas.config", "sasl.oauthbearer.client.secret"]
    {
        assert!(is_secret(name), "{name}");
        let checked = step(Client::Producer, &[(name, "s3cret\n")]);
        assert!(!told(&checked.findings).contains("s3cret"), "{name}");
        assert_eq!(shown(&settings(&[(name, "s3cret")])).get(name), Some(&"***"));
    }
    assert!(!is_secret("sasl.username") && !is_secret("sasl.oauthbearer.token.endpoint.url"));
}
