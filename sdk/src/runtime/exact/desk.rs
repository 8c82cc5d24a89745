//! A desk: one transactional producer, with what is needed to know in the end
//! whether a transaction was written.
//!
//! ```text
//!  write ─┬─ written
//!         ├─ aborted: nothing of it is there
//!         └─ in doubt: nothing was heard of its commit ─▶ settle: the id is taken anew,
//!                     which ends the transaction, and the group is asked what it has
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use pipedoc_model::kafka::Settings;
use pipedoc_model::names::Topic;
use pipedoc_transport::log::{
    self, Commit, Delivered, GroupMetadata, Log, OutgoingRecord, Transactional, TransactionalConfig,
};

/// What a step's desks have in common.
pub(crate) struct Office {
    log: Arc<dyn Log>,
    group: String,
    /// Whose ids they are.
    holder: String,
    settings: Settings,
    /// Numbers of the transactional ids in use.
    numbers: Mutex<BTreeSet<usize>>,
}

impl Office {
    /// `holder`: who fences itself only. The instance, where the group tells instances
    /// apart; the same for all, where there is to be one writer at a time.
    pub(crate) fn new(log: Arc<dyn Log>, group: String, holder: String, settings: Settings) -> Self {
        Self { log, group, holder, settings, numbers: Mutex::default() }
    }

    /// A desk with the lowest number that is free, so that a restart takes the same
    /// ones again and fences what was before.
    pub(crate) fn desk(self: &Arc<Self>) -> Desk {
        let mut numbers = self.numbers.lock();
        let number = (0..).find(|number| !numbers.contains(number)).unwrap_or_default();
        numbers.insert(number);
        Desk { office: Arc::clone(self), number, transactional: None }
    }
}

/// Why a transaction was not written, or is not known to be.
#[derive(Debug)]
pub(crate) struct Unwritten {
    pub(crate) error: log::Error,
    /// Whether it may have been written all the same.
    pub(crate) in_doubt: bool,
}

/// Writes transactions, one after the other.
pub(crate) struct Desk {
    office: Arc<Office>,
    number: usize,
    transactional: Option<Box<dyn Transactional>>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.office.numbers.lock().remove(&self.number);
    }
}

impl Desk {
    /// Takes the transactional id `<group>.<holder>.<number>` if it is not held: what
    /// was before under it is fenced, and its transaction ended.
    pub(crate) async fn open(&mut self) -> log::Result<&mut Box<dyn Transactional>> {
        if self.transactional.is_none() {
            let Office { log, group, holder, settings, .. } = &*self.office;
            let mut config = TransactionalConfig::new(format!("{group}.{holder}.{}", self.number));
            config.settings.clone_from(settings);
            self.transactional = Some(log.transactional(config).await?);
        }
        self.transactional.as_mut().ok_or(log::Error::Closed { what: "transactional producer" })
    }

    /// Writes records and offsets in one transaction.
    pub(crate) async fn write(
        &mut self,
        records: &[OutgoingRecord],
        commits: Vec<Commit>,
        member: Option<GroupMetadata>,
    ) -> Result<Vec<Delivered>, Unwritten> {
        let aborted = |error| Unwritten { error, in_doubt: false };
        let transactional = self.open().await.map_err(aborted)?;
        transactional.begin().await.map_err(aborted)?;
        let filled = async {
            if !records.is_empty() {
                transactional.send_kept(records).await?;
            }
            // Its session has ended.
            let Some(member) = member else { return Err(log::Error::Fenced { who: "a member of the group".into() }) };
            transactional.send_offsets(commits, &member).await
        };
        if let Err(error) = filled.await {
            if transactional.abort().await.is_err() {
                // It is taken anew, which aborts what is open.
                self.transactional = None;
            }
            return Err(aborted(error));
        }
        match transactional.commit().await {
            Ok(delivered) => Ok(delivered),
            Err(error) => {
                self.transactional = None;
                Err(Unwritten { error, in_doubt: true })
            }
        }
    }

    /// Ends all doubt: for each commit of a transaction of which nothing was heard,
    /// whether the group has it. One of a partition that is somebody else's by now
    /// may say either.
    pub(crate) async fn settle(&mut self, commits: &[Commit]) -> log::Result<Vec<bool>> {
        self.open().await?;
        let topics: BTreeSet<Topic> = commits.iter().map(|commit| commit.source.topic.clone()).collect();
        let topics: Vec<Topic> = topics.into_iter().collect();
        let offsets = self.office.log.group_offsets_of(&self.office.group, &topics).await?;
        let is_written = |commit: &Commit| {
            let found = offsets.get(&commit.source);
            found.is_some_and(|found| found.offset == commit.offset && found.metadata == commit.metadata)
        };
        Ok(commits.iter().map(is_written).collect())
    }
}
