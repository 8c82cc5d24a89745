//! The `pipedoc` command: parses what was asked, hands it to one file per command,
//! and turns how it ended into an exit code. Holds nothing else.

mod apply;
mod args;
mod compare;
mod connect;
mod dlq;
mod doctor;
mod engine;
mod exit;
mod load;
mod module;
mod modules;
mod new;
mod pipelines;
mod plan;
mod resume;
mod run;
mod show;
mod status;
mod store;
mod submit;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, DlqCommand, NewCommand};

fn main() -> ExitCode {
    // The parser's children are this same binary; they must not become a command.
    if let Some(code) = pipedoc_parser::child_main_if_asked() {
        return code;
    }
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("starting the runtime"), args.output),
    };
    let output = args.output;
    let ended = runtime.block_on(async move {
        match args.command {
            Command::Run(command) => run::main(command, output).await,
            Command::Engine(command) => engine::main(command).await,
            Command::Module(command) => module::main(command).await,
            Command::Submit(command) => submit::main(command, output).await,
            Command::Status(command) => status::main(command, output).await,
            Command::Resume(command) => resume::main(command, output).await,
            Command::Apply(command) => apply::main(command, output).await,
            Command::Get(command) => pipelines::get(command, output).await,
            Command::History(command) => pipelines::history(command, output).await,
            Command::Diff(command) => pipelines::diff(command, output).await,
            Command::Rollback(command) => apply::rollback(command, output).await,
            Command::Delete(command) => apply::delete(command, output).await,
            Command::Plan(command) => plan::main(command, output),
            Command::Dlq(DlqCommand::List(command)) => dlq::list(command, output).await,
            Command::Doctor(command) => doctor::main(command, output).await,
            Command::New(NewCommand::Module(command)) => new::module(&command),
        }
    });
    // What still blocks (a parser's child, a slow disk) must not hold the exit up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match ended {
        Ok(code) => code,
        Err(error) => exit::report(&error, output),
    }
}
