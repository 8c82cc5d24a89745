//! Typed calls to one Consul agent, over consulrs' requests.
//!
//! consulrs' own client has no timeouts and loses the headers of a 404, and with
//! them the index that a blocking query needs; so its requests are run by an HTTP
//! client of ours. Knows requests and answers; knows nothing of clusters and heads.

use std::time::Duration;

use async_trait::async_trait;
use consulrs::api::features::{Blocking, Features};
use consulrs::api::kv::common::KVPair;
use consulrs::api::kv::requests::{DeleteKeyRequest, ReadKeyRequest, ReadKeysRequest, SetKeyRequest};
use consulrs::api::{EndpointMiddleware, service, session};
use http_of_consulrs as http;
use reqwest_of_consulrs as reqwest;
use rustify::Endpoint;
use rustify::errors::ClientError;

use super::endpoints::{HealthOfService, KvOperation, ServiceHealth, Txn, TxnOperation, TxnResponse};
use super::error::Failure;
use super::outage::Outage;
use super::settings::{ConsulSettings, Token};
use crate::store;

/// How long a blocking query waits for news. Short, because a connection that died
/// unnoticed makes us deaf for so long; a few more requests a minute are little.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// Talks to one agent.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<Token>,
    timeout: Duration,
    /// Whether the agent answers, and who is told.
    outage: Outage,
}

/// A value as Consul holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) key: String,
    pub(super) value: Vec<u8>,
    pub(super) modify_index: u64,
    /// The session that holds it as a lock.
    pub(super) session: Option<String>,
}

/// An answer with the index that the next blocking query begins with.
#[derive(Debug)]
pub(super) struct Indexed<T> {
    pub(super) value: T,
    pub(super) index: u64,
}

impl Client {
    pub(super) fn new(settings: &ConsulSettings) -> store::Result<Self> {
        Ok(Self {
            http: settings.http()?,
            base: settings.base()?,
            token: settings.token.clone(),
            timeout: settings.timeout,
            outage: Outage::default(),
        })
    }

    /// The agent's address.
    pub(super) fn address(&self) -> &str {
        &self.base
    }

    /// A value; none when it does not exist. With `after`, waits until its index is
    /// greater than that.
    pub(super) async fn read(&self, key: &str, after: Option<u64>) -> Result<Indexed<Option<Pair>>, Failure> {
        let request = built(ReadKeyRequest::builder().key(key).build())?;
        let answer = self.run(request, after).await?;
        let mut pairs = answer.value;
        Ok(Indexed { value: pairs.pop().map(pair).transpose()?, index: answer.index })
    }

    /// All values below a prefix.
    pub(super) async fn read_all(&self, prefix: &str) -> Result<Vec<Pair>, Failure> {
        let request = built(ReadKeyRequest::builder().key(prefix).recurse(true).build())?;
        let pairs = self.run(request, None).await?.value;
        pairs.into_iter().map(pair).collect()
    }

    /// The keys below a prefix, sorted. With `after` as in [`Self::read`].
    pub(super) async fn keys(&self, prefix: &str, after: Option<u64>) -> Result<Indexed<Vec<String>>, Failure> {
        self.run(built(ReadKeysRequest::builder().key(prefix).build())?, after).await
    }

    /// Writes a value whose index is `cas` (0: absent; none: any); whether it was.
    pub(super) async fn set(&self, key: &str, value: &[u8], cas: Option<u64>) -> Result<bool, Failure> {
        let mut request = SetKeyRequest::builder();
        request.key(key).value(value);
        if let Some(cas) = cas {
            request.cas(cas);
        }
        Ok(self.run(built(request.build())?, None).await?.value)
    }

    /// Takes a value as a lock for a session; whether it got it.
    pub(super) async fn acquire(&self, key: &str, value: &[u8], session: &str) -> Result<bool, Failure> {
        let request = SetKeyRequest::builder().key(key).value(value).acquire(session).build();
        Ok(self.run(built(request)?, None).await?.value)
    }

    /// Lets a lock of a session go; whether it held it.
    pub(super) async fn release(&self, key: &str, value: &[u8], session: &str) -> Result<bool, Failure> {
        let request = SetKeyRequest::builder().key(key).value(value).release(session).build();
        Ok(self.run(built(request)?, None).await?.value)
    }

    /// Removes a value. Missing is no error.
    pub(super) async fn delete(&self, key: &str) -> Result<(), Failure> {
        let request = built(DeleteKeyRequest::builder().key(key).build())?;
        self.run(request, None).await.map(drop)
    }

    /// Runs operations, all or none of them. A refusal is an answer with errors.
    pub(super) async fn transact(&self, operations: Vec<KvOperation<'_>>) -> Result<TxnResponse, Failure> {
        let operations: Vec<_> = operations.into_iter().map(|kv| TxnOperation { kv }).collect();
        let body = serde_json::to_vec(&operations).map_err(|error| Failure::Unreadable(std::sync::Arc::new(error)))?;
        Ok(self.run(Txn { operations: body }, None).await?.value)
    }

    /// Makes a session that dies when it is not renewed within `ttl` and then keeps
    /// its locks from others for `lock_delay`.
    pub(super) async fn create_session(
        &self,
        name: &str,
        ttl: Duration,
        lock_delay: Duration,
    ) -> Result<String, Failure> {
        let request = session::requests::CreateSessionRequest::builder()
            .name(name)
            .ttl(seconds(ttl))
            .lock_delay(seconds(lock_delay))
            .behavior("release")
            .build();
        Ok(self.run(built(request)?, None).await?.value.id)
    }

