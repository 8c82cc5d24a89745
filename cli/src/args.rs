//! What can be asked on the command line, with the help that teaches it.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use pipedoc_sdk::process::LogArgs;
use pipedoc_transport::objects::ObjectsUrl;
use pipedoc_transport::open::LogUrl;

use crate::store::StoreArgs;

/// Moves documents through pipelines of small services.
///
/// A pipeline is a YAML file of steps; each step names a module. `run` takes one
/// through all its steps in this process. `engine` and `module` run the same
/// pipeline as separate processes that find each other.
#[derive(Debug, Parser)]
#[command(
    name = "pipedoc",
    version,
    after_help = "Exit codes: 0 done; 1 failed while running; 2 refused, nothing was done; 130 interrupted.\n\nExamples:\n  pipedoc run examples/library\n  pipedoc run my-pipeline.yaml --in ~/papers --out results\n  pipedoc plan my-pipeline.yaml\n  pipedoc dlq list --data results/.pipedoc"
)]
pub struct Args {
    /// How results are shown: text for people, json for machines.
    #[arg(long, global = true, value_enum, default_value_t = OutputFormat::Text, env = "PIPEDOC_OUTPUT")]
    pub output: OutputFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For machines: JSON on standard output.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a pipeline in this process, to the end, and sums up what came of it.
    Run(RunArgs),
    /// Runs an engine: reads pipelines from a folder or Consul and tells modules what to do.
    Engine(EngineArgs),
    /// Runs one instance of a built-in module, told by engines what to do.
    Module(ModuleArgs),
    /// Sends documents into a running pipeline through an engine.
    Submit(SubmitArgs),
    /// Shows how pipelines, steps and instances are doing, asking an engine.
    Status(StatusArgs),
    /// Lets steps go on whose partitions stand still by themselves.
    Resume(ResumeArgs),
    /// Makes a pipeline file the running one, through an engine.
    Apply(ApplyArgs),
    /// Prints a pipeline as it was applied, byte for byte.
    Get(GetArgs),
    /// Lists a pipeline's last 50 revisions, newest first: when, by whom, on which road.
    History(HistoryArgs),
    /// Shows what changed from one revision of a pipeline to another, and what that
    /// means for its steps and topics.
    Diff(DiffArgs),
    /// Makes the text of an earlier revision a pipeline's newest revision.
    Rollback(RollbackArgs),
    /// Removes a pipeline from what runs; its topics and revisions stay.
    Delete(DeleteArgs),
    /// Checks a pipeline file and shows what would run; changes nothing.
    Plan(PlanArgs),
    /// Looks at dead letters.
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Checks the files of a data folder and gives their free room back.
    Doctor(DoctorArgs),
    /// Makes something new to begin with.
    #[command(subcommand)]
    New(NewCommand),
}

/// Arguments of `run`.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// The pipeline: a YAML or JSON file, or a folder that holds a `pipeline.yaml`.
    pub pipeline: PathBuf,
    /// Value of `${in}`. Default: the folder `in` beside the pipeline file.
    #[arg(long = "in", value_name = "DIR")]
    pub input: Option<PathBuf>,
    /// Value of `${out}`, made if it is missing.
    #[arg(long = "out", value_name = "DIR", default_value = "out")]
    pub out: PathBuf,
    /// Value of another variable of the pipeline, NAME=VALUE; may be repeated.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
    /// Where log and state are kept. Default: `.pipedoc` within the `--out` folder.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Tries documents again that an earlier run gave up on.
    #[arg(long)]
    pub retry_failed: bool,
    /// Stays, and takes what comes (connectors watch their sources) until Ctrl-C.
    #[arg(long)]
    pub watch: bool,
}

