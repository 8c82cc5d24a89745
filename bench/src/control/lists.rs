//! Lists of steps as simulated instances hold them: each list once, whoever has it.
//!
//! Real instances each keep their own; here a thousand of them share a process
//! that is not what is measured. What is told by changes is put together and its
//! hash checked as an instance does it, only not again for each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use anyhow::ensure;
use parking_lot::Mutex;
use pipedoc_model::assignment::list_hash;
use pipedoc_model::plan::hash_of;
use pipedoc_proto::v1::{AssignedStep, Assignment, StepBody};

/// A list of steps.
#[derive(Debug)]
pub struct List {
    /// Its hash.
    pub hash: String,
    /// Hash of what each step has to do, by pipeline and step.
    pub steps: BTreeMap<(String, String), String>,
}

impl List {
    /// A list of these steps.
    pub fn new(steps: BTreeMap<(String, String), String>) -> Self {
        let hash =
            list_hash(steps.iter().map(|((pipeline, step), hash)| (pipeline.as_str(), step.as_str(), hash.as_str())));
        Self { hash, steps }
    }
}

/// All lists that somebody holds, and the bodies that were found to be what their
/// hashes say.
#[derive(Debug, Default)]
pub struct Lists {
    known: Mutex<HashMap<String, Weak<List>>>,
    sound: Mutex<HashSet<String>>,
}

impl Lists {
    /// The list that an assignment stands for, told by changes of `base` or whole.
    ///
    /// # Errors
    /// When it changes another list, or something else comes out than its hash says.
    pub fn take(&self, base: &Arc<List>, assignment: &Assignment) -> anyhow::Result<Arc<List>> {
        let from = (!assignment.base_hash.is_empty()).then_some(base);
        if let Some(base) = from {
            ensure!(assignment.base_hash == base.hash, "it changes another list than was told");
            if assignment.list_hash == base.hash {
                return Ok(Arc::clone(base));
            }
        }
        // Held while the list is put together, so that it is done once.
        let mut known = self.known.lock();
        if let Some(list) = known.get(&assignment.list_hash).and_then(Weak::upgrade) {
            return Ok(list);
        }
        let mut steps = from.map(|base| base.steps.clone()).unwrap_or_default();
        for gone in &assignment.gone {
            let (pipeline, step) = gone.split_once('/').unwrap_or((gone, ""));
            steps.remove(&(pipeline.to_owned(), step.to_owned()));
        }
        for AssignedStep { pipeline, step, hash } in &assignment.steps {
            steps.insert((pipeline.clone(), step.clone()), hash.clone());
        }
        let list = Arc::new(List::new(steps));
        ensure!(list.hash == assignment.list_hash, "the list is not what its hash says");
        known.retain(|_, list| list.strong_count() > 0);
        known.insert(list.hash.clone(), Arc::downgrade(&list));
        Ok(list)
    }

    /// Checks that a body is what its hash says.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, body: &StepBody) -> anyhow::Result<()> {
        if !self.sound.lock().contains(&body.hash) {
            ensure!(hash_of(&body.json) == body.hash, "a body is not what its hash says");
            self.sound.lock().insert(body.hash.clone());
        }
        Ok(())
    }
}
