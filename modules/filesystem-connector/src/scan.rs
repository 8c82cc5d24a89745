//! Compares what is in the folder with what the state says, and finds what is to
//! be done. Both come in the order of ids, so the two are merged like sorted lists,
//! and neither is ever in memory whole. Reads no file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use pipedoc_sdk::prelude::*;

use crate::known::{Known, Stat};
use crate::walk::{Found, Ground, Kind, trouble};

/// Keys of the state fetched at once.
const PAGE: usize = 1000;

/// What is to be done about one document.
#[derive(Debug)]
pub enum Finding {
    /// Nothing: the file looks as it did.
    Unchanged {
        /// Its id.
        id: String,
    },
    /// The file must be read.
    Look {
        /// Its id.
        id: String,
        /// Where it lies.
        path: PathBuf,
        /// What it looks like.
        stat: Stat,
        /// What the state says of it.
        known: Option<Known>,
    },
    /// It cannot be looked at.
    Trouble {
        /// Its id.
        id: String,
        /// Where it lies.
        path: PathBuf,
        /// What it looks like.
        stat: Stat,
        /// What the state says of it.
        known: Option<Known>,
        /// Why.
        error: io::Error,
    },
    /// The file is gone.
    Gone {
        /// Its id.
        id: String,
        /// What the state says of it.
        known: Option<Known>,
    },
}

/// Takes findings; false: no more are wanted.
pub type Take<'a> = &'a mut dyn FnMut(Finding) -> bool;

/// Scans the whole folder.
///
/// # Errors
/// When the folder itself cannot be listed, or the state not be read.
pub fn everything(ground: &Ground, state: &State, max_size: u64, take: Take<'_>) -> Result<()> {
    let walk = ground
        .walk()
        .map_err(|error| Error::retryable(error).context(format!("folder {} cannot be read", ground.root.display())))?;
    merge(walk, Keys::below(state, ""), state, max_size, take)
}

/// Scans one path and all that is below it.
///
/// # Errors
/// When the state cannot be read.
pub fn path(ground: &Ground, path: &Path, state: &State, max_size: u64, take: Take<'_>) -> Result<()> {
    let relative = ground.relative(path);
    let id = ground.id(path);
    let below = format!("{id}/");
    let kind = if ground.comes_to(path) { ground.kind(path) } else { Ok(Kind::Other) };
    let at_path = match kind {
        Ok(Kind::Folder(metadata)) if ground.selection.folder(relative) => {
            let walk = ground.walk_below(path.to_owned(), &metadata);
            merge([], Keys::only(state, &id)?, state, max_size, take)?;
            return merge(walk, Keys::below(state, &below), state, max_size, take);
        }
        Ok(Kind::File(metadata)) if ground.selection.file(relative) => {
            Some(Found::File { id: id.clone(), path: path.to_owned(), stat: Stat::of(&metadata) })
        }
        Err(error) if ground.selection.file(relative) => {
            let found = trouble(id.clone(), path.to_owned(), error);
            return merge([found], Keys::only(state, &id)?, state, max_size, take);
        }
        _ => None,
    };
    merge(at_path, Keys::only(state, &id)?, state, max_size, take)?;
    merge([], Keys::below(state, &below), state, max_size, take)
}

fn merge(
    found: impl IntoIterator<Item = Found>,
    mut keys: Keys<'_>,
    state: &State,
    max_size: u64,
    take: Take<'_>,
) -> Result<()> {
    // Ids below these are not gone, only out of sight. None of them is below another.
    let mut hidden: BTreeSet<String> = BTreeSet::new();
    let gone = |hidden: &BTreeSet<String>, id: String, take: Take<'_>| -> Result<bool> {
        let above = hidden.range::<String, _>(..=&id).next_back();
        if above.is_some_and(|above| id.starts_with(above.as_str())) {
            return Ok(true);
        }
        let known = Known::of(state, &id)?;
        Ok(take(Finding::Gone { id, known }))
    };
    for found in found {
        while let Some(key) = keys.next_before(found.id())? {
            if !gone(&hidden, key, take)? {
                return Ok(());
            }
        }
        keys.skip(found.id())?;
        let known = Known::of(state, found.id())?;
        if let Found::Trouble { id, .. } = &found {
            // A file's trouble hides what was below it while it was a folder.
            hidden.insert(if id.ends_with('/') { id.clone() } else { format!("{id}/") });
        }
        if !take(judge(found, known, max_size)) {
            return Ok(());
        }
    }
    while let Some(key) = keys.next()? {
        if !gone(&hidden, key, take)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether what was found must be looked at, going by what the state says of it.
fn judge(found: Found, known: Option<Known>, max_size: u64) -> Finding {
    match found {
        Found::File { id, path, stat } => match &known {
            // What was too large need no longer be: the limit may have been raised.
            Some(Known { failed: Some(kind), .. }) if kind == crate::read::TOO_LARGE && stat.size <= max_size => {
                Finding::Look { id, path, stat, known }
            }
            Some(was) if was.stat == stat => Finding::Unchanged { id },
            _ => Finding::Look { id, path, stat, known },
        },
        Found::Trouble { id, path, stat, error } => match &known {
            Some(was) if was.failed.is_some() && was.stat == stat => Finding::Unchanged { id },
            _ => Finding::Trouble { id, path, stat, known, error },
        },
    }
}

/// Keys of the state, in order, a page at a time.
struct Keys<'s> {
    state: &'s State,
    prefix: String,
    page: std::collections::VecDeque<String>,
    /// Last key fetched; none when there are no more.
    after: Option<String>,
}

