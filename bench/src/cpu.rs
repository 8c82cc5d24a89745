//! What processes of this machine use: CPU time and memory, from `/proc` (Linux).
//!
//! The kernel scales user and system time to what it measured in nanoseconds and
//! tells them in ticks of 10 ms, so a run that is measured should last a second
//! or more. Knows nothing of arms and what they do.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Kernel ticks in a second, `USER_HZ`: 100 on all that Linux runs on today.
const TICKS: u64 = 100;

/// CPU time that this process, its living descendants and all that it has waited
/// for have used so far.
///
/// # Errors
/// Where there is no `/proc`.
pub fn of_this_process() -> anyhow::Result<Duration> {
    of_tree(std::process::id())
}

/// CPU time that a process, its living descendants and all that these have waited
/// for have used so far. A descendant that ends between two calls stays counted
/// as long as its parent waits for it.
///
/// # Errors
/// When there is no such process.
pub fn of_tree(pid: u32) -> anyhow::Result<Duration> {
    let mut total = Stat::read(pid)?.cpu();
    for descendant in descendants(pid) {
        // It may have ended since; then its parent's line has it from now on.
        total += Stat::read(descendant).map(|stat| stat.cpu()).unwrap_or_default();
    }
    Ok(total)
}

/// CPU time of a single process, without its children.
///
/// # Errors
/// When there is no such process.
pub fn of_process(pid: u32) -> anyhow::Result<Duration> {
    Stat::read(pid).map(|stat| ticks(stat.own))
}

/// Ids of all living processes below one.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(stat) = Stat::read(id) {
            parents.push((id, stat.parent));
        }
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
        at += 1;
    }
    found.split_off(1)
}

/// What a process holds at a moment.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Memory {
    /// Resident bytes, shared ones counted whole.
    pub rss: u64,
    /// Resident bytes, shared ones counted in proportion to who shares them.
    pub pss: u64,
    /// Threads.
    pub threads: u64,
}

/// Memory and threads of a process.
///
/// # Errors
/// When there is no such process, or it belongs to somebody else.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    Ok(Memory {
        rss: field(&status, "VmRSS:")? * 1024,
        pss: field(&rollup, "Pss:")? * 1024,
        threads: field(&status, "Threads:")?,
    })
}

/// The most that a process ever held resident, in bytes.
///
/// # Errors
/// When there is no such process.
pub fn peak(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    Ok(field(&status, "VmHWM:")? * 1024)
}

/// The number behind a name in a file of lines `Name:  123 kB`.
fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).with_context(|| format!("no {name}"))?;
    Ok(number.parse()?)
}

/// The few fields of `/proc/PID/stat` (proc_pid_stat(5)) that we need, in ticks.
struct Stat {
    parent: u32,
    own: u64,
    waited: u64,
}

impl Stat {
    fn read(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Self::parse(&text).with_context(|| format!("{path} is not as expected"))
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may hold anything.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // Fields are counted from 1 in the manual, and the first here is the third there.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            own: number(14)? + number(15)?,
            waited: number(16)? + number(17)?,
        })
    }

    fn cpu(&self) -> Duration {
        ticks(self.own + self.waited)
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / TICKS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may")]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_shifts_nothing() {
        let line = "7 (a (b) c) S 3 7 7 0 -1 0 0 0 0 0 11 22 33 44 20 0 1 0 5";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.parent, stat.own, stat.waited), (3, 33, 77));
    }

    #[test]
    fn work_is_counted_children_included() {
        let before = of_this_process().unwrap();
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", spin]).status().unwrap().success());
        assert!(of_this_process().unwrap() > before);
    }

    #[test]
    fn memory_of_this_process_is_told() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.rss > 1 << 20 && memory.pss > 1 << 16 && memory.threads >= 1, "{memory:?}");
    }
}
