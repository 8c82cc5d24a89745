//! The open deliveries of one partition, and how far it may be committed.
//!
//! Pure: no clock, no IO. The watermark is the lowest open offset; a commit never
//! passes it, whatever is done beyond. Offsets grow, with gaps.

use std::collections::VecDeque;

/// Open deliveries of one partition, in order of offset.
#[derive(Debug)]
pub(crate) struct Window {
    /// What was admitted and not yet passed by the watermark.
    open: VecDeque<Entry>,
    /// Where the next record is read: nothing below was left out.
    position: i64,
    /// What the group has committed.
    committed: i64,
    /// How many of `open` are not done.
    undone: usize,
    /// Bytes of those that are not done.
    bytes: usize,
    /// Whether everything up to `position` was the partition's end.
    at_end: bool,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    bytes: usize,
    done: bool,
}

impl Window {
    /// The window of a partition that is read from `position` on. `committed` is
    /// what its group has committed, if anything.
    pub(crate) fn new(position: i64, committed: Option<i64>) -> Self {
        // A group that has committed nothing is as good as one that committed the
        // place where reading begins, except that the first commit writes it down.
        let committed = committed.unwrap_or(-1);
        Self { open: VecDeque::new(), position, committed, undone: 0, bytes: 0, at_end: false }
    }

    /// Takes a record in. Offsets below the position were seen already (a log may
    /// repeat itself after a seek): they are refused with `false`.
    #[must_use]
    pub(crate) fn admit(&mut self, offset: i64, bytes: usize) -> bool {
        if offset < self.position {
            return false;
        }
        self.open.push_back(Entry { offset, bytes, done: false });
        self.position = offset + 1;
        self.undone += 1;
        self.bytes += bytes;
        self.at_end = false;
        true
    }

    /// A record is done. Offsets that are not open are ignored.
    pub(crate) fn settle(&mut self, offset: i64) {
        let Ok(at) = self.open.binary_search_by_key(&offset, |entry| entry.offset) else { return };
        let entry = &mut self.open[at];
        if entry.done {
            return;
        }
        entry.done = true;
        self.undone -= 1;
        self.bytes -= entry.bytes;
        while self.open.front().is_some_and(|entry| entry.done) {
            self.open.pop_front();
        }
    }

    /// The partition ends at `position` for now.
    pub(crate) fn end_seen(&mut self, position: i64) {
        if position >= self.position {
            self.position = position;
            self.at_end = true;
        }
    }

    /// Reading goes on elsewhere, as records are gone: nothing before is awaited.
    pub(crate) fn skip_to(&mut self, position: i64) {
        self.position = self.position.max(position);
    }

    /// Forgets everything open; reading must go on at the offset returned.
    pub(crate) fn reset(&mut self) -> i64 {
        self.position = self.watermark();
        self.open.clear();
        self.undone = 0;
        self.bytes = 0;
        self.at_end = false;
        self.position
    }

    /// Highest offset that is done beyond the watermark.
    pub(crate) fn highest_done(&self) -> Option<i64> {
        self.open.iter().rev().find(|entry| entry.done).map(|entry| entry.offset)
    }

    /// Forgets what lies beyond an offset, none of which may be done.
    pub(crate) fn cut_after(&mut self, offset: i64) {
        while let Some(entry) = self.open.back()
            && entry.offset > offset
        {
            debug_assert!(!entry.done, "what is done is not forgotten");
            self.position = entry.offset;
            self.undone -= 1;
            self.bytes -= entry.bytes;
            self.at_end = false;
            self.open.pop_back();
        }
    }

    /// The lowest open offset; with none, where the next record is read.
    pub(crate) fn watermark(&self) -> i64 {
        self.open.front().map_or(self.position, |entry| entry.offset)
    }

    /// What to commit, when the group has not committed it yet.
    pub(crate) fn uncommitted(&self) -> Option<i64> {
        let watermark = self.watermark();
        (watermark > self.committed).then_some(watermark)
    }

    /// The group has committed.
    pub(crate) fn committed(&mut self, offset: i64) {
        self.committed = self.committed.max(offset);
    }

    /// What the group has committed as far as is known; where reading began when
    /// it has nothing.
    pub(crate) fn committed_offset(&self) -> i64 {
        if self.committed < 0 { self.watermark() } else { self.committed }
    }

