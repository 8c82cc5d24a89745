//! Reads all that a reconciliation looks at from the store, at once.
//!
//! Values that never change are read once and kept.

use std::collections::BTreeMap;

use pipedoc_model::names::{ModuleName, PipelineName};
use pipedoc_model::registry::{ModuleInfo, Modules};

use crate::catalog::{Catalog, CurrentHead, Head, Note, Revision, Wishes};
use crate::store::{self, InboxEntry, Key};

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
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Facts {
    pub(crate) revisions: BTreeMap<PipelineName, (u64, Revision)>,
    pub(crate) wishes: BTreeMap<PipelineName, Wishes>,
    pub(crate) modules: Modules,
}

/// Reads snapshots, remembering what never changes.
pub(crate) struct Reader {
    catalog: Catalog,
    revisions: BTreeMap<PipelineName, (u64, Revision)>,
    modules: BTreeMap<ModuleName, (u64, ModuleInfo)>,
}

impl Reader {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self { catalog, revisions: BTreeMap::new(), modules: BTreeMap::new() }
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
        let mut facts = Facts::default();
        let modules = match head {
            Some(head) => head.modules.clone(),
            None => self.catalog.newest_modules().await?,
        };
        for (name, number) in modules {
            if self.modules.get(&name).is_none_or(|known| known.0 != number) {
                let info = self.catalog.module(&name, number).await?;
                let info = info.ok_or_else(|| missing(&["modules", name.as_str(), &number.to_string()]))?;
                self.modules.insert(name.clone(), (number, info));
            }
            if let Some((_, info)) = self.modules.get(&name) {
                facts.modules.insert(name, info.clone());
            }
        }
        let Some(head) = head else { return Ok(facts) };
        for (name, number) in &head.pipelines {
            if self.revisions.get(name).is_none_or(|known| known.0 != *number) {
                let revision = self.catalog.revision(name, *number).await?;
                let revision = revision.ok_or_else(|| missing(&["revisions", name.as_str(), &number.to_string()]))?;
                self.revisions.insert(name.clone(), (*number, revision));
            }
        }
        self.revisions.retain(|name, _| head.pipelines.contains_key(name));
        facts.revisions = self.revisions.clone();
        for (name, number) in &head.controls {
            if let Some(wishes) = self.catalog.wishes(name, *number).await? {
                facts.wishes.insert(name.clone(), wishes);
            }
        }
        Ok(facts)
    }
}

fn missing(key: &[&str]) -> store::Error {
    let key = Key::new(key);
    let source = std::sync::Arc::new(std::io::Error::other("the head names it, but it is not there"));
    store::Error::Unreadable { key, source }
}
