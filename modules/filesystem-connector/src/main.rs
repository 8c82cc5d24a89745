//! The filesystem connector as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    pipedoc_sdk::connector_main::<pipedoc_filesystem_connector::FilesystemConnector>()
}
