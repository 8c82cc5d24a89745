//! What the store's keys mean: the head, revisions, registrations, notes on the inbox.
//!
//! Knows how values are named and written; decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use pipedoc_model::names::{Generation, ModuleName, PipelineName, StepName};
use pipedoc_model::plan::{Controls, hash_of};
use pipedoc_model::registry::ModuleInfo;
use pipedoc_model::step::ControlState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::{Error, Expected, Key, Lease, Result, Store, Value, Version};

/// So many revisions of a pipeline are kept.
pub const KEPT_REVISIONS: usize = 50;

/// The one value that says what is to run. Whoever changes it makes its
/// generation greater.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Counts the changes; only grows.
    pub generation: Generation,
    /// Current revision of each pipeline.
    pub pipelines: BTreeMap<PipelineName, u64>,
    /// Current wishes of operators for each pipeline; none: all of it runs.
    #[serde(default)]
    pub controls: BTreeMap<PipelineName, u64>,
    /// Newest registration of each module.
    #[serde(default)]
    pub modules: BTreeMap<ModuleName, u64>,
}

/// A head with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentHead {
    /// The head.
    pub head: Head,
    version: Version,
}

/// A pipeline as it was applied once. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The text, byte for byte.
    pub text: String,
    /// File or key that it came from, for messages.
    pub file: String,
    /// Values of its variables.
    pub variables: BTreeMap<String, String>,
    /// SHA-256 of the text, in hex.
    pub hash: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub applied_at: i64,
}

impl Revision {
    /// A revision of a text, made at `applied_at`.
    #[must_use]
    pub fn new(text: String, file: String, variables: BTreeMap<String, String>, applied_at: i64) -> Self {
        let hash = hash_of(&text);
        Self { text, file, variables, hash, applied_at }
    }

    /// Whether both say the same.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.hash == other.hash && self.variables == other.variables
    }
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// A store, by meaning.
#[derive(Clone)]
pub struct Catalog(Arc<dyn Store>);

impl Catalog {
    /// Reads and writes this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }

    /// The store itself.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.0.as_ref()
    }

    /// The head; `None` when there is none, which means "no news".
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn head(&self) -> Result<Option<CurrentHead>> {
        let key = head_key();
        let Some(value) = self.0.get(&key).await? else { return Ok(None) };
        Ok(Some(CurrentHead { head: read(&key, &value.text)?, version: value.version }))
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
            self.0.make_inbox().await?;
        }
        self.0.put(&head_key(), &write(&head_key(), next)?, expected, lease).await.map(drop)
    }

    /// Writes a revision and gives its number; the newest one's when that says the
    /// same already: another engine may be about to name it in the head. Old ones
    /// beyond [`KEPT_REVISIONS`] are removed.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add_revision(&self, pipeline: &PipelineName, revision: &Revision) -> Result<u64> {
        let same = |newest: &Revision| newest.same_as(revision);
        let number = self.add(Kind::Revision, pipeline.as_str(), revision, same).await?;
        let numbers = self.numbers(Kind::Revision, pipeline.as_str()).await?;
        let old = numbers.len().saturating_sub(KEPT_REVISIONS);
        for number in &numbers[..old] {
            self.0.remove(&numbered(Kind::Revision, pipeline.as_str(), *number), None).await?;
        }
        Ok(number)
    }

    /// A revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn revision(&self, pipeline: &PipelineName, number: u64) -> Result<Option<Revision>> {
        self.find(Kind::Revision, pipeline.as_str(), number).await
    }

    /// Numbers of the revisions kept, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn revisions(&self, pipeline: &PipelineName) -> Result<Vec<u64>> {
        self.numbers(Kind::Revision, pipeline.as_str()).await
    }

    /// Writes wishes and gives their number; the newest ones' when those are the same.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn add_wishes(&self, pipeline: &PipelineName, wishes: &Wishes) -> Result<u64> {
        self.add(Kind::Wishes, pipeline.as_str(), wishes, |newest| newest == wishes).await
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
        for key in self.0.list(&Key::new(&[Kind::Module.prefix()])).await? {
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
        let values = self.0.read_all(&Key::new(&["notes"])).await?;
        let note = |(name, value): (String, Value)| Ok((name.clone(), read(&note_key(&name), &value.text)?));
        values.into_iter().map(note).collect()
    }

    /// Writes a note on an entry of the inbox.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn set_note(&self, entry: &str, note: &Note, lease: &Lease) -> Result<()> {
        let key = note_key(entry);
        self.0.put(&key, &write(&key, note)?, Expected::Anything, Some(lease)).await.map(drop)
    }

    /// Removes a note.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove_note(&self, entry: &str, lease: &Lease) -> Result<()> {
        self.0.remove(&note_key(entry), Some(lease)).await
    }

    async fn add<T: Serialize + DeserializeOwned>(
        &self,
        kind: Kind,
        name: &str,
        value: &T,
        same: impl Fn(&T) -> bool,
    ) -> Result<u64> {
        loop {
            let newest = self.numbers(kind, name).await?.last().copied();
            if let Some(newest) = newest
                && self.find(kind, name, newest).await?.is_some_and(|found| same(&found))
            {
                return Ok(newest);
            }
            let number = newest.unwrap_or(0) + 1;
            let key = numbered(kind, name, number);
            match self.0.put(&key, &write(&key, value)?, Expected::Absent, None).await {
                Ok(_) => return Ok(number),
                // Another engine was first with this number.
                Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn find<T: DeserializeOwned>(&self, kind: Kind, name: &str, number: u64) -> Result<Option<T>> {
        let key = numbered(kind, name, number);
        self.0.get(&key).await?.map(|value| read(&key, &value.text)).transpose()
    }

    async fn numbers(&self, kind: Kind, name: &str) -> Result<Vec<u64>> {
        let keys = self.0.list(&Key::new(&[kind.prefix(), name])).await?;
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

fn read<T: DeserializeOwned>(key: &Key, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::Unreadable { key: key.clone(), source: Arc::new(error) })
}

fn write(key: &Key, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Unreadable { key: key.clone(), source: Arc::new(error) })
}
