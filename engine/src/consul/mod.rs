//! The store of many machines: Consul's key-value store, its sessions and its catalog.
//!
//! ```text
//! pipedoc/<cluster>/head, revisions/…, controls/…, modules/…, notes/…   values, by check-and-set
//! pipedoc/<cluster>/pipelines/<name>                                    the inbox
//! pipedoc/<cluster>/leader                                              held by the leader's session
//! ```
//!
//! Only this folder knows Consul. Knows keys, sessions and services; knows nothing
//! of what the values mean.

mod campaign;
mod client;
mod endpoints;
mod error;
mod key;
mod outage;
mod registration;
mod settings;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use pipedoc_model::names::ClusterName;
use tokio_util::sync::CancellationToken;

pub use self::settings::{BadToken, ConsulSettings, Token};

use self::campaign::Campaign;
use self::client::{Client, Pair};
use self::endpoints::KvOperation;
use self::error::{Failure, VALUE_LIMIT, check_size};
use self::key::{INBOX_MARK, Keys, is_plain, unescape};
use self::registration::{Registration, service_name};
use self::watch::Watcher;
use super::store::{
    Candidate, Error, Expected, InboxEntry, Key, Leadership, Lease, Peer, Result, Store, Value, Version,
};

/// Longest text that fits into a transaction, whose body holds 512 KiB with
/// values in base64 and a few names.
const TRANSACTION_TEXT: usize = 380 * 1024;

/// How often all is looked at though nothing was heard: blocking queries hear of
/// everything, so this only makes sure.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The store of many machines.
pub struct ConsulStore {
    client: Arc<Client>,
    cluster: ClusterName,
    keys: Keys,
    watcher: Watcher,
    /// Whether the engine may lead.
    may_lead: tokio::sync::watch::Sender<bool>,
    /// What was begun for an engine, and is ended with it.
    running: Mutex<Running>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Running {
    campaign: Option<tokio::task::JoinHandle<()>>,
    registration: Option<tokio::task::JoinHandle<()>>,
}

impl ConsulStore {
    /// Begins to watch the cluster's keys. Consul need not answer yet.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn open(cluster: ClusterName, settings: &ConsulSettings) -> Result<Self> {
        let client = Arc::new(Client::new(settings)?);
        let keys = Keys::of(&cluster);
        let watcher = Watcher::start(&client, keys.full(&Key::new(&["head"])), keys.inbox());
        let (may_lead, stop) = (tokio::sync::watch::Sender::new(true), CancellationToken::new());
        Ok(Self { client, cluster, keys, watcher, may_lead, running: Mutex::default(), stop })
    }

    /// Asks Consul once, so that a wrong address or token is found at start.
    ///
    /// # Errors
    /// What Consul says, or that it says nothing.
    pub async fn probe(&self) -> Result<()> {
        self.get(&Key::new(&["head"])).await.map(drop)
    }

    async fn pair(&self, full: &str) -> Result<Option<Pair>> {
        let answer = self.client.read(full, None).await;
        Ok(answer.map_err(|failure| reading(failure, full))?.value)
    }

    /// One transaction of a write, behind a check of the lease where there is one.
    async fn write(&self, key: &Key, operation: KvOperation<'_>, lease: Option<&Lease>) -> Result<Version> {
        let (full, leader) = (self.keys.full(key), self.keys.leader());
        let mut operations = Vec::with_capacity(2);
        if let Some(Lease(session)) = lease {
            operations.push(KvOperation {
                verb: "check-session",
                key: &leader,
                value: None,
                index: None,
                session: Some(session),
            });
        }
        let write_at = operations.len();
        operations.push(operation);
        let answer = self.client.transact(operations).await.map_err(|failure| writing(failure, &full))?;
        let errors = answer.errors.unwrap_or_default();
        if let Some(refused) = errors.first() {
            // With a session that died the check is refused, as is a write whose index is another.
            return Err(if refused.op_index < write_at {
                Error::NotLeading { key: key.clone() }
            } else if refused.what.contains("ermission denied") {
                writing(Failure::Denied { message: refused.what.clone() }, &full)
            } else {
                Error::Conflict { key: key.clone() }
            });
        }
        let written = answer.results.unwrap_or_default().into_iter().filter_map(|result| result.kv).next_back();
        Ok(Version(written.filter(|kv| kv.key == full).map_or(0, |kv| kv.modify_index)))
    }

