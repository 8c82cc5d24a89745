//! The echo module: passes documents on as they are. It measures what a pipeline
//! costs by itself, and with its settings plays a slow or a failing step.
//!
//! It looks at nothing in a document.

pub mod config;

use std::sync::atomic::{AtomicU64, Ordering};

use pipedoc_sdk::prelude::*;

use crate::config::{Config, Fail, Kind};

/// The error of a document that was made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MadeToFail;

impl std::fmt::Display for MadeToFail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("made to fail by the step's setting `fail`")
    }
}

impl std::error::Error for MadeToFail {}

/// Passes documents on.
#[derive(Debug)]
pub struct Echo {
    config: Config,
    attempts: AtomicU64,
}

impl Module for Echo {
    type Config = Config;
    const NAME: &'static str = "echo";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str = "Passes documents on as they are; can be made slow or failing, for trials.";

    async fn open(config: Config, _step: &Step) -> Result<Self> {
        Ok(Self { config, attempts: AtomicU64::new(0) })
    }

    async fn process(&self, doc: PipeDoc, _step: &Step) -> Result<Output> {
        if let Some(delay) = self.config.delay {
            tokio::time::sleep(delay.0).await;
        }
        match &self.config.fail {
            Some(fail) => self.attempt(fail).map(|()| doc.into()),
            None => Ok(doc.into()),
        }
    }
}

impl Echo {
    fn attempt(&self, fail: &Fail) -> Result<()> {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        match fail.kind {
            _ if !attempt.is_multiple_of(fail.every.max(1)) => Ok(()),
            Kind::Retryable => Err(Error::retryable(MadeToFail)),
            Kind::Permanent => Err(Error::permanent(MadeToFail)),
        }
    }
}
