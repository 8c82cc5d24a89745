//! What the store's keys mean: the head, revisions, registrations, notes on the inbox.
//!
//! Knows how values are named and written; decides nothing.

mod revision;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pipedoc_model::names::{Generation, ModuleName, PipelineName, StepName};
use pipedoc_model::plan::Controls;
use pipedoc_model::registry::ModuleInfo;
use pipedoc_model::step::ControlState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::revision::{Made, Revision, Road};
use crate::store::{Error, Expected, Key, Lease, Result, Store, Value, Version};

/// So many revisions of a pipeline are kept.
pub const KEPT_REVISIONS: usize = 50;

/// Version of what this version of PipeDoc writes into a store. A head of a higher
/// one is left alone: whoever changes the form of any value raises it.
const FORMAT: u32 = 1;

/// The one value that says what is to run. Whoever changes it makes its
/// generation greater.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Counts the changes; only grows.
    pub generation: Generation,
    /// Random, made with a store's first head and kept since: when a store has lost
    /// its data, numbers begin anew, and what was read before it stands for nothing.
    #[serde(default)]
    pub born: String,
    /// Current revision of each pipeline.
    pub pipelines: BTreeMap<PipelineName, u64>,
    /// Pipelines that were deleted and have not come back.
    #[serde(default)]
    pub deleted: BTreeMap<PipelineName, Deleted>,
    /// Current wishes of operators for each pipeline; none: all of it runs.
    #[serde(default)]
    pub controls: BTreeMap<PipelineName, u64>,
    /// Newest registration of each module.
    #[serde(default)]
    pub modules: BTreeMap<ModuleName, u64>,
}

impl Head {
    /// The revision that the next one of a pipeline replaces; of a deleted pipeline
    /// its last one; 0: none.
    #[must_use]
    pub fn last_revision(&self, pipeline: &PipelineName) -> u64 {
        let deleted = || self.deleted.get(pipeline).map(|deleted| deleted.revision);
        self.pipelines.get(pipeline).copied().or_else(deleted).unwrap_or(0)
    }
}

/// What is known of a pipeline that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Its last revision, which stays.
    pub revision: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Who did it, as they said; empty when nobody said.
    pub by: String,
}

/// What every version of PipeDoc can read of a head.
#[derive(Deserialize)]
struct Stamp {
    format: u32,
}

/// A head as it is written.
#[derive(Serialize, Deserialize)]
struct Written<T> {
    format: u32,
    head: T,
}

/// A head with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentHead {
    /// The head.
    pub head: Head,
    version: Version,
}

/// What operators want of a pipeline. Never changes; a new wish is a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// Of all of it.
    #[serde(default)]
    pub state: ControlState,
    /// Of single steps.
    #[serde(default)]
    pub steps: BTreeMap<StepName, ControlState>,
}

impl Wishes {
    /// Adds them to what the planner reads.
    pub fn add_to(&self, pipeline: &PipelineName, controls: &mut Controls) {
        controls.pipelines.insert(pipeline.clone(), self.state);
        for (step, state) in &self.steps {
            let id = pipedoc_model::names::StepId::new(pipeline.clone(), step.clone());
            controls.steps.insert(id, *state);
        }
    }
}

/// What became of an inbox entry when it was looked at last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// SHA-256 of its text then.
    pub hash: String,
    /// Pipeline that it was taken for, now or earlier; an entry that was never
    /// taken has none.
    pub pipeline: Option<PipelineName>,
    /// Whether that text was taken; else it was refused.
    pub taken: bool,
    /// Revision of that pipeline which was the current one then; 0: none.
    pub revision: u64,
    /// What a leader is about to do with the entry. One that dies leaves it here, so
    /// that the next one knows whose text it finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
}

/// That the text of an inbox entry is, or will be, a pipeline's current revision: a
/// leader takes it from there, or writes it there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// SHA-256 of the text.
    pub hash: String,
    /// The pipeline.
    pub pipeline: PipelineName,
    /// The revision that the text replaces; 0: none.
    pub replaces: u64,
    /// The revision whose text is written there; none: a text is taken from there.
    pub written: Option<u64>,
}

/// Kinds of values that are written once and counted.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Revision,
    Wishes,
    Module,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Revision => "revisions",
            Self::Wishes => "controls",
            Self::Module => "modules",
        }
    }
}

/// A store, by meaning. Clones are one.
#[derive(Clone)]
pub struct Catalog {
    store: Arc<dyn Store>,
    /// The highest generation that was ever seen here.
    highest: Arc<AtomicU64>,
}

