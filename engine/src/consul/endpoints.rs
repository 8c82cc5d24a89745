//! Endpoints of Consul's HTTP API that consulrs lacks, written the way it writes
//! its own. (Consul API, "Transactions", "Health".)

use rustify_derive::Endpoint;
use serde::{Deserialize, Serialize};

/// Several operations, all or none of them.
///
/// `PUT /v1/txn`. At most 64 operations in Consul 1.8, 128 later; the body holds
/// at most 512 KiB, with values in base64.
#[derive(Debug, Endpoint)]
#[endpoint(path = "txn", method = "PUT", response = "TxnResponse")]
pub(super) struct Txn {
    /// The operations as a JSON array: the body is no object, so it is written by us.
    #[endpoint(raw)]
    pub(super) operations: Vec<u8>,
}

/// One operation of a transaction.
#[derive(Debug, Serialize)]
pub(super) struct TxnOperation<'a> {
    #[serde(rename = "KV")]
    pub(super) kv: KvOperation<'a>,
}

/// An operation on one key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct KvOperation<'a> {
    /// `set`, `cas`, `delete`, `check-session`, `check-not-exists`, …
    pub(super) verb: &'static str,
    pub(super) key: &'a str,
    /// In base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// For `cas`: the `ModifyIndex` that the key must have; 0: absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<&'a str>,
}

/// What became of a transaction. Refused ones have errors and come with status 409.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnResponse {
    #[serde(default)]
    pub(super) results: Option<Vec<TxnResult>>,
    #[serde(default)]
    pub(super) errors: Option<Vec<TxnError>>,
}

/// Result of one operation.
#[derive(Debug, Deserialize)]
pub(super) struct TxnResult {
    #[serde(rename = "KV", default)]
    pub(super) kv: Option<TxnValue>,
}

/// A value that was written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnValue {
    pub(super) key: String,
    pub(super) modify_index: u64,
}

/// Why an operation was refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TxnError {
    pub(super) op_index: usize,
    pub(super) what: String,
}

/// The instances of a service, with their checks.
///
/// `GET /v1/health/service/:service`.
#[derive(Debug, Endpoint)]
#[endpoint(path = "health/service/{self.service}", response = "Vec<ServiceHealth>")]
pub(super) struct HealthOfService {
    #[endpoint(skip)]
    pub(super) service: String,
}

/// An instance of a service, with its checks and those of its node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceHealth {
    pub(super) service: ServiceAddress,
    #[serde(default)]
    pub(super) checks: Vec<CheckStatus>,
}

/// Where an instance of a service serves.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceAddress {
    pub(super) address: String,
    pub(super) port: u16,
}

/// What a check found last: `passing`, `warning` or `critical`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckStatus {
    pub(super) status: String,
}
