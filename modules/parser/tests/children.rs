//! What a bad file costs: one child and a clear error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pipedoc_parser::pool::{Limits, Pool};
use pipedoc_parser::{Config, Error, Parser};
use pipedoc_sdk::proto::v1::{Blob, Claim, PipeDoc, blob};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pipedoc-parser");

fn limits() -> Limits {
    Limits { children: 2, timeout: Duration::from_secs(60), memory: 512 << 20, max_file_size: 64 << 20 }
}

fn pool(limits: Limits) -> Pool {
    Pool::new(PROGRAM.into(), limits)
}

/// A pool whose children are a script that misbehaves.
fn misbehaving(script: &str, timeout: Duration) -> Pool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/children").join(script);
    Pool::new(path, Limits { timeout, ..limits() })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[tokio::test]
async fn one_child_parses_many_files() {
    let pool = pool(Limits { children: 1, ..limits() });
    let mut children = Vec::new();
    for number in 0..50 {
        let text = format!("text {number}");
        assert_eq!(pool.parse("a.txt", text.as_bytes()).await.unwrap().body, text);
        children.extend(pool.idle_children());
    }
    children.dedup();
    assert_eq!(children.len(), 1, "{children:?}");
}

#[tokio::test]
async fn many_files_at_once_use_no_more_children_than_allowed() {
    let pool = pool(limits());
    let texts: Vec<_> = (0..100).map(|number| format!("text {number}")).collect();
    let parsed = futures_join(texts.iter().map(|text| pool.parse("a.txt", text.as_bytes()))).await;
    for (parsed, text) in parsed.into_iter().zip(&texts) {
        assert_eq!(&parsed.unwrap().body, text);
    }
    assert!((1..=2).contains(&pool.idle_children().len()), "{:?}", pool.idle_children());
}

/// All results, in order; the futures run side by side.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |context| {
        for (future, output) in &mut pending {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(context)
            {
                *output = Some(ready);
            }
        }
        if pending.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(pending.iter_mut().filter_map(|(_, output)| output.take()).collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn a_refused_file_does_not_cost_the_child() {
    let pool = pool(Limits { children: 1, ..limits() });
    pool.parse("a.txt", b"text").await.unwrap();
    let before = pool.idle_children();
    let error = pool.parse("b.pdf", b"%PDF-1.7 and no more").await.unwrap_err();
    assert_eq!(error.kind(), "truncated");
    assert_eq!(pool.idle_children(), before);
}

#[tokio::test]
async fn a_file_that_needs_too_much_memory_is_refused_and_the_next_is_parsed() {
    let limit = 48 << 20;
    let pool = pool(Limits { memory: limit, ..limits() });
    let error = pool.parse("large.txt.gz", &gzip(&vec![b'a'; 250 << 20])).await.unwrap_err();
    assert_eq!(error, Error::OutOfMemory { name: "large.txt.gz".into(), limit });
    assert!(!error.is_retryable());
    assert_eq!(pool.parse("a.txt", b"text").await.unwrap().body, "text");
}

#[tokio::test]
async fn a_file_that_takes_too_long_is_ended_for_good() {
    let limit = Duration::from_millis(300);
    let pool = misbehaving("hangs", limit);
    let begin = Instant::now();
    let error = pool.parse("slow.pdf", b"%PDF").await.unwrap_err();
    assert_eq!(error, Error::TimedOut { name: "slow.pdf".into(), limit });
    assert!(!error.is_retryable() && begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(pool.idle_children().is_empty());
}

#[tokio::test]
async fn a_file_that_kills_its_child_is_refused_for_good() {
    let error = misbehaving("crashes", limits().timeout).parse("evil.pdf", b"%PDF").await.unwrap_err();
    assert!(!error.is_retryable());
    let message = error.to_string();
    assert_eq!(error.kind(), "crashed");
    assert!(message.contains("evil.pdf") && message.contains("segmentation fault"), "{message}");
    assert!(message.contains("something went very wrong"), "{message}");
}

#[tokio::test]
async fn a_child_that_talks_nonsense_is_given_up() {
    let error = misbehaving("babbles", limits().timeout).parse("a.pdf", b"%PDF").await.unwrap_err();
    assert_eq!(error.kind(), "crashed", "{error}");
}

#[tokio::test]
async fn a_child_ended_from_outside_may_be_tried_again() {
    let error = misbehaving("killed", limits().timeout).parse("a.pdf", b"%PDF").await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), ("killed", true), "{error}");
}

#[tokio::test]
async fn an_idle_child_that_was_killed_is_replaced() {
    let pool = pool(Limits { children: 1, ..limits() });
    pool.parse("a.txt", b"text").await.unwrap();
    let child = pool.idle_children()[0];
    assert!(Command::new("kill").args(["-KILL", &child.to_string()]).status().unwrap().success());
    until(|| is_gone(child));
    assert_eq!(pool.parse("b.txt", b"more").await.unwrap().body, "more");
}

