//! The `pipedoc` command, built once and run as its users run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::process::Process;
use super::target_folder;

/// Path of the `pipedoc` command, in the profile that this test was built in.
///
/// Built by the first call: cargo tells only a package's own tests where its
/// binaries are.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "pipedoc", "--bin", "pipedoc"]);
        build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        build.arg("--target-dir").arg(target_folder());
        if profile == "release" {
            build.arg("--release");
        }
        let built = build.status().expect("cargo runs");
        assert!(built.success(), "the pipedoc command does not build");
        kept(&target_folder().join(profile).join("pipedoc"))
    })
}

/// The binary under a name of this process's own: another build must not exchange
/// it while a test runs. Those of processes that have ended are removed.
fn kept(built: &Path) -> PathBuf {
    let folder = target_folder().join("test-bed").join("bin");
    fs::create_dir_all(&folder).expect("a folder for it");
    for entry in fs::read_dir(&folder).expect("its folder").flatten() {
        let owner = entry.file_name().to_string_lossy().replace("pipedoc-", "");
        if !Path::new("/proc").join(owner).exists() {
            let _ = fs::remove_file(entry.path());
        }
    }
    let own = folder.join(format!("pipedoc-{}", std::process::id()));
    let _ = fs::remove_file(&own);
    fs::hard_link(built, &own).expect("a second name for the binary");
    own
}

/// A `pipedoc` command to be run to its end: no settings of the person who
/// tests reach it.
#[must_use]
pub fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PIPEDOC_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// Starts a `pipedoc` command that runs until it is stopped; prints to
/// `<folder>/<name>.log`.
#[must_use]
pub fn start<'a>(name: &str, folder: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Process {
    let output = folder.join(format!("{name}.log"));
    Process::start(name, command(arguments).current_dir(folder), &output, None)
}