    /// How many deliveries are open.
    pub(crate) fn len(&self) -> usize {
        self.undone
    }

    /// Bytes of the open deliveries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records held or remembered: the open ones and those done beyond them.
    pub(crate) fn span(&self) -> usize {
        self.open.len()
    }

    /// Whether the end of the partition was seen and nothing is open.
    pub(crate) fn is_drained(&self) -> bool {
        self.at_end && self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_watermark_waits_for_the_lowest_open_offset() {
        let mut window = Window::new(10, None);
        for offset in [10, 12, 15] {
            assert!(window.admit(offset, 1));
        }
        window.settle(12);
        assert_eq!(window.watermark(), 10);
        window.settle(10);
        assert_eq!(window.watermark(), 15, "12 was done before");
        window.settle(15);
        assert_eq!((window.watermark(), window.len(), window.bytes()), (16, 0, 0));
    }

    #[test]
    fn the_end_counts_control_records_and_is_committed_once() {
        let mut window = Window::new(0, Some(0));
        assert!(window.admit(0, 1));
        window.end_seen(5);
        assert!(!window.is_drained());
        assert_eq!(window.uncommitted(), None);
        window.settle(0);
        assert!(window.is_drained());
        assert_eq!(window.uncommitted(), Some(5));
        window.committed(5);
        assert_eq!(window.uncommitted(), None);
    }

    #[test]
    fn a_reset_goes_back_to_the_watermark() {
        let mut window = Window::new(0, None);
        for offset in 0..5 {
            assert!(window.admit(offset, 7));
        }
        window.settle(0);
        window.settle(3);
        assert_eq!(window.reset(), 1);
        assert_eq!((window.len(), window.bytes()), (0, 0));
        window.settle(2);
        assert!(window.admit(1, 7), "it comes again");
    }

    #[derive(Debug, Clone)]
    enum Act {
        Admit { gap: i64 },
        Settle { which: usize },
        End { gap: i64 },
        Commit,
        Reset,
        Cut,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0..3_i64).prop_map(|gap| Act::Admit { gap }),
            4 => (0..64_usize).prop_map(|which| Act::Settle { which }),
            1 => (0..3_i64).prop_map(|gap| Act::End { gap }),
            1 => Just(Act::Commit),
            1 => Just(Act::Reset),
            1 => Just(Act::Cut),
        ]
    }

    proptest! {
        /// The model: a map from each offset ever admitted to whether it is done.
        #[test]
        fn no_commit_ever_passes_an_open_offset(acts in proptest::collection::vec(act(), 0..200)) {
            let mut window = Window::new(0, None);
            let mut model: BTreeMap<i64, bool> = BTreeMap::new();
            let mut next = 0_i64;
            for act in acts {
                match act {
                    Act::Admit { gap } => {
                        prop_assert!(window.admit(next + gap, 3));
                        model.insert(next + gap, false);
                        next += gap + 1;
                    }
                    Act::Settle { which } => {
                        if let Some(offset) = model.keys().nth(which).copied() {
                            model.insert(offset, true);
                            window.settle(offset);
                        }
                    }
                    Act::End { gap } => {
                        next += gap;
                        window.end_seen(next);
                    }
                    Act::Commit => {
                        if let Some(offset) = window.uncommitted() {
                            window.committed(offset);
                        }
                    }
                    Act::Reset => {
                        next = window.reset();
                        model.retain(|offset, _| *offset < next);
                    }
                    Act::Cut => {
                        let highest = window.highest_done().unwrap_or(-1);
                        window.cut_after(highest);
                        let first_cut = model.iter().find(|(offset, done)| **offset > highest && !**done);
                        next = first_cut.map_or(next, |(offset, _)| *offset);
                        model.retain(|offset, done| *offset <= highest || *done);
                    }
                }
                let lowest_open = model.iter().find(|(_, done)| !**done).map(|(offset, _)| *offset);
                prop_assert_eq!(window.watermark(), lowest_open.unwrap_or(next));
                let open = model.values().filter(|done| !**done).count();
                prop_assert_eq!(window.len(), open);
                prop_assert_eq!(window.bytes(), open * 3);
                prop_assert!(window.committed <= window.watermark());
            }
        }
    }
}
