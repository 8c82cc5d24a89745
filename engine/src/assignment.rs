//! What an instance is told: the list of its steps, whole or by what changed in
//! it, and the bodies that it lacks. Pure.
//!
//! Long assignments travel in parts, made one after the other: a thousand
//! instances that attach at once must not need a thousand times all bodies.

use std::collections::VecDeque;
use std::sync::Arc;

use pipedoc_model::names::ClusterName;
use pipedoc_proto::v1::{AssignedStep, Assignment, StepBody};

use crate::view::{ReadyStep, StepList};

/// Size of a part, about: each connection keeps a buffer for the largest it has sent.
const PART: usize = 16 << 10;
/// What a step in a list takes beside its names and hashes, about.
const OVERHEAD: usize = 16;

/// What an instance is known to have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Known<'a> {
    /// This list, of which it can be told changes.
    List(&'a StepList),
    /// Another list, which we do not know: it says what it lacks.
    OtherList,
    /// Bodies of the list that it was told last, if any; it is always told whole lists.
    Bodies(Option<&'a StepList>),
}

/// An assignment on its way: an iterator over its parts, of which there is at least one.
#[derive(Debug)]
pub(crate) struct Parts {
    frame: Assignment,
    steps: VecDeque<Arc<ReadyStep>>,
    bodies: VecDeque<Arc<ReadyStep>>,
    gone: Vec<String>,
    room: usize,
    ended: bool,
}

/// Tells a list of steps to an instance.
pub(crate) fn tell(cluster: &ClusterName, generation: u64, list: &StepList, known: Known<'_>) -> Parts {
    let whole = || list.steps().iter().cloned().collect();
    match known {
        Known::List(base) => {
            let (changed, gone) = changes(base.steps(), list.steps());
            Parts::new(cluster, generation, list, base.hash(), changed.clone(), gone, changed, PART)
        }
        Known::OtherList => Parts::new(cluster, generation, list, "", whole(), Vec::new(), VecDeque::new(), PART),
        Known::Bodies(of) => {
            let (new, _) = changes(of.map_or(&[], StepList::steps), list.steps());
            Parts::new(cluster, generation, list, "", whole(), Vec::new(), new, usize::MAX)
        }
    }
}

/// Tells what was told before once more, with bodies that are lacking.
pub(crate) fn tell_again(
    cluster: &ClusterName,
    generation: u64,
    list: &StepList,
    takes_changes: bool,
    lacking: &[String],
) -> Parts {
    let lacks = |step: &&Arc<ReadyStep>| lacking.contains(&step.hash);
    let bodies = list.steps().iter().filter(lacks).cloned().collect();
    if takes_changes {
        Parts::new(cluster, generation, list, list.hash(), VecDeque::new(), Vec::new(), bodies, PART)
    } else {
        Parts::new(cluster, generation, list, "", list.steps().to_vec().into(), Vec::new(), bodies, usize::MAX)
    }
}

/// Steps of `new` that are not in `old` as they are, and names of those in `old`
/// that are not in `new` at all. Both are in order.
fn changes(old: &[Arc<ReadyStep>], new: &[Arc<ReadyStep>]) -> (VecDeque<Arc<ReadyStep>>, Vec<String>) {
    let (mut changed, mut gone) = (VecDeque::new(), Vec::new());
    let mut old = old.iter().peekable();
    for step in new {
        while let Some(before) = old.next_if(|before| !Arc::ptr_eq(before, step) && before.plan.id < step.plan.id) {
            gone.push(before.plan.id.to_string());
        }
        let before = old.next_if(|before| Arc::ptr_eq(before, step) || before.plan.id == step.plan.id);
        if before.is_none_or(|before| before != step) {
            changed.push_back(Arc::clone(step));
        }
    }
    gone.extend(old.map(|before| before.plan.id.to_string()));
    (changed, gone)
}

impl Parts {
    #[allow(clippy::too_many_arguments, reason = "the fields of a private constructor, each with its own type or name")]
    fn new(
        cluster: &ClusterName,
        generation: u64,
        list: &StepList,
        base: &str,
        steps: VecDeque<Arc<ReadyStep>>,
        gone: Vec<String>,
        bodies: VecDeque<Arc<ReadyStep>>,
        room: usize,
    ) -> Self {
        let frame = Assignment {
            generation,
            cluster: cluster.to_string(),
            list_hash: list.hash().to_owned(),
            base_hash: base.to_owned(),
            ..Assignment::default()
        };
        Self { frame, steps, bodies, gone, room, ended: false }
    }
}

impl Iterator for Parts {
    type Item = Assignment;

    fn next(&mut self) -> Option<Assignment> {
        if self.ended {
            return None;
        }
        let mut part = Assignment { gone: std::mem::take(&mut self.gone), ..self.frame.clone() };
        let mut size = 0;
        while size < self.room
            && let Some(step) = self.steps.pop_front()
        {
            let id = &step.plan.id;
            let assigned =
                AssignedStep { pipeline: id.pipeline.to_string(), step: id.step.to_string(), hash: step.hash.clone() };
            size += assigned.pipeline.len() + assigned.step.len() + assigned.hash.len() + OVERHEAD;
            part.steps.push(assigned);
        }
        while size < self.room
            && let Some(step) = self.bodies.pop_front()
        {
            size += step.json.len() + step.hash.len() + OVERHEAD;
            part.bodies.push(StepBody { hash: step.hash.clone(), json: step.json.clone() });
        }
        self.ended = self.steps.is_empty() && self.bodies.is_empty();
        part.more = !self.ended;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use pipedoc_model::assignment::Told;

    use super::*;
    use crate::view::View;
    use crate::view::tests::{module, pipeline_view, view_of};

    fn list(view: &View) -> Arc<StepList> {
        Arc::clone(view.list(&module("m0")).unwrap())
    }

    fn cluster() -> ClusterName {
        ClusterName::new("local").unwrap()
    }

    fn names(assignment: &Assignment) -> Vec<String> {
        assignment.steps.iter().map(|step| format!("{}/{}", step.pipeline, step.step)).collect()
    }

    #[test]
    fn only_what_changed_travels_and_the_whole_comes_out() {
        let before = view_of(&View::default(), vec![pipeline_view("a", &[1; 5]), pipeline_view("b", &[1])]);
        let after = view_of(&before, vec![pipeline_view("a", &[1, 1, 7]), pipeline_view("c", &[1])]);
        let (old, new) = (list(&before), list(&after));
        let mut told = Told::new([]);
        let parts: Vec<_> = tell(&cluster(), 1, &old, Known::List(&StepList::default())).collect();
        let [all] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!(
            (names(all), all.bodies.len()),
            (vec!["a/s0".into(), "a/s2".into(), "a/s4".into(), "b/s0".into()], 4)
        );
        told.take(all.clone()).unwrap().unwrap();

        let parts: Vec<_> = tell(&cluster(), 2, &new, Known::List(&old)).collect();
        let [change] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!(names(change), ["a/s2", "c/s0"]);
        assert_eq!((&change.gone[..], change.bodies.len()), (&["a/s4".to_owned(), "b/s0".to_owned()][..], 2));
        let whole = told.take(change.clone()).unwrap().unwrap();
        assert_eq!(names(&whole), ["a/s0", "a/s2", "c/s0"]);
        assert_eq!(told.hash(), new.hash());

        // An instance that knows nothing of changes is told the list, with new bodies.
        let parts: Vec<_> = tell(&cluster(), 2, &new, Known::Bodies(Some(&old))).collect();
        assert_eq!((names(&parts[0]), parts[0].bodies.len()), (names(&whole), 2));
        let parts: Vec<_> = tell(&cluster(), 2, &new, Known::Bodies(None)).collect();
        assert_eq!((names(&parts[0]), parts[0].bodies.len()), (names(&whole), 3));
    }

    #[test]
    fn a_generation_with_the_same_steps_is_told_without_any() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1; 50])]);
        let list = list(&view);
        let parts: Vec<_> = tell(&cluster(), 2, &list, Known::List(&list)).collect();
        let [part] = &parts[..] else { panic!("{parts:?}") };
        assert!(part.steps.is_empty() && part.bodies.is_empty() && part.gone.is_empty() && !part.more);
        assert!(prost::Message::encoded_len(part) < 200);
    }

    #[test]
    fn who_holds_a_list_that_is_not_known_is_sent_the_bodies_that_it_lacks() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1, 1, 1])]);
        let list = list(&view);
        let parts: Vec<_> = tell(&cluster(), 1, &list, Known::OtherList).collect();
        let [whole] = &parts[..] else { panic!("{parts:?}") };
        assert_eq!((names(whole), whole.bodies.len()), (vec!["a/s0".into(), "a/s2".into()], 0));
        let lacks = list.steps()[0].hash.clone();
        let again: Vec<_> = tell_again(&cluster(), 1, &list, true, &[lacks.clone(), "other".into()]).collect();
        assert_eq!(again[0].bodies.iter().map(|body| &body.hash).collect::<Vec<_>>(), [&lacks]);
        assert_eq!(again[0].base_hash, list.hash());
    }

    #[test]
    fn long_assignments_travel_in_parts_that_add_up() {
        let view = view_of(&View::default(), vec![pipeline_view("a", &[1; 500])]);
        let list = list(&view);
        let parts: Vec<_> = tell(&cluster(), 1, &list, Known::List(&StepList::default())).collect();
        assert!(parts.len() > 3, "{}", parts.len());
        assert!(parts.iter().all(|part| prost::Message::encoded_len(part) < PART + (4 << 10)));
        let mut told = Told::new([]);
        let mut parts = parts.into_iter();
        let whole = parts.by_ref().find_map(|part| told.take(part).unwrap()).unwrap();
        assert_eq!((whole.steps.len(), whole.bodies.len(), parts.len()), (250, 250, 0));
    }
}
