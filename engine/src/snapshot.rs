//! Reads all that a reconciliation looks at from the store, at once.
//!
//! Values that never change are read once and kept, and shared by all who look at
//! them: there may be hundreds of pipelines, of which one changes at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use pipedoc_model::names::{ModuleName, PipelineName};
use pipedoc_model::registry::Modules;

use crate::catalog::{Catalog, CurrentHead, Head, Note, Revision, Wishes};
use crate::store::{self, InboxEntry, Key};

/// So many values are read at once: an engine that starts reads hundreds.
const AT_ONCE: usize = 8;

/// The store's state at a moment.
///
/// Notes are read before the head and the head before the inbox: what another
/// engine does meanwhile then looks undone to us at worst, and doing it again
/// changes nothing.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) notes: BTreeMap<String, Note>,
    pub(crate) current: Option<CurrentHead>,
    pub(crate) facts: Facts,
    pub(crate) inbox: store::Result<Vec<InboxEntry>>,
}

impl Snapshot {
    /// Text of an entry of the inbox.
    pub(crate) fn entry_text(&self, name: &str) -> Option<&str> {
        let entry = self.inbox.as_ref().ok()?.iter().find(|entry| entry.name == name)?;
        entry.text.as_deref().ok()
    }
}

/// What a head refers to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) revisions: BTreeMap<PipelineName, (u64, Arc<Revision>)>,
    pub(crate) wishes: BTreeMap<PipelineName, (u64, Arc<Wishes>)>,
    pub(crate) modules: Arc<Modules>,
}

/// Reads snapshots, remembering what never changes.
pub(crate) struct Reader {
    catalog: Catalog,
    /// In which life of the store they were read.
    born: String,
    revisions: BTreeMap<PipelineName, (u64, Arc<Revision>)>,
    wishes: BTreeMap<PipelineName, (u64, Arc<Wishes>)>,
    /// The registrations with their numbers.
    modules: (BTreeMap<ModuleName, u64>, Arc<Modules>),
}

impl Reader {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            born: String::new(),
            revisions: BTreeMap::new(),
            wishes: BTreeMap::new(),
            modules: Default::default(),
        }
    }

    pub(crate) async fn snapshot(&mut self) -> store::Result<Snapshot> {
        let notes = self.catalog.notes().await?;
        let current = self.catalog.head().await?;
        let facts = self.facts(current.as_ref().map(|current| &current.head)).await?;
        let inbox = self.catalog.store().inbox().await;
        Ok(Snapshot { notes, current, facts, inbox })
    }

    /// What a head refers to. Without a head: the modules that ever registered.
    pub(crate) async fn facts(&mut self, head: Option<&Head>) -> store::Result<Facts> {
        let born = head.map_or("", |head| &head.born);
        if born != self.born {
            // The store has lost its data, or had none: numbers begin anew.
            *self = Self { born: born.to_owned(), ..Self::new(self.catalog.clone()) };
        }
        let Some(head) = head else {
            *self = Self::new(self.catalog.clone());
            let newest = self.catalog.newest_modules().await?;
            return Ok(Facts { modules: self.modules(&newest).await?, ..Facts::default() });
        };
        if self.born != head.born {
            *self = Self { born: head.born.clone(), ..Self::new(self.catalog.clone()) };
        }
        let modules = self.modules(&head.modules).await?;
        self.revisions.retain(|name, _| head.pipelines.contains_key(name));
        let known = |name: &PipelineName, number: u64| self.revisions.get(name).is_some_and(|known| known.0 == number);
        let new: Vec<_> = head.pipelines.iter().filter(|(name, number)| !known(name, **number)).collect();
        let catalog = self.catalog.clone();
        let read = async |(name, number): (&PipelineName, &u64)| {
            let revision = catalog.revision(name, *number).await?;
            let revision = revision.ok_or_else(|| missing(&["revisions", name.as_str(), &number.to_string()]))?;
            Ok::<_, store::Error>((name.clone(), (*number, Arc::new(revision))))
        };
        let new: Vec<_> = futures::stream::iter(new).map(read).buffer_unordered(AT_ONCE).try_collect().await?;
        self.revisions.extend(new);
        self.wishes.retain(|name, _| head.controls.contains_key(name));
        for (name, number) in &head.controls {
            if self.wishes.get(name).is_none_or(|known| known.0 != *number)
                && let Some(wishes) = self.catalog.wishes(name, *number).await?
            {
                self.wishes.insert(name.clone(), (*number, Arc::new(wishes)));
            }
        }
        // One that is named and gone wishes nothing, whatever was wished before.
        self.wishes.retain(|name, (number, _)| head.controls.get(name) == Some(number));
        Ok(Facts { revisions: self.revisions.clone(), wishes: self.wishes.clone(), modules })
    }

    async fn modules(&mut self, numbers: &BTreeMap<ModuleName, u64>) -> store::Result<Arc<Modules>> {
        if self.modules.0 != *numbers {
            let mut modules = Modules::new();
            for (name, number) in numbers {
                let info = match self.modules.1.get(name) {
                    Some(info) if self.modules.0.get(name) == Some(number) => info.clone(),
                    _ => self
                        .catalog
                        .module(name, *number)
                        .await?
                        .ok_or_else(|| missing(&["modules", name.as_str(), &number.to_string()]))?,
                };
                modules.insert(name.clone(), info);
            }
            self.modules = (numbers.clone(), Arc::new(modules));
        }
        Ok(Arc::clone(&self.modules.1))
    }
}

fn missing(key: &[&str]) -> store::Error {
    let key = Key::new(key);
    let source = std::sync::Arc::new(std::io::Error::other("the head names it, but it is not there"));
    store::Error::Unreadable { key, source }
}
