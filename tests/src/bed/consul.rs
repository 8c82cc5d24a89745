//! A real Consul agent on free ports of the loopback interface. In development mode
//! its data lie in memory: killed and started again, it has lost them. A lasting one
//! keeps them on disk.
//!
//! `PIPEDOC_TEST_CONSUL_BIN` names another agent to test against; otherwise
//! `tests/fetch-consul` gets one, once, into `target/test-bed/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use super::process::Process;
use super::{free_ports, missing, target_folder, wait_for};

/// A running agent.
#[derive(Debug)]
pub struct Consul {
    process: Process,
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
    token: Option<String>,
    lasting: bool,
}

/// The agent that all tests of a binary share, each with a cluster of its own
/// name; `None` when the test is to be skipped, which has been said aloud then.
///
/// # Panics
/// When it does not start, and when it is missing under `PIPEDOC_TEST_REQUIRE=all`.
pub fn shared(test: &str) -> Option<&'static Consul> {
    // Statics are not dropped: the watchdog of the process ends it with the test binary.
    static SHARED: OnceLock<Result<Consul, String>> = OnceLock::new();
    match SHARED.get_or_init(Consul::start) {
        Ok(consul) => Some(consul),
        Err(reason) => {
            missing(test, reason);
            None
        }
    }
}

/// An agent of a test's own, as [`shared`].
///
/// # Panics
/// As [`shared`].
pub fn own(test: &str, start: impl FnOnce() -> Result<Consul, String>) -> Option<Consul> {
    start().map_err(|reason| missing(test, &reason)).ok()
}

impl Consul {
    /// Starts an agent.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start() -> Result<Self, String> {
        Self::start_with(None, false)
    }

    /// Starts an agent that keeps its data on disk, a server by itself: killed and
    /// started again it has them still, and is not quite as quick about it.
    ///
    /// # Errors
    /// Says what is missing on this machine.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start_lasting() -> Result<Self, String> {
        Self::start_with(None, true)
    }

    /// Starts an agent that denies whatever a token does not allow, with this token
    /// for the management of all. (`tokens.master` until Consul 1.10,
    /// `tokens.initial_management` since.)
    ///
    /// # Errors
    /// Says what is missing on this machine.
    ///
    /// # Panics
    /// When everything is there and it does not start all the same.
    pub fn start_secured(management: &str) -> Result<Self, String> {
        Self::start_with(Some(management), false)
    }

    fn start_with(management: Option<&str>, lasting: bool) -> Result<Self, String> {
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix("pipedoc-consul-").tempdir().expect("a temporary folder").keep();
        let [port, dns, serf_lan, serf_wan, server] = free_ports();
        let mut settings = serde_json::json!({
            "ports": {"http": port, "dns": dns, "serf_lan": serf_lan, "serf_wan": serf_wan, "server": server, "grpc": -1},
            "enable_local_script_checks": false,
            // As in production: the shortest election of servers.
            "performance": {"raft_multiplier": 1},
        });
        if version(&binary) >= (1, 14) {
            settings["ports"]["grpc_tls"] = (-1).into();
        }
        if let Some(management) = management {
            let name = if version(&binary) >= (1, 11) { "initial_management" } else { "master" };
            settings["acl"] = serde_json::json!({
                "enabled": true, "default_policy": "deny", "tokens": {name: management, "agent": management},
            });
        }
        fs::write(folder.join("settings.json"), settings.to_string()).expect("its configuration");
        let process = launch(&binary, &folder, lasting);
        let token = management.map(str::to_owned);
        let mut consul = Self { process, binary, folder, port, token, lasting };
        consul.wait_until_ready();
        Ok(consul)
    }

    /// Its URL.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process, for signals.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it. Only a lasting one has its data still when it starts again.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it, and its data are lost.
    ///
    /// # Panics
    /// When they cannot be removed.
    pub fn lose(&mut self) {
        self.process.kill();
        if self.lasting {
            fs::remove_dir_all(data(&self.folder)).expect("its data are removed");
        }
    }

    /// Starts it again on the same port.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.binary, &self.folder, self.lasting);
        self.wait_until_ready();
    }

    /// Runs the `consul` command against it, as its users do.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("CONSUL_HTTP_ADDR", self.address()).env_remove("CONSUL_HTTP_TOKEN");
        if let Some(token) = &self.token {
            command.env("CONSUL_HTTP_TOKEN", token);
        }
        command.output().expect("the consul command runs")
    }

    /// Runs the `consul` command, which must succeed; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "consul {arguments:?}: {said}{complained}");
        said.into_owned()
    }

    fn wait_until_ready(&mut self) {
        let mut said = String::new();
        wait_for("Consul leads", Duration::from_secs(60), || {
            assert!(self.process.is_running(), "Consul ended; it printed:\n{}", self.process.output());
            // Only a leader that is settled takes a write.
            let output = self.command(&["kv", "put", "ready", "yes"]);
            said = String::from_utf8_lossy(&output.stderr).into_owned();
            output.status.success().then_some(())
        });
    }
}

fn launch(binary: &Path, folder: &Path, lasting: bool) -> Process {
    let mut command = Command::new(binary);
    command.args(["agent", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn", "-config-file"]);
    command.arg(folder.join("settings.json"));
    if lasting {
        command.args(["-server", "-bootstrap-expect=1", "-data-dir"]).arg(data(folder));
    } else {
        command.arg("-dev");
    }
    Process::start("consul", &mut command, &folder.join("consul.log"), Some(folder))
}

/// Where a lasting agent keeps its data.
fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

/// The agent's program, which is the `consul` command too.
///
/// # Errors
/// Says what is missing on this machine.
pub fn binary() -> Result<PathBuf, String> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(find).clone()
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("PIPEDOC_TEST_CONSUL_BIN") {
        return Ok(path.into());
    }
    let folder = target_folder().join("test-bed/consul");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/fetch-consul");
    let output = Command::new("bash").arg(script).arg(&folder).output();
    let output = output.map_err(|error| format!("bash does not run: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    Err(format!(
        "no Consul agent: {}; PIPEDOC_TEST_CONSUL_BIN may name one",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// Major and minor version.
fn version(binary: &Path) -> (u32, u32) {
    let output = Command::new(binary).arg("version").output().expect("consul version runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
