//! The chunker as a program of its own.

use std::process::ExitCode;

use pipedoc_chunker::Chunker;

fn main() -> ExitCode {
    pipedoc_sdk::main::<Chunker>()
}
