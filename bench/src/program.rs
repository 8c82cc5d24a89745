//! The `pipedoc` command as its users run it, built in the profile that this
//! program was built in, and processes that end with their guards.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Path of the `pipedoc` command, built first so that it is never an old one.
///
/// # Errors
/// When it does not build.
pub fn pipedoc() -> anyhow::Result<PathBuf> {
    let ours = std::env::current_exe()?;
    // Tests lie one folder deeper.
    let folder = ours.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).context("no folder")?;
    let target = folder.parent().context("no target folder")?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--package", "pipedoc", "--bin", "pipedoc"]);
    build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    build.arg("--target-dir").arg(target);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.status().context("running cargo to build the pipedoc command")?;
    ensure!(built.success(), "the pipedoc command does not build");
    Ok(folder.join("pipedoc"))
}

/// A command of it, which no setting of the person who measures reaches.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PIPEDOC_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A process that runs until it is stopped; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts it; what it prints goes to a file in a folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &'static str, command: &mut Command, folder: &Path) -> anyhow::Result<Self> {
        let output = folder.join(format!("{name}.log"));
        let file = std::fs::File::create(&output)?;
        let child =
            command.stdout(file.try_clone()?).stderr(file).spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, output })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has printed something.
    ///
    /// # Errors
    /// When it ended, or did not within a minute; tells what it printed.
    pub fn wait_for(&mut self, text: &str) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let printed = std::fs::read_to_string(&self.output)?;
            if printed.contains(text) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < end, "{} did not print {text:?} but:\n{printed}", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it (`kill -9`) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It holds nothing that is worth an orderly end.
        self.kill();
    }
}
