//! The attached instances, with what they reported last.
//!
//! Knows reports as they came, partial ones put together; nothing is decided
//! here. A thousand instances with hundreds of steps each are kept small: a step
//! that an instance was told of is not spelled out again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use pipedoc_model::names::ModuleName;
use pipedoc_model::registry::Modules;
use pipedoc_proto::v1::{InstanceReport, PausedPartition, Resume, StepReport, StepState};
use prost_types::Timestamp;

use crate::resumes::Resumes;
use crate::view::{ReadyStep, StepList};

/// An attached instance.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) module: ModuleName,
    pub(crate) instance_id: String,
    pub(crate) version: String,
    pub(crate) endpoint: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) serve: Vec<String>,
    pub(crate) generation: u64,
    pub(crate) from_disk: bool,
    pub(crate) refusals: Vec<String>,
    /// What it is to be told to resume.
    pub(crate) resumes: Arc<Resumes>,
    /// When its last report came.
    pub(crate) reported_at: SystemTime,
    /// Its steps, by their names.
    steps: Vec<StepNow>,
}

/// State of a step in an instance, as it was reported last.
#[derive(Debug, Clone)]
pub(crate) struct StepNow {
    which: Which,
    state: i32,
    pub(crate) lag: i64,
    pub(crate) in_flight: i64,
    pub(crate) done: i64,
    pub(crate) failed: i64,
    /// Most steps have none.
    trouble: Option<Box<Trouble>>,
    partitions: Box<[String]>,
    drained: bool,
}

/// What is wrong with a step.
#[derive(Debug, Clone)]
struct Trouble {
    /// The newest error and when it was.
    error: String,
    at: Option<Timestamp>,
    /// Partitions that the instance has paused by itself.
    paused: Vec<PausedPartition>,
}

/// Which step that is, and the hash of what it does.
#[derive(Debug, Clone)]
enum Which {
    /// One that the instance was told of.
    Told(Arc<ReadyStep>),
    /// Another: pipeline, step, hash.
    Other(Box<(String, String, String)>),
}

impl Attached {
    fn new(module: ModuleName, report: InstanceReport) -> Self {
        let mut attached = Self {
            module,
            instance_id: report.instance_id.clone(),
            version: String::new(),
            endpoint: String::new(),
            started_at: None,
            serve: Vec::new(),
            generation: 0,
            from_disk: false,
            refusals: Vec::new(),
            resumes: Arc::default(),
            reported_at: SystemTime::now(),
            steps: Vec::new(),
        };
        attached.take(report, None);
        attached
    }

    /// Takes a report in. `told` are the steps that the instance was told of.
    fn take(&mut self, report: InstanceReport, told: Option<&StepList>) {
        self.reported_at = SystemTime::now();
        self.generation = report.generation;
        self.from_disk = report.from_disk;
        self.refusals = report.refusals;
        let steps = report.steps.into_iter().map(|step| StepNow::new(step, told));
        if !report.partial {
            self.version = report.registration.map(|registration| registration.version).unwrap_or_default();
            self.endpoint = report.endpoint;
            self.started_at = report.started_at;
            self.serve = report.serve;
            self.steps = steps.collect();
            self.steps.sort_by(|a, b| a.name().cmp(&b.name()));
            return;
        }
        let gone: BTreeSet<_> = report.gone.iter().filter_map(|name| name.split_once('/')).collect();
        if !gone.is_empty() {
            self.steps.retain(|step| !gone.contains(&step.name()));
        }
        for step in steps {
            match self.place(step.name()) {
                Ok(at) => self.steps[at] = step,
                Err(at) => self.steps.insert(at, step),
            }
        }
    }

    /// Spells out no more what it was told of since it reported it.
    fn recognise(&mut self, told: &StepList) {
        for step in &mut self.steps {
            let Which::Other(other) = &step.which else { continue };
            if let Some(known) = told.step(&other.0, &other.1).filter(|known| known.hash == other.2) {
                step.which = Which::Told(Arc::clone(known));
            }
        }
    }

    fn spells_out(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.which, Which::Other(_)))
    }

    /// What it reported of a step.
    pub(crate) fn step(&self, pipeline: &str, step: &str) -> Option<&StepNow> {
        self.place((pipeline, step)).ok().map(|at| &self.steps[at])
    }

    /// What it reported of all steps, by their names.
    pub(crate) fn steps(&self) -> impl Iterator<Item = &StepNow> {
        self.steps.iter()
    }

    fn place(&self, name: (&str, &str)) -> Result<usize, usize> {
        self.steps.binary_search_by(|step| step.name().cmp(&name))
    }
}

