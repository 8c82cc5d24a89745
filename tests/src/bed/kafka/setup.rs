//! What a broker is to be: its listeners, who may log in, its `server.properties`.

use std::fmt::Write as _;
use std::path::Path;

use crate::bed::certificates::Certificates;

/// A user who logs in with SCRAM-SHA-512.
#[derive(Debug, Clone, Copy)]
pub struct User {
    /// Its name.
    pub name: &'static str,
    /// Its password.
    pub password: &'static str,
}

/// What a broker is to be beyond one that anybody may use.
#[derive(Debug, Default, Clone)]
pub struct Setup {
    pub(super) settings: Vec<String>,
    pub(super) proxied: bool,
    pub(super) users: Vec<User>,
    pub(super) in_production: bool,
}

/// Has retention and compaction show within a second, at the price of a new file every
/// few megabytes and a cleaner that never rests.
const IN_A_HURRY: &str = "log.retention.check.interval.ms=500\n\
     log.initial.task.delay.ms=500\n\
     log.segment.bytes=6291456\n\
     log.cleaner.backoff.ms=500\n\
     log.cleaner.min.cleanable.ratio=0.01\n";

/// Ports of a broker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) direct: u16,
    pub(super) controller: u16,
    /// Where the proxy leads to.
    pub(super) behind_proxy: u16,
    /// What is advertised for it.
    pub(super) proxy: u16,
    pub(super) secured: u16,
    pub(super) mutual: u16,
}

impl Setup {
    /// As it comes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a further line of `server.properties`; it wins over an earlier one of
    /// the same name.
    #[must_use]
    pub fn setting(mut self, line: impl Into<String>) -> Self {
        self.settings.push(line.into());
        self
    }

    /// With the virtual machine that Kafka's own scripts give it and the broker's own
    /// care of its files, for benches: tests start theirs faster and see sooner what
    /// retention and compaction do, and it is slower afterwards.
    #[must_use]
    pub fn as_in_production(mut self) -> Self {
        self.in_production = true;
        self
    }

    /// Options of its virtual machine.
    pub(super) fn machine(&self) -> &'static [&'static str] {
        if self.in_production {
            // `bin/kafka-run-class.sh`.
            &[
                "-Xms1g",
                "-Xmx1g",
                "-server",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-XX:InitiatingHeapOccupancyPercent=35",
            ]
        } else {
            // The serial collector and the first compiler alone: tests start it often and keep it briefly.
            &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        }
    }

    /// With a second way in, through a proxy.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// With a SASL_SSL listener for these users, an SSL listener for those with a
    /// certificate, and ACLs: who comes there may do nothing unless told. Whoever
    /// comes through the plain listener may do all.
    #[must_use]
    pub fn secured(mut self, users: &[User]) -> Self {
        self.users = users.to_vec();
        self
    }

    /// The same node as a controller only, which soon misses its broker.
    pub(super) fn controller(folder: &Path, Ports { controller, .. }: Ports) -> String {
        format!(
            "process.roles=controller\n\
             node.id=1\n\
             controller.listener.names=CONTROLLER\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners=CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT\n\
             broker.session.timeout.ms=500\n\
             broker.heartbeat.interval.ms=100\n\
             log.dirs={}\n",
            folder.join("data").display()
        )
    }

    /// The text of `server.properties`. Certificates are made where they are needed.
    pub(super) fn properties(&self, folder: &Path, ports: Ports) -> String {
        let Ports { direct, controller, .. } = ports;
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{direct}");
        let mut advertised = listeners.clone();
        let mut protocols = String::from("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT");
        let mut more = String::new();
        if self.proxied {
            let _ = write!(listeners, ",PROXIED://127.0.0.1:{}", ports.behind_proxy);
            let _ = write!(advertised, ",PROXIED://127.0.0.1:{}", ports.proxy);
            protocols.push_str(",PROXIED:PLAINTEXT");
        }
        if !self.users.is_empty() {
            for list in [&mut listeners, &mut advertised] {
                let _ = write!(list, ",SECURED://127.0.0.1:{},MUTUAL://127.0.0.1:{}", ports.secured, ports.mutual);
            }
            protocols.push_str(",SECURED:SASL_SSL,MUTUAL:SSL");
            let certificates = Certificates::make(folder);
            let server = certificates.issue("server");
            certificates.issue("client");
            let _ = write!(
                more,
                "ssl.keystore.type=PEM\n\
                 ssl.keystore.location={}\n\
                 ssl.truststore.type=PEM\n\
                 ssl.truststore.location={}\n\
                 listener.name.mutual.ssl.client.auth=required\n\
                 sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN\n\
                 listener.name.secured.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 listener.name.secured.plain.sasl.jaas.config=\
                 org.apache.kafka.common.security.plain.PlainLoginModule required {};\n\
                 authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                 super.users=User:ANONYMOUS\n",
                server.both.display(),
                certificates.authority().display(),
                self.users
                    .iter()
                    .map(|user| format!("user_{}=\"{}\"", user.name, user.password))
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
        let mut text = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.listener.names=CONTROLLER\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             listeners={listeners},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners={advertised},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map={protocols}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             log.segment.delete.delay.ms=0\n\
             {}\
             {more}",
            folder.join("data").display(),
            if self.in_production { "" } else { IN_A_HURRY },
        );
        for line in &self.settings {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