    /// Writes a text that fits into no transaction. Its lease is checked just before,
    /// which is good enough for what is never changed: such long texts are revisions.
    async fn write_long(&self, key: &Key, text: &str, expected: Expected, lease: Option<&Lease>) -> Result<Version> {
        let full = self.keys.full(key);
        if let Some(Lease(session)) = lease {
            let leader = self.pair(&self.keys.leader()).await?;
            if leader.and_then(|pair| pair.session).as_ref() != Some(session) {
                return Err(Error::NotLeading { key: key.clone() });
            }
        }
        let written = self.client.set(&full, text.as_bytes(), cas(expected)).await;
        if !written.map_err(|failure| writing(failure, &full))? {
            return Err(Error::Conflict { key: key.clone() });
        }
        let found = self.pair(&full).await?;
        // When somebody has changed it since, no version of ours fits any more; 0 fits none.
        Ok(Version(found.filter(|pair| pair.value == text.as_bytes()).map_or(0, |pair| pair.modify_index)))
    }
}

#[async_trait]
impl Store for ConsulStore {
    fn describe(&self) -> String {
        format!("{} of Consul at {}", self.keys.prefix(), self.client.address())
    }

    fn value_limit(&self) -> Option<usize> {
        Some(VALUE_LIMIT)
    }

    async fn get(&self, key: &Key) -> Result<Option<Value>> {
        let full = self.keys.full(key);
        self.pair(&full).await?.map(|pair| value(key, pair)).transpose()
    }

    async fn put(&self, key: &Key, text: &str, expected: Expected, lease: Option<&Lease>) -> Result<Version> {
        check_size(key, text)?;
        if text.len() > TRANSACTION_TEXT {
            return self.write_long(key, text, expected, lease).await;
        }
        let full = self.keys.full(key);
        let index = cas(expected);
        let verb = if index.is_some() { "cas" } else { "set" };
        let operation = KvOperation { verb, key: &full, value: Some(BASE64.encode(text)), index, session: None };
        self.write(key, operation, lease).await
    }

    async fn remove(&self, key: &Key, lease: Option<&Lease>) -> Result<()> {
        let full = self.keys.full(key);
        if lease.is_none() {
            return self.client.delete(&full).await.map_err(|failure| writing(failure, &full));
        }
        let operation = KvOperation { verb: "delete", key: &full, value: None, index: None, session: None };
        self.write(key, operation, lease).await.map(drop)
    }

    async fn list(&self, prefix: &Key) -> Result<Vec<String>> {
        let prefix = format!("{}/", self.keys.full(prefix));
        let keys = self.client.keys(&prefix, None).await.map_err(|failure| reading(failure, &prefix))?.value;
        let mut keys: Vec<_> = keys.iter().filter_map(|key| key.strip_prefix(&prefix)).map(unescape).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    async fn read_all(&self, prefix: &Key) -> Result<Vec<(String, Value)>> {
        let full = format!("{}/", self.keys.full(prefix));
        let pairs = self.client.read_all(&full).await.map_err(|failure| reading(failure, &full))?;
        let mut values = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let Some(name) = pair.key.strip_prefix(&full).map(unescape) else { continue };
            let key = Key::new(&[prefix.as_str(), &name]);
            values.push((name, value(&key, pair)?));
        }
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(values)
    }

    async fn inbox(&self) -> Result<Vec<InboxEntry>> {
        let prefix = self.keys.inbox();
        let pairs = self.client.read_all(&prefix).await.map_err(|failure| reading(failure, &prefix))?;
        if pairs.is_empty() {
            return Err(Error::InboxMissing { place: format!("{prefix} of Consul at {}", self.client.address()) });
        }
        let entries = pairs.into_iter().filter_map(|pair| {
            let name = pair.key.strip_prefix(&prefix)?.to_owned();
            // A folder made by hand, and our mark.
            if name.is_empty() || name == INBOX_MARK {
                return None;
            }
            let origin = format!("consul:{}", pair.key);
            let text = if is_plain(&name) {
                String::from_utf8(pair.value).map_err(|_| "the value is not UTF-8 text".to_owned())
            } else {
                Err(format!(
                    "the key {name:?} is no name of a pipeline; below {prefix} comes one part of letters, digits, '-', '_' and '.'"
                ))
            };
            Some(InboxEntry { name, origin, text })
        });
        Ok(entries.collect())
    }

