//! Which files and folders are read: the globs of the configuration.
//!
//! Knows paths as texts; touches no file system.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Globs that cannot be read, all at once.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Error(Vec<String>);

/// Folders of this name hold what PipeDoc itself keeps.
const OWN_DATA: &str = ".pipedoc";

/// Says what is read.
#[derive(Debug)]
pub struct Selection {
    include: Option<GlobSet>,
    exclude: GlobSet,
    recursive: bool,
}

impl Selection {
    /// Reads the globs.
    ///
    /// # Errors
    /// When globs are wrong: every one of them.
    pub fn new(include: &[String], exclude: &[String], recursive: bool) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let included = globs("include", include, &mut wrong);
        let exclude = globs("exclude", exclude, &mut wrong);
        match (included, exclude) {
            (Some(included), Some(exclude)) if wrong.is_empty() => {
                Ok(Self { include: (!include.is_empty()).then_some(included), exclude, recursive })
            }
            _ => Err(Error(wrong)),
        }
    }

    /// Whether a file is read, by its path from the folder.
    pub fn file(&self, relative: &Path) -> bool {
        let wanted = self.include.as_ref().is_none_or(|include| include.is_match(relative));
        wanted && !self.exclude.is_match(relative)
    }

    /// Whether a folder is looked into, by its path from the folder. Says nothing of
    /// the folders above it.
    pub fn folder(&self, relative: &Path) -> bool {
        self.recursive && relative.file_name().is_none_or(|name| name != OWN_DATA) && !self.exclude.is_match(relative)
    }
}

fn globs(field: &str, patterns: &[String], wrong: &mut Vec<String>) -> Option<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for (n, pattern) in patterns.iter().enumerate() {
        let bare = pattern.trim_start_matches('/').trim_end_matches('/');
        let anywhere = !pattern.trim_end_matches('/').contains('/');
        let full = if anywhere { format!("**/{bare}") } else { bare.to_owned() };
        match GlobBuilder::new(&full).literal_separator(true).build() {
            _ if bare.is_empty() => wrong.push(format!("{field}[{n}]: the glob is empty; leave it out or name files")),
            Ok(glob) => {
                set.add(glob);
            }
            Err(error) => wrong.push(format!("{field}[{n}]: `{pattern}` is no glob: {}", error.kind())),
        }
    }
    set.build().map_err(|error| wrong.push(format!("{field}: {error}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(include: &[&str], exclude: &[&str]) -> Result<Selection, Error> {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Selection::new(&own(include), &own(exclude), true)
    }

    #[test]
    fn globs_without_a_slash_match_names_everywhere_and_others_whole_paths() {
        let cases = [
            (vec![], vec![], "a/.b", true),
            (vec!["*.pdf"], vec![], "a/b/c.pdf", true),
            (vec!["*.pdf"], vec![], "a/b/c.txt", false),
            (vec!["/*.pdf"], vec![], "a/c.pdf", false),
            (vec!["/*.pdf"], vec![], "c.pdf", true),
            (vec!["a/**/*.pdf"], vec![], "a/b/c/d.pdf", true),
            (vec!["a/*.pdf"], vec![], "a/b/c.pdf", false),
            (vec!["*.{pdf,md}"], vec!["draft*"], "a/draft.md", false),
        ];
        for (include, exclude, path, expected) in cases {
            let selection = selection(&include, &exclude).unwrap();
            assert_eq!(selection.file(Path::new(path)), expected, "{include:?} {exclude:?} {path}");
        }
    }

    #[test]
    fn folders_are_left_out_by_name_path_and_for_being_our_own() {
        let selection = selection(&["*.pdf"], &["node_modules/", "a/b"]).unwrap();
        for (path, expected) in [
            ("x", true),
            ("x/node_modules", false),
            ("a/b", false),
            ("c/a/b", true),
            ("x/.pipedoc", false),
            (".git", true),
        ] {
            assert_eq!(selection.folder(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn every_wrong_glob_is_named() {
        let error = selection(&["[", "*.md"], &["", "{a"]).unwrap_err().to_string();
        assert!(
            error.contains("include[0]") && error.contains("exclude[0]") && error.contains("exclude[1]"),
            "{error}"
        );
        assert!(!error.contains("include[1]"), "{error}");
    }
}
