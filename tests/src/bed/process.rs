//! A process that ends with its guard, and also when the test itself is killed.
//!
//! Beside each process stands a watchdog: a shell that waits on a pipe which
//! only the test holds. However the test ends, the pipe closes, and the watchdog
//! kills the process and removes its folder. (A parent-death signal would not
//! do: it fires when the *thread* that started the process ends, and servers are
//! shared by tests that run on many threads.)

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::wait_for;

/// How much of a process's output a failed test shows.
const LAST_LINES: usize = 30;

/// A running process. Killed on drop; when the test fails, the end of what it
/// printed is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    watchdog: Child,
    output: PathBuf,
}

impl Process {
    /// Starts a command. What it prints goes to the file `output`. When the test
    /// dies, the folder `scratch`, if given, is removed after the process was killed.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, output: &Path, scratch: Option<&Path>) -> Self {
        let file = File::options().create(true).append(true).open(output).expect("a file for its output");
        let copy = file.try_clone().expect("a second handle of it");
        command.stdin(Stdio::null()).stdout(file).stderr(copy);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let watchdog = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null; [ -z \"$2\" ] || rm -rf -- \"$2\"", "watchdog"])
            .arg(child.id().to_string())
            .arg(scratch.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .spawn()
            .expect("a watchdog");
        Self { name: name.to_owned(), child, watchdog, output: output.to_owned() }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has printed so far, errors included.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// When it ends before, or `limit` has passed; shows what it printed.
    pub fn wait_for_output(&mut self, text: &str, limit: Duration) {
        let what = format!("{} prints {text:?}", self.name);
        wait_for(&what, limit, || {
            // Asked before its output is read: who has ended has printed all.
            let ran = self.is_running();
            let output = self.output();
            if output.contains(text) {
                return Some(());
            }
            assert!(ran, "{} ended before it printed {text:?}; it printed:\n{output}", self.name);
            None
        });
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When `limit` has passed; shows what it printed.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = std::time::Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            assert!(std::time::Instant::now() < end, "{} did not end; it printed:\n{}", self.name, self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal by name: `TERM`, `INT`, `CONT`.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "signal {name} to {}", self.name);
    }

    /// Stops it (`SIGSTOP`) and waits until it stands still; the signal `CONT` has it go on.
    ///
    /// # Panics
    /// When it cannot be stopped.
    pub fn stop(&self) {
        self.signal("STOP");
        wait_for(&format!("{} stands still", self.name), Duration::from_secs(60), || self.is_stopped().then_some(()));
    }

    /// Whether all its threads are stopped, or gone: they stop one after the other.
    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok()).all(|stat| {
            // Its state follows its name, which may hold anything.
            let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
            matches!(state, Some("T" | "t" | "Z" | "X"))
        })
    }

    /// Kills it (`kill -9`) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = if self.is_running() { "runs" } else { "has ended" };
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            eprintln!("{} {state}; the end of what it printed:\n{last}\n", self.name);
        }
        // The watchdog goes first: once the process is waited for, its id may be
        // somebody else's.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        self.kill();
    }
}
