//! What of a report is news in its session: only that travels. Pure.
//!
//! An instance of hundreds of steps that reports each second would else say the
//! same again and again, to every engine.

use std::collections::BTreeMap;

use pipedoc_proto::v1::{InstanceReport, StepReport};

/// What was reported in a session.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The steps as they were reported last; none before the first report.
    reported: Option<BTreeMap<(String, String), StepReport>>,
}

impl News {
    /// Leaves out of a report what the engine knows. It must be sent then.
    pub(super) fn only(&mut self, report: InstanceReport) -> InstanceReport {
        let now = report.steps.iter().map(|step| ((step.pipeline.clone(), step.step.clone()), step.clone()));
        let now: BTreeMap<_, _> = now.collect();
        let before = self.reported.replace(now.clone());
        // Steps that are gone can only be told by naming all that are left.
        let Some(before) = before.filter(|before| before.keys().all(|name| now.contains_key(name))) else {
            return report;
        };
        let news = now.into_iter().filter(|(name, step)| before.get(name) != Some(step));
        InstanceReport {
            steps: news.map(|(_, step)| step).collect(),
            partial: true,
            registration: None,
            endpoint: String::new(),
            started_at: None,
            serve: Vec::new(),
            ..report
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(steps: &[(&str, i64)]) -> InstanceReport {
        let step = |(step, done): &(&str, i64)| StepReport {
            pipeline: "shelf".into(),
            step: (*step).into(),
            done: *done,
            ..StepReport::default()
        };
        InstanceReport {
            instance_id: "me".into(),
            endpoint: "http://here".into(),
            steps: steps.iter().map(step).collect(),
            ..InstanceReport::default()
        }
    }

    #[test]
    fn only_steps_with_news_are_reported_again() {
        let mut news = News::default();
        let first = report(&[("a", 1), ("b", 1)]);
        assert_eq!(news.only(first.clone()), first);
        let second = news.only(report(&[("a", 1), ("b", 2), ("c", 0)]));
        assert_eq!(
            (second.steps, second.partial, second.endpoint),
            (report(&[("b", 2), ("c", 0)]).steps, true, String::new())
        );
        assert!(news.only(report(&[("a", 1), ("b", 2), ("c", 0)])).steps.is_empty());
        let fewer = news.only(report(&[("a", 1)]));
        assert!(!fewer.partial, "all that are left are told");
        assert_eq!(fewer.steps.len(), 1);
    }
}