    /// Renews a session; whether it still lives.
    pub(super) async fn renew_session(&self, id: &str) -> Result<bool, Failure> {
        let request = built(session::requests::RenewSessionRequest::builder().uuid(id).build())?;
        match self.run(request, None).await {
            Ok(_) => Ok(true),
            Err(Failure::Status { code: 404, .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Ends a session; its locks are free after its lock delay.
    pub(super) async fn destroy_session(&self, id: &str) -> Result<(), Failure> {
        let request = built(session::requests::DeleteSessionRequest::builder().uuid(id).build())?;
        // The answer is `true`, which consulrs takes for nothing.
        self.exec(request, None).await.map(drop)
    }

    /// Registers a service with the agent.
    pub(super) async fn register(&self, service: service::requests::RegisterServiceRequest) -> Result<(), Failure> {
        self.exec(service, None).await.map(drop)
    }

    /// Removes a service from the agent.
    pub(super) async fn deregister(&self, id: &str) -> Result<(), Failure> {
        let request = service::requests::DeregisterServiceRequest::builder().id(id).build();
        self.exec(built(request)?, None).await.map(drop)
    }

    /// The instances of a service in the catalog.
    pub(super) async fn health(&self, service: &str) -> Result<Vec<ServiceHealth>, Failure> {
        Ok(self.run(HealthOfService { service: service.to_owned() }, None).await?.value)
    }

    /// Runs a request and reads its answer.
    async fn run<E: Endpoint>(&self, request: E, after: Option<u64>) -> Result<Indexed<E::Response>, Failure> {
        let result = self.exec(request, after).await?;
        let index = result.response.headers().get("X-Consul-Index");
        let index = index.and_then(|index| index.to_str().ok()?.parse().ok()).unwrap_or(0);
        let value = result.parse().map_err(|error| Failure::Unreadable(std::sync::Arc::new(error)))?;
        Ok(Indexed { value, index })
    }

    async fn exec<E: Endpoint>(
        &self,
        request: E,
        after: Option<u64>,
    ) -> Result<rustify::endpoint::EndpointResult<E::Response>, Failure> {
        let blocking = after.map(|index| Blocking { index, wait: Some(seconds(WAIT)) });
        let features = blocking.map(|blocking| Features { blocking: Some(blocking), ..Features::default() });
        // Consul adds up to a sixteenth of the waiting time.
        let timeout = if after.is_some() { WAIT + WAIT / 16 + self.timeout } else { self.timeout };
        let middleware = EndpointMiddleware {
            features,
            token: self.token.as_ref().map(|token| token.reveal().to_owned()),
            version: "v1".into(),
        };
        let courier = Courier { http: &self.http, base: &self.base, timeout };
        match request.with_middleware(&middleware).exec(&courier).await {
            Ok(result) => {
                self.outage.answered(&self.base);
                Ok(result)
            }
            Err(error) => match Failure::of(&self.base, error) {
                Failure::Away { address, source, .. } => {
                    let since = Some(self.outage.failed(&address, source.as_ref()));
                    Err(Failure::Away { address, since, source })
                }
                other => {
                    self.outage.answered(&self.base);
                    Err(other)
                }
            },
        }
    }
}

/// Carries requests of rustify, with a timeout each, and reads what Consul means
/// as answers out of two statuses.
struct Courier<'a> {
    http: &'a reqwest::Client,
    base: &'a str,
    timeout: Duration,
}

#[async_trait]
impl rustify::client::Client for Courier<'_> {
    fn base(&self) -> &str {
        self.base
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, ClientError> {
        let (url, method) = (request.uri().path().to_owned(), request.method().to_string());
        let is_read_of_keys = method == "GET" && url.starts_with("/v1/kv/");
        let is_transaction = url == "/v1/txn";
        let mut request =
            reqwest::Request::try_from(request).map_err(|source| ClientError::ReqwestBuildError { source })?;
        *request.timeout_mut() = Some(self.timeout);
        // The URL is told without its query, so that nothing of it gets into logs.
        let failed = |source: reqwest::Error| ClientError::RequestError {
            source: source.without_url().into(),
            url: url.clone(),
            method: method.clone(),
        };
        let response = self.http.execute(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let absent = status == 404 && is_read_of_keys;
        let refused = status == 409 && is_transaction;
        let mut carried = http::Response::builder().status(if absent || refused { 200 } else { status });
        for (name, value) in response.headers() {
            carried = carried.header(name, value);
        }
        let body = response.bytes().await.map_err(|error| ClientError::ResponseError { source: error.into() })?;
        let body = if absent { b"[]".to_vec() } else { body.to_vec() };
        carried.body(body).map_err(|error| ClientError::ResponseError { source: error.into() })
    }
}

fn pair(pair: KVPair) -> Result<Pair, Failure> {
    let value: Vec<u8> = match pair.value {
        Some(value) => value
            .try_into()
            .map_err(|error: consulrs::error::ClientError| Failure::Unreadable(std::sync::Arc::new(error)))?,
        None => Vec::new(),
    };
    let session = pair.session.filter(|session| !session.is_empty());
    Ok(Pair { key: pair.key, value, modify_index: pair.modify_index, session })
}

fn built<T, E: std::error::Error + Send + Sync + 'static>(request: Result<T, E>) -> Result<T, Failure> {
    request.map_err(|error| Failure::Unreadable(std::sync::Arc::new(error)))
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}
