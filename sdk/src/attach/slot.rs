//! Which instance this process is.
//!
//! The processes of a machine share a data folder. Each takes the lowest free
//! slot `instances/<module>/<n>/` by a lock on a file in it, which the operating
//! system drops when the process ends, however it ends. The instance's id lies in
//! the slot, made once: two processes never share an identity, and a restarted
//! one finds its own. Knows nothing of what else lies there.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use pipedoc_model::names::ModuleName;
use uuid::Uuid;

/// More instances of one module on one machine than this are taken for a mistake.
const MOST_SLOTS: u32 = 10_000;

/// Why a process gets no slot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the slot cannot be used.
    #[error("{operation} {} failed; check that the data folder may be written (--data, PIPEDOC_DATA)", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// All slots are taken.
    #[error("all {MOST_SLOTS} slots in {} are taken", folder.display())]
    Full {
        /// The module's folder.
        folder: PathBuf,
    },
}

/// A slot, held until it is dropped.
#[derive(Debug)]
pub struct Slot {
    folder: PathBuf,
    number: u32,
    id: Uuid,
    /// Holds the lock.
    _lock: File,
}

impl Slot {
    /// Takes the lowest free slot of a module below the data folder, making the
    /// folders and the id where they are missing.
    ///
    /// # Errors
    /// When the data folder cannot be written, or thousands of slots are taken.
    pub fn take(data: &Path, module: &ModuleName) -> Result<Self, Error> {
        let instances = data.join("instances").join(module.as_str());
        for number in 0..MOST_SLOTS {
            let folder = instances.join(number.to_string());
            if let Some(lock) = lock(&folder)? {
                let id = identity(&folder)?;
                return Ok(Self { folder, number, id, _lock: lock });
            }
        }
        Err(Error::Full { folder: instances })
    }

    /// The folder that belongs to this instance alone.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of the slot, from 0.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Id of the instance, random, made once.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }
}

/// Locks a slot's file; `None` when another process has it.
fn lock(folder: &Path) -> Result<Option<File>, Error> {
    std::fs::create_dir_all(folder).map_err(failed("making folder", folder))?;
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed("opening lock file", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed("locking", &path)(source)),
    }
}

/// Reads the slot's id, or makes it. Called with the lock held.
fn identity(folder: &Path) -> Result<Uuid, Error> {
    let path = folder.join("id");
    match std::fs::read_to_string(&path) {
        Ok(text) => match Uuid::try_parse(text.trim()) {
            Ok(id) => return Ok(id),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the instance's id cannot be read; making a new one")
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("reading", &path)(error)),
    }
    let id = Uuid::new_v4();
    super::kept::write_whole(&path, format!("{id}\n").as_bytes()).map_err(failed("writing", &path))?;
    Ok(id)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { operation, path, source }
}
