//! Windows against a simple model: a map from each offset to its lane and whether
//! it is done.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn admit_all(window: &mut Window, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        // Each in a lane of its own.
        assert_eq!(window.admit(offset, 7, offset as u64), Admission::Open);
    }
}

fn commit(window: &mut Window) {
    let mark = window.uncommitted().unwrap();
    window.committed(mark);
}

#[test]
fn the_watermark_waits_for_the_lowest_open_offset() {
    let mut window = Window::new(10, None, "");
    admit_all(&mut window, [10, 12, 15]);
    window.settle(12);
    assert_eq!(window.watermark(), 10);
    window.settle(10);
    assert_eq!(window.watermark(), 15, "12 was done before");
    window.settle(15);
    assert_eq!((window.watermark(), window.len(), window.bytes()), (16, 0, 0));
}

#[test]
fn the_end_counts_control_records_and_is_committed_once() {
    let mut window = Window::new(0, Some(0), "");
    admit_all(&mut window, [0]);
    window.end_seen(5);
    assert!(!window.is_drained());
    assert_eq!(window.uncommitted(), None);
    window.settle(0);
    assert!(window.is_drained());
    assert_eq!(window.uncommitted().unwrap().offset, 5);
    commit(&mut window);
    assert_eq!(window.uncommitted(), None);
}

#[test]
fn where_reading_begins_is_committed_when_the_group_has_nothing() {
    let mut window = Window::new(7, None, "");
    assert!(window.is_new());
    assert_eq!(window.uncommitted().unwrap().offset, 7);
    commit(&mut window);
    assert!(!window.is_new());
    assert_eq!(Window::new(7, Some(7), "").uncommitted(), None);
}

#[test]
fn a_reset_goes_back_to_the_watermark_and_leaves_out_what_is_done_beyond() {
    let mut window = Window::new(0, None, "");
    admit_all(&mut window, 0..5);
    window.settle(0);
    window.settle(3);
    assert_eq!(window.reset(), 1);
    assert_eq!((window.len(), window.bytes()), (0, 0));
    window.settle(2);
    let comes_again = [1, 2, 3, 4].map(|offset| window.admit(offset, 7, 0));
    assert_eq!(comes_again, [Admission::Open, Admission::Open, Admission::DoneBefore, Admission::Open]);
}

#[test]
fn a_new_owner_leaves_out_what_was_done_beyond() {
    let mut window = Window::new(0, None, "");
    admit_all(&mut window, 0..8);
    [1, 2, 5].into_iter().for_each(|offset| window.settle(offset));
    let (mark, metadata) = (window.uncommitted().unwrap(), window.metadata());
    let mut next = Window::new(0, Some(mark.offset), &metadata);
    let open = (0..8).filter(|offset| next.admit(*offset, 1, 0) == Admission::Open);
    assert_eq!(open.collect::<Vec<_>>(), [0, 3, 4, 6, 7]);
    assert_eq!(next.metadata(), metadata, "its own successor leaves them out as well");
}

#[test]
fn one_done_before_an_earlier_one_of_its_lane_comes_again_after_it() {
    let mut window = Window::new(0, None, "");
    for (offset, lane) in [(0, 1), (1, 2), (2, 1), (3, 2)] {
        assert_eq!(window.admit(offset, 1, lane), Admission::Open);
    }
    window.settle(2);
    assert_eq!(window.metadata(), "", "0 is still to be sent, and 2 must follow it");
    window.settle(1);
    window.settle(3);
    let mut next = Window::new(0, Some(0), &window.metadata());
    let open = (0..4).filter(|offset| next.admit(*offset, 1, 0) == Admission::Open);
    assert_eq!(open.collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_is_done_beyond_is_committed_although_the_watermark_stands() {
    let mut window = Window::new(0, Some(0), "");
    admit_all(&mut window, 0..3);
    assert_eq!(window.uncommitted(), None);
    window.settle(1);
    commit(&mut window);
    assert_eq!(window.uncommitted(), None);
    window.settle(2);
    assert_eq!(window.uncommitted().unwrap().offset, 0);
}

#[derive(Debug, Clone)]
enum Act {
    Admit {
        gap: i64,
        lane: LaneId,
    },
    Settle {
        which: usize,
    },
    End {
        gap: i64,
    },
    Commit,
    Reset,
    Cut,
    /// Another owner goes on from the last commit.
    Move,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..3_i64, 0..4_u64).prop_map(|(gap, lane)| Act::Admit { gap, lane }),
        5 => (0..64_usize).prop_map(|which| Act::Settle { which }),
        1 => (0..3_i64).prop_map(|gap| Act::End { gap }),
        2 => Just(Act::Commit),
        1 => Just(Act::Reset),
        1 => Just(Act::Cut),
        1 => Just(Act::Move),
    ]
}

