//! The filesystem connector: sends the files of a folder as documents, those that
//! are new or changed since the last run, and deletions of those that are gone.
//!
//! Its state remembers each document's version, content hash and what the file
//! looked like, so that unchanged files are not even read. It knows nothing of
//! formats: a document is the file's bytes in a blob. See [`config::Config`] for
//! what can be set.
//!
//! Every file counts once: a regular file that is selected is sent, unchanged, or a
//! dead letter. Links are passed over unless they are to be followed; pipes,
//! sockets and devices are never opened. What lies below a folder that cannot be
//! listed is not taken for deleted; the folder becomes a dead letter with the id
//! `<path>/`.

pub mod config;
mod id;
mod known;
mod read;
mod scan;
mod select;
mod send;
mod walk;
mod watch;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use pipedoc_sdk::prelude::*;

use crate::config::Config;
use crate::select::Selection;
use crate::send::Sender;
use crate::walk::Ground;
use crate::watch::Watch;

/// Why the connector cannot work with its configuration.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The folder cannot be used.
    #[error("folder {} cannot be read; correct `folder`, or make the folder", .folder.display())]
    Folder {
        /// The folder, as configured.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The prefix has characters with a meaning of their own.
    #[error("id_prefix `{0}` contains `%` or `#`, which have a meaning in ids; leave them out")]
    IdPrefix(String),
    /// Globs are wrong.
    #[error("{0}")]
    Globs(#[from] select::Error),
}

/// Sends the files of a folder.
#[derive(Debug)]
pub struct FilesystemConnector {
    ground: Arc<Ground>,
    config: Config,
}

impl Connector for FilesystemConnector {
    type Config = Config;
    const NAME: &'static str = "filesystem-connector";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const DESCRIPTION: &'static str = "Sends the files of a folder as documents, and again when they change.";

    async fn open(config: Config, _step: &Step) -> Result<Self> {
        let ground = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || ground(&config)).await?
        };
        Ok(Self { ground: Arc::new(ground.permanent()?), config })
    }

    async fn run(&self, step: &Step, out: &Emitter, state: &State) -> Result<()> {
        let work = async {
            // Before the first scan, so that no change falls between the two.
            let mut watch = self.config.watch.then(|| Watch::start(&self.ground, &self.config));
            let sender = Sender::new(Arc::clone(&self.ground), &self.config, out, state);
            sender.scan(None).await?;
            while let Some(watch) = &mut watch {
                let changed = watch.changed().await;
                sender.scan(Some(changed)).await?;
            }
            Ok(())
        };
        tokio::select! {
            () = step.stopping() => Ok(()),
            result = work => result,
        }
    }
}

/// Finds everything wrong with the configuration at once.
fn ground(config: &Config) -> Result<Ground> {
    let mut wrong: Vec<Unusable> = Vec::new();
    let root = fs::canonicalize(&config.folder).and_then(|root| fs::read_dir(&root).map(|_| root));
    let root = root.map_err(|source| wrong.push(Unusable::Folder { folder: config.folder.clone(), source })).ok();
    let selection = Selection::new(&config.include, &config.exclude, config.recursive);
    let selection = selection.map_err(|error| wrong.push(error.into())).ok();
    if config.id_prefix.contains(['%', '#']) {
        wrong.push(Unusable::IdPrefix(config.id_prefix.clone()));
    }
    match (root, selection, wrong.len()) {
        (Some(root), Some(selection), 0) => Ok(Ground {
            root,
            id_prefix: config.id_prefix.clone(),
            selection,
            follow_symlinks: config.follow_symlinks,
            list: walk::list,
        }),
        (_, _, 1) => Err(Error::permanent(wrong.remove(0)).with_kind("config")),
        _ => {
            let all: Vec<_> = wrong.into_iter().map(|one| Error::permanent(one).to_string()).collect();
            Err(Error::permanent(all.join("; ")).with_kind("config"))
        }
    }
}
