//! The module under test: does what the model says that each document wants.
//!
//! It finds its world by the number in its configuration; worlds are kept in a
//! table of the test process, as a module is made by its configuration alone.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pipedoc_sdk::module::{Deletion, Step};
use pipedoc_sdk::prelude::*;

use super::world::{Wish, World};

static WORLDS: Mutex<Vec<Arc<World>>> = Mutex::new(Vec::new());

/// Keeps a world for modules to find; gives its number.
pub fn settle(world: &Arc<World>) -> usize {
    let mut worlds = WORLDS.lock();
    worlds.push(Arc::clone(world));
    worlds.len() - 1
}

/// Does what its documents want.
pub struct Puppet {
    world: Arc<World>,
    instance: String,
}

/// Takes batches itself, one document after the other, and fails as a whole when
/// a document panics.
pub struct Bulk(Puppet);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Strings {
    /// Number of its world.
    world: usize,
}

impl Module for Puppet {
    type Config = Strings;
    const NAME: &'static str = "puppet";
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline, StepType::Sink];

    async fn open(config: Strings, step: &Step) -> Result<Self> {
        let world = Arc::clone(&WORLDS.lock()[config.world]);
        // The step's folder is the instance's own.
        let instance = step.data().display().to_string();
        Ok(Self { world, instance })
    }

    async fn process(&self, doc: PipeDoc, _: &Step) -> Result<Output> {
        let _at_work = AtWork::begin(self, &doc.id);
        self.act(doc).await
    }

    async fn deleted(&self, deletion: Deletion, _: &Step) -> Result<Output> {
        let _at_work = AtWork::begin(self, &deletion.id);
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(Output::delete(deletion.id))
    }
}

impl Module for Bulk {
    type Config = Strings;
    const NAME: &'static str = "bulk";
    const STEP_TYPES: &'static [StepType] = &[StepType::Pipeline, StepType::Sink];

    async fn open(config: Strings, step: &Step) -> Result<Self> {
        Puppet::open(config, step).await.map(Self)
    }

    async fn process(&self, doc: PipeDoc, step: &Step) -> Result<Output> {
        self.0.process(doc, step).await
    }

    async fn process_batch(&self, docs: Vec<PipeDoc>, step: &Step) -> Vec<Result<Output>> {
        let mut results = Vec::new();
        for doc in docs {
            results.push(self.0.process(doc, step).await);
        }
        results
    }

    async fn deleted(&self, deletion: Deletion, step: &Step) -> Result<Output> {
        self.0.deleted(deletion, step).await
    }
}

impl Puppet {
    async fn act(&self, doc: PipeDoc) -> Result<Output> {
        let Some(wanted) = self.world.wanted(&doc.id) else {
            self.world.violated(format!("{} was never sent", doc.id));
            return Ok(Output::skip());
        };
        match wanted.wish {
            Wish::Pass { after } => tokio::time::sleep(Duration::from_millis(after)).await,
            Wish::Retry { fails } => {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let made = self.world.attempts_of(&doc.id);
                if made <= fails {
                    return Err(Error::retryable(format!("attempt {made} of {fails}")));
                }
            }
            Wish::Become { many: 0 } => {
                self.world.gives_nothing(&doc.id);
                return Ok(Output::skip());
            }
            Wish::Become { many } => {
                let part = |n| PipeDoc { id: format!("{}#{n}", doc.id), parent_id: doc.id.clone(), ..doc.clone() };
                return Ok(Output::many((0..many).map(part)));
            }
            Wish::Bad => return Err(Error::permanent("no good")),
            Wish::Panic => panic!("a document wants it"),
            Wish::Hang => std::future::pending().await,
            Wish::Large | Wish::Tombstone => {}
        }
        Ok(doc.into())
    }
}

/// Tells the model when work begins and ends, also when it is dropped.
struct AtWork<'a>(&'a Puppet, String);

impl<'a> AtWork<'a> {
    fn begin(puppet: &'a Puppet, id: &str) -> Self {
        puppet.world.begins(&puppet.instance, id);
        Self(puppet, id.to_owned())
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.world.ends(&self.0.instance, &self.1);
    }
}
