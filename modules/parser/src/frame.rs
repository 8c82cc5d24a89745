//! How parent and child talk: requests and replies over one socket, each with its
//! length before it. File bytes travel as they are.
//!
//! Both ends are the same program, so there are no versions; the child's hello
//! shows that the program at the other end is a child at all.

use std::io::{self, Read, Write};

use pipedoc_sdk::proto::v1::PipeDoc;
use prost::Message;

use crate::error::Error;

/// What a child says first.
pub(crate) const HELLO: [u8; 8] = *b"pipedoc\x01";

/// Bytes before a request's name and content: length of the name (u32), length of
/// the content (u64), the parser's `max_file_size` (u64); little endian.
pub(crate) const REQUEST_HEADER: usize = 20;

/// Bytes before a reply's content: its tag (u8) and length (u64); little endian.
pub(crate) const REPLY_HEADER: usize = 9;

const DOCUMENT: u8 = 0;
const ERROR: u8 = 1;

/// A file to parse.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) max_size: u64,
    pub(crate) bytes: Vec<u8>,
}

/// What stands before a file's bytes: header and name.
pub(crate) fn request_head(name: &str, size: usize, max_size: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(REQUEST_HEADER + name.len());
    head.extend_from_slice(&u32::try_from(name.len()).unwrap_or(0).to_le_bytes());
    head.extend_from_slice(&(size as u64).to_le_bytes());
    head.extend_from_slice(&max_size.to_le_bytes());
    head.extend_from_slice(name.as_bytes());
    head
}

/// Reads the next request; `None` when the parent has gone.
pub(crate) fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    let mut header = [0; REQUEST_HEADER];
    match from.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let [name_length, size, max_size] =
        [(0, 4), (4, 12), (12, 20)].map(|(start, end)| little_endian(&header[start..end]));
    let mut name = vec![0; usize_of(name_length)?];
    from.read_exact(&mut name)?;
    let mut bytes = vec![0; usize_of(size)?];
    from.read_exact(&mut bytes)?;
    Ok(Some(Request { name: String::from_utf8_lossy(&name).into_owned(), max_size, bytes }))
}

/// Writes a reply.
pub(crate) fn write_reply(to: &mut impl Write, reply: &Result<PipeDoc, Error>) -> io::Result<()> {
    let (tag, content) = match reply {
        Ok(doc) => (DOCUMENT, doc.encode_to_vec()),
        Err(error) => (ERROR, serde_json::to_vec(error)?),
    };
    let mut head = [tag; REPLY_HEADER];
    head[1..].copy_from_slice(&(content.len() as u64).to_le_bytes());
    to.write_all(&head)?;
    to.write_all(&content)?;
    to.flush()
}

/// Tag of a reply and length of its content.
pub(crate) fn reply_head(head: &[u8; REPLY_HEADER]) -> io::Result<(u8, usize)> {
    Ok((head[0], usize_of(little_endian(&head[1..]))?))
}

/// A reply from its tag and content.
pub(crate) fn reply(tag: u8, content: &[u8]) -> io::Result<Result<PipeDoc, Error>> {
    match tag {
        DOCUMENT => PipeDoc::decode(content).map(Ok).map_err(io::Error::other),
        ERROR => Ok(Err(serde_json::from_slice(content)?)),
        other => Err(io::Error::other(format!("unknown reply {other}"))),
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

fn usize_of(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_arrive_as_they_were_sent() {
        let mut sent = request_head("naïve.txt", 5, 99);
        sent.extend_from_slice(b"\0\x01two");
        let mut from = sent.as_slice();
        let request = Request { name: "naïve.txt".into(), max_size: 99, bytes: b"\0\x01two".to_vec() };
        assert_eq!(read_request(&mut from).unwrap(), Some(request));
        assert_eq!(read_request(&mut from).unwrap(), None);

        let doc = PipeDoc { body: "text".into(), ..PipeDoc::default() };
        for expected in [Ok(doc), Err(Error::Empty { name: "a".into() })] {
            let mut written = Vec::new();
            write_reply(&mut written, &expected).unwrap();
            let (tag, length) = reply_head(written[..REPLY_HEADER].try_into().unwrap()).unwrap();
            assert_eq!(length, written.len() - REPLY_HEADER);
            assert_eq!(reply(tag, &written[REPLY_HEADER..]).unwrap(), expected);
        }
    }
}
