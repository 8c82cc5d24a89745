//! `pipedoc resume`: lets steps go on whose partitions stand still by themselves.

use std::process::ExitCode;

use pipedoc_proto::v1::{ResumeRequest, ResumeResponse};

use crate::args::{OutputFormat, ResumeArgs};
use crate::connect;
use crate::show::{self, say};

/// Runs the command.
pub async fn main(args: ResumeArgs, output: OutputFormat) -> anyhow::Result<ExitCode> {
    let mut client = connect::control(&args.engine).await?;
    let request = ResumeRequest { pipeline: args.pipeline, step: args.step.unwrap_or_default() };
    let resumed = client.resume(request).await.map_err(connect::said)?.into_inner();
    match output {
        OutputFormat::Json => say!("{}", show::json("pipedoc.v1.ResumeResponse", &resumed)?),
        OutputFormat::Text => print(&resumed),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(resumed: &ResumeResponse) {
    for step in &resumed.steps {
        let told = match step.instances {
            0 => "no instance that is attached to this engine runs it".to_owned(),
            1 => "one instance was told".to_owned(),
            many => format!("{many} instances were told"),
        };
        let paused: Vec<_> = step.paused.iter().map(|paused| paused.partition.as_str()).collect();
        let paused = if paused.is_empty() { "nothing was paused".to_owned() } else { paused.join(", ") };
        say!("{}: {told}; {paused}", step.step);
    }
}
