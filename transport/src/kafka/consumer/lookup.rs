//! Which topics a subscription means, looked up every few seconds.
//!
//! librdkafka could match patterns itself, but with other regular expressions
//! than ours, and not without internal topics. So a group is always joined for
//! explicit names, and only for topics that exist.
//!
//! A listing also shows that the cluster answers. A consumer that is of no use all
//! the same ([`super::vigil`]), and for long, is given up: whoever reads makes a
//! new one, which goes on from the committed place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipedoc_model::names::Topic;
use regex::Regex;

use super::super::topics::{Listing, Topics};
use super::shared::{Command, Shared};
use crate::log::{Error, Result};

/// How often it is looked up.
const PERIOD: Duration = Duration::from_secs(3);

/// How soon again after an error, or while a topic is awaited.
const SOON: Duration = Duration::from_millis(500);

/// A topic that was there is missed only when it is absent so many times in a row:
/// a broker that has just started may not know all.
const ABSENCES: u32 = 2;

/// A topic that is named and not there is told of after so long: it may just be
/// being made.
const TOLD_AFTER: Duration = Duration::from_millis(1_500);

/// Names and patterns of a subscription.
pub(super) struct Wanted {
    topics: Vec<Topic>,
    patterns: Vec<Regex>,
}

impl Wanted {
    pub(super) fn new(topics: Vec<Topic>, patterns: &[Regex]) -> Result<Self> {
        // Anchored to the whole name; `find` and a comparison would not do, as the
        // first alternative that matches wins there.
        let anchored = patterns.iter().map(|pattern| Regex::new(&format!("^(?:{})$", pattern.as_str())));
        let patterns = anchored.collect::<Result<_, _>>().map_err(|_| Error::Misuse {
            operation: "subscribing to a pattern",
            reason: "it cannot be anchored to the whole name",
        })?;
        Ok(Self { topics, patterns })
    }

    fn matches(&self, topic: &Topic) -> bool {
        self.topics.contains(topic)
            || !topic.is_internal() && self.patterns.iter().any(|pattern| pattern.is_match(topic.as_str()))
    }

    /// Topics that may come soon.
    fn awaited<'a>(&'a self, found: &'a Listing) -> impl Iterator<Item = &'a Topic> {
        self.topics.iter().filter(|topic| !found.contains_key(*topic))
    }
}

/// Topics that are awaited: each is told of once while it is not there.
#[derive(Default)]
struct Awaited {
    since: BTreeMap<Topic, (Instant, bool)>,
}

impl Awaited {
    /// Takes note of those that are not there now; gives those to be told of.
    fn look<'a>(&mut self, missing: impl Iterator<Item = &'a Topic>) -> Vec<Topic> {
        let before = std::mem::take(&mut self.since);
        let mut tell = Vec::new();
        for topic in missing {
            let (since, mut told) = before.get(topic).copied().unwrap_or((Instant::now(), false));
            if !told && since.elapsed() > TOLD_AFTER {
                told = true;
                tell.push(topic.clone());
            }
            self.since.insert(topic.clone(), (since, told));
        }
        tell
    }
}

/// Keeps a consumer subscribed to what it wants, until it is aborted or the
/// consumer was of no use for longer than `patience`.
pub(super) async fn run(topics: Arc<Topics>, wanted: Wanted, shared: Arc<Shared>, patience: Duration) {
    // Since when the cluster answers.
    let mut answers_since = Instant::now();
    let mut current: Option<Listing> = None;
    let mut absences = 0;
    let mut awaited = Awaited::default();
    loop {
        // The first one fresh: the topic may just have been made.
        let listing = match &current {
            None => topics.list().await.map(Arc::new),
            Some(_) => topics.listing().await,
        };
        let listing = match listing {
            Ok(listing) => listing,
            Err(error) => {
                tracing::debug!(%error, "topics cannot be looked up");
                answers_since = Instant::now();
                tokio::time::sleep(SOON).await;
                continue;
            }
        };
        if let Some(failing) = shared.vigil.failing().filter(|_| shared.was_given_partitions())
            && failing.lasts_since(answers_since) > patience
        {
            let error = Error::Stalled { who: shared.who(), what: failing.what, since: failing.since.elapsed() };
            tracing::warn!(%error, "a consumer does not recover");
            shared.command(Command::GiveUp(error));
            return;
        }
        let found: Listing =
            listing.iter().filter(|(topic, _)| wanted.matches(topic)).map(|(t, n)| (t.clone(), *n)).collect();
        let missed = current.as_ref().is_some_and(|current| current.keys().any(|topic| !found.contains_key(topic)));
        absences = if missed { absences + 1 } else { 0 };
        let same = current.as_ref().is_some_and(|current| current.keys().eq(found.keys()));
        let awaits = wanted.awaited(&found).next().is_some();
        for topic in awaited.look(wanted.awaited(&found)) {
            shared.command(Command::Tell(Error::Awaited { topic }));
        }
        if !same && (!missed || absences >= ABSENCES) {
            shared.command(Command::Subscribe(found.clone()));
            current = Some(found);
        } else if current.is_none() {
            current = Some(found);
        }
        tokio::time::sleep(if awaits || missed { SOON.max(PERIOD / 4) } else { PERIOD }).await;
    }
}
