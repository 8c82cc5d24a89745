//! The model: what is known of every record, from outside the runtime.
//!
//! A record is *closed* when what its document asked for is acknowledged: all of
//! its outputs, or its dead letter; or it was skipped, or asked for nothing.
//! Whatever contradicts a promise is written down and fails the test at its end.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use parking_lot::Mutex;
use pipedoc_model::step::Ordering;

/// A place in the input.
pub type Place = (i32, i64);

/// What a document asks the module to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To be passed on after so many milliseconds.
    Pass { after: u64 },
    /// To be passed on when so many attempts have failed.
    Retry { fails: u32 },
    /// To become so many documents; none: a filter.
    Become { many: usize },
    /// To fail for good.
    Bad,
    /// To panic.
    Panic,
    /// Never to end.
    Hang,
    /// To be passed on, but too large for its topic, which the log says late.
    Large,
    /// To be deleted.
    Tombstone,
}

impl Wish {
    /// How many records come of it; `None`: it is given up on.
    pub fn outputs(self) -> Option<usize> {
        match self {
            Self::Pass { .. } | Self::Retry { .. } | Self::Tombstone => Some(1),
            Self::Become { many } => Some(many),
            Self::Bad | Self::Panic | Self::Hang | Self::Large => None,
        }
    }
}

/// A document of the scenario.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub key: usize,
    pub partition: i32,
    /// Which of its key.
    pub number: usize,
    pub wish: Wish,
}

/// The model.
#[derive(Default)]
pub struct World {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ordering: Ordering,
    /// What every document wants, by id.
    wanted: HashMap<String, Wanted>,
    /// Which document was handed out where.
    read: BTreeMap<Place, String>,
    /// Outputs of each document that are acknowledged.
    acknowledged: HashMap<String, BTreeSet<String>>,
    closed: HashSet<String>,
    /// Documents of which anything at all is written.
    written: HashSet<String>,
    /// How many attempts of each document were begun.
    attempts: HashMap<String, u32>,
    /// What is at work in each instance: lanes, or documents when order is NONE.
    at_work: HashMap<String, HashSet<String>>,
    committed: BTreeMap<i32, i64>,
    most_open: usize,
    violations: Vec<String>,
}

impl World {
    pub fn new(ordering: Ordering) -> Self {
        Self { state: Mutex::new(State { ordering, ..State::default() }) }
    }

    /// A document will be sent.
    pub fn wants(&self, id: &str, wanted: Wanted) {
        self.state.lock().wanted.insert(id.to_owned(), wanted);
    }

    pub fn wanted(&self, id: &str) -> Option<Wanted> {
        self.state.lock().wanted.get(id).cloned()
    }

    /// All documents with what they want.
    pub fn documents(&self) -> Vec<(String, Wanted)> {
        self.state.lock().wanted.iter().map(|(id, wanted)| (id.clone(), wanted.clone())).collect()
    }

    /// A promise was broken.
    pub fn violated(&self, what: String) {
        self.state.lock().violations.push(what);
    }

    pub fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    /// A record was handed to the runtime.
    pub fn was_read(&self, place: Place, id: &str) {
        let state = &mut *self.state.lock();
        if let Some(other) = state.read.insert(place, id.to_owned())
            && other != id
        {
            state.violations.push(format!("{place:?} holds {id} and held {other}"));
        }
    }

    /// An output of a document is acknowledged.
    pub fn was_acknowledged(&self, id: &str, output: &str) {
        let state = &mut *self.state.lock();
        state.written.insert(id.to_owned());
        let outputs = state.acknowledged.entry(id.to_owned()).or_default();
        outputs.insert(output.to_owned());
        let wants = state.wanted.get(id).and_then(|wanted| wanted.wish.outputs());
        if wants.is_some_and(|wants| outputs.len() >= wants) {
            state.closed.insert(id.to_owned());
        }
    }

    /// Something of a document is there.
    pub fn was_written(&self, id: &str) {
        self.state.lock().written.insert(id.to_owned());
    }

    /// A document was given up on: its dead letter is acknowledged, or it was skipped.
    pub fn was_given_up(&self, id: &str) {
        self.state.lock().closed.insert(id.to_owned());
    }

