//! A module as a process: what stands behind its one-line `main`.
//!
//! ```text
//! args    what can be set, by flags and PIPEDOC_* variables
//! log     which log, and the settings of its clients
//! kafka_metrics  what Kafka's clients tell of themselves
//! step_metrics   how the steps do
//! help    the end of `--help`: configuration, examples, exit codes
//! life    the process's life, from telemetry to drain
//! signal  SIGTERM and SIGINT
//! ```
//!
//! Exit codes: 0 ended as asked; 1 failed, or ended at once by a second signal;
//! 2 wrong arguments, nothing was done.

mod args;
mod help;
mod kafka_metrics;
mod life;
mod log;
mod signal;
mod step_metrics;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use tower::{Layer, Service};

use crate::event::{Observer, Unobserved};
use crate::factory::Factory;
use crate::layers::{Answer, BoxError, Layers, ProcessService, Request};
use crate::module::{Connector, Module, RecordModule};

pub use args::{LogFormat, ProcessArgs};
pub use kafka_metrics::kafka_metrics;
pub use life::Error;
pub use log::{Error as LogError, KafkaSetting, LogArgs};
pub use signal::Signals;

/// It failed, or was ended at once by a second signal.
pub const FAILED: u8 = 1;
/// The arguments are wrong; nothing was done.
pub const REFUSED: u8 = 2;

/// The whole `main` of a module.
pub fn main<M: Module>() -> ExitCode {
    ModuleProcess::new(Factory::module::<M>()).main()
}

/// The whole `main` of a connector.
pub fn connector_main<C: Connector>() -> ExitCode {
    ModuleProcess::new(Factory::connector::<C>()).main()
}

/// The whole `main` of a record module.
pub fn record_main<R: RecordModule>() -> ExitCode {
    ModuleProcess::new(Factory::records::<R>()).main()
}

/// Runs one instance of a module with arguments that were parsed elsewhere, to its
/// end. Errors are told on standard error.
pub async fn run(factory: Factory, args: ProcessArgs) -> ExitCode {
    ModuleProcess::new(factory).run(args).await
}

/// A module's process, for a `main` of more than one line.
pub struct ModuleProcess {
    factory: Factory,
    layers: Layers,
    observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for ModuleProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModuleProcess").field("factory", &self.factory).finish_non_exhaustive()
    }
}

impl ModuleProcess {
    /// The process of a module.
    #[must_use]
    pub fn new(factory: Factory) -> Self {
        Self { factory, layers: Layers::new(), observer: Arc::new(Unobserved) }
    }

    /// Tells an observer what happens in the process's steps; see [`crate::event`].
    #[must_use]
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.observer = Arc::new(observer);
        self
    }

    /// Puts a `tower` layer around the module, inside those added before; see
    /// [`crate::layers`].
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<ProcessService> + Send + Sync + 'static,
        L::Service: Service<Request, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Error: Into<BoxError>,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.layers = self.layers.layer(layer);
        self
    }

    /// Reads the command line and lives.
    #[must_use]
    pub fn main(self) -> ExitCode {
        self.main_from(std::env::args_os())
    }

    /// As [`main`](Self::main), with a command line that is given; the first of it
    /// is the program's name.
    #[must_use]
    pub fn main_from<T: Into<OsString> + Clone>(self, args: impl IntoIterator<Item = T>) -> ExitCode {
        let matches = match self.command().try_get_matches_from(args) {
            Ok(matches) => matches,
            Err(error) => {
                // Help and version come this way as well; where they cannot be written nobody reads.
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(REFUSED));
            }
        };
        let args = match ProcessArgs::from_arg_matches(&matches) {
            Ok(args) => args,
            Err(error) => {
                let _ = error.print();
                return ExitCode::from(REFUSED);
            }
        };
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("error: starting the runtime failed: {error}");
                return ExitCode::from(FAILED);
            }
        };
        let code = runtime.block_on(self.run(args));
        // What still blocks (a slow disk, a second signal's leftovers) must not hold the exit up.
        runtime.shutdown_background();
        code
    }

    /// Lives with arguments that were parsed elsewhere.
    pub async fn run(self, args: ProcessArgs) -> ExitCode {
        if args.describe {
            return describe(&self.factory);
        }
        match life::live(self.factory, self.layers, self.observer, args).await {
            Ok(life::End::Drained) => ExitCode::SUCCESS,
            Ok(life::End::AtOnce) => ExitCode::from(FAILED),
            Err(error) => {
                eprintln!("error: {}", chain(&error));
                ExitCode::from(if error.is_refusal() { REFUSED } else { FAILED })
            }
        }
    }

    /// The command line.
    fn command(&self) -> clap::Command {
        let info = self.factory.info();
        // These live as long as the process: its command line is read once.
        let name: &'static str = info.module.to_string().leak();
        let version: &'static str = info.version.clone().leak();
        let about = if info.description.is_empty() {
            format!("Runs one instance of the module {name}.")
        } else {
            format!("{name}: {}", info.description)
        };
        ProcessArgs::augment_args(clap::Command::new(name)).version(version).about(about).after_help(help::after(info))
    }
}

/// Writes the registration to standard output, as the engine's registry keeps it.
fn describe(factory: &Factory) -> ExitCode {
    use std::io::Write;
    let written = serde_json::to_string_pretty(factory.info())
        .map_err(std::io::Error::from)
        .and_then(|text| writeln!(std::io::stdout(), "{text}"));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the description cannot be written: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
