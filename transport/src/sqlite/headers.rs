//! Headers as one blob: for each, the length of its name, the name, the length
//! of its value plus one (0: no value), the value. Lengths are LEB128.

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
pub(super) fn decode(mut blob: Bytes) -> Headers {
    let mut headers = Headers::with_capacity(8);
    while !blob.is_empty() {
        let Some(name) = take_length(&mut blob).filter(|length| *length <= blob.len()) else { break };
        let name = blob.split_to(name);
        let value = match take_length(&mut blob) {
            Some(0) => None,
            Some(length) if length - 1 <= blob.len() => Some(blob.split_to(length - 1)),
            _ => break,
        };
        headers.append_shared(name, value);
    }
    headers
}

fn length(blob: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        blob.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    blob.push(number as u8);
}

fn take_length(blob: &mut Bytes) -> Option<usize> {
    let mut number = 0_usize;
    for (index, byte) in blob.iter().copied().enumerate().take(9) {
        number |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let _ = blob.split_to(index + 1);
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
