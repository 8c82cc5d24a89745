//! One JSON file for each document: which version stays, and what goes with a
//! deletion.
//!
//! Beside the documents' files the sink keeps, in its own folder and under the same
//! names, a tombstone for each deleted document, and for each document with parts a
//! note of the parent's version and the number of parts, since the parent itself
//! may be stored elsewhere or nowhere.
//!
//! Every operation can be repeated, and can be cut off at any point and repeated.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use pipedoc_sdk::prelude::{Deletion, PipeDoc};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::head::{self, Int64};
use crate::name;
use crate::place::{self, OWN, Place};
use crate::render::{self, Style};

/// Locks over all ids: enough that two threads seldom meet.
const LOCKS: usize = 256;
/// How often old tombstones are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Documents as files.
#[derive(Debug)]
pub struct Files {
    place: Place,
    style: Style,
    deletion_horizon: Duration,
    /// One document is worked on by one thread, with all its parts.
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
    swept: Mutex<Instant>,
}

/// The note on a document's parts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PartsNote {
    version: Int64,
    parts: i32,
}

impl Files {
    /// Documents in a folder.
    pub fn new(place: Place, style: Style, deletion_horizon: Duration) -> Self {
        let files = Self {
            place,
            style,
            deletion_horizon,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
            swept: Mutex::new(Instant::now()),
        };
        files.sweep();
        files
    }

    /// Stores a document, unless a newer version of it is stored or deleted.
    pub fn store(&self, doc: PipeDoc) -> Result<(), Error> {
        if doc.id.is_empty() {
            return Err(Error::NoId);
        }
        let part = part_of(&doc)?;
        let (id, version) = (doc.id.clone(), doc.version);
        let text = self.style.document(doc)?;
        let _lock = self.lock(&id);
        if self.is_old(&id, version)? {
            return Ok(());
        }
        match part {
            Some(part) if !self.make_way_for_part(&part)? => return Ok(()),
            Some(_) => {}
            None => self.remove_older_parts(&id, version)?,
        }
        self.place.write(&name::file(&id), &[text.as_bytes()])?;
        if version != 0 { self.place.remove(&tombstone(&id)) } else { Ok(()) }
    }

    /// Removes a document and its parts, unless a newer version is stored.
    pub fn delete(&self, deletion: &Deletion) -> Result<(), Error> {
        self.sweep_from_time_to_time();
        let id = &deletion.id;
        if id.is_empty() {
            return Err(Error::NoId);
        }
        let _lock = self.lock(id);
        let stored = self.version(name::file(id))?;
        let parts = self.parts_note(id)?;
        let newest = stored.unwrap_or(0).max(parts.as_ref().map_or(0, |note| note.version.0));
        // A deletion of unknown version is one of what is there.
        let version =
            if deletion.version != 0 { deletion.version } else { newest.saturating_add(i64::from(newest != 0)) };
        if version != 0 && self.version(tombstone(id))?.unwrap_or(0) < version {
            let text = format!("{}\n", Value::Object(render::first_fields(id, version)));
            self.place.write(&tombstone(id), &[text.as_bytes()])?;
        }
        if stored.is_some_and(|stored| stored <= version) {
            self.place.remove(&name::file(id))?;
        }
        if parts.is_none_or(|note| note.version.0 <= version) {
            self.remove_parts(id)?;
        }
        Ok(())
    }

    /// Whether what is stored, or was deleted, is newer than a version. Version 0 is
    /// taken as it comes.
    fn is_old(&self, id: &str, version: i64) -> Result<bool, Error> {
        if version == 0 {
            return Ok(false);
        }
        let stored = self.version(name::file(id))?;
        Ok(stored.is_some_and(|stored| stored > version)
            || self.version(tombstone(id))?.is_some_and(|deleted| deleted > version))
    }

