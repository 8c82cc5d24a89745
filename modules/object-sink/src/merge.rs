//! Merges JSON Lines files into one that holds the newest version of each document.
//!
//! Reads everything twice and keeps about 100 bytes a document in memory: first it
//! notes where the newest version of each id stands, then it copies those lines.
//! It can be cut off at any point and repeated; processes that go on writing
//! meanwhile only add files, which the next merge takes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{Config, Format};
use crate::error::Error;
use crate::head::Int64;
use crate::name;
use crate::place::{OWN, Place};
use crate::render;

/// What documents are merged into, in the sink's folder.
const DOCUMENTS: &str = "documents.jsonl";
/// What deletions are remembered in, in the sink's own folder.
const DELETIONS: &str = "deletions.jsonl";

/// What a merge came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Documents that `documents.jsonl` now holds.
    pub documents: u64,
    /// Files that went into it.
    pub files: usize,
}

/// Merges what steps with this configuration have written; none when the format is
/// another. To be called when a run has ended; blocks.
///
/// # Errors
/// When a file cannot be read or written; then nothing is lost.
pub fn merge(config: &Config) -> Result<Option<Merged>, Error> {
    if config.format != Format::Jsonl {
        return Ok(None);
    }
    let place = Place::open(&config.url, config.fsync)?;
    let lock_path = place.root().join(OWN).join("merge.lock");
    let lock = File::create(&lock_path).map_err(Error::io("written", &lock_path))?;
    lock.lock().map_err(Error::io("locked", &lock_path))?;
    let parts = parts(place.root())?;
    if parts.is_empty() && place.root().join(DOCUMENTS).exists() {
        return Ok(Some(Merged::default()));
    }
    // Oldest first: of equal versions the later one counts.
    let before = [Path::new(OWN).join(DELETIONS), PathBuf::from(DOCUMENTS)];
    let sources: Vec<_> = before.into_iter().chain(parts.iter().cloned()).collect();
    let mut newest = Newest::default();
    for (source, relative) in sources.iter().enumerate() {
        each_line(&place, relative, |offset, _, line| {
            newest.take(At { source, offset }, line);
            Ok(())
        })?;
    }
    newest.settle();
    let documents = write(&place, &sources, &newest, config.deletion_horizon.0)?;
    for part in &parts {
        place.remove(part)?;
    }
    Ok(Some(Merged { documents, files: parts.len() }))
}

/// The same for a step's configuration as it stands in the pipeline, with secrets
/// unexpanded.
///
/// # Errors
/// When the configuration is wrong, or a file cannot be read or written.
pub fn finish(config: &Value) -> Result<Option<Merged>, Error> {
    let config = pipedoc_sdk::secrets::expand(config).map_err(Error::Secrets)?;
    merge(&Config::deserialize(config).map_err(Error::Config)?)
}

/// What a merge must know of a line.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Line {
    id: String,
    version: Int64,
    deleted: bool,
    /// When the deletion was first merged, in seconds since 1970.
    deleted_at: u64,
    parent_id: String,
    part: i32,
    parts: i32,
    parent_version: Int64,
}

/// Ids are kept as the first half of their SHA-256.
type Key = [u8; 16];

fn key(id: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&Sha256::digest(id)[..16]);
    key
}

/// Where a line stands; later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    source: usize,
    offset: u64,
}

/// The newest line of an id.
#[derive(Debug)]
struct Winner {
    at: At,
    version: i64,
    deleted: bool,
    /// On parts only.
    part: Option<Box<Part>>,
}

/// What a line says of itself as a part.
#[derive(Debug)]
struct Part {
    number: i32,
    /// Version of the parent that it was made from.
    version: i64,
    /// What it is a part of, nearest first: a part may have parts.
    above: Vec<Key>,
}

/// What is known of the parts of a parent.
#[derive(Debug, Default)]
struct Parts {
    /// Newest version of the parent that parts came of.
    version: i64,
    /// How many there are of it.
    parts: i32,
}

/// The deletions of a document, as far as its parts are concerned.
#[derive(Debug, Default)]
struct Deletions {
    /// The newest with a version.
    versioned: Option<(i64, At)>,
    /// The last without one, which is one of what was there.
    plain: Option<At>,
}

impl Deletions {
    fn take(&mut self, version: i64, at: At) {
        if version == 0 {
            self.plain = Some(at);
        } else if self.versioned.is_none_or(|(known, _)| version >= known) {
            self.versioned = Some((version, at));
        }
    }

    /// Whether a part goes that stands before a deletion of its own version, or before
    /// one of whatever was there. Newer deletions count as newer documents do.
    fn remove(&self, version: i64, at: At) -> bool {
        self.versioned.is_some_and(|(deleted, place)| deleted == version && place > at)
            || self.plain.is_some_and(|place| place > at)
    }
}

#[derive(Debug, Default)]
struct Newest {
    winners: HashMap<Key, Winner>,
    parents: HashMap<Key, Parts>,
    deletions: HashMap<Key, Deletions>,
}