/// Where a process keeps its things and what installation it belongs to.
#[derive(Debug, ClapArgs)]
pub struct EngineArgs {
    /// Where configuration is kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Folder that the processes of this machine share.
    #[arg(long, value_name = "DIR", env = "PIPEDOC_DATA", default_value = ".pipedoc")]
    pub data: PathBuf,
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Where large payloads lie: `s3://BUCKET[/PREFIX]` (address and keys in AWS_*
    /// variables) or a folder; the same for all processes of an installation.
    /// Default: `objects` in the data folder.
    #[arg(long, env = "PIPEDOC_OBJECTS", value_name = "URL")]
    pub objects: Option<ObjectsUrl>,
    /// Name of the installation; prefix of its topics, groups and keys in Consul.
    #[arg(long, env = "PIPEDOC_CLUSTER", default_value = "local")]
    pub cluster: String,
    /// Address that others reach this engine at, for Consul's catalog. Default: that
    /// of --listen.
    #[arg(long, value_name = "HOST:PORT", env = "PIPEDOC_ADVERTISE")]
    pub advertise: Option<String>,
    /// Address to serve gRPC on.
    #[arg(long, value_name = "ADDRESS", env = "PIPEDOC_LISTEN", default_value = "127.0.0.1:7400")]
    pub listen: std::net::SocketAddr,
    /// Value of a variable for pipelines picked up from the folder or Consul; may be repeated.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
}

/// Arguments of `module`.
#[derive(Debug, ClapArgs)]
pub struct ModuleArgs {
    /// Name of the module.
    pub name: String,
    /// How the process is run.
    #[command(flatten)]
    pub process: pipedoc_sdk::process::ProcessArgs,
}

/// Which engine to ask.
#[derive(Debug, Clone, ClapArgs)]
pub struct EngineAddress {
    /// Address of an engine.
    #[arg(long, value_name = "URL", env = "PIPEDOC_ENGINE", default_value = "http://127.0.0.1:7400")]
    pub engine: String,
}

/// Arguments of `status`.
#[derive(Debug, ClapArgs)]
pub struct StatusArgs {
    /// Only this pipeline, and what instances do for it. Default: all.
    pub pipeline: Option<String>,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `resume`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A partition stands still when a record of it was given up on (on_exhausted: PAUSE), and all of a step when too\nmany were (stop_at_failure_rate); `pipedoc status` shows which, since when and why. What stopped them is tried again."
)]
pub struct ResumeArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Only this step. Default: all of the pipeline.
    pub step: Option<String>,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `submit`.
#[derive(Debug, ClapArgs)]
pub struct SubmitArgs {
    /// Files to send, each as the blob of one document; `*.pipedoc.json` files are
    /// documents in JSON already.
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Pipeline to send to.
    #[arg(long)]
    pub pipeline: String,
    /// Step that receives the documents. Default: the only one without predecessors.
    #[arg(long)]
    pub step: Option<String>,
    /// Id of the document (one file only). Default: the file's name.
    #[arg(long)]
    pub id: Option<String>,
    /// Follows each document through the log to the end, and shows the times.
    #[arg(long)]
    pub follow: bool,
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Data folder whose `log.db` is the log.
    #[arg(long, value_name = "DIR", env = "PIPEDOC_DATA", default_value = ".pipedoc")]
    pub data: PathBuf,
    /// Give up following after so many seconds.
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// On which terms a pipeline is changed.
#[derive(Debug, Clone, ClapArgs)]
pub struct TermsArgs {
    /// Revision that must be the current one (0: there must be no such pipeline); else
    /// nothing is done and what changed is shown. Default: the one that is current when
    /// the command begins.
    #[arg(long, value_name = "REVISION")]
    pub expect: Option<u64>,
    /// Also when a step goes for which records wait. They stay in its topic: a step of
    /// the same name would find them.
    #[arg(long)]
    pub abandon: bool,
    /// Who does it, for the history. Default: the user and the host.
    #[arg(long, value_name = "NAME", env = "PIPEDOC_BY")]
    pub by: Option<String>,
}

/// Arguments of `get`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  pipedoc get library > library.yaml\n  pipedoc get library --revision 3")]
pub struct GetArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Which revision. Default: the current one.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<u64>,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `history`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Roads: apply (pipedoc apply), inbox (an edit in the folder or in Consul), rollback of N.\nThe history of a deleted pipeline is kept as well."
)]
pub struct HistoryArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `diff`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  pipedoc diff library        what the current revision changed\n  pipedoc diff library 3      from revision 3 to the current one\n  pipedoc diff library 3 5    from revision 3 to revision 5"
)]
pub struct DiffArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// From this revision. Default: the one before the other.
    pub from: Option<u64>,
    /// To this revision. Default: the current one.
    pub to: Option<u64>,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `rollback`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "A rollback is a change like any other: it makes a new revision, with the old text, and can be rolled back itself.\nA deleted pipeline comes back as it was."
)]
pub struct RollbackArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Revision whose text is wanted. Default: the one before the current one.
    #[arg(long, value_name = "REVISION")]
    pub to: Option<u64>,
    /// On which terms.
    #[command(flatten)]
    pub terms: TermsArgs,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `delete`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "The pipeline's file, or its key in Consul, is removed too. `pipedoc rollback PIPELINE` brings it back."
)]
pub struct DeleteArgs {
    /// Name of the pipeline.
    pub pipeline: String,
    /// On which terms.
    #[command(flatten)]
    pub terms: TermsArgs,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `apply`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Of two who apply at once one wins; the other is told what changed, and may apply again.\nExit codes: 0 applied, or it runs already; 1 failed; 2 refused, nothing was changed."
)]
pub struct ApplyArgs {
    /// The pipeline: a YAML or JSON file, or a folder that holds a `pipeline.yaml`.
    pub pipeline: PathBuf,
    /// Value of a variable of the pipeline; may be repeated.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
    /// Only check, and show what would change; nothing is changed.
    #[arg(long)]
    pub dry_run: bool,
    /// On which terms.
    #[command(flatten)]
    pub terms: TermsArgs,
    /// Which engine.
    #[command(flatten)]
    pub engine: EngineAddress,
}

