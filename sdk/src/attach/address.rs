//! Where the engines are. A host name that stands for several of them (a headless
//! service, Consul DNS) is looked up again and again, and each address has a
//! session of its own. Knows nothing of what a session does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Endpoint, Uri};

/// How often a name is looked up.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);

/// Where one engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As it was configured.
    given: String,
    /// The address behind the name, when the name was looked up.
    resolved: Option<SocketAddr>,
}

impl Address {
    /// How to connect to it.
    pub(super) fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        match self.resolved {
            None => Endpoint::from_shared(self.given.clone()),
            Some(address) => {
                let given = Endpoint::from_shared(self.given.clone())?.uri().clone();
                let scheme = given.scheme_str().unwrap_or("http");
                // The engine still sees the name that was asked for.
                Ok(Endpoint::from_shared(format!("{scheme}://{address}"))?.origin(given))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resolved {
            None => f.write_str(&self.given),
            Some(address) => write!(f, "{} ({address})", self.given),
        }
    }
}

/// Keeps one task for every engine behind an address, for ever. Tasks of engines
/// that the name does not stand for any more are dropped.
pub(super) async fn follow<F>(given: &str, task: impl Fn(Address) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let look_up =
        async |host: &str, port| tokio::net::lookup_host((host, port)).await.map(|found| found.collect::<Vec<_>>());
    follow_by(look_up, given, task).await;
}

async fn follow_by<F>(
    look_up: impl AsyncFn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    given: &str,
    task: impl Fn(Address) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Some((host, port)) = name(given) else {
        return task(Address { given: given.to_owned(), resolved: None }).await;
    };
    let mut tasks: BTreeMap<SocketAddr, AbortOnDropHandle<()>> = BTreeMap::new();
    let mut told = false;
    loop {
        match look_up(&host, port).await {
            Ok(found) => {
                told = false;
                let found = chosen(found.into_iter());
                tasks.retain(|address, _| found.contains(address));
                for resolved in found {
                    tasks.entry(resolved).or_insert_with(|| {
                        let address = Address { given: given.to_owned(), resolved: Some(resolved) };
                        AbortOnDropHandle::new(tokio::spawn(task(address)))
                    });
                }
            }
            // Sessions that stand go on; the name may be known again in a moment.
            Err(error) if !told => {
                tracing::warn!(engine = given, %error, "the engine's name cannot be looked up; it is tried again");
                told = true;
            }
            Err(error) => tracing::debug!(engine = given, %error, "the engine's name cannot be looked up"),
        }
        tokio::time::sleep(LOOK_UP_EVERY).await;
    }
}

/// Host and port of an address whose host is a name that may stand for several.
fn name(given: &str) -> Option<(String, u16)> {
    let uri: Uri = given.parse().ok()?;
    let host = uri.host()?;
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    (!is_address && host != "localhost").then(|| (host.to_owned(), port))
}

/// The addresses to use: an engine known by both kinds has one session, not two.
fn chosen(found: impl Iterator<Item = SocketAddr>) -> BTreeSet<SocketAddr> {
    let found: BTreeSet<_> = found.collect();
    if found.iter().any(SocketAddr::is_ipv4) { found.into_iter().filter(SocketAddr::is_ipv4).collect() } else { found }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// Adds an address to those with a session, until it is dropped.
    struct Session(Arc<Mutex<BTreeSet<String>>>, String);

    impl Session {
        fn begin(all: &Arc<Mutex<BTreeSet<String>>>, address: &Address) -> Self {
            assert!(all.lock().insert(address.to_string()), "{address} has two sessions");
            Self(Arc::clone(all), address.to_string())
        }
    }

    impl Drop for Session {
        fn drop(&mut self) {
            self.0.lock().remove(&self.1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_followed_wherever_it_leads() {
        let known = Arc::new(Mutex::new(Some(vec!["10.0.0.1:7400", "10.0.0.2:7400"])));
        let sessions = Arc::new(Mutex::new(BTreeSet::new()));
        let (asked, held) = (Arc::clone(&known), Arc::clone(&sessions));
        let look_up = async move |_: &str, _| {
            let found = asked.lock().clone().ok_or_else(|| io::Error::other("no such name"))?;
            Ok(found.into_iter().map(|one| one.parse().unwrap()).collect())
        };
        let task = move |address: Address| {
            let held = Arc::clone(&held);
            async move {
                let _session = Session::begin(&held, &address);
                std::future::pending::<()>().await;
            }
        };
        let following = follow_by(look_up, "http://engines:7400", task);
        let changes = async {
            let attached = async || {
                tokio::time::sleep(LOOK_UP_EVERY + Duration::from_secs(1)).await;
                sessions.lock().iter().map(|one| one.rsplit('.').next().unwrap().to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(attached().await, ["1:7400)", "2:7400)"]);
            *known.lock() = Some(vec!["10.0.0.2:7400", "10.0.0.3:7400"]);
            assert_eq!(attached().await, ["2:7400)", "3:7400)"], "one is gone, another has appeared");
            // A name server that does not answer is no reason to leave engines that do.
            *known.lock() = None;
            assert_eq!(attached().await, ["2:7400)", "3:7400)"]);
            *known.lock() = Some(vec!["10.0.0.4:7400"]);
            assert_eq!(attached().await, ["4:7400)"]);
        };
        tokio::select! {
            () = following => unreachable!("it follows for ever"),
            () = changes => {}
        }
    }

    #[test]
    fn only_names_that_may_stand_for_several_are_looked_up() {
        assert_eq!(name("http://engines.pipedoc.svc:7400"), Some(("engines.pipedoc.svc".into(), 7400)));
        assert_eq!(name("https://engines"), Some(("engines".into(), 443)));
        for one in ["http://127.0.0.1:7400", "http://[::1]:7400", "http://localhost:7400", "a b"] {
            assert_eq!(name(one), None, "{one}");
        }
    }

    #[test]
    fn an_engine_of_both_kinds_has_one_session() {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let both = chosen(all(&["[fd00::1]:1", "10.0.0.1:1", "10.0.0.2:1"]).into_iter());
        assert_eq!(Vec::from_iter(both), all(&["10.0.0.1:1", "10.0.0.2:1"]));
        assert_eq!(chosen(all(&["[fd00::1]:1"]).into_iter()).len(), 1);
    }

    #[test]
    fn a_resolved_address_keeps_the_name_it_was_asked_by() {
        let address = Address { given: "http://engines:7400".into(), resolved: Some("10.0.0.1:7400".parse().unwrap()) };
        assert_eq!(address.endpoint().unwrap().uri().to_string(), "http://10.0.0.1:7400/");
        assert_eq!(address.to_string(), "http://engines:7400 (10.0.0.1:7400)");
    }
}
