//! What is done beyond a committed offset, as text beside the offset.
//!
//! A commit says that everything before its offset is done. What is done beyond
//! it would be done again by whoever reads on from there; so it is named in the
//! commit's metadata, of which every log keeps 4,096 bytes. Confluent's Parallel
//! Consumer does the same, in a form of its own.
//!
//! ```text
//! metadata = "pd1" kind payload
//! kind     = "r": runs      payload = base64 of varints: open, done, open, done, …
//!          | "b": bits      payload = base64 of bytes; bit n (lowest first) is offset + n
//! ```
//!
//! Both begin at the committed offset; base64 is URL-safe and without padding;
//! varints are LEB128. The shorter form is taken. Text that is not of this form,
//! of another version or of another program, names nothing.
//!
//! Pure. Knows nothing of records, keys or logs.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What every log keeps beside an offset, in bytes.
pub const LIMIT: usize = 4096;

const VERSION: &str = "pd1";
const RUNS: char = 'r';
const BITS: char = 'b';

/// Names what is done beyond an offset, in at most `limit` bytes.
///
/// `done` are ranges of offsets, in order, apart from each other and beyond
/// `offset`. Those that do not fit are left out from the end: they are done again.
/// Empty when there is nothing to name.
#[must_use]
pub fn encode(offset: i64, done: &[Range<i64>], limit: usize) -> String {
    encode_as_fits(offset, done, limit).0
}

/// Names all of what is done beyond an offset; `None` where it does not fit.
#[must_use]
pub fn encode_whole(offset: i64, done: &[Range<i64>]) -> Option<String> {
    let (text, reach) = encode_as_fits(offset, done, LIMIT);
    (reach == i64::MAX).then_some(text)
}

/// Bytes of payload that fit.
pub(crate) const ROOM: usize = room(LIMIT - VERSION.len() - 1);

/// How many bytes of payload naming may take at worst, when so many runs of offsets
/// lie within a span.
pub(crate) fn worst(span: u64, runs: usize) -> usize {
    let varint = usize::try_from((u64::BITS - span.leading_zeros()).div_ceil(7)).unwrap_or(usize::MAX).max(1);
    let bits = usize::try_from(span.div_ceil(8)).unwrap_or(usize::MAX);
    bits.min(runs.saturating_mul(2 * varint))
}

/// Bytes that so many characters of base64 hold.
const fn room(chars: usize) -> usize {
    chars / 4 * 3 + chars % 4 * 3 / 4
}

/// What fits, and up to which offset it says everything.
fn encode_as_fits(offset: i64, done: &[Range<i64>], limit: usize) -> (String, i64) {
    let Some(room) = limit.min(LIMIT).checked_sub(VERSION.len() + 1).map(room) else {
        return (String::new(), if done.is_empty() { i64::MAX } else { offset });
    };
    let (runs, runs_reach) = runs(offset, done, room);
    let (bits, bits_reach) = bits(offset, done, room);
    // The form that says more; of two that say the same, the shorter one.
    let takes_bits = (bits_reach, std::cmp::Reverse(bits.len())) > (runs_reach, std::cmp::Reverse(runs.len()));
    let (kind, payload, reach) = if takes_bits { (BITS, bits, bits_reach) } else { (RUNS, runs, runs_reach) };
    if payload.is_empty() {
        return (String::new(), reach);
    }
    (format!("{VERSION}{kind}{}", URL_SAFE_NO_PAD.encode(payload)), reach)
}

/// What [`encode`] has named: ranges in order, apart from each other, beyond
/// `offset`. Text of any other form names nothing.
#[must_use]
pub fn decode(offset: i64, metadata: &str) -> Vec<Range<i64>> {
    let Some(rest) = metadata.strip_prefix(VERSION).filter(|_| metadata.len() <= LIMIT) else { return Vec::new() };
    let mut chars = rest.chars();
    let kind = chars.next();
    let Ok(payload) = URL_SAFE_NO_PAD.decode(chars.as_str()) else { return Vec::new() };
    let ranges = match kind {
        Some(RUNS) => read_runs(offset, &payload),
        Some(BITS) => read_bits(offset, &payload),
        _ => None,
    };
    ranges.unwrap_or_default()
}

/// The runs, and up to which offset they say everything.
fn runs(offset: i64, done: &[Range<i64>], room: usize) -> (Vec<u8>, i64) {
    let (mut payload, mut at) = (Vec::new(), offset);
    for range in done {
        let before = payload.len();
        push_varint(&mut payload, range.start.abs_diff(at));
        push_varint(&mut payload, range.end.abs_diff(range.start));
        if payload.len() > room {
            payload.truncate(before);
            return (payload, range.start);
        }
        at = range.end;
    }
    (payload, i64::MAX)
}

