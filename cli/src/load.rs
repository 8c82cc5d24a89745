//! Finds and reads pipeline files.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::exit::Refused;

/// A pipeline file as it was found.
pub struct PipelineFile {
    /// The file, as it is shown in messages.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The folder it stands in.
    pub folder: PathBuf,
}

/// Reads a pipeline file, or the `pipeline.yaml` of a folder.
pub fn read(path: &Path) -> anyhow::Result<PipelineFile> {
    let file = if path.is_dir() {
        let names = ["pipeline.yaml", "pipeline.yml", "pipeline.json"];
        names.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(|| {
            Refused(format!("folder {} holds none of {}; name the pipeline file", path.display(), names.join(", ")))
        })?
    } else if path.exists() {
        path.to_owned()
    } else {
        return Err(Refused(format!("pipeline file {} does not exist", path.display())).into());
    };
    let text = std::fs::read_to_string(&file).map_err(|error| match error.kind() {
        ErrorKind::InvalidData => Refused(format!("pipeline file {} is no UTF-8 text", file.display())).into(),
        _ => anyhow::Error::new(error).context(format!("reading pipeline file {}", file.display())),
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    Ok(PipelineFile { path: file, text, folder })
}

/// Values of `${in}` and `${out}` and of what else was given. A value is added only
/// when the text uses it or it was given, so that nothing is called unused that
/// nobody gave.
pub fn variables(
    file: &PipelineFile,
    input: Option<&Path>,
    out: &Path,
    given: &[(String, String)],
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut values: BTreeMap<String, String> = given.iter().cloned().collect();
    let beside = file.folder.join("in");
    let input = match input {
        Some(input) => Some(input.to_owned()),
        None if file.text.contains("${in}") && beside.is_dir() => Some(beside),
        None => None,
    };
    if let Some(input) = input {
        if !input.is_dir() {
            return Err(Refused(format!("--in {} is not a folder", input.display())).into());
        }
        values.insert("in".into(), text(&std::path::absolute(input)?)?);
    }
    if file.text.contains("${out}") {
        values.insert("out".into(), text(&std::path::absolute(out)?)?);
    }
    Ok(values)
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().ok_or_else(|| Refused(format!("{} is no UTF-8 path", path.display())))?;
    Ok(text.to_owned())
}
