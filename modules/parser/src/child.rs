//! The life of a child: bounded in memory, it takes one file after the other from
//! its parent and dies with it.
//!
//! Its standard input is the socket to the parent, both ways; what libraries
//! print goes elsewhere and disturbs nobody.

use std::any::Any;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc;
use std::{fs, io, panic, process, thread};

use crate::error::Error;
use crate::extract::{self, extract};
use crate::frame::{self, Request};

/// First argument of a program that is to be a child.
pub(crate) const MARKER: &str = "__pipedoc-parse-child";

/// Stack of the thread that parses: readers of nested formats recurse.
const STACK: usize = 64 << 20;

/// Becomes a child if the program was started as one, and returns when there is
/// nothing more to parse. A program that holds the parser calls this first of all
/// in its `main`, before it starts threads.
#[must_use]
pub fn child_main_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(MARKER) {
        return None;
    }
    let memory = arguments.next().and_then(|bytes| bytes.parse().ok());
    Some(match run(memory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    })
}

fn run(memory: Option<u64>) -> io::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let from_parent = socket.try_clone()?;
    if let Some(memory) = memory {
        limit_memory(memory)?;
    }
    // Panics are caught and reported; their traces would only be noise.
    panic::set_hook(Box::new(|_| {}));

    let (sender, requests) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || listen(from_parent, &sender))?;
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || -> io::Result<()> {
        socket.write_all(&frame::HELLO)?;
        for request in requests {
            frame::write_reply(&mut socket, &answer(&request, memory.unwrap_or(u64::MAX)))?;
        }
        Ok(())
    })?;
    worker.join().map_err(|panic| io::Error::other(panic_message(panic.as_ref())))?
}

/// Hands requests on until the parent is gone, and ends the process then, however
/// busy it is: nobody waits for what it does.
fn listen(mut from: UnixStream, to: &mpsc::SyncSender<Request>) {
    while let Ok(Some(request)) = frame::read_request(&mut from) {
        if to.send(request).is_err() {
            break;
        }
    }
    process::exit(0);
}

fn answer(request: &Request, memory: u64) -> Result<pipedoc_sdk::proto::PipeDoc, Error> {
    let file = extract::File { name: &request.name, bytes: &request.bytes, max_size: request.max_size };
    let answer = catch_unwind(AssertUnwindSafe(|| extract(file))).unwrap_or_else(|panic| {
        let mime = crate::detect::detect(&request.name, &request.bytes).mime;
        let reason = format!("it breaks the reader: {}", panic_message(panic.as_ref()));
        Err(Error::Damaged { name: request.name.clone(), mime, reason })
    });
    match answer {
        Err(Error::Damaged { name, reason, .. }) if is_out_of_memory(&reason) => {
            Err(Error::OutOfMemory { name, limit: memory })
        }
        answer => answer,
    }
}

/// Whether a reader that handles failed allocations by itself met one: most abort
/// the process instead.
fn is_out_of_memory(reason: &str) -> bool {
    ["out of memory", "memory allocation failed", "Cannot allocate memory"].iter().any(|said| reason.contains(said))
}

/// Bounds the address space to what the program takes by itself and so many bytes
/// more, and forbids core dumps.
fn limit_memory(bytes: u64) -> io::Result<()> {
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|sizes| sizes.split(' ').next().and_then(|pages| pages.parse().ok()))
        .unwrap_or(0);
    // Pages of 4 KiB are the least there are; where they are larger, the program's
    // own part is taken for smaller than it is, which the stack's room makes up for.
    let limit = (pages * 4096).saturating_add(STACK as u64).saturating_add(bytes);
    rlimit::setrlimit(rlimit::Resource::AS, limit, limit)?;
    rlimit::setrlimit(rlimit::Resource::CORE, 0, 0)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("an unexpected panic");
    // Some readers put whole objects into their messages.
    said.chars().take(300).collect()
}