/// A record as the model knows it.
#[derive(Debug, Clone, Copy)]
struct Known {
    lane: LaneId,
    /// Ever done, by any owner.
    done: bool,
}

/// The partition and all that ever happened to it.
#[derive(Default)]
struct Model {
    /// What the partition holds.
    log: BTreeMap<i64, Known>,
    /// What this owner has to do: offsets taken, and whether they are done.
    taken: BTreeMap<i64, bool>,
    /// Where this owner reads next.
    next: i64,
    committed: (i64, String),
}

impl Model {
    fn lowest_open(&self) -> Option<i64> {
        self.taken.iter().find(|(_, done)| !**done).map(|(offset, _)| *offset)
    }

    /// What is read at `next` or after it, made if there is nothing yet.
    fn read(&mut self, gap: i64, lane: LaneId) -> (i64, LaneId) {
        let made = Known { lane, done: false };
        let there = self.log.range(self.next..).next().map(|(offset, known)| (*offset, *known));
        let (offset, known) = there.unwrap_or_else(|| {
            self.log.insert(self.next + gap, made);
            (self.next + gap, made)
        });
        self.next = offset + 1;
        (offset, known.lane)
    }

    /// Goes back to an offset.
    fn back_to(&mut self, offset: i64) {
        self.next = offset;
        self.taken.retain(|taken, _| *taken < offset);
    }
}

proptest! {
    /// Whatever happens: no commit passes an open offset, what a commit names as
    /// done beyond is done, and nothing is left out behind an open one of its lane.
    #[test]
    fn no_commit_ever_passes_an_open_offset(acts in proptest::collection::vec(act(), 0..300)) {
        let mut window = Window::new(0, None, "");
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::Admit { gap, lane } => {
                    let (offset, lane) = model.read(gap, lane);
                    match window.admit(offset, 3, lane) {
                        Admission::Refused => prop_assert!(false, "{offset} was refused"),
                        Admission::Open => {
                            model.taken.insert(offset, false);
                        }
                        Admission::DoneBefore => {
                            prop_assert!(model.log[&offset].done, "{offset} was never done");
                            let behind = model.taken.iter().find(|(at, done)| !**done && model.log[at].lane == lane);
                            prop_assert!(behind.is_none(), "{offset} is left out behind {behind:?}");
                            model.taken.insert(offset, true);
                        }
                    }
                    prop_assert_eq!(window.admit(offset, 3, lane), Admission::Refused, "once");
                }
                Act::Settle { which } => {
                    if let Some(offset) = model.taken.keys().nth(which).copied() {
                        model.taken.insert(offset, true);
                        model.log.get_mut(&offset).unwrap().done = true;
                        window.settle(offset);
                    }
                }
                Act::End { gap } => if model.log.range(model.next..).next().is_none() {
                    model.next += gap;
                    window.end_seen(model.next);
                },
                Act::Commit => if let Some(mark) = window.uncommitted() {
                    model.committed = (mark.offset, window.metadata());
                    window.committed(mark);
                    prop_assert_eq!(window.uncommitted(), None);
                },
                Act::Reset => {
                    let offset = window.reset();
                    prop_assert_eq!(offset, model.lowest_open().unwrap_or(model.next));
                    model.back_to(offset);
                }
                Act::Cut => {
                    let highest = window.highest_done().unwrap_or(window.watermark() - 1);
                    window.cut_after(highest);
                    let first_cut = model.taken.range(highest + 1..).map(|(offset, _)| *offset).next();
                    if let Some(first_cut) = first_cut {
                        model.back_to(first_cut);
                    }
                }
                Act::Move => {
                    let (offset, metadata) = model.committed.clone();
                    window = Window::new(offset, Some(offset), &metadata);
                    model.taken.clear();
                    model.next = offset;
                }
            }
            prop_assert_eq!(window.watermark(), model.lowest_open().unwrap_or(model.next));
            let open = model.taken.values().filter(|done| !**done).count();
            prop_assert_eq!((window.len(), window.bytes()), (open, open * 3));
            prop_assert!(window.span() <= model.taken.len());
            let (offset, metadata) = &model.committed;
            prop_assert!(*offset <= window.watermark());
            prop_assert!(model.log.range(..offset).all(|(_, known)| known.done), "{offset} was committed");
            for range in progress::decode(*offset, metadata) {
                prop_assert!(range.start >= *offset);
                prop_assert!(model.log.range(range.clone()).all(|(_, known)| known.done), "{range:?} was committed");
            }
        }
    }
}
