//! The Consul store on a real agent: the suite that every store passes, rights, limits, leaders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_engine::consul::{ConsulSettings, ConsulStore, Token};
use pipedoc_engine::store::{Candidate, Error, Expected, Key, Leadership, Store, conformance};
use pipedoc_model::names::ClusterName;
use pipedoc_tests::bed::consul::{self, Consul};
use pipedoc_tests::bed::eventually;
use pipedoc_tests::bed::proxy::Proxy;

const LONG: Duration = Duration::from_secs(60);
const HEAD: &[&str] = &["head"];

fn store(consul: &Consul, cluster: &str) -> ConsulStore {
    store_with(consul, cluster, None)
}

fn store_with(consul: &Consul, cluster: &str, token: Option<&str>) -> ConsulStore {
    let mut settings = ConsulSettings::new(consul.address());
    settings.token = token.map(|token| Token::new(token).unwrap());
    ConsulStore::open(ClusterName::new(cluster).unwrap(), &settings).unwrap()
}

fn candidate(name: &str) -> Candidate {
    Candidate { name: name.into(), address: format!("{name}:1") }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consul_store_passes_the_suite() {
    let Some(consul) = consul::shared("the_consul_store_passes_the_suite") else { return };
    let (one, other) = (store(consul, "suite"), store(consul, "suite"));
    one.make_inbox().await.unwrap();
    conformance::run(Arc::new(one), Arc::new(other)).await;
}

#[tokio::test]
async fn a_missing_prefix_is_an_error_and_not_an_empty_inbox() {
    let Some(consul) = consul::shared("a_missing_prefix_is_an_error_and_not_an_empty_inbox") else { return };
    let store = store(consul, "missing");
    assert!(matches!(store.inbox().await, Err(Error::InboxMissing { .. })));
    store.make_inbox().await.unwrap();
    store.make_inbox().await.unwrap();
    assert!(store.inbox().await.unwrap().is_empty());
    store.write_inbox("shelf", "text", None).await.unwrap();
    // The last pipeline is deleted by hand: the inbox is empty, and still there.
    consul.run(&["kv", "delete", "pipedoc/missing/pipelines/shelf"]);
    assert!(store.inbox().await.unwrap().is_empty());
    consul.run(&["kv", "delete", "-recurse", "pipedoc/missing/"]);
    assert!(matches!(store.inbox().await, Err(Error::InboxMissing { .. })));
}

#[tokio::test]
async fn what_people_put_is_an_entry_and_a_bad_key_says_what_is_wrong() {
    let Some(consul) = consul::shared("what_people_put_is_an_entry") else { return };
    let store = store(consul, "people");
    consul.run(&["kv", "put", "pipedoc/people/pipelines/shelf", "pipeline: shelf"]);
    consul.run(&["kv", "put", "pipedoc/people/pipelines/a/b", "pipeline: nested"]);
    // Newer agents take no blanks in keys, nor much else.
    consul.run(&["kv", "put", "pipedoc/people/pipelines/my,shelf", "pipeline: comma"]);
    let entries = store.inbox().await.unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a/b", "my,shelf", "shelf"]);
    assert_eq!(entries[2].text.as_deref(), Ok("pipeline: shelf"));
    assert_eq!(entries[2].origin, "consul:pipedoc/people/pipelines/shelf");
    for entry in &entries[..2] {
        assert!(entry.text.as_ref().unwrap_err().contains("no name of a pipeline"), "{entry:?}");
    }
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused_with_its_size() {
    let Some(consul) = consul::shared("a_value_over_the_limit_is_refused_with_its_size") else { return };
    let store = store(consul, "limits");
    let text = "x".repeat(512 * 1024 + 1);
    let error = store.put(&Key::new(HEAD), &text, Expected::Anything, None).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("524289") && said.contains("524288"), "{said}");
    store.put(&Key::new(HEAD), &text[1..], Expected::Anything, None).await.unwrap();
    assert_eq!(store.get(&Key::new(HEAD)).await.unwrap().unwrap().text.len(), 512 * 1024);
}

#[tokio::test]
async fn an_agent_that_is_away_is_named_with_the_time_and_found_again() {
    let Some(mut consul) = consul::own("an_agent_that_is_away_is_named", Consul::start) else { return };
    let store = store(&consul, "away");
    let head = Key::new(HEAD);
    let mut changes = store.changes();
    store.put(&head, "1", Expected::Absent, None).await.unwrap();
    // Who watches must have heard of it, or there is no loss to hear of.
    while tokio::time::timeout(Duration::from_secs(2), changes.changed()).await.is_ok() {}
    consul.kill();
    let said = eventually("the time is told", LONG, || async {
        let error = store.get(&head).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        Some(error.to_string()).filter(|said| said.contains(" since "))
    })
    .await;
    assert!(said.contains(&consul.address()), "{said}");
    changes.mark_unchanged();
    consul.restart();
    // Its data are lost, and whoever watches hears that something changed.
    tokio::time::timeout(LONG, changes.changed()).await.expect("the change is heard").unwrap();
    assert_eq!(store.get(&head).await.unwrap(), None);
}

#[tokio::test]
async fn one_of_two_leads_and_a_write_of_the_one_before_is_refused() {
    let Some(consul) = consul::shared("one_of_two_leads") else { return };
    let (one, other) = (store(consul, "leaders"), store(consul, "leaders"));
    let mut first = one.campaign(candidate("one"));
    let led = tokio::time::timeout(LONG, first.wait_for(|state| state.lease().is_some())).await.unwrap();
    let lease = led.unwrap().lease().unwrap().clone();
    let mut second = other.campaign(candidate("other"));
    let follows = Leadership::Follows(Some("one:1".into()));
    tokio::time::timeout(LONG, second.wait_for(|state| *state == follows)).await.unwrap().unwrap();
    let head = Key::new(HEAD);
    let version = one.put(&head, "1", Expected::Absent, Some(&lease)).await.unwrap();

    // The session is destroyed behind its back: what it writes from then on is refused.
    let sessions = consul.run(&["kv", "get", "-detailed", "pipedoc/leaders/leader"]);
    let session = sessions.lines().find_map(|line| line.strip_prefix("Session")).unwrap().trim();
    let destroyed = destroy_session(consul, session).await;
    assert!(destroyed, "session {session}");
    for expected in [Expected::Is(version), Expected::Anything] {
        let late = one.put(&head, "2", expected, Some(&lease)).await;
        assert!(matches!(late, Err(Error::NotLeading { .. })), "{late:?}");
    }
    assert!(matches!(one.remove(&head, Some(&lease)).await, Err(Error::NotLeading { .. })));
    assert_eq!(other.get(&head).await.unwrap().unwrap().text, "1");

    // Somebody leads again, and it is one of them only.
    let lost = Instant::now();
    let state = (first.clone(), second.clone());
    eventually("one of them leads", LONG, || async {
        let new = |state: &Leadership| state.lease().is_some_and(|held| *held != lease);
        let (one, other) = (new(&state.0.borrow()), new(&state.1.borrow()));
        assert!(!(one && other), "two lead");
        (one || other).then_some(())
    })
    .await;
    assert!(lost.elapsed() < Duration::from_secs(60), "took {:?}", lost.elapsed());
}

#[tokio::test]
async fn a_leaders_key_that_was_imported_names_who_leads_again() {
    let Some(consul) = consul::shared("a_leaders_key_that_was_imported") else { return };
    let one = store(consul, "imported");
    let mut leadership = one.campaign(candidate("one"));
    tokio::time::timeout(LONG, leadership.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    let lease = leadership.borrow().lease().cloned();
    consul.run(&["kv", "put", "pipedoc/imported/leader", "another:1"]);
    eventually("the key names who leads", LONG, || async {
        let found = one.get(&Key::new(&["leader"])).await.unwrap()?;
        (found.text == "one:1").then_some(())
    })
    .await;
    assert_eq!(leadership.borrow().lease().cloned(), lease, "it led all the time");
    one.close().await;
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_at_once() {
    let Some(consul) = consul::shared("a_leader_that_stops_hands_over_at_once") else { return };
    let mut took = Vec::new();
    // Below the delay that protects the key of a leader who was lost. A machine at work
    // elsewhere may be slow once; one that waits for the delay is slow each time.
    while took.iter().all(|took| *took > Duration::from_secs(4)) {
        assert!(took.len() < 3, "{took:?}");
        let cluster = format!("handover-{}", took.len());
        let (one, other) = (store(consul, &cluster), store(consul, &cluster));
        let mut first = one.campaign(candidate("one"));
        tokio::time::timeout(LONG, first.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
        let mut second = other.campaign(candidate("other"));
        let stopped = Instant::now();
        one.close().await;
        tokio::time::timeout(LONG, second.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
        took.push(stopped.elapsed());
        other.close().await;
    }
}

#[tokio::test]
async fn one_that_may_not_lead_gives_it_away_and_stands_no_more_until_it_may() {
    let Some(consul) = consul::shared("one_that_may_not_lead_gives_it_away") else { return };
    let (one, other) = (store(consul, "unfit"), store(consul, "unfit"));
    let mut first = one.campaign(candidate("one"));
    tokio::time::timeout(LONG, first.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    let mut second = other.campaign(candidate("other"));
    one.may_lead(false);
    tokio::time::timeout(LONG, second.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    assert_eq!(first.borrow().lease(), None);

    // Nobody else is there now, and it leaves the key alone all the same.
    other.close().await;
    let stands = tokio::time::timeout(Duration::from_secs(3), first.wait_for(|state| state.lease().is_some())).await;
    assert!(stands.is_err(), "it leads though it may not");
    drop(stands);
    one.may_lead(true);
    tokio::time::timeout(LONG, first.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    one.close().await;
}

#[tokio::test]
async fn a_leader_leads_again_soon_after_consul_was_away() {
    let Some(mut consul) = consul::own("a_leader_leads_again_soon_after_consul_was_away", Consul::start_lasting) else {
        return;
    };
    let one = store(&consul, "resumed");
    let mut leadership = one.campaign(candidate("one"));
    let led = tokio::time::timeout(LONG, leadership.wait_for(|state| state.lease().is_some())).await.unwrap();
    let lease = led.unwrap().lease().unwrap().clone();
    consul.kill();
    tokio::time::timeout(LONG, leadership.wait_for(|state| state.lease().is_none())).await.unwrap().unwrap();
    consul.restart();
    let back = Instant::now();
    let new = |state: &Leadership| state.lease().is_some_and(|held| *held != lease);
    tokio::time::timeout(LONG, leadership.wait_for(new)).await.unwrap().unwrap();
    // Its old session would live for 20 s more, and keep the key for 5 s after that.
    assert!(back.elapsed() < Duration::from_secs(20), "took {:?}", back.elapsed());
    one.close().await;
}

#[tokio::test]
async fn connections_that_died_unnoticed_do_not_make_anybody_deaf() {
    let Some(consul) = consul::shared("connections_that_died_unnoticed_do_not_make_anybody_deaf") else { return };
    let proxy = Proxy::start(([127, 0, 0, 1], consul.port()).into());
    let other = store(consul, "deaf");
    let settings = ConsulSettings::new(format!("http://{}", proxy.address()));
    let one = ConsulStore::open(ClusterName::new("deaf").unwrap(), &settings).unwrap();
    let head = Key::new(HEAD);
    other.put(&head, "1", Expected::Absent, None).await.unwrap();
    let mut leadership = other.campaign(candidate("other"));
    tokio::time::timeout(LONG, leadership.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    let mut follower = one.campaign(candidate("one"));
    let follows = Leadership::Follows(Some("other:1".into()));
    tokio::time::timeout(LONG, follower.wait_for(|state| *state == follows)).await.unwrap().unwrap();
    let mut changes = one.changes();
    // Whatever it heard of so far, it hears of before it waits.
    while tokio::time::timeout(Duration::from_secs(2), changes.changed()).await.is_ok() {}

    proxy.lose_connections();
    other.put(&head, "2", Expected::Anything, None).await.unwrap();
    other.close().await;
    let heard = async {
        changes.changed().await.unwrap();
        follower.wait_for(|state| state.lease().is_some()).await.unwrap();
    };
    tokio::time::timeout(LONG, heard).await.expect("it hears of the change and of the free key");
    one.close().await;
}

/// The rights that the documentation lists, and no more.
fn least_policy(cluster: &str) -> String {
    format!(
        r#"key_prefix "pipedoc/{cluster}/" {{ policy = "write" }}
           session_prefix "" {{ policy = "write" }}
           service "pipedoc-engine-{cluster}" {{ policy = "write" }}
           node_prefix "" {{ policy = "read" }}"#
    )
}

fn token_with(consul: &Consul, name: &str, rules: &str) -> String {
    consul.run(&["acl", "policy", "create", "-name", name, "-rules", rules]);
    let said = consul.run(&["acl", "token", "create", "-policy-name", name]);
    said.lines().find_map(|line| line.strip_prefix("SecretID:")).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_rights_suffice_and_a_missing_one_is_named() {
    const MANAGEMENT: &str = "5fdbd1d9-0f4e-4f3b-a1cd-2d6c8ea3d8a1";
    let start = || Consul::start_secured(MANAGEMENT);
    let Some(consul) = consul::own("the_least_rights_suffice", start) else { return };
    let token = token_with(&consul, "least", &least_policy("least"));
    let (one, other) = (store_with(&consul, "least", Some(&token)), store_with(&consul, "least", Some(&token)));
    one.make_inbox().await.unwrap();
    let (one, other): (Arc<dyn Store>, Arc<dyn Store>) = (Arc::new(one), Arc::new(other));
    conformance::run(Arc::clone(&one), other).await;
    let mut leadership = one.campaign(candidate("one"));
    tokio::time::timeout(LONG, leadership.wait_for(|state| state.lease().is_some())).await.unwrap().unwrap();
    one.close().await;

    let reader = token_with(&consul, "reader", r#"key_prefix "pipedoc/least/" { policy = "read" }"#);
    let reader = store_with(&consul, "least", Some(&reader));
    let head = Key::new(HEAD);
    reader.get(&head).await.unwrap();
    for error in [
        reader.put(&head, "1", Expected::Anything, None).await.unwrap_err(),
        reader.write_inbox("new", "1", None).await.unwrap_err(),
        reader.remove(&head, None).await.unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(matches!(error, Error::Denied { .. }), "{error:?}");
        assert!(said.contains("key:write on pipedoc/least/"), "{said}");
    }
    let stranger = store_with(&consul, "least", Some("0b9bd0f5-6bd1-4ee3-9fd4-2b0f4bd0f5aa"));
    let error = stranger.get(&head).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let outsider = token_with(&consul, "outsider", r#"key_prefix "other/" { policy = "read" }"#);
    let error = store_with(&consul, "least", Some(&outsider)).get(&head).await.unwrap_err();
    assert!(error.to_string().contains("key:read on pipedoc/least/head"), "{error}");
}

#[test]
fn settings_that_cannot_be_right_are_refused_without_showing_the_token() {
    for address in ["", "127.0.0.1:8500", "ftp://host", "http://user:secret@host:8500"] {
        let opened = ConsulStore::open(ClusterName::new("x").unwrap(), &ConsulSettings::new(address));
        assert!(opened.is_err(), "{address:?} was taken");
    }
    assert!(Token::new(" \n").is_err());
    assert!(!Token::new("with a secret blank").unwrap_err().to_string().contains("secret"));
    assert!(!format!("{:?}", Token::new("secret").unwrap()).contains("secret"));
}

/// Ends a session by the HTTP API; the `consul` command has no word for it.
async fn destroy_session(consul: &Consul, session: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", consul.port())).await.unwrap();
    let request = format!(
        "PUT /v1/session/destroy/{session} HTTP/1.1\r\nHost: consul\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.starts_with("HTTP/1.1 200")
}