/// Arguments of `plan`.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// The pipeline: a YAML or JSON file, or a folder that holds a `pipeline.yaml`.
    pub pipeline: PathBuf,
    /// Value of a variable of the pipeline; may be repeated. `in` and `out` have
    /// the defaults of `run`.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub variables: Vec<(String, String)>,
    /// Name of the installation.
    #[arg(long, env = "PIPEDOC_CLUSTER", default_value = "local")]
    pub cluster: String,
    /// Refuse modules that are not built in, instead of warning.
    #[arg(long)]
    pub strict: bool,
}

/// Commands on dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Lists dead letters, oldest first.
    List(DlqListArgs),
}

/// Arguments of `dlq list`.
#[derive(Debug, ClapArgs)]
pub struct DlqListArgs {
    /// Only of this pipeline.
    #[arg(long)]
    pub pipeline: Option<String>,
    /// Only of this step.
    #[arg(long)]
    pub step: Option<String>,
    /// Name of the installation.
    #[arg(long, env = "PIPEDOC_CLUSTER", default_value = "local")]
    pub cluster: String,
    /// Data folder whose `log.db` is the log (`run` keeps it in `<out>/.pipedoc`).
    #[arg(long, value_name = "DIR", env = "PIPEDOC_DATA", default_value = ".pipedoc")]
    pub data: PathBuf,
    /// Which log.
    #[command(flatten)]
    pub log: LogArgs,
    /// Show at most so many of each partition, the newest.
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
}

/// Arguments of `doctor`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit codes: 0 all files are sound; 1 a file is damaged or cannot be read; 2 there is no such file, or it is not PipeDoc's, is newer, or is in use (--compact)."
)]
pub struct DoctorArgs {
    /// Data folder whose `log.db` and `control.db` are looked at (`run` keeps it in
    /// `<out>/.pipedoc`).
    #[arg(long, value_name = "DIR", env = "PIPEDOC_DATA", default_value = ".pipedoc")]
    pub data: PathBuf,
    /// Just this log: `sqlite:PATH`.
    #[arg(long, value_name = "URL")]
    pub log: Option<LogUrl>,
    /// Gives free room back to the file system. Nothing else may use the files
    /// meanwhile, and it takes as much room again while it lasts.
    #[arg(long)]
    pub compact: bool,
}

/// What can be made anew.
#[derive(Debug, Subcommand)]
pub enum NewCommand {
    /// Makes a module in a folder of its own, with a test that passes.
    Module(NewModuleArgs),
}

/// Arguments of `new module`.
#[derive(Debug, ClapArgs)]
pub struct NewModuleArgs {
    /// Name of the module and of its folder.
    pub name: String,
    /// Folder of the PipeDoc checkout whose SDK the module uses. Default: the
    /// checkout around the current folder, or the one this binary was built in.
    #[arg(long, value_name = "PATH", env = "PIPEDOC_SDK")]
    pub sdk: Option<PathBuf>,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
