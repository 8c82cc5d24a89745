//! PipeDoc's own roads, as a module's process runs them: a step planned from a
//! pipeline file, moved by the SDK's instance.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use pipedoc_echo::Echo;
use pipedoc_model::names::{ClusterName, Generation};
use pipedoc_model::plan::Plan;
use pipedoc_sdk::event::Unobserved;
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_sdk::prelude::{
    Deserialize, JsonSchema, Module as _, RecordBatch, RecordContext, RecordModule, Result, Step,
};
use pipedoc_transport::log::{Log, TopicSettings, TopicSpec};
use pipedoc_transport::objects::Objects;

use super::bed::PARTITIONS;

/// Which of the SDK's roads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// Records are piped on as they are.
    Records,
    /// Documents are decoded, handed to the module, and encoded.
    Documents,
}

/// A step that passes one topic on to another.
#[derive(Debug, Clone, clap::Args)]
pub struct PassStep {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Topic to read.
    pub input: String,
    /// Topic to write.
    #[arg(id = "output-topic")]
    pub output: String,
    /// Further fields of the step in the pipeline file: `concurrency: 8, ordering: NONE`.
    #[arg(long, default_value = "")]
    pub step: String,
    /// Holds each document back for so long: `20ms`.
    #[arg(long)]
    pub delay: Option<String>,
}

/// Runs a step until the process is ended.
///
/// # Errors
/// When the step cannot be planned or the log cannot be opened.
pub fn run(log: &str, road: Road, step: &PassStep) -> anyhow::Result<()> {
    run_plan(log, &plan(road, step)?)
}

/// Runs the steps of a plan until the process is ended.
///
/// # Errors
/// When the log cannot be opened or a topic cannot be made.
pub fn run_plan(log: &str, plan: &Plan) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let data = tempfile::tempdir().context("a folder for the instance")?;
        let log = pipedoc_transport::open::open(log).await.context("opening the log")?;
        let _instance = start(log, plan, data.path()).await?;
        std::future::pending().await
    })
}

fn plan(road: Road, step: &PassStep) -> anyhow::Result<Plan> {
    let PassStep { pipeline, input, output, step, delay } = step;
    let (module, config) = match (road, delay) {
        (Road::Records, _) => (Pipe::NAME, format!("config: {{to: {output}}}")),
        (Road::Documents, None) => (Echo::NAME, "config: {}".to_owned()),
        (Road::Documents, Some(delay)) => (Echo::NAME, format!("config: {{delay: {delay}}}")),
    };
    let settings = if step.is_empty() { String::new() } else { format!(", {step}") };
    let text = format!(
        "pipeline: {pipeline}\n\
         steps:\n\
         - {{name: pass, type: PIPELINE, module: {module}, {config}, input_kafka_topic: {input}, \
         output_kafka_topics: [{output}]{settings}}}\n"
    );
    plan_text(&text)
}

/// Plans a pipeline of steps that pass on.
///
/// # Errors
/// When the text is no pipeline.
pub fn plan_text(text: &str) -> anyhow::Result<Plan> {
    let known = factories().iter().map(|factory| (factory.info().module.clone(), factory.info().clone())).collect();
    let parsed = pipedoc_model::pipeline::parse(text, "bench", &Default::default(), &known, false)?;
    Ok(pipedoc_model::plan::plan(&ClusterName::new("bench")?, &[parsed.config], &Default::default()))
}

/// Makes a plan's topics and runs its steps.
async fn start(log: Arc<dyn Log>, plan: &Plan, data: &Path) -> anyhow::Result<Instance> {
    for planned in &plan.topics {
        let there = log.topic(&planned.topic).await?;
        if there.is_none() {
            let settings = TopicSettings { compact: planned.compacted.then_some(true), ..TopicSettings::default() };
            let topic = planned.topic.clone();
            log.ensure_topic(&TopicSpec { topic, partitions: PARTITIONS, replication: None, settings }).await?;
        }
    }
    let instance = Instance::start(InstanceConfig {
        log,
        objects: Arc::new(Objects::local(&data.join("objects"))?),
        id: "bench".to_owned(),
        data: data.to_owned(),
        factories: factories(),
        observer: Arc::new(Unobserved),
        layers: Default::default(),
    });
    instance.apply(Generation(1), plan.steps.clone());
    Ok(instance)
}

fn factories() -> Vec<Factory> {
    vec![Factory::records::<Pipe>(), Factory::module::<Echo>()]
}

/// Pipes each batch on.
struct Pipe {
    to: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PipeConfig {
    /// Where to.
    to: String,
}

impl RecordModule for Pipe {
    type Config = PipeConfig;
    const NAME: &'static str = "pipe";

    async fn open(config: PipeConfig, _step: &Step) -> Result<Self> {
        Ok(Self { to: config.to })
    }

    async fn process(&self, batch: &RecordBatch, context: &RecordContext) -> Result<()> {
        // The commit waits for the acknowledgement; nobody else has to.
        drop(context.pipe_many(&batch.records, &self.to));
        Ok(())
    }
}
