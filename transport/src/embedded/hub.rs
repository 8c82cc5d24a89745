//! Who is woken by what: consumers of one process and the changes they wait for.
//!
//! Each consumer has an [`Ear`]. A change reaches only the ears it concerns; what
//! was heard is kept until the consumer looks, so nothing is missed while it is
//! busy.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::log::TopicPartition;

/// All ears of a log in this process.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    ears: Mutex<Vec<Weak<Ear>>>,
}

impl Hub {
    /// Makes the ear of a consumer; it is forgotten when the consumer drops it.
    pub(crate) fn listen(&self, group: Option<&str>) -> Arc<Ear> {
        let ear = Arc::new(Ear { group: group.map(str::to_owned), wake: Notify::new(), inner: Mutex::default() });
        let mut ears = self.ears.lock();
        ears.retain(|ear| ear.strong_count() > 0);
        ears.push(Arc::downgrade(&ear));
        ear
    }

    /// Whether anybody listens.
    pub(crate) fn has_ears(&self) -> bool {
        self.ears.lock().iter().any(|ear| ear.strong_count() > 0)
    }

    /// Partitions have grown to these ends.
    pub(crate) fn appended(&self, ends: &[(TopicPartition, i64)]) {
        self.each(|ear| {
            let mut inner = ear.inner.lock();
            let mut heard = false;
            for (source, end) in ends {
                if inner.interest.contains(source) {
                    inner.heard.ends.insert(source.clone(), *end);
                    heard = true;
                }
            }
            drop(inner);
            if heard {
                ear.wake.notify_one();
            }
        });
    }

    /// Something changed in a group: members or leases.
    pub(crate) fn group_changed(&self, group: &str) {
        self.each(|ear| {
            if ear.group.as_deref() == Some(group) {
                ear.hear_group();
            }
        });
    }

    /// All groups may have changed.
    pub(crate) fn groups_changed(&self) {
        self.each(|ear| {
            if ear.group.is_some() {
                ear.hear_group();
            }
        });
    }

    /// Topics were made, grew or went away.
    pub(crate) fn topics_changed(&self) {
        self.each(|ear| {
            if ear.group.is_some() {
                ear.inner.lock().heard.topics = true;
                ear.wake.notify_one();
            }
        });
    }

    fn each(&self, visit: impl Fn(&Ear)) {
        let ears: Vec<Arc<Ear>> = self.ears.lock().iter().filter_map(Weak::upgrade).collect();
        for ear in ears {
            visit(&ear);
        }
    }
}

/// What a consumer has heard since it last looked.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// New ends of partitions it reads.
    pub(crate) ends: HashMap<TopicPartition, i64>,
    /// Its group changed.
    pub(crate) group: bool,
    /// The topics changed.
    pub(crate) topics: bool,
}

/// Where a consumer hears of changes.
#[derive(Debug)]
pub(crate) struct Ear {
    group: Option<String>,
    wake: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    interest: HashSet<TopicPartition>,
    heard: Heard,
}

impl Ear {
    /// Says which partitions' growth is of interest.
    pub(crate) fn interest(&self, partitions: BTreeSet<TopicPartition>) {
        self.inner.lock().interest = partitions.into_iter().collect();
    }

    /// As if the group had changed.
    pub(crate) fn hear_group(&self) {
        self.inner.lock().heard.group = true;
        self.wake.notify_one();
    }

    /// As if the topics had changed.
    pub(crate) fn hear_topics(&self) {
        self.inner.lock().heard.topics = true;
        self.wake.notify_one();
    }

    /// Wakes the consumer to look at its state again.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// What was heard since the last call.
    pub(crate) fn take(&self) -> Heard {
        std::mem::take(&mut self.inner.lock().heard)
    }

    /// Resolves at the next change, or at once if there was one since it last did.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }
}
