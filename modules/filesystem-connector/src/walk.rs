//! Walks the folder in the order of document ids, so that it can be compared with
//! the state entry by entry. Holds one sorted list per open folder, never the tree.
//!
//! Within a folder, a folder's name counts with a `/` behind it: that gives exactly
//! the byte order of the ids of all that is below.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::id;
use crate::known::Stat;
use crate::select::Selection;

/// An object sink keeps its own files in a folder of this name, where it writes to.
const SINK_MARK: &str = ".pipedoc-sink";

/// Something that is in the folder.
#[derive(Debug)]
pub enum Found {
    /// A file that is to be read.
    File {
        /// Id of its document.
        id: String,
        /// Where it lies.
        path: PathBuf,
        /// What it looks like.
        stat: Stat,
    },
    /// A file or folder that cannot be looked at.
    Trouble {
        /// Id that stands for it; a folder's ends in `/`.
        id: String,
        /// Where it lies.
        path: PathBuf,
        /// What it looks like; all zero when not even that is known.
        stat: Stat,
        /// Why.
        error: io::Error,
    },
}

impl Found {
    /// Its id.
    pub fn id(&self) -> &str {
        match self {
            Self::File { id, .. } | Self::Trouble { id, .. } => id,
        }
    }
}

/// What a path is.
#[derive(Debug)]
pub enum Kind {
    /// A regular file.
    File(Metadata),
    /// A folder.
    Folder(Metadata),
    /// Nothing that is ever read: a device, a pipe, a link that is not followed,
    /// nothing at all.
    Other,
}

/// Where and how to walk.
#[derive(Debug)]
pub struct Ground {
    /// The folder, absolute.
    pub root: PathBuf,
    /// What is before each id.
    pub id_prefix: String,
    /// Which files are read.
    pub selection: Selection,
    /// Whether symbolic links are followed.
    pub follow_symlinks: bool,
    /// Lists a folder: [`list`], but in tests.
    pub list: fn(&Path) -> io::Result<Vec<PathBuf>>,
}

/// The paths in a folder, in any order.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

impl Ground {
    /// The whole folder.
    ///
    /// # Errors
    /// When the folder itself cannot be listed: then nothing is known of any file.
    pub fn walk(&self) -> io::Result<Walk<'_>> {
        let mut walk = Walk { ground: self, levels: Vec::new() };
        let identity = identity(&fs::metadata(&self.root)?);
        let entries = walk.entries(&self.root, &self.id_prefix, identity)?;
        walk.levels.push(Level { entries: entries.unwrap_or_default(), identity });
        Ok(walk)
    }

    /// All that is in one folder below.
    pub fn walk_below(&self, folder: PathBuf, metadata: &Metadata) -> Walk<'_> {
        let key = format!("{}/", self.id(&folder));
        let entry = Entry { id: key, path: folder, kind: EntryKind::Folder(identity(metadata)) };
        Walk { ground: self, levels: vec![Level { entries: vec![entry], identity: (0, 0) }] }
    }

    /// The id that stands for a path in the folder.
    pub fn id(&self, path: &Path) -> String {
        format!("{}{}", self.id_prefix, id::of(self.relative(path)))
    }

    /// A path from the folder.
    pub fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// What a path is now.
    ///
    /// # Errors
    /// When that cannot be told; something that is not there is [`Kind::Other`].
    pub fn kind(&self, path: &Path) -> io::Result<Kind> {
        let metadata = if self.follow_symlinks { fs::metadata(path) } else { fs::symlink_metadata(path) };
        match metadata {
            Ok(metadata) if metadata.is_file() => Ok(Kind::File(metadata)),
            Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder(metadata)),
            Ok(_) => Ok(Kind::Other),
            // A link to nothing is there, although what it points to is not.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                Ok(Kind::Other)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a walk over the whole folder would come to this path, going by names
    /// and marks alone.
    pub fn comes_to(&self, path: &Path) -> bool {
        let relative = self.relative(path);
        relative
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
            .all(|folder| self.selection.folder(folder) && !self.root.join(folder).join(SINK_MARK).exists())
    }
}

/// A walk over the folder; an iterator in the order of ids.
#[derive(Debug)]
pub struct Walk<'g> {
    ground: &'g Ground,
    levels: Vec<Level>,
}

/// An open folder.
#[derive(Debug)]
struct Level {
    /// What is still to come, last first.
    entries: Vec<Entry>,
    /// The folder itself, to see when a link leads back into it.
    identity: Identity,
}

#[derive(Debug)]
struct Entry {
    id: String,
    path: PathBuf,
    kind: EntryKind,
}

