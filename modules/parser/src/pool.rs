//! The parent's side: a few child processes that parse files, each one file at a
//! time, started when they are needed and replaced when they fall.
//!
//! Knows nothing of formats: it hands bytes to a child and waits for what it says.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_sdk::proto::PipeDoc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child as Process, ChildStderr, Command};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::child::MARKER;
use crate::error::Error;
use crate::frame;

/// After so many files a child is replaced, so that what libraries leak stays
/// small.
const FILES_PER_CHILD: usize = 1000;

/// How long a new child may take to say hello, on a busy machine.
const HELLO_WITHIN: Duration = Duration::from_secs(20);

/// So much of what a child prints is kept, for the message when it dies.
const LAST_WORDS: usize = 2048;

/// What children may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Children at most.
    pub children: usize,
    /// Longest time for one file.
    pub timeout: Duration,
    /// Memory of a child beyond what the program takes by itself, in bytes.
    pub memory: u64,
    /// Largest file, in bytes.
    pub max_file_size: u64,
}

/// Child processes that parse. Dropping it ends them.
#[derive(Debug)]
pub struct Pool {
    program: PathBuf,
    limits: Limits,
    idle: Mutex<Vec<Child>>,
    permits: Semaphore,
}

impl Pool {
    /// A pool of children of `program`, which must call
    /// [`child_main_if_asked`](crate::child_main_if_asked) first in its `main`.
    /// None is started yet.
    #[must_use]
    pub fn new(program: PathBuf, limits: Limits) -> Self {
        let permits = Semaphore::new(limits.children.max(1));
        Self { program, limits, idle: Mutex::new(Vec::new()), permits }
    }

    /// Parses a file in a child, waiting for one to be free. When the future is
    /// dropped, the child at work is ended.
    ///
    /// # Errors
    /// What is wrong with the file, or with the child.
    pub async fn parse(&self, name: &str, bytes: &[u8]) -> Result<PipeDoc, Error> {
        let size = bytes.len() as u64;
        if size > self.limits.max_file_size {
            return Err(Error::TooLarge { name: name.to_owned(), size, limit: self.limits.max_file_size });
        }
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let mut child = match self.take_idle() {
            Some(child) => child,
            None => self.start().await?,
        };
        match timeout(self.limits.timeout, child.ask(name, bytes, self.limits.max_file_size)).await {
            Ok(Ok(reply)) => {
                child.files += 1;
                if child.files < FILES_PER_CHILD {
                    self.idle.lock().push(child);
                }
                reply
            }
            Ok(Err(_)) => Err(child.post_mortem(name).await),
            Err(_) => {
                let _ = child.process.start_kill();
                Err(Error::TimedOut { name: name.to_owned(), limit: self.limits.timeout })
            }
        }
    }

    /// Process ids of the children that wait for work.
    #[must_use]
    pub fn idle_children(&self) -> Vec<u32> {
        self.idle.lock().iter().filter_map(|child| child.process.id()).collect()
    }

    /// A child that waits for work and is still alive.
    fn take_idle(&self) -> Option<Child> {
        let mut idle = self.idle.lock();
        while let Some(mut child) = idle.pop() {
            if matches!(child.process.try_wait(), Ok(None)) {
                return Some(child);
            }
        }
        None
    }

    async fn start(&self) -> Result<Child, Error> {
        let failed = |reason: String| Error::NoChild { program: self.program.display().to_string(), reason };
        let mut child = Child::spawn(&self.program, self.limits.memory).map_err(|error| failed(error.to_string()))?;
        let mut hello = [0; frame::HELLO.len()];
        match timeout(HELLO_WITHIN, child.socket.read_exact(&mut hello)).await {
            Ok(Ok(_)) if hello == frame::HELLO => Ok(child),
            Ok(_) => {
                let said = child.last_words().await;
                let ask = "it is not a program that serves as one, or died at once";
                Err(failed(if said.is_empty() { ask.to_owned() } else { format!("{ask}; it said: {said}") }))
            }
            Err(_) => Err(failed(format!("it said nothing within {HELLO_WITHIN:?}"))),
        }
    }
}