    /// Work on a document begins; how many attempts there were before.
    pub fn begins(&self, instance: &str, id: &str) -> u32 {
        let state = &mut *self.state.lock();
        let lane = state.lane(id);
        if !state.at_work.entry(instance.to_owned()).or_default().insert(lane.clone()) {
            state.violations.push(format!("{lane} is at work twice in {instance} with {id}"));
        }
        let attempts = state.attempts.entry(id.to_owned()).or_default();
        *attempts += 1;
        *attempts - 1
    }

    /// Work on a document has ended, whatever came of it.
    pub fn ends(&self, instance: &str, id: &str) {
        let state = &mut *self.state.lock();
        let lane = state.lane(id);
        if let Some(at_work) = state.at_work.get_mut(instance) {
            at_work.remove(&lane);
        }
    }

    /// The module has nothing to give for a document.
    pub fn gives_nothing(&self, id: &str) {
        self.state.lock().closed.insert(id.to_owned());
    }

    /// An instance is about to commit: everything before `offset`, and what
    /// `beyond` names, must be closed.
    pub fn commits(&self, instance: &str, partition: i32, offset: i64, beyond: &[i64]) {
        let state = &mut *self.state.lock();
        let from = state.committed.get(&partition).copied().unwrap_or(0);
        for at in (from..offset).chain(beyond.iter().copied()) {
            let violation = match state.read.get(&(partition, at)) {
                None => format!("{instance} commits {offset} {beyond:?} in {partition}, but {at} was never handed out"),
                Some(id) if !state.closed.contains(id) => {
                    format!("{instance} commits {offset} {beyond:?} in {partition}, but {at} ({id}) is open")
                }
                Some(_) => continue,
            };
            state.violations.push(violation);
        }
    }

    /// A transaction was written: everything before `offset` and what `beyond` names is
    /// closed, and nothing else that was read in this partition has left a trace.
    pub fn commits_exactly(&self, instance: &str, partition: i32, offset: i64, beyond: &[i64]) {
        self.commits(instance, partition, offset, beyond);
        let state = &mut *self.state.lock();
        if offset < state.committed.get(&partition).copied().unwrap_or(0) {
            // Told late: another owner has told more since.
            return;
        }
        let unnamed = state.read.range((partition, offset)..(partition + 1, i64::MIN));
        let mut wrong = Vec::new();
        for ((_, at), id) in unnamed.filter(|((_, at), _)| !beyond.contains(at)) {
            // One that was skipped, or gave nothing, may be named later.
            if state.written.contains(id) {
                wrong
                    .push(format!("{instance} commits {offset} {beyond:?} in {partition}, but {at} ({id}) is written"));
            }
        }
        state.violations.append(&mut wrong);
    }

    /// The commit was written.
    pub fn committed(&self, partition: i32, offset: i64) {
        let state = &mut *self.state.lock();
        let committed = state.committed.entry(partition).or_default();
        *committed = offset.max(*committed);
    }

    /// So many deliveries are open in one instance, of at most so many.
    pub fn open(&self, instance: &str, open: usize, most: usize) {
        let state = &mut *self.state.lock();
        state.most_open = state.most_open.max(open);
        if open > most {
            state.violations.push(format!("{instance} has {open} open deliveries; {most} are allowed"));
        }
    }

    pub fn most_open(&self) -> usize {
        self.state.lock().most_open
    }

    /// Attempts in all.
    pub fn attempts(&self) -> u32 {
        self.state.lock().attempts.values().sum()
    }

    /// How often work on a document began.
    pub fn attempts_of(&self, id: &str) -> u32 {
        self.state.lock().attempts.get(id).copied().unwrap_or(0)
    }
}

impl State {
    fn lane(&self, id: &str) -> String {
        let Some(wanted) = self.wanted.get(id) else { return id.to_owned() };
        match self.ordering {
            Ordering::Key => format!("key {}", wanted.key),
            Ordering::Partition => format!("partition {}", wanted.partition),
            Ordering::None => id.to_owned(),
        }
    }
}