    async fn make_inbox(&self) -> Result<()> {
        let mark = self.keys.inbox_mark();
        let made = self.client.set(&mark, b"", Some(0)).await;
        made.map(drop).map_err(|failure| writing(failure, &mark))
    }

    async fn write_inbox(&self, name: &str, text: &str, replaces: Option<&str>) -> Result<()> {
        let key = Key::new(&["pipelines", name]);
        check_size(&key, text)?;
        let full = self.keys.inbox_entry(name);
        let found = self.pair(&full).await?;
        let as_expected = found.as_ref().map(|pair| pair.value.as_slice()) == replaces.map(str::as_bytes);
        let index = found.map_or(0, |pair| pair.modify_index);
        if !as_expected
            || !self.client.set(&full, text.as_bytes(), Some(index)).await.map_err(|failure| writing(failure, &full))?
        {
            return Err(Error::Conflict { key });
        }
        Ok(())
    }

    async fn remove_inbox(&self, name: &str, removes: &str) -> Result<()> {
        let full = self.keys.inbox_entry(name);
        let Some(found) = self.pair(&full).await? else { return Ok(()) };
        let conflict = || Error::Conflict { key: Key::new(&["pipelines", name]) };
        if found.value != removes.as_bytes() {
            return Err(conflict());
        }
        let index = Some(found.modify_index);
        let operation = KvOperation { verb: "delete-cas", key: &full, value: None, index, session: None };
        let answer = self.client.transact(vec![operation]).await.map_err(|failure| writing(failure, &full))?;
        match answer.errors.unwrap_or_default().first() {
            None => Ok(()),
            Some(refused) if refused.what.contains("ermission denied") => {
                Err(writing(Failure::Denied { message: refused.what.clone() }, &full))
            }
            Some(_) => Err(conflict()),
        }
    }

    fn inbox_name(&self, pipeline: &str) -> String {
        pipeline.to_owned()
    }

    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.watcher.subscribe()
    }

    fn look_every(&self) -> Duration {
        LOOK_EVERY
    }

    fn campaign(&self, candidate: Candidate) -> tokio::sync::watch::Receiver<Leadership> {
        let (leadership, receiver) = tokio::sync::watch::channel(Leadership::Follows(None));
        let registration = Registration::new(Arc::clone(&self.client), &self.cluster, &candidate);
        let campaign = Campaign {
            client: Arc::clone(&self.client),
            key: self.keys.leader(),
            candidate,
            may_lead: self.may_lead.subscribe(),
            leadership,
        };
        let mut running = self.running.lock();
        running.campaign = Some(tokio::spawn(campaign.run(self.stop.clone())));
        running.registration = registration.map(|entry| tokio::spawn(entry.run(self.stop.clone())));
        receiver
    }

    async fn engines(&self) -> Result<Vec<Peer>> {
        let service = service_name(&self.cluster);
        let found = self.client.health(&service).await;
        let found = found.map_err(|failure| {
            failure.into_store("reading", &service, &format!("service:read on {service}, and node:read"))
        })?;
        Ok(found.into_iter().map(registration::peer).collect())
    }

    fn may_lead(&self, may: bool) {
        self.may_lead.send_if_modified(|known| std::mem::replace(known, may) != may);
    }

    async fn close(&self) {
        self.stop.cancel();
        let Running { campaign, registration } = std::mem::take(&mut *self.running.lock());
        for task in [campaign, registration].into_iter().flatten() {
            let _ = task.await;
        }
    }
}

impl Drop for ConsulStore {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn value(key: &Key, pair: Pair) -> Result<Value> {
    let version = Version(pair.modify_index);
    let text = String::from_utf8(pair.value)
        .map_err(|error| Error::Unreadable { key: key.clone(), source: Arc::new(error) })?;
    Ok(Value { text, version })
}

fn cas(expected: Expected) -> Option<u64> {
    match expected {
        Expected::Absent => Some(0),
        // A version that fits nothing is not the same as "absent".
        Expected::Is(Version(0)) => Some(u64::MAX),
        Expected::Is(Version(index)) => Some(index),
        Expected::Anything => None,
    }
}

fn reading(failure: Failure, full: &str) -> Error {
    failure.into_store("reading", full, &format!("key:read on {full}"))
}

fn writing(failure: Failure, full: &str) -> Error {
    failure.into_store("writing", full, &format!("key:write on {full}"))
}