impl Newest {
    fn take(&mut self, at: At, line: &Line) {
        let key = key(&line.id);
        if line.deleted {
            self.deletions.entry(key).or_default().take(line.version.0, at);
        }
        let before = self.winners.get(&key);
        let stored = before.map_or(0, |winner| winner.version);
        let version = match line.version.0 {
            // A deletion of unknown version is one of what was there.
            0 if line.deleted => stored.saturating_add(i64::from(stored != 0)),
            version => version,
        };
        let part = (!line.parent_id.is_empty()).then(|| {
            let above: Vec<_> = name::above(&line.id).map(self::key).collect();
            let part = Part { number: line.part, version: line.parent_version.0, above };
            if let Some(parent) = part.above.first() {
                let parts = self.parents.entry(*parent).or_default();
                if part.version >= parts.version {
                    *parts = Parts { version: part.version, parts: line.parts };
                }
            }
            Box::new(part)
        });
        let is_newer = (version == 0 && !line.deleted) || version >= stored;
        if before.is_none() || is_newer {
            self.winners.insert(key, Winner { at, version, deleted: line.deleted, part });
        }
    }

    /// Drops parts of older versions of their parents, those beyond the number of
    /// parts, and those of deleted parents.
    fn settle(&mut self) {
        let newest = |key: &Key| {
            let whole = self.winners.get(key).map_or(0, |winner| winner.version);
            whole.max(self.parents.get(key).map_or(0, |parts| parts.version))
        };
        let deleted = |key: &Key, part: &Part, at: At| {
            self.deletions.get(key).is_some_and(|deletions| deletions.remove(part.version, at))
        };
        let is_over = |part: &Part, at: At| {
            part.above.iter().any(|key| newest(key) > part.version || deleted(key, part, at))
                || part.above.first().and_then(|key| self.parents.get(key)).is_some_and(|of| part.number >= of.parts)
        };
        let over: Vec<Key> = self
            .winners
            .iter()
            .filter(|(_, winner)| winner.part.as_ref().is_some_and(|part| is_over(part, winner.at)))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.winners.remove(&key);
        }
    }

    fn wins(&self, id: &str, at: At) -> Option<&Winner> {
        self.winners.get(&key(id)).filter(|winner| winner.at == at)
    }
}

/// Copies the lines that count; deletions first, so that none is lost when this is
/// cut off in between.
fn write(place: &Place, sources: &[PathBuf], newest: &Newest, horizon: Duration) -> Result<u64, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut deletions = Copy::start(place)?;
    let mut documents = Copy::start(place)?;
    for (source, relative) in sources.iter().enumerate() {
        each_line(place, relative, |offset, text, line| {
            let Some(winner) = newest.wins(&line.id, At { source, offset }) else { return Ok(()) };
            if !winner.deleted {
                return documents.line(text);
            }
            let deleted_at = if line.deleted_at == 0 { now } else { line.deleted_at };
            if winner.version == 0 || now.saturating_sub(deleted_at) > horizon.as_secs() {
                return Ok(());
            }
            deletions.line(&render::merged_deletion(&line.id, winner.version, deleted_at))
        })?;
    }
    deletions.finish(place, &Path::new(OWN).join(DELETIONS))?;
    documents.finish(place, Path::new(DOCUMENTS))
}

/// A file being written that nobody sees yet.
struct Copy {
    path: PathBuf,
    writer: BufWriter<File>,
    lines: u64,
}

impl Copy {
    fn start(place: &Place) -> Result<Self, Error> {
        let (path, file) = place.temporary_file()?;
        Ok(Self { path, writer: BufWriter::new(file), lines: 0 })
    }

    fn line(&mut self, text: &str) -> Result<(), Error> {
        self.lines += 1;
        let written = self.writer.write_all(text.trim_end().as_bytes()).and_then(|()| self.writer.write_all(b"\n"));
        written.map_err(Error::io("written", &self.path))
    }

    fn finish(mut self, place: &Place, relative: &Path) -> Result<u64, Error> {
        let written = self.writer.flush().and_then(|()| place.sync(self.writer.get_ref()));
        written.map_err(Error::io("written", &self.path))?;
        place.put(&self.path, relative)?;
        Ok(self.lines)
    }
}

/// The part files, oldest first.
fn parts(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(root).map_err(Error::io("read", root))? {
        let name = entry.map_err(Error::io("read", root))?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("part-") && name.ends_with(".jsonl")) {
            parts.push(PathBuf::from(name));
        }
    }
    parts.sort_unstable();
    Ok(parts)
}

/// Calls with offset, text and what is known of each line; a file that is not there
/// has none.
fn each_line(
    place: &Place,
    relative: &Path,
    mut take: impl FnMut(u64, &str, &Line) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(file) = place.read(relative)? else { return Ok(()) };
    let path = place.root().join(relative);
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut offset, mut number, mut text) = (0, 0, String::new());
    loop {
        text.clear();
        let read = reader.read_line(&mut text).map_err(Error::io("read", &path))?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        if !text.trim().is_empty() {
            let line = serde_json::from_str(&text);
            let line = line.map_err(|source| Error::Line { path: path.clone(), line: number, source })?;
            take(offset, &text, &line)?;
        }
        offset += read as u64;
    }
}
