//! The `echo` step as a process runs it: planned from a pipeline file, moved by the
//! SDK's instance in this process, on whatever log is given.
//!
//! Knows the SDK and the contract of logs; knows nothing of any one log.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pipedoc_model::names::{ClusterName, Generation, StepId, Topic};
use pipedoc_model::plan::TopicPlan;
use pipedoc_model::step::StepPlan;
use pipedoc_sdk::event::{Event, Observer};
use pipedoc_sdk::factory::Factory;
use pipedoc_sdk::instance::{Instance, InstanceConfig};
use pipedoc_transport::log::{Log, TopicPartition, TopicSettings, TopicSpec};
use pipedoc_transport::objects::Objects;
use tokio::sync::oneshot;

use crate::cpu;

/// How often it is looked whether all is committed; the last look may be so much late.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One step that passes on what comes.
pub struct EchoStep {
    plan: StepPlan,
    topics: Vec<TopicPlan>,
    /// Where its records come from.
    pub input: Topic,
    /// Where they go.
    pub output: Topic,
}

/// What moving all records took.
#[derive(Debug, Clone, Copy)]
pub struct Took {
    /// From the moment partitions came to the last commit.
    pub wall: Duration,
    /// CPU time of this process meanwhile.
    pub cpu: Duration,
}

impl EchoStep {
    /// Plans it. `settings` are further fields of the step in the pipeline file,
    /// such as `delivery: EXACTLY_ONCE`; empty: defaults.
    ///
    /// # Errors
    /// When the settings are no settings of a step.
    pub fn plan(settings: &str) -> anyhow::Result<Self> {
        let settings = if settings.is_empty() { String::new() } else { format!(", {settings}") };
        let text = format!(
            "pipeline: bench\n\
             steps:\n\
             - {{name: echo, type: PIPELINE, module: echo, outputs: [{{to: end}}]{settings}}}\n\
             - {{name: end, type: PIPELINE, module: echo}}\n"
        );
        let factory = factory();
        let modules = [(factory.info().module.clone(), factory.info().clone())].into();
        let parsed = pipedoc_model::pipeline::parse(&text, "bench", &Default::default(), &modules, false)?;
        let cluster = ClusterName::new("bench")?;
        let planned = pipedoc_model::plan::plan(&cluster, &[parsed.config], &Default::default());
        let topics = planned.topics;
        let mut steps = planned.steps.into_iter();
        let (Some(plan), Some(end)) = (steps.next(), steps.next()) else { anyhow::bail!("the planner lost a step") };
        let (input, output) = (plan.id.input_topic(&cluster), end.id.input_topic(&cluster));
        Ok(Self { plan, topics, input, output })
    }

    /// How many partitions its topics have.
    #[must_use]
    pub fn partitions(&self) -> i32 {
        self.topics.iter().find(|planned| planned.topic == self.input).map_or(1, |planned| planned.partitions)
    }

    /// The consumer group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.plan.group
    }

    /// Makes the topics.
    ///
    /// # Errors
    /// When the log refuses one.
    pub async fn make_topics(&self, log: &dyn Log) -> anyhow::Result<()> {
        for planned in &self.topics {
            let settings = TopicSettings {
                compact: Some(planned.compacted),
                retention_ms: planned.retention_ms,
                retention_bytes: None,
                max_message_bytes: planned.max_message_bytes.and_then(|bytes| i32::try_from(bytes).ok()),
            };
            let topic = planned.topic.clone();
            log.ensure_topic(&TopicSpec { topic, partitions: planned.partitions, replication: None, settings }).await?;
        }
        Ok(())
    }

    /// Writes records number 0 to `count - 1` of `size` bytes to its input.
    ///
    /// # Errors
    /// When one is not acknowledged.
    pub async fn fill(&self, log: &dyn Log, count: usize, size: usize) -> anyhow::Result<()> {
        let producer = log.producer(Default::default()).await?;
        let mut receipts = Vec::new();
        for first in (0..count).step_by(1000) {
            let numbers = first..count.min(first + 1000);
            let records = numbers.map(|n| crate::documents::record(&self.input, n, size)).collect();
            receipts.push(producer.send(records).await?);
        }
        for receipt in receipts {
            for report in receipt.await {
                report?;
            }
        }
        Ok(())
    }

    /// Runs it until its group has committed all that lies in the input, then
    /// stops it. `data` is the instance's own folder.
    ///
    /// # Errors
    /// When the log fails, or nothing is committed any more for a minute.
    pub async fn run(&self, log: Arc<dyn Log>, data: &Path) -> anyhow::Result<Took> {
        let goal = ends(log.as_ref(), &self.input).await?;
        let (begun, begin) = oneshot::channel();
        let config = InstanceConfig {
            log: Arc::clone(&log),
            objects: Arc::new(Objects::local(&data.join("objects"))?),
            id: "bench".into(),
            data: data.to_owned(),
            factories: vec![factory()],
            observer: Arc::new(Begin(parking_lot::Mutex::new(Some(begun)))),
            layers: Default::default(),
        };
        let instance = Instance::start(config);
        instance.apply(Generation(1), vec![self.plan.clone()]);
        let (wall, cpu) = tokio::time::timeout(Duration::from_secs(60), begin).await.context("no partition came")??;
        let mut progress = (0, Instant::now());
        loop {
            let committed = log.group_offsets(self.group()).await?;
            let done =
                |(source, end): (&TopicPartition, &i64)| committed.get(source).is_some_and(|at| at.offset >= *end);
            if goal.iter().all(done) {
                break;
            }
            let sum: i64 = committed.values().map(|at| at.offset).sum();
            if sum != progress.0 {
                progress = (sum, Instant::now());
            }
            ensure!(
                progress.1.elapsed() < Duration::from_secs(60),
                "stuck after {sum} records: {:?}",
                instance.status()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let took = Took { wall: wall.elapsed(), cpu: cpu::of_process(std::process::id())?.saturating_sub(cpu) };
        instance.stop(Duration::from_secs(10)).await;
        Ok(took)
    }
}

/// Ends of all partitions that hold something.
pub async fn ends(log: &dyn Log, topic: &Topic) -> anyhow::Result<std::collections::BTreeMap<TopicPartition, i64>> {
    let ends = (0..).zip(log.ends(topic).await?);
    let filled = ends.filter(|(_, ends)| ends.end > ends.start);
    Ok(filled.map(|(n, ends)| (TopicPartition::new(topic.clone(), n), ends.end)).collect())
}

/// How many records lie in a topic.
pub async fn count(log: &dyn Log, topic: &Topic) -> anyhow::Result<u64> {
    let ends = log.ends(topic).await?;
    Ok(ends.iter().map(|ends| u64::try_from(ends.end - ends.start).unwrap_or(0)).sum())
}

fn factory() -> Factory {
    Factory::module::<pipedoc_echo::Echo>()
}

/// Clock and CPU time when it began.
type Begun = (Instant, Duration);

/// Notes the moment at which the first partitions come: nothing is read before.
struct Begin(parking_lot::Mutex<Option<oneshot::Sender<Begun>>>);

impl Observer for Begin {
    fn event(&self, _: &StepId, event: &Event) {
        if matches!(event, Event::Assigned(_))
            && let Some(begun) = self.0.lock().take()
        {
            let cpu = cpu::of_process(std::process::id()).unwrap_or_default();
            let _ = begun.send((Instant::now(), cpu));
        }
    }
}