impl Catalog {
    /// Reads and writes this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, highest: Arc::default() }
    }

    /// The store itself.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// The head; `None` when there is none, which means "no news".
    ///
    /// # Errors
    /// When the store cannot be read; [`Error::TooNew`] when a newer version of
    /// PipeDoc wrote the head.
    pub async fn head(&self) -> Result<Option<CurrentHead>> {
        let key = head_key();
        let Some(value) = self.store.get(&key).await? else { return Ok(None) };
        let Stamp { format } = read(&key, &value.text)?;
        if format > FORMAT {
            return Err(Error::TooNew { key, found: format, known: FORMAT });
        }
        let written: Written<Head> = read(&key, &value.text)?;
        self.highest.fetch_max(written.head.generation.0, Ordering::Relaxed);
        Ok(Some(CurrentHead { head: written.head, version: value.version }))
    }

    /// The highest generation of any head that was read here. One that is made anew is
    /// above it, so that the generation grows as long as an engine remembers.
    #[must_use]
    pub fn highest_generation(&self) -> Generation {
        Generation(self.highest.load(Ordering::Relaxed))
    }

    /// Puts a head in the place of `current`. A leader's write carries its lease.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the head is another one by now, [`Error::NotLeading`]
    /// when the lease is over.
    pub async fn set_head(&self, current: Option<&CurrentHead>, next: &Head, lease: Option<&Lease>) -> Result<()> {
        debug_assert!(next.generation > current.map_or(Generation(0), |current| current.head.generation));
        let expected = current.map_or(Expected::Absent, |current| Expected::Is(current.version));
        if current.is_none() {
            self.store.make_inbox().await?;
        }
        let text = write(&head_key(), &Written { format: FORMAT, head: next })?;
        self.store.put(&head_key(), &text, expected, lease).await.map(drop)
    }

    /// Size of a revision as it is written and the most there may be, in bytes, where it
    /// is more than that.
    #[must_use]
    pub fn excess(&self, revision: &Revision) -> Option<(usize, usize)> {
        let limit = self.store.value_limit()?;
        let size = revision.to_text().ok()?.len();
        (size > limit).then_some((size, limit))
    }

    /// Writes a revision and gives its number; the newest one's when that is the same
    /// already: another engine may be about to name it in the head.
    ///
    /// # Errors
    /// When the store cannot be written; [`Error::TooLarge`] when it cannot hold it,
    /// which [`Catalog::excess`] tells before.
    pub async fn add_revision(&self, pipeline: &PipelineName, revision: &Revision) -> Result<u64> {
        let same = |newest: &Revision| newest.repeats(revision);
        self.add(Kind::Revision, pipeline.as_str(), revision, same).await
    }

    /// Removes the revisions before the last [`KEPT_REVISIONS`] that led to `current`.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub async fn forget_old_revisions(&self, pipeline: &PipelineName, current: u64) -> Result<()> {
        let numbers = self.numbers(Kind::Revision, pipeline.as_str()).await?;
        if numbers.len() <= KEPT_REVISIONS {
            return Ok(());
        }
        // One that lost a race has a number too; it must not cost one of the history its place.
        let history = self.history(pipeline, current).await?;
        let Some((oldest, _)) = history.get(KEPT_REVISIONS - 1) else { return Ok(()) };
        for number in numbers.iter().filter(|number| *number < oldest) {
            self.store.remove(&numbered(Kind::Revision, pipeline.as_str(), *number), None).await?;
        }
        Ok(())
    }

    /// A revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn revision(&self, pipeline: &PipelineName, number: u64) -> Result<Option<Revision>> {
        self.find(Kind::Revision, pipeline.as_str(), number).await
    }

    /// The revisions kept that led to `last`, that one first, each after the one that
    /// replaced it. One that lost a race to become the current one is not among them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn history(&self, pipeline: &PipelineName, last: u64) -> Result<Vec<(u64, Revision)>> {
        let prefix = Key::new(&[Kind::Revision.prefix(), pipeline.as_str()]);
        let mut kept = BTreeMap::new();
        for (number, value) in self.store.read_all(&prefix).await? {
            let key = Key::new(&[prefix.as_str(), &number]);
            let Ok(number) = number.parse::<u64>() else { continue };
            kept.insert(number, Revision::from_text(&value.text).map_err(|error| unreadable(&key, error))?);
        }
        let mut history = Vec::new();
        let mut next = last;
        while let Some(revision) = kept.remove(&next) {
            let number = std::mem::replace(&mut next, revision.made.replaces);
            history.push((number, revision));
        }
        Ok(history)
    }

    /// Writes wishes and gives their number; the newest ones' when those are the same.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add_wishes(&self, pipeline: &PipelineName, wishes: &Wishes) -> Result<u64> {
        self.add(Kind::Wishes, pipeline.as_str(), wishes, |newest| newest == wishes).await
    }

    /// Number of the newest wishes; none: nobody had any.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_wishes(&self, pipeline: &PipelineName) -> Result<Option<u64>> {
        Ok(self.numbers(Kind::Wishes, pipeline.as_str()).await?.last().copied())
    }

    /// Operators' wishes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn wishes(&self, pipeline: &PipelineName, number: u64) -> Result<Option<Wishes>> {
        self.find(Kind::Wishes, pipeline.as_str(), number).await
    }

    /// Writes a module's registration and gives its number; the newest one's when
    /// that says the same already.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add_module(&self, info: &ModuleInfo) -> Result<u64> {
        self.add(Kind::Module, info.module.as_str(), info, |newest| newest == info).await
    }

    /// A module's registration.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn module(&self, module: &ModuleName, number: u64) -> Result<Option<ModuleInfo>> {
        self.find(Kind::Module, module.as_str(), number).await
    }

    /// The newest registration's number of every module that ever registered.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_modules(&self) -> Result<BTreeMap<ModuleName, u64>> {
        let mut newest = BTreeMap::new();
        for key in self.store.list(&Key::new(&[Kind::Module.prefix()])).await? {
            let Some((name, number)) = key.split_once('/') else { continue };
            if let (Ok(name), Ok(number)) = (ModuleName::new(name), number.parse()) {
                let known: &mut u64 = newest.entry(name).or_insert(number);
                *known = number.max(*known);
            }
        }
        Ok(newest)
    }

    /// Notes on the inbox, by entry.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn notes(&self) -> Result<BTreeMap<String, Note>> {
        let values = self.store.read_all(&Key::new(&["notes"])).await?;
        let note = |(name, value): (String, Value)| Ok((name.clone(), read(&note_key(&name), &value.text)?));
        values.into_iter().map(note).collect()
    }

    /// Writes a note on an entry of the inbox.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_note(&self, entry: &str, note: &Note, lease: &Lease) -> Result<()> {
        let key = note_key(entry);
        self.store.put(&key, &write(&key, note)?, Expected::Anything, Some(lease)).await.map(drop)
    }

    /// Removes a note.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove_note(&self, entry: &str, lease: &Lease) -> Result<()> {
        self.store.remove(&note_key(entry), Some(lease)).await
    }

    async fn add<T: Form>(&self, kind: Kind, name: &str, value: &T, same: impl Fn(&T) -> bool) -> Result<u64> {
        loop {
            let newest = self.numbers(kind, name).await?.last().copied();
            if let Some(newest) = newest
                && self.find(kind, name, newest).await?.is_some_and(|found| same(&found))
            {
                return Ok(newest);
            }
            let number = newest.unwrap_or(0) + 1;
            let key = numbered(kind, name, number);
            let text = value.to_text().map_err(|error| unreadable(&key, error))?;
            match self.store.put(&key, &text, Expected::Absent, None).await {
                Ok(_) => return Ok(number),
                // Another engine was first with this number.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn find<T: Form>(&self, kind: Kind, name: &str, number: u64) -> Result<Option<T>> {
        let key = numbered(kind, name, number);
        let Some(value) = self.store.get(&key).await? else { return Ok(None) };
        T::from_text(&value.text).map(Some).map_err(|error| unreadable(&key, error))
    }

    async fn numbers(&self, kind: Kind, name: &str) -> Result<Vec<u64>> {
        let keys = self.store.list(&Key::new(&[kind.prefix(), name])).await?;
        let mut numbers: Vec<u64> = keys.iter().filter_map(|key| key.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn head_key() -> Key {
    Key::new(&["head"])
}

fn note_key(entry: &str) -> Key {
    Key::new(&["notes", entry])
}

fn numbered(kind: Kind, name: &str, number: u64) -> Key {
    Key::new(&[kind.prefix(), name, &number.to_string()])
}

/// How a value that is written once is written.
trait Form: Sized {
    fn to_text(&self) -> serde_json::Result<String>;
    fn from_text(text: &str) -> serde_json::Result<Self>;
}

impl Form for Revision {
    fn to_text(&self) -> serde_json::Result<String> {
        Self::to_text(self)
    }

    fn from_text(text: &str) -> serde_json::Result<Self> {
        Self::from_text(text)
    }
}

impl Form for Wishes {
    fn to_text(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    fn from_text(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

impl Form for ModuleInfo {
    fn to_text(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    fn from_text(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }
}

fn read<T: DeserializeOwned>(key: &Key, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| unreadable(key, error))
}

fn write(key: &Key, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| unreadable(key, error))
}

fn unreadable(key: &Key, error: serde_json::Error) -> Error {
    Error::Unreadable { key: key.clone(), source: Arc::new(error) }
}
