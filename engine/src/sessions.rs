//! The attached instances, with what they reported last.
//!
//! Knows reports as they came; nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use pipedoc_model::names::ModuleName;
use pipedoc_proto::v1::InstanceReport;

/// An attached instance.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) module: ModuleName,
    /// Its last report.
    pub(crate) report: InstanceReport,
    /// When that came.
    pub(crate) reported_at: SystemTime,
}

/// The attached instances.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// By session: an instance may be back before its old session has ended.
    sessions: BTreeMap<u64, Attached>,
}

impl Sessions {
    /// Enters an instance; it leaves when the session is dropped.
    pub(crate) fn enter(&self, module: ModuleName, report: InstanceReport) -> Session {
        let mut table = self.0.lock();
        table.last += 1;
        let id = table.last;
        table.sessions.insert(id, Attached { module, report, reported_at: SystemTime::now() });
        Session { id, sessions: self.clone() }
    }

    /// The attached instances, each once with its newest session, by module and id.
    pub(crate) fn all(&self) -> Vec<Attached> {
        let mut newest = BTreeMap::new();
        for attached in self.0.lock().sessions.values() {
            newest.insert((attached.module.clone(), attached.report.instance_id.clone()), attached.clone());
        }
        newest.into_values().collect()
    }
}

/// An instance's stay in the table.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    sessions: Sessions,
}

impl Session {
    /// Takes in a newer report.
    pub(crate) fn report(&self, report: InstanceReport) {
        if let Some(attached) = self.sessions.0.lock().sessions.get_mut(&self.id) {
            attached.report = report;
            attached.reported_at = SystemTime::now();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.0.lock().sessions.remove(&self.id);
    }
}
