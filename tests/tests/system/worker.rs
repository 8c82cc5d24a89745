//! This test binary again, as another process that does one thing until it is
//! told to stop, or killed. What it says of its work goes to a file, so that what
//! it has said outlives it. Knows no scenario: each says what its roles do.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use pipedoc_tests::bed::process::Process;
use pipedoc_transport::sqlite::{Options, SqliteLog};

const ROLE: &str = "PIPEDOC_TEST_ROLE";
const FOLDER: &str = "PIPEDOC_TEST_FOLDER";
const SLOT: &str = "PIPEDOC_TEST_SLOT";
const LIFE: &str = "PIPEDOC_TEST_LIFE";

/// A process that works.
pub struct Worker {
    /// What it does.
    pub role: String,
    /// Where the log and all files of the test lie.
    pub folder: PathBuf,
    /// Which of those in the same role it is. Who is killed and started anew keeps it.
    pub slot: usize,
    /// How often it was started before.
    pub life: u64,
    told: File,
}

impl Worker {
    /// Says something, a line each; it is in the file when this returns.
    pub fn tell(&self, lines: &[String]) {
        let mut text = lines.join("\n");
        text.push('\n');
        (&self.told).write_all(text.as_bytes()).unwrap();
    }

    /// Says that something went wrong that never may.
    pub fn tell_error(&self, what: impl std::fmt::Debug) {
        self.tell(&[format!("error {} {} {what:?}", self.role, self.slot)]);
    }

    /// Whether a file was made that all look for.
    pub fn is_told_to(&self, word: &str) -> bool {
        self.folder.join(word).exists()
    }

    /// The log that all of them share.
    pub async fn log(&self) -> SqliteLog {
        SqliteLog::open(log_file(&self.folder), Options::default()).await.unwrap()
    }
}

/// The log file of a test.
pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("log.db")
}

fn told_file(folder: &Path, role: &str, slot: usize) -> PathBuf {
    folder.join(format!("{role}-{slot}.told"))
}

/// Starts this binary as another process.
pub fn start(role: &str, folder: &Path, slot: usize, life: u64, settings: &[(&str, &str)]) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "system::worker::as_another_process", "--nocapture"]);
    command.env(ROLE, role).env(FOLDER, folder).env(SLOT, slot.to_string()).env(LIFE, life.to_string());
    command.envs(settings.iter().copied());
    let name = format!("{role}-{slot}");
    Process::start(&name, &mut command, &folder.join(format!("{name}.log")), None)
}

/// All whole lines that the workers in a slot have told so far, over all their lives.
pub fn told(folder: &Path, role: &str, slot: usize) -> Vec<String> {
    let text = std::fs::read(told_file(folder, role, slot)).unwrap_or_default();
    let text = String::from_utf8(text).unwrap();
    // Killed in the middle of a line, it has not said it.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

/// Checks a file that was used hard.
pub fn assert_intact(folder: &Path) {
    let connection = rusqlite::Connection::open(log_file(folder)).unwrap();
    let said: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(said, "ok");
}

/// Does what a test asks of another process; nothing in an ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_another_process() {
    let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else { return };
    let folder = PathBuf::from(folder);
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (slot, life) = (number(SLOT) as usize, number(LIFE));
    let told = File::options().create(true).append(true).open(told_file(&folder, &role, slot)).unwrap();
    let worker = Worker { role, folder, slot, life, told };
    match worker.role.as_str() {
        "writer" => super::sqlite_kills::write(&worker).await,
        "transactional" => super::sqlite_kills::write_transactions(&worker).await,
        "reader" => super::sqlite_kills::read(&worker).await,
        "piper" => super::sqlite_kills::pipe(&worker).await,
        "load" => super::sqlite_load::work(&worker).await,
        "sync" => super::sqlite_sync::write(&worker).await,
        "chaos" => super::chaos::work(&worker).await,
        "connector" => super::connector_kills::work(&worker).await,
        "zombie" => super::zombies::be_frozen(&worker).await,
        other => panic!("no role {other}"),
    }
    worker.tell(&["ended".to_owned()]);
}
