//! Jars from Maven Central, fetched once into `target/test-bed/`. Nothing is
//! installed. Knows nothing of what is in them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::target_folder;

/// A jar that is wanted, with all that it needs to run.
#[derive(Debug, Clone)]
pub struct Dependency {
    group: &'static str,
    artifact: &'static str,
    version: &'static str,
    left_out: &'static [(&'static str, &'static str)],
}

impl Dependency {
    /// Names a jar.
    #[must_use]
    pub fn new(group: &'static str, artifact: &'static str, version: &'static str) -> Self {
        Self { group, artifact, version, left_out: &[] }
    }

    /// Without some of what it says that it needs: groups and artifacts.
    #[must_use]
    pub fn without(self, left_out: &'static [(&'static str, &'static str)]) -> Self {
        Self { left_out, ..self }
    }

    fn xml(&self) -> String {
        let named =
            |group: &str, artifact: &str| format!("<groupId>{group}</groupId><artifactId>{artifact}</artifactId>");
        let left_out = self.left_out.iter();
        let left_out: String =
            left_out.map(|(group, artifact)| format!("<exclusion>{}</exclusion>", named(group, artifact))).collect();
        let Self { group, artifact, version, .. } = self;
        format!(
            "<dependency>{}<version>{version}</version><exclusions>{left_out}</exclusions></dependency>",
            named(group, artifact)
        )
    }
}

/// The folder `name` with these jars, filled by whoever needs it first; other
/// processes wait at the lock meanwhile. The name must change when the list does.
///
/// # Errors
/// Says what is missing on this machine.
pub fn jars(name: &str, dependencies: &[Dependency]) -> Result<PathBuf, String> {
    java()?;
    let cache = target_folder().join("test-bed");
    let jars = cache.join(name);
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock")).map_err(|error| format!("{}: {error}", cache.display()))?;
    lock.lock().map_err(|error| format!("{}: {error}", cache.display()))?;
    if jars.exists() {
        return Ok(jars);
    }
    runs("mvn", "--version", "Maven (Debian: maven)")?;
    // Filled beside its place and renamed, so that a broken download is never taken for a whole one.
    let partial = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    fs::write(partial.path().join("pom.xml"), pom(dependencies)).map_err(|error| error.to_string())?;
    let maven = Command::new("mvn")
        .args(["-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"])
        .args(["-DincludeScope=runtime", "-DoutputDirectory=jars"])
        .current_dir(partial.path())
        .output()
        .map_err(|error| error.to_string())?;
    if !maven.status.success() {
        return Err(format!("Maven cannot fetch {name}: {}", String::from_utf8_lossy(&maven.stdout)));
    }
    fs::rename(partial.path().join("jars"), &jars).map_err(|error| error.to_string())?;
    Ok(jars)
}

/// Whether there is Java at all.
///
/// # Errors
/// Says what is missing on this machine.
pub fn java() -> Result<(), String> {
    runs("java", "-version", "a Java 17+ runtime (Debian: default-jre-headless)")
}

fn runs(program: &str, argument: &str, what: &str) -> Result<(), String> {
    match Command::new(program).arg(argument).output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err(format!("it needs {what}")),
    }
}

fn pom(dependencies: &[Dependency]) -> String {
    let dependencies: String = dependencies.iter().map(Dependency::xml).collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>pipedoc</groupId><artifactId>test-bed</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    )
}
