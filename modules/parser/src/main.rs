//! The parser as a program of its own.

use std::process::ExitCode;

use pipedoc_parser::Parser;

fn main() -> ExitCode {
    pipedoc_parser::child_main_if_asked().unwrap_or_else(pipedoc_sdk::main::<Parser>)
}
