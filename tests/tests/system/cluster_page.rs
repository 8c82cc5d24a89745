//! docs/cluster.md, run as it stands: the library on Kafka, Consul and an S3 store,
//! with two engines and the modules as processes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use pipedoc_tests::bed::{consul, free_ports, kafka, missing, pipedoc, target_folder, wait_for};

use super::kafka_tools::{path_with, results, tools};

/// The page starts two Java machines, six processes and stops them again.
const PATIENCE: Duration = Duration::from_secs(600);

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The S3 server's program.
fn s3_server() -> Result<PathBuf, String> {
    static SERVER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch-s3");
            let output = Command::new("bash").arg(script).arg(target_folder().join("test-bed/s3")).output();
            let output = output.map_err(|error| format!("bash does not run: {error}"))?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).trim().into());
            }
            Err(format!("no S3 server: {}", String::from_utf8_lossy(&output.stderr).trim()))
        })
        .clone()
}

/// A shell and all that it started, in a group of processes of its own, which ends
/// with the guard and also when the test is killed.
struct Group {
    shell: Child,
    watchdog: Child,
}

impl Group {
    fn start(command: &mut Command) -> Self {
        let shell = command.process_group(0).stdin(Stdio::null()).spawn().unwrap();
        // Not every `sh` can kill a group.
        let watchdog = Command::new("bash")
            .args(["-c", "read -r _; kill -9 -- \"-$1\" 2>/dev/null", "watchdog", &shell.id().to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Self { shell, watchdog }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its pipe closes, and it kills what is left of the group.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
        let _ = self.shell.wait();
    }
}

/// The bash blocks of a page, in order.
fn commands(page: &str) -> String {
    let blocks = page.split("```bash\n").skip(1).map(|block| block.split("```").next().unwrap());
    std::iter::once("set -euo pipefail\n").chain(blocks).collect()
}

#[test]
fn the_page_on_clusters_is_true() {
    const TEST: &str = "the_page_on_clusters_is_true";
    let (kafka, consul, s3) = match (kafka::classpath(), consul::binary(), s3_server()) {
        (Ok(kafka), Ok(consul), Ok(s3)) => (kafka, consul, s3),
        (kafka, consul, s3) => {
            let reasons = [kafka.err(), consul.err(), s3.err()];
            return missing(TEST, &reasons.into_iter().flatten().collect::<Vec<_>>().join("; "));
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    tools(&kafka, &place.join("bin"));
    for (program, name) in [(&consul, "consul"), (&s3, "moto_server")] {
        std::os::unix::fs::symlink(program, place.join("bin").join(name)).unwrap();
    }
    std::os::unix::fs::symlink(root().join("README.md"), place.join("README.md")).unwrap();
    fs::create_dir(place.join("examples")).unwrap();
    std::os::unix::fs::symlink(root().join("examples/library"), place.join("examples/library")).unwrap();
    fs::create_dir(place.join("examples/cluster")).unwrap();

    // The page as it stands, on ports that are free.
    let free: [u16; 8] = free_ports();
    let ports = ["9092", "9093", "8500", "8300", "8301", "9000", "7401", "7402"];
    let on_free_ports = |text: String| {
        ports.iter().zip(free).fold(text, |text, (port, free)| {
            [":", "=", " "]
                .iter()
                .fold(text, |text, before| text.replace(&format!("{before}{port}"), &format!("{before}{free}")))
        })
    };
    for name in ["kafka.properties", "library.yaml"] {
        let text = fs::read_to_string(root().join("examples/cluster").join(name)).unwrap();
        fs::write(place.join("examples/cluster").join(name), on_free_ports(text)).unwrap();
    }
    let page = fs::read_to_string(root().join("docs/cluster.md")).unwrap();
    let printed = place.join("printed");
    let file = fs::File::create(&printed).unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-c", &on_free_ports(commands(&page))]).current_dir(place);
    shell.env("PATH", path_with(&place.join("bin"))).stdout(file.try_clone().unwrap()).stderr(file);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIPEDOC_") || name.starts_with("AWS_")) {
        shell.env_remove(name);
    }
    let mut group = Group::start(&mut shell);
    let said = || {
        let logs = fs::read_dir(place.join("cluster")).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = logs.filter(|path| path.extension().is_some_and(|end| end == "log"));
        let all = std::iter::once(printed.clone()).chain(logs).map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("{}:\n{}\n", path.display(), lines[lines.len().saturating_sub(40)..].join("\n"))
        });
        all.collect::<String>()
    };
    let begun = std::time::Instant::now();
    let status = loop {
        if let Some(status) = group.shell.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "the page has not ended:\n{}", said());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "{}", said());

    // What the page shows, and what it leaves behind.
    let shown = fs::read_to_string(&printed).unwrap();
    for (step, state) in [("files", "COMPLETED"), ("parse", "RUNNING"), ("chunk", "RUNNING"), ("store", "RUNNING")] {
        let seen = shown.lines().filter(|line| line.starts_with(step) && line.contains(state)).count();
        assert!(seen >= 3, "an engine does not show {step} as {state}:\n{shown}");
    }
    assert!(shown.contains("pipedoc/library/head"), "{shown}");
    assert!(shown.contains("<Key>sha256/"), "payloads lie in the object store:\n{shown}");
    let out = ["--in", "examples/library/in", "--out", "embedded"];
    let embedded = pipedoc::command(["run", "examples/cluster/library.yaml"].into_iter().chain(out));
    let embedded = { embedded }.current_dir(place).output().unwrap();
    assert!(embedded.status.success(), "{}", String::from_utf8_lossy(&embedded.stderr));
    let (mut ours, mut theirs) = (BTreeMap::new(), BTreeMap::new());
    results(&place.join("cluster/out"), &mut ours);
    results(&place.join("embedded"), &mut theirs);
    assert!(ours.remove("README.md").is_some(), "what was submitted is there");
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (id, doc) in &ours {
        assert_eq!(doc, &theirs[id], "{id} differs from a run on one machine");
    }
    wait_for("nobody is left", Duration::from_secs(30), || {
        free.iter().all(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).then_some(())
    });
}
