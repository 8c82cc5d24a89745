//! The engine's entry in Consul's catalog, with a gRPC health check.
//!
//! Registered again now and then: an agent that lost its data forgets us.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use consulrs::api::check::common::AgentServiceCheck;
use consulrs::api::service::requests::RegisterServiceRequest;
use pipedoc_model::names::ClusterName;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::endpoints::{ServiceAddress, ServiceHealth};
use crate::store::{self, Candidate, Peer};

/// How often the entry is renewed.
const EVERY: Duration = Duration::from_secs(20);
/// How soon after it could not be.
const AGAIN: Duration = Duration::from_secs(5);
/// How often the agent checks us.
const CHECK_EVERY: &str = "5s";
/// An engine that fails its check for so long is forgotten.
const FORGOTTEN_AFTER: &str = "1h";
/// How long an engine that stops waits for its entry to go.
const LEAVE: Duration = Duration::from_secs(2);

/// Name of the service that a cluster's engines are.
pub(super) fn service_name(cluster: &ClusterName) -> String {
    format!("pipedoc-engine-{cluster}")
}

/// An engine as its entry has it.
pub(super) fn peer(found: ServiceHealth) -> Peer {
    let ServiceAddress { address, port } = found.service;
    Peer { address: join(&address, port), healthy: found.checks.iter().all(|check| check.status == "passing") }
}

/// A host, which may be an IPv6 address, with its port.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An engine's entry.
pub(super) struct Registration {
    client: Arc<Client>,
    service: String,
    id: String,
    host: String,
    port: u16,
}

impl Registration {
    /// The entry of an engine; none for one whose address others cannot use.
    pub(super) fn new(client: Arc<Client>, cluster: &ClusterName, candidate: &Candidate) -> Option<Self> {
        let (host, port) = candidate.address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let unreachable = host.is_empty() || host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
        let port = port.parse().ok()?;
        if unreachable {
            tracing::warn!(
                address = candidate.address,
                "not in Consul's catalog: nobody reaches an engine there; give --advertise HOST:PORT"
            );
            return None;
        }
        let service = service_name(cluster);
        let id = format!("{service}-{}", candidate.name);
        Some(Self { client, service, id, host: host.to_owned(), port })
    }

    /// Keeps the entry until `stop`, then takes it out.
    pub(super) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
        match tokio::time::timeout(LEAVE, self.client.deregister(&self.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::debug!(%failure, "the engine stays in Consul's catalog until its check fails"),
            Err(_) => tracing::debug!("the engine stays in Consul's catalog until its check fails"),
        }
    }

    async fn keep(&self) {
        let mut told = false;
        loop {
            let registered = match self.entry() {
                Some(entry) => self.client.register(entry).await,
                None => return,
            };
            match registered {
                Ok(()) => {
                    told = false;
                    tokio::time::sleep(EVERY).await;
                }
                Err(failure) => {
                    let right = format!("service:write on {}", self.service);
                    let error = failure.into_store("registering", &self.service, &right);
                    // An agent that is away is told of elsewhere.
                    if !matches!(error, store::Error::Unreachable { .. }) && !std::mem::replace(&mut told, true) {
                        let reason = pipedoc_model::problem::chain(&error);
                        tracing::warn!("this engine is not in Consul's catalog: {reason}; trying again");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn entry(&self) -> Option<RegisterServiceRequest> {
        let check = AgentServiceCheck {
            name: Some("gRPC health".into()),
            grpc: Some(join(&self.host, self.port)),
            interval: Some(CHECK_EVERY.into()),
            timeout: Some("2s".into()),
            // Healthy from the start: it registers when it serves.
            status: Some("passing".into()),
            deregister_critical_service_after: Some(FORGOTTEN_AFTER.into()),
            ..AgentServiceCheck::default()
        };
        let mut entry = RegisterServiceRequest::builder();
        entry.name(&self.service).id(&self.id).address(self.host.as_str()).port(self.port);
        entry.check(check).build().ok()
    }
}
