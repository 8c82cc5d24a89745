//! What every whole-system test uses: waiting for a condition, skipping aloud,
//! processes that end with the test, the `pipedoc` command, servers.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub mod certificates;
pub mod consul;
pub mod kafka;
pub mod maven;
pub mod pipedoc;
pub mod process;
pub mod proxy;
pub mod sqlite;

/// Says aloud that a test is skipped, and why. Under `PIPEDOC_TEST_REQUIRE=all`
/// it fails the test instead.
///
/// # Panics
/// Under `PIPEDOC_TEST_REQUIRE=all`.
pub fn missing(test: &str, reason: &str) {
    if std::env::var("PIPEDOC_TEST_REQUIRE").is_ok_and(|required| required == "all") {
        panic!("{test} must not be skipped (PIPEDOC_TEST_REQUIRE=all): {reason}");
    }
    // Written past the capture of the test harness, which would swallow it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Polls a condition until it gives a value.
///
/// # Panics
/// When `limit` has passed; says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`wait_for`], for conditions that must be awaited.
///
/// # Panics
/// When `limit` has passed; says what was waited for.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ports of the loopback interface that nobody listens on.
///
/// They lie below the range that the kernel takes the ports of outgoing
/// connections from (32768 and up by default on Linux), so that no client can
/// have one between this call and the server's start, and none is given twice to
/// one test process.
///
/// # Panics
/// When there are none.
pub fn free_ports<const N: usize>() -> [u16; N] {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    // A place of its own for each test process, as several may run at once.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    [(); N].map(|()| {
        (0..COUNT)
            .map(|_| FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT)
            .filter_map(|port| u16::try_from(port).ok())
            .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .expect("a free port")
    })
}

/// The target folder that this test was built into.
#[must_use]
pub fn target_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let marked = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    marked.map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from)
}
