//! The echo module as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    pipedoc_sdk::main::<pipedoc_echo::Echo>()
}