/// The bits, and up to which offset they say everything.
fn bits(offset: i64, done: &[Range<i64>], room: usize) -> (Vec<u8>, i64) {
    let end = done.last().map_or(offset, |last| last.end);
    let whole = end.abs_diff(offset).div_ceil(8);
    let length = usize::try_from(whole).unwrap_or(usize::MAX).min(room);
    let reach = offset.saturating_add(i64::try_from(length.saturating_mul(8)).unwrap_or(i64::MAX));
    let mut payload = vec![0_u8; length];
    for range in done {
        for at in range.start..range.end.min(reach) {
            let bit = usize::try_from(at.abs_diff(offset)).unwrap_or(usize::MAX);
            if let Some(byte) = payload.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    while payload.last() == Some(&0) {
        payload.pop();
    }
    (payload, if end <= reach { i64::MAX } else { reach })
}

fn read_runs(offset: i64, mut payload: &[u8]) -> Option<Vec<Range<i64>>> {
    let (mut ranges, mut at) = (Vec::new(), offset);
    while !payload.is_empty() {
        let start = at.checked_add_unsigned(take_varint(&mut payload)?)?;
        let end = start.checked_add_unsigned(take_varint(&mut payload)?)?;
        // Neither runs that touch nor empty ones are ever written.
        if end == start || (start == at && !ranges.is_empty()) {
            return None;
        }
        ranges.push(start..end);
        at = end;
    }
    Some(ranges)
}

fn read_bits(offset: i64, payload: &[u8]) -> Option<Vec<Range<i64>>> {
    let mut ranges: Vec<Range<i64>> = Vec::new();
    for (index, byte) in payload.iter().enumerate() {
        for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
            let at = offset.checked_add(i64::try_from(index * 8 + bit).ok()?)?;
            let end = at.checked_add(1)?;
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => ranges.push(at..end),
            }
        }
    }
    Some(ranges)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(first & 0x7f);
        if part << shift >> shift != part {
            return None;
        }
        value |= part << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ranges_of(offsets: &BTreeSet<i64>) -> Vec<Range<i64>> {
        let mut ranges: Vec<Range<i64>> = Vec::new();
        for at in offsets.iter().copied() {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = at + 1,
                _ => ranges.push(at..at + 1),
            }
        }
        ranges
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "one range is meant")]
    fn a_few_runs_are_a_few_characters() {
        assert_eq!(encode(7, &[], LIMIT), "");
        let text = encode(1_000_000, &[1_000_001..1_009_999], LIMIT);
        assert!(text.starts_with("pd1r") && text.len() == 8, "{text}");
        assert_eq!(decode(1_000_000, &text), [1_000_001..1_009_999]);
    }

    #[test]
    fn every_second_one_of_a_whole_window_fits() {
        let done: Vec<Range<i64>> = (0..10_000).map(|n| (5 + 2 * n)..(6 + 2 * n)).collect();
        let text = encode(4, &done, LIMIT);
        assert!(text.starts_with("pd1b") && text.len() <= LIMIT, "{}", text.len());
        assert_eq!(decode(4, &text), done);
    }

    #[test]
    fn what_is_of_another_make_names_nothing() {
        for foreign in
            ["", "x", "pd1", "pd1r", "pd1rA", "pd1r!", "pd1xAQE", "pd2rAQE", "pd1rgICAgICAgICAgIA", "{\"a\":1}", "pd1é"]
        {
            assert_eq!(decode(3, foreign), [], "{foreign}");
        }
        assert_eq!(decode(i64::MAX, "pd1rAQE"), [], "beyond all offsets");
        let long = format!("pd1b{}", "_".repeat(LIMIT));
        assert_eq!(decode(0, &long), [], "longer than any log keeps");
    }

    #[test]
    fn what_never_takes_more_than_the_room_is_always_named_whole() {
        for (span, gap) in [(24_000_i64, 2), (24_000, 3), (1_000_000, 2_500)] {
            let done: Vec<Range<i64>> = (1..span / gap).map(|n| (n * gap)..(n * gap + 1)).collect();
            assert!(worst(span.unsigned_abs(), done.len()) <= ROOM, "{span} {gap}");
            let text = encode_whole(0, &done).expect("it fits");
            assert_eq!(decode(0, &text), done);
        }
        let much: Vec<Range<i64>> = (0..30_000).map(|n| (1 + 20 * n)..(2 + 20 * n)).collect();
        assert_eq!(encode_whole(0, &much), None);
    }

    proptest! {
        /// What fits comes back as it was; nothing ever comes back that was not done.
        #[test]
        fn what_is_named_is_read_back(
            offset in 0..1_i64 << 40,
            steps in proptest::collection::vec((1..40_i64, 1..5000_i64), 0..400),
            dense in proptest::collection::btree_set(1..3000_i64, 0..1500),
            limit in 0..5000_usize,
        ) {
            let mut sparse = Vec::new();
            let mut at = offset;
            for (gap, run) in steps {
                sparse.push(at + gap..at + gap + run);
                at += gap + run;
            }
            let dense = ranges_of(&dense.into_iter().map(|n| offset + n).collect());
            for done in [sparse, dense] {
                let text = encode(offset, &done, limit);
                prop_assert!(text.len() <= limit.min(LIMIT));
                let read = decode(offset, &text);
                if limit >= LIMIT && (done.len() <= 700 || done.last().is_some_and(|last| last.end <= offset + 24_000)) {
                    prop_assert_eq!(&read, &done, "it fits");
                }
                // A cut may fall into a range, but what is read is a prefix of what is done.
                for (read, done) in read.iter().zip(&done) {
                    prop_assert_eq!(read.start, done.start);
                    prop_assert!(read.end <= done.end);
                }
                prop_assert!(read.len() <= done.len());
                if let Some((_, all_but_last)) = read.split_last() {
                    prop_assert_eq!(all_but_last, &done[..all_but_last.len()]);
                }
            }
        }

        /// Whatever stands beside an offset, reading it neither panics nor gives
        /// anything but ranges in order beyond the offset.
        #[test]
        fn any_text_is_read_without_harm(offset in any::<i64>(), payload in proptest::collection::vec(any::<u8>(), 0..60), kind in "[rbx]") {
            let text = format!("pd1{kind}{}", URL_SAFE_NO_PAD.encode(payload));
            let mut at = offset;
            for range in decode(offset, &text) {
                prop_assert!(range.start >= at && range.end > range.start);
                at = range.end;
            }
        }
    }
}