impl StepNow {
    fn new(report: StepReport, told: Option<&StepList>) -> Self {
        let known = told.and_then(|told| told.step(&report.pipeline, &report.step));
        let which = match known.filter(|step| step.hash == report.hash) {
            Some(step) => Which::Told(Arc::clone(step)),
            None => Which::Other(Box::new((report.pipeline, report.step, report.hash))),
        };
        let (error, at, paused) = (report.last_error, report.last_error_at, report.paused);
        let has_trouble = !error.is_empty() || at.is_some() || !paused.is_empty();
        Self {
            which,
            state: report.state,
            lag: report.lag,
            in_flight: report.in_flight,
            done: report.done,
            failed: report.failed,
            trouble: has_trouble.then(|| Box::new(Trouble { error, at, paused })),
            partitions: report.partitions.into(),
            drained: report.drained,
        }
    }

    /// Its pipeline and step.
    pub(crate) fn name(&self) -> (&str, &str) {
        match &self.which {
            Which::Told(step) => (step.plan.id.pipeline.as_str(), step.plan.id.step.as_str()),
            Which::Other(other) => (&other.0, &other.1),
        }
    }

    pub(crate) fn state(&self) -> StepState {
        StepState::try_from(self.state).unwrap_or_default()
    }

    /// The newest error; empty if there was none.
    pub(crate) fn last_error(&self) -> &str {
        self.trouble.as_ref().map_or("", |trouble| &trouble.error)
    }

    /// When that was.
    pub(crate) fn last_error_at(&self) -> Option<Timestamp> {
        self.trouble.as_ref().and_then(|trouble| trouble.at)
    }

    /// Partitions that the instance has paused by itself.
    pub(crate) fn paused(&self) -> &[PausedPartition] {
        self.trouble.as_ref().map_or(&[], |trouble| &trouble.paused)
    }

    /// The report that it was.
    pub(crate) fn to_report(&self) -> StepReport {
        let (pipeline, step) = self.name();
        let hash = match &self.which {
            Which::Told(step) => &step.hash,
            Which::Other(other) => &other.2,
        };
        StepReport {
            pipeline: pipeline.to_owned(),
            step: step.to_owned(),
            state: self.state,
            lag: self.lag,
            in_flight: self.in_flight,
            done: self.done,
            failed: self.failed,
            last_error: self.last_error().to_owned(),
            last_error_at: self.last_error_at(),
            partitions: self.partitions.to_vec(),
            hash: hash.clone(),
            drained: self.drained,
            paused: self.paused().to_vec(),
        }
    }
}

/// The attached instances.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    table: Arc<Mutex<Table>>,
    kept: Arc<tokio::sync::Mutex<Modules>>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// By session: an instance may be back before its old session has ended.
    sessions: BTreeMap<u64, Arc<Attached>>,
}

impl Sessions {
    /// Enters an instance; it leaves when the session is dropped.
    pub(crate) fn enter(&self, module: ModuleName, report: InstanceReport) -> Session {
        let attached = Arc::new(Attached::new(module, report));
        let resumes = Arc::clone(&attached.resumes);
        let mut table = self.table.lock();
        table.last += 1;
        let id = table.last;
        table.sessions.insert(id, attached);
        Session { id, sessions: self.clone(), resumes }
    }

    /// Registrations that this engine is known to have kept in the store. To be held
    /// while one is kept: of a thousand instances that attach at once one asks.
    pub(crate) fn kept(&self) -> &tokio::sync::Mutex<Modules> {
        &self.kept
    }

    /// The attached instances, each once with its newest session, by module and id.
    pub(crate) fn all(&self) -> Vec<Arc<Attached>> {
        let all: Vec<_> = self.table.lock().sessions.values().cloned().collect();
        let mut newest = BTreeMap::new();
        for attached in all {
            newest.insert((attached.module.clone(), attached.instance_id.clone()), attached);
        }
        newest.into_values().collect()
    }
}

/// An instance's stay in the table.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    sessions: Sessions,
    resumes: Arc<Resumes>,
}

