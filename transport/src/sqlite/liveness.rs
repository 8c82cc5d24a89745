//! Whether a process is surely gone, so that its partitions need not wait for
//! its session to expire. Knows only Linux; elsewhere the answer is "perhaps not".

use std::fs;

/// The name of this process, that no other ever has: boot and process-id
/// namespace, process id, and when it began. Empty where there is no way to tell.
pub(super) fn this_process() -> String {
    let id = std::process::id();
    match (place(), began(id)) {
        (Some(place), Some(began)) => format!("{place} {id} {began}"),
        _ => String::new(),
    }
}

/// Whether the process of that name is gone, or its machine was started anew.
/// Of processes in other namespaces nothing is known.
pub(super) fn is_gone(process: &str) -> bool {
    state(process) == State::Gone
}

/// Whether the process of that name surely runs, or is stopped.
pub(super) fn is_here(process: &str) -> bool {
    state(process) == State::Here
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Here,
    Gone,
    Unknown,
}

fn state(process: &str) -> State {
    let mut words = process.split(' ');
    let (Some(boot), Some(namespace), Some(id), Some(start)) = (words.next(), words.next(), words.next(), words.next())
    else {
        return State::Unknown;
    };
    let Some(here) = place() else { return State::Unknown };
    let Some((this_boot, this_namespace)) = here.split_once(' ') else { return State::Unknown };
    if boot != this_boot {
        return State::Gone;
    }
    match id.parse() {
        Ok(id) if namespace == this_namespace => {
            if began(id).as_deref() == Some(start) {
                State::Here
            } else {
                State::Gone
            }
        }
        _ => State::Unknown,
    }
}

/// Boot and namespace of this process.
fn place() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// When a process began, in clock ticks since the boot; `None` when there is
/// none, or it has ended and nobody has looked after it yet.
fn began(id: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted behind it
    // (proc(5): state is field 3, starttime field 22).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| start.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_that_ended_is_gone() {
        let this = this_process();
        assert!(!this.is_empty());
        assert!(is_here(&this) && !is_gone(&this));
        assert!(!is_gone("") && !is_here(""), "unknown is neither");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("{} {} {}", place().unwrap(), child.id(), began(child.id()).unwrap());
        assert!(!is_gone(&name));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_gone(&name));
        let (_, rest) = this.split_once(' ').unwrap();
        assert!(is_gone(&format!("another-boot {rest}")));
    }
}