/// A child process.
#[derive(Debug)]
struct Child {
    process: Process,
    socket: UnixStream,
    /// The last of what it printed, when it has ended.
    printed: Option<JoinHandle<String>>,
    files: usize,
    /// What it may take, in bytes.
    memory: u64,
}

impl Child {
    fn spawn(program: &PathBuf, memory: u64) -> io::Result<Self> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut process = Command::new(program)
            .args([OsString::from(MARKER), OsString::from(memory.to_string())])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Address space is what bounds a child. An arena of mimalloc's takes 1 GiB of it
            // beforehand, each further one of glibc's 64 MiB.
            .env("MIMALLOC_DISALLOW_ARENA_ALLOC", "1")
            .env("MALLOC_ARENA_MAX", "1")
            // A long trace would push the reason out of its last words.
            .env("RUST_BACKTRACE", "0")
            // A Ctrl-C on the terminal is for the parent, which finishes first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let printed = process.stderr.take().map(|stderr| tokio::spawn(keep_last_words(stderr)));
        Ok(Self { process, socket: UnixStream::from_std(ours)?, printed, files: 0, memory })
    }

    /// Has a file parsed. An error means that the child is gone or beside itself.
    async fn ask(&mut self, name: &str, bytes: &[u8], max_size: u64) -> io::Result<Result<PipeDoc, Error>> {
        let mut head = frame::request_head(name, bytes.len(), max_size);
        // Small files go in one write.
        if bytes.len() <= 64 << 10 {
            head.extend_from_slice(bytes);
            self.socket.write_all(&head).await?;
        } else {
            self.socket.write_all(&head).await?;
            self.socket.write_all(bytes).await?;
        }
        let mut head = [0; frame::REPLY_HEADER];
        self.socket.read_exact(&mut head).await?;
        let (tag, length) = frame::reply_head(&head)?;
        // No child can hold more than its memory; what claims to is no reply.
        if length as u64 > self.memory {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut content = Vec::with_capacity(length.min(1 << 20));
        (&mut self.socket).take(length as u64).read_to_end(&mut content).await?;
        if content.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        frame::reply(tag, &content)
    }

    /// Why a child went away in the middle of a file.
    async fn post_mortem(mut self, name: &str) -> Error {
        let name = name.to_owned();
        // It is gone, or about to go, or talks nonsense.
        let status = match timeout(Duration::from_secs(5), self.process.wait()).await {
            Ok(Ok(status)) => status,
            _ => {
                let _ = self.process.start_kill();
                return Error::Crashed { name, how: "it gave no sensible answer".to_owned() };
            }
        };
        let said = self.last_words().await;
        if said.contains("memory allocation of") || said.contains("Cannot allocate memory") {
            return Error::OutOfMemory { name, limit: self.memory };
        }
        let how = describe(status);
        if matches!(status.signal(), Some(SIGHUP | SIGINT | SIGKILL | SIGTERM)) {
            return Error::Killed { name, how };
        }
        Error::Crashed { name, how: if said.is_empty() { how } else { format!("{how}: {said}") } }
    }

    async fn last_words(&mut self) -> String {
        let Some(printed) = self.printed.take() else { return String::new() };
        let said = timeout(Duration::from_secs(1), printed).await.ok().and_then(Result::ok).unwrap_or_default();
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(6), _) => "it aborted".to_owned(),
        (Some(11), _) => "segmentation fault".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown cause".to_owned(),
    }
}

/// Reads what a child prints, so that it never waits for a reader, and keeps the
/// last of it.
async fn keep_last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let surplus = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The program that is running, also after its file was replaced.
pub(crate) fn this_program() -> PathBuf {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() { own } else { std::env::current_exe().unwrap_or(own) }
}
