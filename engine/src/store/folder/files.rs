//! The inbox: pipeline files in a folder.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use crate::store::{Error, InboxEntry, Key, Result};

/// Reads every pipeline file of the folder, by name. A file that cannot be read
/// is an entry that says so; a folder that cannot be read is an error.
pub(super) fn read(folder: &Path) -> Result<Vec<InboxEntry>> {
    let trouble = |source: std::io::Error| Error::Inbox { path: folder.to_owned(), source: Arc::new(source) };
    let mut entries = Vec::new();
    for file in std::fs::read_dir(folder).map_err(trouble)? {
        let path = file.map_err(trouble)?.path();
        if !is_pipeline_file(&path) {
            continue;
        }
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text".to_owned()),
            // Gone since the folder was read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => Err(format!("the file cannot be read: {error}")),
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        entries.push(InboxEntry { name, origin: path.display().to_string(), text });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Writes a file beside its place and renames it there, so that readers see all
/// of it or nothing. What is there must be the text `replaces`, looked at just
/// before: a folder has no check-and-set.
pub(super) fn write(folder: &Path, name: &str, text: &str, replaces: Option<&str>) -> Result<()> {
    let path = folder.join(name);
    let found = found(&path)?;
    if found.as_deref() != replaces.map(str::as_bytes) {
        return Err(Error::Conflict { key: Key::new(&["pipelines", name]) });
    }
    // Hidden, and made anew by each writer: several engines may write at once.
    let draft = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut file = std::fs::File::create_new(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, &path)
    })();
    written.map_err(|source: std::io::Error| {
        // What cannot be removed is hidden and harmless.
        let _ = std::fs::remove_file(&draft);
        Error::InboxEntry { path, source: Arc::new(source) }
    })
}

/// Removes a file that holds the text `removes`, looked at just before.
pub(super) fn remove(folder: &Path, name: &str, removes: &str) -> Result<()> {
    let path = folder.join(name);
    match found(&path)? {
        None => return Ok(()),
        Some(found) if found == removes.as_bytes() => {}
        Some(_) => return Err(Error::Conflict { key: Key::new(&["pipelines", name]) }),
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::InboxEntry { path, source: Arc::new(error) })
        }
        _ => Ok(()),
    }
}

fn found(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::InboxEntry { path: path.to_owned(), source: Arc::new(source) }),
    }
}

fn is_pipeline_file(path: &Path) -> bool {
    let hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    !hidden && matches!(extension, "yaml" | "yml" | "json") && !path.is_dir()
}