#[tokio::test]
async fn a_program_that_is_no_child_is_told_and_may_be_tried_again() {
    for (pool, says) in [
        (misbehaving("stranger", limits().timeout), "usage: stranger FILE"),
        (Pool::new(PathBuf::from("/nowhere/parser"), limits()), "No such file"),
    ] {
        let error = pool.parse("a.txt", b"text").await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), ("no-child", true));
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_parse_that_nobody_waits_for_ends_its_child() {
    let pool = misbehaving("hangs", limits().timeout);
    let parse = tokio::time::timeout(Duration::from_millis(300), pool.parse("a.pdf", b"%PDF"));
    parse.await.expect_err("the child never answers");
    assert!(pool.idle_children().is_empty());
}

#[tokio::test]
async fn dropping_the_pool_ends_its_children() {
    let pool = pool(limits());
    pool.parse("a.txt", b"text").await.unwrap();
    let children = pool.idle_children();
    assert!(!children.is_empty());
    drop(pool);
    until(|| children.iter().all(|child| is_gone(*child)));
}

#[test]
fn a_busy_child_dies_with_its_parent() {
    use std::io::{Read as _, Write as _};
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM)
        .arg("__pipedoc-parse-child")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let mut hello = [0; 8];
    ours.read_exact(&mut hello).unwrap();
    // A page that takes long enough: many nested and broken elements.
    let page = format!("<html>{}", "<div><table><tr><td>x<p>y".repeat(200_000));
    ours.write_all(
        &[&1_u32.to_le_bytes()[..], &(page.len() as u64).to_le_bytes(), &u64::MAX.to_le_bytes(), b"a"].concat(),
    )
    .unwrap();
    ours.write_all(page.as_bytes()).unwrap();
    drop(ours);
    until(|| child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
}

fn until(condition: impl FnMut() -> bool) {
    let mut condition = condition;
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is gone, or is dead and only waits to be reaped: its first thread
/// may be dead before the others are.
fn is_gone(process: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return true };
    let is_dead = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    is_dead && std::fs::read_dir(format!("/proc/{process}/task")).is_ok_and(|threads| threads.count() == 1)
}

fn document(name: &str, content: Option<blob::Content>) -> PipeDoc {
    let size = match &content {
        Some(blob::Content::Inline(bytes)) => bytes.len() as u64,
        _ => 0,
    };
    let blob = Blob { name: name.into(), size, content, ..Blob::default() };
    PipeDoc { id: "doc-1".into(), title: "by its name".into(), blobs: vec![blob], ..PipeDoc::default() }
}

#[tokio::test]
async fn the_document_is_filled_and_its_file_goes_unless_it_is_kept() {
    let file = || document("a.md", Some(blob::Content::Inline(b"# Title\n\ntext".to_vec().into())));
    let parser = Parser::with_program(&Config::default(), PROGRAM.into());
    let doc = parser.parse(file()).await.unwrap();
    assert_eq!((doc.id.as_str(), doc.title.as_str(), doc.mime_type.as_str()), ("doc-1", "Title", "text/markdown"));
    assert!(doc.blobs.is_empty());
    let keeping = Parser::with_program(&Config { keep_blob: true, ..Config::default() }, PROGRAM.into());
    let doc = keeping.parse(file()).await.unwrap();
    assert_eq!(doc.blobs[0].mime_type, "text/markdown");
}

#[tokio::test]
async fn what_the_source_said_stays_where_the_file_says_nothing() {
    let parser = Parser::with_program(&Config::default(), PROGRAM.into());
    let doc = parser.parse(document("a.txt", Some(blob::Content::Inline(b"text".to_vec().into())))).await.unwrap();
    assert_eq!((doc.title.as_str(), doc.body.as_str()), ("by its name", "text"));
}

#[tokio::test]
async fn documents_without_a_readable_file_are_refused() {
    let parser =
        Parser::with_program(&Config { max_file_size: "4B".parse().unwrap(), ..Config::default() }, PROGRAM.into());
    let claim = Claim { store: "default".into(), key: "k".into(), size: 4, sha256: Default::default() };
    for (doc, kind) in [
        (PipeDoc { id: "a".into(), ..PipeDoc::default() }, "no-file"),
        (document("a", None), "empty"),
        (document("a", Some(blob::Content::Claim(claim))), "not-hydrated"),
        (document("a", Some(blob::Content::Inline(b"12345".to_vec().into()))), "too-large"),
    ] {
        let error = parser.parse(doc).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (kind, false), "{error}");
        let error = error.into_module_error();
        assert_eq!((error.kind(), error.is_retryable()), (kind, false));
    }
    let text = PipeDoc { id: "a".into(), body: "as text".into(), ..PipeDoc::default() };
    assert_eq!(parser.parse(text.clone()).await.unwrap(), text);
}
