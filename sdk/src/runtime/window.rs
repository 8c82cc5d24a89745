//! The open deliveries of one partition, and how far it may be committed.
//!
//! Pure: no clock, no IO. The watermark is the lowest open offset; a commit never
//! passes it. What is done beyond it is named beside it ([`crate::progress`]), so
//! that nobody does it again. Offsets grow, with gaps.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::lanes::LaneId;
use crate::progress;

/// Open deliveries of one partition, in order of offset.
#[derive(Debug)]
pub(crate) struct Window {
    /// What was admitted and not yet passed by the watermark.
    open: VecDeque<Entry>,
    /// Offsets that were done before this ownership or the last reset and are not
    /// read again yet, in order.
    ahead: VecDeque<Range<i64>>,
    /// Where the next record is read: nothing below was left out.
    position: i64,
    /// What the group has committed.
    committed: Mark,
    /// Whether a record is committed before it is worked on, not after.
    offset_first: bool,
    /// Grows whenever more is done beyond the watermark.
    revision: u64,
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
    lane: LaneId,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// Worked on; a transaction that names it as done is being written.
    Taken,
    Done,
    /// Done by an earlier owner, or before a reset.
    DoneBefore,
}

/// A state of the window that may be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The watermark.
    pub(crate) offset: i64,
    /// Tells what was done beyond it.
    revision: u64,
}

/// What becomes of a record that is offered to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is none of this partition's now.
    Refused,
    /// It is to be worked on.
    Open,
    /// It was done before.
    DoneBefore,
}

/// What a transaction commits of a window: where the group stands once it is written.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) mark: Mark,
    /// What is done beyond the mark, all of it; `None`: it does not fit.
    pub(crate) metadata: Option<String>,
}

impl Fate {
    fn is_settled(self) -> bool {
        matches!(self, Self::Done | Self::DoneBefore)
    }
}

impl Window {
    /// The window of a partition that is read from `position` on. `committed` is
    /// what its group has committed, if anything, and `metadata` what lies beside.
    pub(crate) fn new(position: i64, committed: Option<i64>, metadata: &str) -> Self {
        let ahead = committed.map(|offset| progress::decode(offset, metadata)).unwrap_or_default();
        // A group that has committed nothing is as good as one that committed the
        // place where reading begins, except that the first commit writes it down.
        let committed = Mark { offset: committed.unwrap_or(-1), revision: 0 };
        Self {
            open: VecDeque::new(),
            ahead: ahead.into(),
            position,
            committed,
            offset_first: false,
            revision: 0,
            undone: 0,
            bytes: 0,
            at_end: false,
        }
    }

    /// The same for a window whose records are committed before they are worked on.
    pub(crate) fn offset_first(self) -> Self {
        Self { offset_first: true, ahead: VecDeque::new(), ..self }
    }

    /// Takes a record in. Offsets below the position were seen already (a log may
    /// repeat itself after a seek): they are refused.
    #[must_use]
    pub(crate) fn admit(&mut self, offset: i64, bytes: usize, lane: LaneId) -> Admission {
        if offset < self.position {
            return Admission::Refused;
        }
        self.position = offset + 1;
        self.at_end = false;
        while self.ahead.front().is_some_and(|range| range.end <= offset) {
            self.ahead.pop_front();
        }
        if self.ahead.front().is_some_and(|range| range.contains(&offset)) {
            self.open.push_back(Entry { offset, bytes, lane, fate: Fate::DoneBefore });
            self.pass();
            return Admission::DoneBefore;
        }
        self.open.push_back(Entry { offset, bytes, lane, fate: Fate::Open });
        self.undone += 1;
        self.bytes += bytes;
        Admission::Open
    }

    /// A record is done. Offsets that are not open are ignored.
    pub(crate) fn settle(&mut self, offset: i64) {
        let Ok(at) = self.open.binary_search_by_key(&offset, |entry| entry.offset) else { return };
        let entry = &mut self.open[at];
        if entry.fate.is_settled() {
            return;
        }
        entry.fate = Fate::Done;
        self.undone -= 1;
        self.bytes -= entry.bytes;
        self.revision += 1;
        self.pass();
    }

    /// A transaction is to name a record as done. One that is not open is not named anew.
    pub(crate) fn take(&mut self, offset: i64) {
        self.replace(offset, Fate::Open, Fate::Taken);
    }

    /// The transaction that was to name a record as done was not written.
    pub(crate) fn give_back(&mut self, offset: i64) {
        self.replace(offset, Fate::Taken, Fate::Open);
    }

    fn replace(&mut self, offset: i64, from: Fate, to: Fate) {
        let Ok(at) = self.open.binary_search_by_key(&offset, |entry| entry.offset) else { return };
        let entry = &mut self.open[at];
        if entry.fate == from {
            entry.fate = to;
        }
    }

    /// What a transaction commits that writes all that is taken.
    pub(crate) fn draft(&self) -> Draft {
        let first = self.open.iter().find(|entry| entry.fate == Fate::Open);
        let offset = first.map_or(self.position, |entry| entry.offset);
        let taken = self.open.iter().filter(|entry| entry.fate == Fate::Taken).count() as u64;
        let beyond = self.beyond(offset, |entry| entry.fate != Fate::Open);
        let mark = Mark { offset, revision: self.revision + taken };
        Draft { mark, metadata: progress::encode_whole(offset, &beyond) }
    }