#[derive(Debug)]
enum EntryKind {
    File(Stat),
    Folder(Identity),
    Trouble(io::Error),
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

impl Walk<'_> {
    /// What is to be looked at in a folder, in reverse order; none if the folder is
    /// not to be read after all.
    fn entries(&self, folder: &Path, prefix: &str, identity: Identity) -> io::Result<Option<Vec<Entry>>> {
        if self.levels.iter().any(|level| level.identity == identity) {
            return Ok(None);
        }
        let paths = (self.ground.list)(folder)?;
        let is_root = folder == self.ground.root;
        if !is_root && paths.iter().any(|path| path.file_name().is_some_and(|name| name == SINK_MARK)) {
            return Ok(None);
        }
        let mut entries: Vec<_> = paths.into_iter().filter_map(|path| self.entry(path, prefix)).collect();
        entries.sort_unstable_by(|a, b| b.id.cmp(&a.id));
        Ok(Some(entries))
    }

    fn entry(&self, path: PathBuf, prefix: &str) -> Option<Entry> {
        let selection = &self.ground.selection;
        let relative = self.ground.relative(&path);
        let id = format!("{prefix}{}", id::encode(path.file_name()?.as_bytes()));
        match self.ground.kind(&path) {
            Ok(Kind::File(metadata)) if selection.file(relative) => {
                Some(Entry { id, path, kind: EntryKind::File(Stat::of(&metadata)) })
            }
            Ok(Kind::Folder(metadata)) if selection.folder(relative) => {
                Some(Entry { id: id + "/", path, kind: EntryKind::Folder(identity(&metadata)) })
            }
            Err(error) if selection.file(relative) => Some(Entry { id, path, kind: EntryKind::Trouble(error) }),
            _ => None,
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let Some(Entry { id, path, kind }) = self.levels.last_mut()?.entries.pop() else {
                self.levels.pop();
                continue;
            };
            match kind {
                EntryKind::File(stat) => return Some(Found::File { id, path, stat }),
                EntryKind::Trouble(error) => return Some(trouble(id, path, error)),
                EntryKind::Folder(identity) => match self.entries(&path, &id, identity) {
                    Ok(Some(entries)) => self.levels.push(Level { entries, identity }),
                    Ok(None) => {}
                    // Deleted since its parent was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Some(trouble(id, path, error)),
                },
            }
        }
    }
}

/// Something that cannot be looked at.
pub fn trouble(id: String, path: PathBuf, error: io::Error) -> Found {
    let stat = fs::symlink_metadata(&path).map(|metadata| Stat::of(&metadata)).unwrap_or_default();
    Found::Trouble { id, path, stat, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn ground(root: &Path, follow_symlinks: bool) -> Ground {
        let selection = Selection::new(&[], &["skip".into()], true).unwrap();
        Ground { root: root.to_owned(), id_prefix: "p/".into(), selection, follow_symlinks, list }
    }

    fn ids(ground: &Ground) -> Vec<String> {
        ground.walk().unwrap().map(|found| found.id().to_owned()).collect()
    }

    fn write(root: &Path, paths: &[&str]) {
        for path in paths {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn files_come_in_the_order_of_their_ids() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["a.txt", "a/z", "a0", "a/b/c", "a/b.c", "B", ".hidden", "skip/x", ".pipedoc/y", "ä#"]);
        let found = ids(&ground(root.path(), false));
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(found, sorted);
        assert_eq!(found, ["p/.hidden", "p/B", "p/a.txt", "p/a/b.c", "p/a/b/c", "p/a/z", "p/a0", "p/ä%23"]);
    }

    #[test]
    fn links_are_passed_over_unless_they_are_to_be_followed() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["real/file"]);
        symlink("real/file", root.path().join("link")).unwrap();
        symlink("real", root.path().join("folder")).unwrap();
        symlink("..", root.path().join("real/loop")).unwrap();
        symlink("nowhere", root.path().join("broken")).unwrap();
        assert_eq!(ids(&ground(root.path(), false)), ["p/real/file"]);
        // The loop ends where it comes back to a folder that it is in.
        assert_eq!(ids(&ground(root.path(), true)), ["p/broken", "p/folder/file", "p/link", "p/real/file"]);
    }

    #[test]
    fn what_an_object_sink_wrote_inside_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["in/file", "out/file.json", "out/.pipedoc-sink/tombstones/x"]);
        assert_eq!(ids(&ground(root.path(), false)), ["p/in/file"]);
    }

    #[test]
    fn a_folder_that_cannot_be_listed_is_trouble_and_the_walk_goes_on() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &["a", "locked/x", "z"]);
        let refuse = |path: &Path| {
            if path.ends_with("locked") { Err(io::ErrorKind::PermissionDenied.into()) } else { list(path) }
        };
        let ground = Ground { list: refuse, ..ground(root.path(), false) };
        assert_eq!(ids(&ground), ["p/a", "p/locked/", "p/z"]);
    }
}
