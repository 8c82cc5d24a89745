//! Who is writing to a log in an SQLite file, as the system's table of locks tells.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::process::Process;
use super::wait_for;

/// Where SQLite's index of the write-ahead log is locked by who writes (`WAL_WRITE_LOCK`
/// in its file format's description).
const WRITE_LOCK: u64 = 120;

/// The process that writes to an SQLite file in write-ahead mode just now; none where
/// the system does not tell.
#[must_use]
pub fn writer(file: &Path) -> Option<u32> {
    let inode = std::fs::metadata(file.with_extension("db-shm")).ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // `1: POSIX  ADVISORY  WRITE 13943 fe:00:9978461 120 120`; who waits has an arrow before.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX", _, "WRITE", process, file, first, last] = words[..] else { return None };
        let is_it = file.rsplit(':').next()?.parse() == Ok(inode);
        let holds = (first.parse::<u64>().ok()?..=last.parse::<u64>().ok()?).contains(&WRITE_LOCK);
        if is_it && holds { process.parse().ok() } else { None }
    })
}

/// Stops a process in a moment in which it does not write to an SQLite file: nobody
/// else could until it goes on.
///
/// # Panics
/// When there is no such moment within a minute.
pub fn stop_between_writes(process: &Process, file: &Path) {
    wait_for("a moment between two writes", Duration::from_secs(60), || stop_if(process, file, false).then_some(()));
}

/// Stops a process, and has it go on again unless it is writing to an SQLite file then,
/// or is not, as asked for; says whether it stands still.
///
/// # Panics
/// When it cannot be stopped.
pub fn stop_if(process: &Process, file: &Path, is_writing: bool) -> bool {
    process.stop();
    // Who stands still neither begins nor ends a write.
    let fits = (writer(file) == Some(process.id())) == is_writing;
    if !fits {
        process.signal("CONT");
    }
    fits
}