    /// How many bytes it may take at worst to name what is done beyond the watermark,
    /// whichever of the open ones come to be done.
    pub(crate) fn naming(&self) -> usize {
        let end = self.ahead.back().map_or(self.position, |range| range.end.max(self.position));
        progress::worst(end.abs_diff(self.watermark()), self.undone + 1 + self.ahead.len())
    }

    /// Lets the watermark pass what is done.
    fn pass(&mut self) {
        while self.open.front().is_some_and(|entry| entry.fate.is_settled()) {
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

    /// Forgets everything open; reading must go on at the offset returned. What is
    /// done beyond stays so.
    pub(crate) fn reset(&mut self) -> i64 {
        self.ahead = self.done_beyond().into();
        self.position = self.watermark();
        self.open.clear();
        self.undone = 0;
        self.bytes = 0;
        self.at_end = false;
        self.position
    }

    /// Highest offset that was done here beyond the watermark.
    pub(crate) fn highest_done(&self) -> Option<i64> {
        self.open.iter().rev().find(|entry| entry.fate == Fate::Done).map(|entry| entry.offset)
    }

    /// Forgets what lies beyond an offset, none of which was done here.
    pub(crate) fn cut_after(&mut self, offset: i64) {
        if self.open.back().is_none_or(|entry| entry.offset <= offset) {
            return;
        }
        self.ahead = self.done_beyond().into();
        while let Some(entry) = self.open.back()
            && entry.offset > offset
        {
            debug_assert!(!matches!(entry.fate, Fate::Done | Fate::Taken), "what is done is not forgotten");
            self.position = entry.offset;
            if entry.fate == Fate::Open {
                self.undone -= 1;
                self.bytes -= entry.bytes;
            }
            self.at_end = false;
            self.open.pop_back();
        }
    }

    /// The lowest open offset; with none, where the next record is read.
    pub(crate) fn watermark(&self) -> i64 {
        self.open.front().map_or(self.position, |entry| entry.offset)
    }

    /// What is done beyond the watermark and may be left out by the next owner. One
    /// that an earlier open record of its lane is still to follow is not among them:
    /// the records of a lane are in order by their last deliveries, so it must come
    /// again after that one. (Transactions write a lane in its order.)
    fn done_beyond(&self) -> Vec<Range<i64>> {
        let mut open_lanes = HashSet::new();
        self.beyond(self.watermark(), |entry| match entry.fate {
            Fate::Open | Fate::Taken => {
                open_lanes.insert(entry.lane);
                false
            }
            Fate::Done => !open_lanes.contains(&entry.lane),
            Fate::DoneBefore => true,
        })
    }

    /// What is done from an offset on: ranges in order, apart from each other.
    fn beyond(&self, from: i64, mut is_done: impl FnMut(&Entry) -> bool) -> Vec<Range<i64>> {
        let mut ranges: Vec<Range<i64>> = Vec::new();
        // Offsets between two records that are done hold no record.
        let mut unbroken = false;
        for entry in self.open.iter().skip_while(|entry| entry.offset < from) {
            let done = is_done(entry);
            match ranges.last_mut() {
                Some(last) if done && unbroken => last.end = entry.offset + 1,
                _ if done => ranges.push(entry.offset..entry.offset + 1),
                _ => {}
            }
            unbroken = done;
        }
        for range in self.ahead.iter().filter(|range| range.end > self.position) {
            let range = range.start.max(self.position)..range.end;
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// What to commit, when the group has not committed it yet.
    pub(crate) fn uncommitted(&self) -> Option<Mark> {
        let mark = match self.offset_first {
            true => Mark { offset: self.position, revision: 0 },
            false => Mark { offset: self.watermark(), revision: self.revision },
        };
        self.is_news(mark).then_some(mark)
    }

    /// Whether the group has not committed it yet.
    pub(crate) fn is_news(&self, mark: Mark) -> bool {
        let more_beyond = mark.offset == self.committed.offset && mark.revision > self.committed.revision;
        mark.offset > self.committed.offset || more_beyond
    }

    /// What to write beside the watermark: what is done beyond it, as far as it fits.
    pub(crate) fn metadata(&self) -> String {
        if self.offset_first {
            return String::new();
        }
        progress::encode(self.watermark(), &self.done_beyond(), progress::LIMIT)
    }

    /// The group has committed.
    pub(crate) fn committed(&mut self, mark: Mark) {
        if mark.offset >= self.committed.offset {
            self.committed = mark;
        }
    }

    /// What the group has committed as far as is known; where reading began when
    /// it has nothing.
    pub(crate) fn committed_offset(&self) -> i64 {
        if self.committed.offset < 0 { self.watermark() } else { self.committed.offset }
    }

    /// Whether the group has committed nothing yet, not even where reading began.
    pub(crate) fn is_new(&self) -> bool {
        self.committed.offset < 0
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

    /// Whether the end of the partition was seen after all that was admitted.
    pub(crate) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Whether the end of the partition was seen and nothing is open.
    pub(crate) fn is_drained(&self) -> bool {
        self.at_end && self.open.is_empty()
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;
