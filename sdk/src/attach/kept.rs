//! The assignment on disk: what an instance was last told, so that it goes on
//! after a restart although no engine answers.
//!
//! Written whole or not at all. Secrets are not in it: step bodies carry them
//! unexpanded. Knows nothing of who sent the assignment.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pipedoc_model::names::{ClusterName, Generation, StepId};
use pipedoc_model::plan::hash_of;
use serde::{Deserialize, Serialize};

/// An assignment with all its bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its generation. On disk: the one that began to do this. Later ones that do the
    /// same are not written, so an instance that restarts may remember an older one.
    pub generation: Generation,
    /// The cluster that it belongs to.
    pub cluster: ClusterName,
    /// The log that it was taken for; empty when that was not known.
    #[serde(default)]
    pub log: String,
    /// Every step, in the assignment's order.
    pub steps: Vec<KeptStep>,
}

impl Kept {
    /// Whether it differs from another one in its generation at most.
    #[must_use]
    pub fn does_the_same_as(&self, other: &Self) -> bool {
        (&self.cluster, &self.log, &self.steps) == (&other.cluster, &other.log, &other.steps)
    }
}

/// One step of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptStep {
    /// Which step.
    pub id: StepId,
    /// SHA-256 of the body, in hex.
    pub hash: String,
    /// The body, exactly as it was sent.
    pub body: String,
}

/// Where an instance keeps its assignment.
#[derive(Debug, Clone)]
pub struct KeptFile(PathBuf);

impl KeptFile {
    /// `assignment.json` in an instance's folder.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self(folder.join("assignment.json"))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What was kept; `None` when nothing was.
    ///
    /// # Errors
    /// When the file cannot be read or is not what [`save`](Self::save) wrote.
    pub fn load(&self) -> io::Result<Option<Kept>> {
        let text = match std::fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let kept: Kept = serde_json::from_slice(&text)?;
        match kept.steps.iter().find(|step| hash_of(&step.body) != step.hash) {
            None => Ok(Some(kept)),
            Some(step) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the body of step {} does not have the hash {}", step.id, step.hash),
            )),
        }
    }

    /// Replaces what was kept. Returns when it will survive a power failure.
    ///
    /// # Errors
    /// When the folder cannot be written; what was kept before is then still there.
    pub fn save(&self, kept: &Kept) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(kept)?;
        text.push(b'\n');
        write_whole(&self.0, &text)
    }
}

/// Writes a file so that it has either its old content or the new one, whatever
/// happens: a temporary file beside it, made durable, then renamed.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&temporary, path)?;
    // The rename is durable once its folder is.
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
