//! The folder that the sink writes to. Whatever becomes visible in it is whole:
//! files are written elsewhere on the same file system and renamed into place.
//!
//! Blocks; knows nothing of documents.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use url::Url;

use crate::error::Error;

/// The sink's own folder within its folder. The filesystem connector knows it by
/// this name, and reads nothing where it is.
pub const OWN: &str = ".pipedoc-sink";
/// Files left behind by a process that was killed are removed when this old.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// A folder to write to.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    temporary: PathBuf,
    fsync: bool,
    /// Tells this process's files from those of others.
    nonce: String,
    count: AtomicU64,
}

impl Place {
    /// Opens the folder of a URL, makes it if it is missing, and sees whether it can
    /// be written to.
    pub fn open(url: &str, fsync: bool) -> Result<Self, Error> {
        let root = folder(url)?;
        let temporary = root.join(OWN).join("tmp");
        let usable = fs::create_dir_all(&temporary).and_then(|()| std::path::absolute(&root));
        let root = usable.map_err(|source| Error::Folder { path: root, source })?;
        let place = Self { temporary, nonce: nonce(), count: AtomicU64::new(0), fsync, root };
        let trial = place.write_temporary(&[b"x"]);
        match trial {
            Ok(trial) => drop(fs::remove_file(trial)),
            Err(Error::Io { source, .. }) => return Err(Error::Folder { path: place.root, source }),
            Err(error) => return Err(error),
        }
        remove_older(&place.temporary, LEFT_BEHIND);
        Ok(place)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A word that no other process uses.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Writes a file, whole or not at all; replaces one that is there. `relative`
    /// counts from the folder.
    pub fn write(&self, relative: &Path, content: &[&[u8]]) -> Result<(), Error> {
        let temporary = self.write_temporary(content)?;
        self.put(&temporary, relative)
    }

    /// Writes what is given to a file that nobody sees yet.
    fn write_temporary(&self, content: &[&[u8]]) -> Result<PathBuf, Error> {
        let (path, mut file) = self.temporary_file()?;
        let written = content.iter().try_for_each(|part| file.write_all(part)).and_then(|()| self.sync(&file));
        written.map_err(|source| {
            let _ = fs::remove_file(&path);
            Error::Io { what: "written", path: path.clone(), source }
        })?;
        Ok(path)
    }

    /// A new file that nobody sees yet.
    pub fn temporary_file(&self) -> Result<(PathBuf, File), Error> {
        let path = self.temporary.join(format!("{}-{}", self.nonce, self.count.fetch_add(1, Ordering::Relaxed)));
        let create = || File::create_new(&path);
        let file = create().or_else(|error| match error.kind() {
            // Somebody has cleaned up.
            io::ErrorKind::NotFound => fs::create_dir_all(&self.temporary).and_then(|()| create()),
            _ => Err(error),
        });
        file.map_err(Error::io("written", &path)).map(|file| (path.clone(), file))
    }

    /// Puts a file that was written whole into its place.
    pub fn put(&self, temporary: &Path, relative: &Path) -> Result<(), Error> {
        let path = self.root.join(relative);
        let folder = path.parent().unwrap_or(&self.root);
        let mut renamed = fs::rename(temporary, &path);
        // The folder may be missing, and may be removed again, being empty, by
        // another thread before the file is in it.
        for _ in 0..16 {
            match &renamed {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                _ => break,
            }
            renamed = fs::create_dir_all(folder).and_then(|()| fs::rename(temporary, &path));
        }
        let renamed = renamed.and_then(|()| if self.fsync { File::open(folder)?.sync_all() } else { Ok(()) });
        renamed.map_err(|source| {
            let _ = fs::remove_file(temporary);
            Error::Io { what: "written", path, source }
        })
    }

    /// Makes sure that a file's content is on the disk, if that is asked for.
    pub fn sync(&self, file: &File) -> io::Result<()> {
        if self.fsync { file.sync_data() } else { Ok(()) }
    }

    /// A file to read; none when it is not there.
    pub fn read(&self, relative: &Path) -> Result<Option<File>, Error> {
        let path = self.root.join(relative);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Removes a file, if it is there, and the folders that are empty without it.
    pub fn remove(&self, relative: &Path) -> Result<(), Error> {
        let path = self.root.join(relative);
        match fs::remove_file(&path) {
            Err(error) if !is_absent(&error) => Err(Error::io("removed", &path)(error)),
            Err(_) => Ok(()),
            Ok(()) => self.tidy(&path),
        }
    }

    /// Removes a folder with all that is in it, if it is there, and the folders that
    /// are empty without it.
    pub fn remove_tree(&self, relative: &Path) -> Result<(), Error> {
        let path = self.root.join(relative);
        match fs::remove_dir_all(&path) {
            Err(error) if !is_absent(&error) => Err(Error::io("removed", &path)(error)),
            Err(_) => Ok(()),
            Ok(()) => self.tidy(&path),
        }
    }

    /// After something was removed: removes empty folders above it, and makes sure
    /// that what is gone stays gone.
    fn tidy(&self, removed: &Path) -> Result<(), Error> {
        let mut folder = removed.parent().unwrap_or(&self.root);
        while folder != self.root && fs::remove_dir(folder).is_ok() {
            folder = folder.parent().unwrap_or(&self.root);
        }
        if self.fsync {
            match File::open(folder).and_then(|folder| folder.sync_all()) {
                Err(error) if !is_absent(&error) => return Err(Error::io("removed", removed)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes files in a folder, and below, that were not changed for so long. What
/// cannot be removed stays: this is only cleaning up.
pub fn remove_older(folder: &Path, age: Duration) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                remove_older(&path, age);
                let _ = fs::remove_dir(&path);
            }
            Ok(metadata) => {
                let changed = metadata.modified().unwrap_or_else(|_| SystemTime::now());
                if changed.elapsed().unwrap_or_default() > age {
                    let _ = fs::remove_file(&path);
                }
            }
            Err(_) => {}
        }
    }
}

/// The folder that a URL or path names.
pub fn folder(url: &str) -> Result<PathBuf, Error> {
    match Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => {
            parsed.to_file_path().map_err(|()| Error::Unsupported(url.to_owned()))
        }
        Ok(_) if url.contains("://") => Err(Error::Unsupported(url.to_owned())),
        _ if url.is_empty() => Err(Error::Unsupported(url.to_owned())),
        _ => Ok(PathBuf::from(url)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    // A fresh random state is the standard library's source of randomness.
    let random = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
    format!("{random:016x}")
}