    /// Before a part is stored: removes what it or its siblings replace. False when
    /// the part itself is of an older version of its parent.
    fn make_way_for_part(&self, part: &Part) -> Result<bool, Error> {
        let &Part { ref parent, parts, version } = part;
        // Parts keep the version of what they were made from, so one number can be
        // compared with all that is above.
        for id in std::iter::once(parent.as_str()).chain(name::above(parent)) {
            if self.is_old(id, version)? {
                return Ok(false);
            }
        }
        let note = self.parts_note(parent)?;
        let noted = note.as_ref().map_or(0, |note| note.version.0);
        if version != 0 && noted > version {
            return Ok(false);
        }
        if version != 0 && noted < version {
            self.remove_parts(parent)?;
        } else if let Some(note) = &note {
            for beyond in parts..note.parts {
                let beyond = format!("{parent}#{beyond}");
                self.place.remove(&name::file(&beyond))?;
                self.remove_parts(&beyond)?;
            }
        }
        if note.is_none_or(|note| note.version.0 != version || note.parts != parts) {
            let mut fields = render::first_fields(parent, version);
            fields.insert("parts".to_owned(), parts.into());
            let text = format!("{}\n", Value::Object(fields));
            self.place.write(&parts_note(parent), &[text.as_bytes()])?;
        }
        Ok(true)
    }

    /// A newer whole document: parts that were made of an older one go.
    fn remove_older_parts(&self, id: &str, version: i64) -> Result<(), Error> {
        match self.parts_note(id)? {
            Some(note) if note.version.0 < version => self.remove_parts(id),
            _ => Ok(()),
        }
    }

    /// Removes all parts, theirs too, and then the notes on them.
    fn remove_parts(&self, id: &str) -> Result<(), Error> {
        self.place.remove_tree(&name::parts_folder(id))?;
        self.place.remove_tree(&own("parents").join(name::parts_folder(id)))?;
        self.place.remove(&parts_note(id))
    }

    fn version(&self, file: PathBuf) -> Result<Option<i64>, Error> {
        Ok(self.place.read(&file)?.map(|file| head::read(file).version))
    }

    fn parts_note(&self, id: &str) -> Result<Option<PartsNote>, Error> {
        let path = parts_note(id);
        let Some(mut file) = self.place.read(&path)? else { return Ok(None) };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io("read", &self.place.root().join(path)))?;
        // A note that cannot be read is as good as one that says nothing.
        Ok(Some(serde_json::from_str(&text).unwrap_or_default()))
    }

    fn lock(&self, id: &str) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one(name::root(id));
        #[allow(clippy::cast_possible_truncation, reason = "the remainder is small")]
        self.locks[(hash % LOCKS as u64) as usize].lock()
    }

    fn sweep_from_time_to_time(&self) {
        let Some(mut swept) = self.swept.try_lock() else { return };
        if swept.elapsed() >= SWEEP_EVERY {
            *swept = Instant::now();
            drop(swept);
            self.sweep();
        }
    }

    /// Forgets deletions beyond the horizon.
    fn sweep(&self) {
        place::remove_older(&self.place.root().join(own("tombstones")), self.deletion_horizon);
    }
}

/// A part, as far as its siblings are concerned.
struct Part {
    parent: String,
    parts: i32,
    /// Version of the parent that it was made from.
    version: i64,
}

fn part_of(doc: &PipeDoc) -> Result<Option<Part>, Error> {
    if doc.parent_id.is_empty() {
        return Ok(None);
    }
    let is_one = name::part(&doc.id) == Some((doc.parent_id.as_str(), doc.part)) && doc.part < doc.parts;
    if !is_one {
        let (id, parent) = (doc.id.clone(), doc.parent_id.clone());
        return Err(Error::Part { id, parent, part: doc.part, parts: doc.parts });
    }
    Ok(Some(Part { parent: doc.parent_id.clone(), parts: doc.parts, version: doc.parent_version }))
}

fn own(folder: &str) -> PathBuf {
    PathBuf::from(OWN).join(folder)
}

fn tombstone(id: &str) -> PathBuf {
    own("tombstones").join(name::file(id))
}

fn parts_note(id: &str) -> PathBuf {
    own("parents").join(name::file(id))
}
