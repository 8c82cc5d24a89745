//! `pipedoc module NAME`: one instance of a built-in module, as its own binary would run it.

use std::process::ExitCode;

use crate::args::ModuleArgs;
use crate::exit::Refused;
use crate::modules;

/// Runs the command.
pub async fn main(args: ModuleArgs) -> anyhow::Result<ExitCode> {
    let factories = modules::factories();
    let names: Vec<_> = factories.iter().map(|factory| factory.info().module.to_string()).collect();
    let Some(factory) = factories.into_iter().find(|factory| factory.info().module.as_str() == args.name) else {
        let message = format!("no module is named {:?}; built in are {}", args.name, names.join(", "));
        return Err(Refused(message).into());
    };
    Ok(pipedoc_sdk::process::run(factory, args.process).await)
}
