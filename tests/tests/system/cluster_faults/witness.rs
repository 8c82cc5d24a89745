//! Sees what engines do to the store, and holds it against what they must never do.
//!
//! Knows the head, revisions and the leader's key, and what engines log of leading.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_engine::consul::{ConsulSettings, ConsulStore};
use pipedoc_engine::store::{Key, Store};
use pipedoc_model::names::ClusterName;
use pipedoc_tests::bed::consul::Consul;
use pipedoc_tests::bed::process::Process;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(20);

/// Looks at the head and at who leads, again and again, until it is dropped.
pub struct Witness {
    cluster: String,
    seen: Arc<Mutex<Seen>>,
    looking: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// Version and generation of every head.
    heads: Vec<(u64, u64)>,
    /// What the leader's key holds.
    leader: Option<String>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

impl Witness {
    pub fn start(consul: &Consul, cluster: &str) -> Self {
        let name = ClusterName::new(cluster).unwrap();
        let store = ConsulStore::open(name, &ConsulSettings::new(consul.address())).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        let looking = tokio::spawn(async move {
            loop {
                if let Ok(Some(head)) = store.get(&Key::new(&["head"])).await {
                    let text: serde_json::Value = serde_json::from_str(&head.text).unwrap();
                    let now = (head.version.0, text["head"]["generation"].as_u64().unwrap());
                    let heads = &mut noted.lock().heads;
                    if heads.last() != Some(&now) {
                        heads.push(now);
                    }
                }
                if let Ok(leader) = store.get(&Key::new(&["leader"])).await {
                    noted.lock().leader = leader.map(|leader| leader.text);
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { cluster: cluster.to_owned(), seen, looking }
    }

    /// Address of the engine that leads, or led last.
    pub fn leader(&self) -> Option<String> {
        self.seen.lock().leader.clone()
    }

    /// Generation of the newest head; 0: none.
    pub fn generation(&self) -> u64 {
        self.seen.lock().heads.last().map_or(0, |(_, generation)| *generation)
    }

    /// Consul has lost its data: its versions begin anew. A head that is restored may
    /// be an older one once, before engines go on above what instances remember.
    pub fn begins_anew(&self) {
        self.seen.lock().heads.clear();
    }

    /// Every head was above the one before, and no revision was ever written again.
    pub fn check(&self, consul: &Consul) {
        let heads = self.seen.lock().heads.clone();
        for pair in heads.windows(2) {
            let [before, after] = pair else { continue };
            assert!(after.0 > before.0 && after.1 > before.1, "after {before:?} came {after:?}: {heads:?}");
        }
        let revisions = format!("pipedoc/{}/revisions/", self.cluster);
        let listed = consul.run(&["kv", "get", "-recurse", "-detailed", &revisions]);
        let field = |block: &str, name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        let blocks: Vec<_> = listed.split("\n\n").filter(|block| block.contains("CreateIndex")).collect();
        assert!(!blocks.is_empty(), "{listed}");
        for block in blocks {
            assert_eq!(field(block, "CreateIndex"), field(block, "ModifyIndex"), "written twice: {block}");
        }
    }

    /// By what engines logged: one led after the other, and none wrote as a leader
    /// once another led. An engine that was killed led no more after its last line.
    pub fn check_leaders(&self, engines: &[Process]) {
        let logs: Vec<_> = engines.iter().map(Process::output).collect();
        let terms: Vec<_> = logs.iter().map(|log| terms(log)).collect();
        assert!(terms.iter().all(|terms| !terms.is_empty()), "{terms:?}");
        let mut written = BTreeSet::new();
        for (engine, log) in logs.iter().enumerate() {
            for term in &terms[engine] {
                for other in terms.iter().enumerate().filter(|(other, _)| *other != engine).flat_map(|(_, all)| all) {
                    let apart = term.ends.is_some_and(|end| end <= other.begins)
                        || other.ends.is_some_and(|end| end <= term.begins);
                    assert!(apart, "two led: {term:?} and {other:?}");
                }
            }
            for (at, line) in lines(log).filter(|(_, line)| wrote_as_leader(line)) {
                let term = terms[engine].iter().rev().find(|term| term.begins <= at).expect("it wrote and never led");
                let others = terms.iter().enumerate().filter(|(other, _)| *other != engine).flat_map(|(_, all)| all);
                let next = others.map(|other| other.begins).filter(|begins| *begins > term.begins).min();
                assert!(next.is_none_or(|next| at < next), "it wrote after another led: {line}");
                let generation = line.split("generation=").nth(1).map(str::to_owned);
                let name = line.split("pipeline=").nth(1).map(str::to_owned);
                assert!(written.insert((generation, name)), "two wrote the same: {line}");
            }
        }
    }
}

/// A time of leading, by the moments of its log lines.
#[derive(Debug, Clone, Copy)]
struct Term<'a> {
    begins: &'a str,
    /// None: it leads still.
    ends: Option<&'a str>,
}

/// What an engine logged of its times of leading, over all its lives.
fn terms(log: &str) -> Vec<Term<'_>> {
    let mut terms: Vec<Term<'_>> = Vec::new();
    let mut last = "";
    for (at, line) in lines(log) {
        let ended = if line.contains("leads no more") {
            Some(at)
        } else {
            // It was killed, and began anew.
            line.contains("the engine serves").then_some(last)
        };
        if let (Some(end), Some(term)) = (ended, terms.last_mut()) {
            term.ends.get_or_insert(end);
        } else if line.contains(" leads engine=") {
            terms.push(Term { begins: at, ends: None });
        }
        last = at;
    }
    terms
}

/// Lines with their moments, which sort as text.
fn lines(log: &str) -> impl Iterator<Item = (&str, &str)> {
    log.lines().filter(|line| line.starts_with("20")).filter_map(|line| line.split_once(' '))
}

fn wrote_as_leader(line: &str) -> bool {
    line.contains("taken from the inbox") || line.contains("going on above it") || line.contains("removed; its topics")
}
