//! What of a report is news in its session: only that travels, in parts that are not
//! too long. Pure.
//!
//! An instance of hundreds of steps that reports each second would else say the
//! same again and again, to every engine; and an engine that has just started would
//! be told all of it by all instances at once.

use std::collections::{BTreeMap, VecDeque};

use pipedoc_proto::v1::{InstanceReport, StepReport};
use prost::Message;

/// Size of a part, about: an engine keeps a buffer for the longest report of each
/// instance.
const PART: usize = 8 << 10;

/// What was reported in a session, after a first report that named no steps.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The steps as they were reported last.
    reported: BTreeMap<(String, String), StepReport>,
}

impl News {
    /// Leaves out of a report what the engine knows. What is left must be sent then.
    pub(super) fn only(&mut self, report: InstanceReport) -> InstanceReport {
        let now = report.steps.iter().map(|step| ((step.pipeline.clone(), step.step.clone()), step.clone()));
        let now: BTreeMap<_, _> = now.collect();
        let gone = self.reported.keys().filter(|name| !now.contains_key(*name));
        let gone = gone.map(|(pipeline, step)| format!("{pipeline}/{step}")).collect();
        let news = now.iter().filter(|(name, step)| self.reported.get(*name) != Some(*step));
        let steps = news.map(|(_, step)| step.clone()).collect();
        self.reported = now;
        InstanceReport {
            steps,
            gone,
            partial: true,
            registration: None,
            endpoint: String::new(),
            started_at: None,
            serve: Vec::new(),
            ..report
        }
    }
}

/// A partial report in parts that may be sent one after the other: at least one.
#[must_use]
pub fn parts(mut report: InstanceReport) -> VecDeque<InstanceReport> {
    let (mut steps, mut gone) = (VecDeque::from(report.steps), VecDeque::from(report.gone));
    (report.steps, report.gone) = (Vec::new(), Vec::new());
    let mut parts = VecDeque::new();
    loop {
        let mut part = report.clone();
        let mut size = part.encoded_len();
        while size < PART
            && let Some(name) = gone.pop_front()
        {
            size += name.len() + 3;
            part.gone.push(name);
        }
        while size < PART
            && let Some(step) = steps.pop_front()
        {
            size += step.encoded_len() + 3;
            part.steps.push(step);
        }
        parts.push_back(part);
        if steps.is_empty() && gone.is_empty() {
            return parts;
        }
        // Asked for once.
        report.lacking_hashes.clear();
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
        let first = news.only(report(&[("a", 1), ("b", 1)]));
        assert_eq!(
            (first.steps, first.partial, first.endpoint),
            (report(&[("a", 1), ("b", 1)]).steps, true, String::new())
        );
        let second = news.only(report(&[("a", 1), ("b", 2), ("c", 0)]));
        assert_eq!((second.steps, second.gone.len()), (report(&[("b", 2), ("c", 0)]).steps, 0));
        assert!(news.only(report(&[("a", 1), ("b", 2), ("c", 0)])).steps.is_empty());
        let fewer = news.only(report(&[("a", 1)]));
        assert_eq!((fewer.steps.len(), fewer.gone), (0, vec!["shelf/b".to_owned(), "shelf/c".to_owned()]));
        assert_eq!(news.only(report(&[("a", 1), ("b", 2)])).steps, report(&[("b", 2)]).steps, "it is there again");
    }

    #[test]
    fn a_long_report_travels_in_parts_that_add_up() {
        let step = |n: usize| StepReport {
            pipeline: "shelf".into(),
            step: format!("s{n}"),
            hash: "0".repeat(64),
            ..StepReport::default()
        };
        let whole = InstanceReport {
            instance_id: "me".into(),
            generation: 7,
            steps: (0..1000).map(step).collect(),
            gone: (0..1000).map(|n| format!("shelf/g{n}")).collect(),
            lacking_hashes: vec!["1".into()],
            partial: true,
            ..InstanceReport::default()
        };
        let parts = parts(whole.clone());
        assert!(parts.len() > 9, "{}", parts.len());
        assert!(parts.iter().all(|part| part.encoded_len() < PART + 200 && part.generation == 7 && part.partial));
        let together = |of: fn(&InstanceReport) -> usize| parts.iter().map(of).sum::<usize>();
        assert_eq!(parts.iter().flat_map(|part| part.steps.clone()).collect::<Vec<_>>(), whole.steps);
        assert_eq!(parts.iter().flat_map(|part| part.gone.clone()).collect::<Vec<_>>(), whole.gone);
        assert_eq!(together(|part| part.lacking_hashes.len()), 1);

        let nothing = InstanceReport { generation: 8, partial: true, ..InstanceReport::default() };
        assert_eq!(super::parts(nothing.clone()), [nothing], "also one without news is sent");
    }
}
