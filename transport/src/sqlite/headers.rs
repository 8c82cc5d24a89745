//! Headers as one blob: for each, the length of its name, the name, the length
//! of its value plus one (0: no value), the value. Lengths are LEB128.

use std::ops::Range;

use bytes::Bytes;
use pipedoc_model::headers::Headers;

/// Appends the blob; nothing for no headers.
pub(super) fn encode(headers: &Headers, blob: &mut Vec<u8>) {
    for header in headers.iter() {
        length(blob, header.name().len());
        blob.extend_from_slice(header.name().as_bytes());
        match header.value() {
            Some(value) => {
                length(blob, value.len() + 1);
                blob.extend_from_slice(value);
            }
            None => length(blob, 0),
        }
    }
}

/// The headers of a blob, sharing its memory. A damaged blob gives the headers
/// before the damage.
pub(super) fn decode(blob: Bytes) -> Headers {
    let mut headers = Headers::within(blob.clone(), 8);
    let mut at = 0;
    while let Some((name, value)) = next(&blob, &mut at) {
        headers.append_within(&name, value.as_ref());
    }
    headers
}

/// Places of the next header's name and value.
fn next(blob: &[u8], at: &mut usize) -> Option<(Range<usize>, Option<Range<usize>>)> {
    let length = take_length(blob, at)?;
    let name = take(blob, at, length)?;
    let value = match take_length(blob, at)? {
        0 => None,
        length => Some(take(blob, at, length - 1)?),
    };
    Some((name, value))
}

/// The next `length` bytes, if there are so many.
fn take(blob: &[u8], at: &mut usize, length: usize) -> Option<Range<usize>> {
    let end = at.checked_add(length).filter(|end| *end <= blob.len())?;
    let found = *at..end;
    *at = end;
    Some(found)
}

fn length(blob: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        blob.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    blob.push(number as u8);
}

fn take_length(blob: &[u8], at: &mut usize) -> Option<usize> {
    let mut number = 0_usize;
    for (index, byte) in blob.get(*at..)?.iter().copied().enumerate().take(9) {
        number |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *at += index + 1;
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_round_trip(
            all in proptest::collection::vec((".{0,20}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))), 0..6)
        ) {
            let mut headers = Headers::new();
            for (name, value) in all {
                headers.append(&name, value.map(Bytes::from));
            }
            let mut blob = Vec::new();
            encode(&headers, &mut blob);
            prop_assert_eq!(decode(blob.into()), headers);
        }

        #[test]
        fn damage_never_panics(blob in proptest::collection::vec(any::<u8>(), 0..60)) {
            decode(blob.into());
        }
    }
}
