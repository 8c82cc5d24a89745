//! Kafka's jars, from Maven Central, once, into `target/test-bed/`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::VERSION;
use crate::bed::target_folder;

/// The folder with Kafka's jars, filled by the first test that needs it. Other
/// test processes wait at the lock meanwhile.
pub(super) fn jars() -> Result<PathBuf, String> {
    runs("java", "-version", "a Java 17+ runtime (Debian: default-jre-headless)")?;
    let cache = target_folder().join("test-bed");
    let jars = cache.join(format!("kafka-{VERSION}"));
    fs::create_dir_all(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let lock = fs::File::create(cache.join("lock")).map_err(|error| format!("{}: {error}", cache.display()))?;
    lock.lock().map_err(|error| format!("{}: {error}", cache.display()))?;
    if jars.exists() {
        return Ok(jars);
    }
    runs("mvn", "--version", "Maven (Debian: maven)")?;
    // Filled beside its place and renamed, so that a broken download is never taken for a whole one.
    let partial = tempfile::tempdir_in(&cache).map_err(|error| error.to_string())?;
    fs::write(partial.path().join("pom.xml"), pom()).map_err(|error| error.to_string())?;
    let maven = Command::new("mvn")
        .args(["-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"])
        .args(["-DincludeScope=runtime", "-DoutputDirectory=jars"])
        .current_dir(partial.path())
        .output()
        .map_err(|error| error.to_string())?;
    if !maven.status.success() {
        return Err(format!("Maven cannot fetch Kafka: {}", String::from_utf8_lossy(&maven.stdout)));
    }
    fs::rename(partial.path().join("jars"), &jars).map_err(|error| error.to_string())?;
    Ok(jars)
}

fn runs(program: &str, argument: &str, what: &str) -> Result<(), String> {
    match Command::new(program).arg(argument).output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err(format!("it needs {what}")),
    }
}

fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str, exclusions: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version>{exclusions}</dependency>"
        )
    };
    let connect: String = ["connect-runtime", "connect-api", "connect-json"]
        .map(|name| {
            format!("<exclusion><groupId>org.apache.kafka</groupId><artifactId>{name}</artifactId></exclusion>")
        })
        .concat();
    let dependencies = [
        dependency("org.apache.kafka", "kafka_2.13", VERSION, ""),
        dependency("org.apache.kafka", "kafka-tools", VERSION, &format!("<exclusions>{connect}</exclusions>")),
        dependency("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4", ""),
    ]
    .concat();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>pipedoc</groupId><artifactId>test-bed</artifactId><version>1</version>\
         <dependencies>{dependencies}</dependencies></project>"
    )
}
