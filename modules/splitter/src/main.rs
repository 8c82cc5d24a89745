//! The splitter as a program of its own.

use std::process::ExitCode;

use pipedoc_splitter::Splitter;

fn main() -> ExitCode {
    pipedoc_sdk::main::<Splitter>()
}