impl<'s> Keys<'s> {
    /// All that begin with a prefix.
    fn below(state: &'s State, prefix: &str) -> Self {
        Self { state, prefix: prefix.to_owned(), page: [].into(), after: Some(String::new()) }
    }

    /// One key, if it is there.
    fn only(state: &'s State, key: &str) -> Result<Self> {
        let page = state.get(key)?.map(|_| key.to_owned());
        Ok(Self { state, prefix: String::new(), page: page.into_iter().collect(), after: None })
    }

    fn peek(&mut self) -> Result<Option<&str>> {
        if let (true, Some(after)) = (self.page.is_empty(), &self.after) {
            self.page = self.state.keys(&self.prefix, after, PAGE)?.into();
            self.after = self.page.back().cloned();
        }
        Ok(self.page.front().map(String::as_str))
    }

    fn next(&mut self) -> Result<Option<String>> {
        self.peek()?;
        Ok(self.page.pop_front())
    }

    /// The next one, if it comes before an id.
    fn next_before(&mut self, id: &str) -> Result<Option<String>> {
        match self.peek()? {
            Some(key) if key < id => self.next(),
            _ => Ok(None),
        }
    }

    /// Passes over an id, if it comes next.
    fn skip(&mut self, id: &str) -> Result<()> {
        if self.peek()? == Some(id) {
            self.next()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use pipedoc_sdk::testing::{self, Outbox};

    use crate::select::Selection;
    use crate::walk::list;

    fn ground(root: &Path, list: fn(&Path) -> io::Result<Vec<PathBuf>>) -> Ground {
        let selection = Selection::new(&[], &[], true).unwrap();
        Ground { root: root.to_owned(), id_prefix: String::new(), selection, follow_symlinks: false, list }
    }

    async fn state(folder: &Path, known: &[(&str, Known)]) -> State {
        let state = testing::state(&folder.join("state")).unwrap();
        let (emitter, mut outbox) = Outbox::new(&state);
        for (id, known) in known {
            emitter.refreshed(id, known.change(id).unwrap()).await.unwrap();
            outbox.next().await.unwrap();
        }
        state
    }

    fn known() -> Known {
        Known { version: 1, stat: Stat::default(), sha256: "x".into(), failed: None }
    }

    fn told(scan: impl FnOnce(Take<'_>) -> Result<()>) -> Vec<String> {
        let mut told = Vec::new();
        let mut take = |finding| {
            told.push(match finding {
                Finding::Unchanged { id } => format!("unchanged {id}"),
                Finding::Look { id, known, .. } => format!("look {id} {}", known.is_some()),
                Finding::Trouble { id, .. } => format!("trouble {id}"),
                Finding::Gone { id, .. } => format!("gone {id}"),
            });
            true
        };
        scan(&mut take).unwrap();
        told
    }

    #[tokio::test]
    async fn what_is_out_of_sight_is_not_taken_for_deleted() {
        fn refuse(path: &Path) -> io::Result<Vec<PathBuf>> {
            if path.ends_with("locked") { Err(io::ErrorKind::PermissionDenied.into()) } else { list(path) }
        }
        let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("locked/b")).unwrap();
        fs::write(root.path().join("locked/b/c"), "x").unwrap();
        fs::write(root.path().join("new"), "x").unwrap();
        let ids = ["locked", "locked.txt", "locked/a", "locked/b/c", "locked0", "z"];
        let state = state(data.path(), &ids.map(|id| (id, known()))).await;
        let ground = ground(root.path(), refuse);
        assert_eq!(
            told(|take| everything(&ground, &state, u64::MAX, take)),
            ["gone locked", "gone locked.txt", "trouble locked/", "gone locked0", "look new false", "gone z"]
        );
    }

    #[tokio::test]
    async fn one_path_is_scanned_with_all_that_is_below_and_nothing_beside() {
        let (root, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), "x").unwrap();
        let ids = ["a", "a.txt", "a/b/c", "a/gone", "a0", "gone"];
        let state = state(data.path(), &ids.map(|id| (id, known()))).await;
        let ground = ground(root.path(), list);
        let scan = |relative: &str| told(|take| path(&ground, &root.path().join(relative), &state, u64::MAX, take));
        // Once a file, now a folder.
        assert_eq!(scan("a"), ["gone a", "look a/b/c true", "gone a/gone"]);
        assert_eq!(scan("a/b/c"), ["look a/b/c true"]);
        assert_eq!(scan("gone"), ["gone gone"]);
        assert!(scan("never").is_empty());
    }
}