impl Session {
    /// Takes in a newer report. `told` are the steps that the instance was told of.
    pub(crate) fn report(&self, report: InstanceReport, told: Option<&StepList>) {
        if let Some(attached) = self.sessions.table.lock().sessions.get_mut(&self.id) {
            Arc::make_mut(attached).take(report, told);
        }
    }

    /// Waits until the instance is to be told to resume steps. Cancelling it loses
    /// nothing.
    pub(crate) async fn to_resume(&self) -> Resume {
        self.resumes.next().await
    }

    /// Notes which steps the instance was told of: an engine that has just started is
    /// reported to before it can tell anything.
    pub(crate) fn told(&self, told: &StepList) {
        let mut table = self.sessions.table.lock();
        if let Some(attached) = table.sessions.get_mut(&self.id).filter(|attached| attached.spells_out()) {
            Arc::make_mut(attached).recognise(told);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.table.lock().sessions.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_proto::v1::ServiceRegistration;

    use super::*;
    use crate::view::View;
    use crate::view::tests::{module, pipeline_view, view_of};

    fn step(name: &str, hash: &str, done: i64) -> StepReport {
        let hash = hash.to_owned();
        StepReport { pipeline: "a".into(), step: name.into(), hash, done, ..StepReport::default() }
    }

    #[test]
    fn partial_reports_are_put_together_with_those_before() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1, 1, 1])]);
        let list = Arc::clone(view.list(&module("m0")).unwrap());
        let sessions = Sessions::default();
        let registration = ServiceRegistration { version: "1.2.3".into(), ..ServiceRegistration::default() };
        let first = InstanceReport {
            instance_id: "one".into(),
            registration: Some(registration),
            endpoint: "http://here".into(),
            steps: vec![step("s2", "old", 1), step("s0", &list.steps()[0].hash, 2)],
            ..InstanceReport::default()
        };
        let session = sessions.enter(module("m0"), first);
        let failed = StepReport {
            last_error: "no".into(),
            partitions: vec!["t[0]".into()],
            ..step("s2", &list.steps()[1].hash, 7)
        };
        let news =
            InstanceReport { generation: 5, steps: vec![failed.clone()], partial: true, ..InstanceReport::default() };
        session.report(news, Some(&list));
        let all = sessions.all();
        let [one] = &all[..] else { panic!("{all:?}") };
        assert_eq!((one.generation, one.version.as_str(), one.endpoint.as_str()), (5, "1.2.3", "http://here"));
        assert_eq!(one.step("a", "s0").unwrap().done, 2);
        assert_eq!(one.step("a", "s2").unwrap().to_report(), failed);
        assert_eq!(one.steps().count(), 2);
        let news = InstanceReport {
            steps: vec![step("s4", "new", 1)],
            gone: vec!["a/s0".into(), "a/never".into()],
            partial: true,
            ..InstanceReport::default()
        };
        session.report(news, Some(&list));
        let names: Vec<_> = sessions.all()[0].steps().map(|step| step.name().1.to_owned()).collect();
        assert_eq!(names, ["s2", "s4"]);

        let whole = InstanceReport { steps: vec![step("s0", "x", 3)], ..InstanceReport::default() };
        session.report(whole, Some(&list));
        let all = sessions.all();
        assert_eq!(
            all[0].steps().map(StepNow::to_report).collect::<Vec<_>>(),
            [step("s0", "x", 3)],
            "what is gone is gone"
        );
        drop(session);
        assert!(sessions.all().is_empty());
    }

    #[test]
    fn what_was_reported_before_it_was_told_is_not_kept_spelled_out() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1, 1])]);
        let list = Arc::clone(view.list(&module("m0")).unwrap());
        let sessions = Sessions::default();
        let steps = vec![step("s0", &list.steps()[0].hash, 2), step("gone", "old", 1)];
        let session =
            sessions.enter(module("m0"), InstanceReport { steps: steps.clone(), ..InstanceReport::default() });
        assert!(sessions.all()[0].spells_out());
        session.told(&list);
        let spelled = |which: &Which| matches!(which, Which::Other(_));
        assert_eq!(sessions.all()[0].steps.iter().filter(|step| spelled(&step.which)).count(), 1);
        let mut reports: Vec<_> = sessions.all()[0].steps().map(StepNow::to_report).collect();
        reports.sort_by_key(|report| report.step == "gone");
        assert_eq!(reports, steps, "what it says is the same");
    }
}
