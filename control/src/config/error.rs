//! What is wrong with a configuration, and where.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// One mistake, with its place. Never contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// Line, from 1; 0 when the file itself is the problem.
    pub line: u32,
    /// Column in characters, from 1; 0 when the file itself is the problem.
    pub column: u32,
    /// What was found and what was expected.
    pub message: String,
}

/// A place in one of the files that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pos {
    pub(super) file: usize,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// Collects mistakes while reading goes on, and remembers the files' names.
#[derive(Default)]
pub(super) struct Issues {
    files: Vec<PathBuf>,
    list: Vec<(Pos, String)>,
}

impl Issues {
    /// Numbers a file; its name stands in later messages.
    pub(super) fn add_file(&mut self, path: &Path) -> usize {
        self.files.push(path.to_path_buf());
        self.files.len() - 1
    }

    pub(super) fn push(&mut self, at: Pos, message: impl Into<String>) {
        self.list.push((at, message.into()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `file:line` of a place, for messages that point at a second one.
    pub(super) fn place(&self, at: Pos) -> String {
        format!("{}:{}", self.name(at.file), at.line)
    }

    fn name(&self, file: usize) -> String {
        self.files.get(file).map_or_else(String::new, |f| f.display().to_string())
    }

    /// The folder of the first file.
    pub(super) fn folder(&self) -> PathBuf {
        self.files.first().and_then(|file| file.parent()).map_or_else(PathBuf::new, Path::to_path_buf)
    }

    /// All mistakes, in the order of the files and their lines.
    pub(super) fn finish(mut self) -> Vec<ConfigError> {
        let mut list = std::mem::take(&mut self.list);
        list.sort_by_key(|(at, _)| *at);
        list.dedup();
        list.into_iter()
            .map(|(at, message)| ConfigError {
                file: self.name(at.file),
                line: at.line,
                column: at.column,
                message,
            })
            .collect()
    }
}
