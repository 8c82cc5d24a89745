//! A header's value that is not part of a record's memory: short ones, which
//! nearly all of ours are, lie in place and cost no allocation.

use std::io::Write as _;

use bytes::Bytes;

/// So many bytes lie in place: times, numbers, ids of journeys.
const SHORT: usize = 38;

/// What a header is set to.
#[derive(Clone)]
pub struct Value(Form);

#[derive(Clone)]
enum Form {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Bytes),
}

impl Value {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Form::Long(bytes) => bytes,
        }
    }

    /// A copy in place, if it is short enough.
    fn short(found: &[u8]) -> Option<Self> {
        let mut bytes = [0; SHORT];
        bytes.get_mut(..found.len())?.copy_from_slice(found);
        Some(Self(Form::Short { length: u8::try_from(found.len()).ok()?, bytes }))
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", Bytes::copy_from_slice(self.as_bytes()))
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::short(bytes).unwrap_or_else(|| Self(Form::Long(Bytes::copy_from_slice(bytes))))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::short(text.as_bytes()).unwrap_or_else(|| Self(Form::Long(text.into())))
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::short(&bytes).unwrap_or(Self(Form::Long(bytes)))
    }
}

/// In ASCII decimal.
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        let mut bytes = [0; SHORT];
        let mut rest = bytes.as_mut_slice();
        // Twenty characters at most: it fits.
        let _ = write!(rest, "{number}");
        let length = SHORT - rest.len();
        Self(Form::Short { length: u8::try_from(length).unwrap_or_default(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_they_were_made_of_whatever_their_length() {
        for length in 0..2 * SHORT {
            let text = "x".repeat(length);
            for value in [Value::from(text.as_str()), text.clone().into(), Bytes::from(text.clone()).into()] {
                assert_eq!(value.as_bytes(), text.as_bytes());
            }
        }
        for number in [0, -1, 42, i64::MIN, i64::MAX] {
            assert_eq!(Value::from(number).as_bytes(), number.to_string().as_bytes());
        }
    }
}
