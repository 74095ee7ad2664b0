//! The repository's own files, for tests that hold the house rules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A tracked text file.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Its path from the repository's root, with `/` between folders.
    pub path: String,
    /// What it says.
    pub text: String,
}

impl SourceFile {
    /// Its lines with their numbers, without the unit tests at its end.
    pub fn lines_outside_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<_> = self.text.lines().collect();
        let is_test_block = |pair: &[&str]| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        };
        let end = lines.windows(2).position(is_test_block).unwrap_or(lines.len());
        lines.into_iter().take(end).enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Its lines of code: neither comments nor unit tests.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines_outside_tests().filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// The folder that holds the workspace.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests' crate stands in the workspace").to_owned()
}

/// The paths of all files that belong to the repository, sorted: those that git tracks, or without git (a source
/// archive) those that lie in the folder.
pub fn tracked_paths() -> Vec<String> {
    let git = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let mut paths = match git {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
            names.split('\0').filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
        }
        _ => {
            let mut found = Vec::new();
            walk(&root(), &root(), &mut found);
            found
        }
    };
    paths.sort();
    paths
}

/// All tracked files that are text.
pub fn tracked_files() -> Vec<SourceFile> {
    let read = |path: String| Some(SourceFile { text: fs::read_to_string(root().join(&path)).ok()?, path });
    tracked_paths().into_iter().filter_map(read).collect()
}

/// The Rust files under `folder` (a path from the root that ends in `/`).
pub fn rust_files(folder: &str) -> Vec<SourceFile> {
    let is_wanted = |file: &SourceFile| file.path.starts_with(folder) && file.path.ends_with(".rs");
    tracked_files().into_iter().filter(is_wanted).collect()
}

/// The Rust files under `folder` that end up in the product: of a crate's `src/`, and not declared as
/// `#[cfg(test)] mod name;` by the module above them.
pub fn shipped_files(folder: &str) -> Vec<SourceFile> {
    let sources: Vec<_> = rust_files("").into_iter().filter(|file| file.path.contains("src/")).collect();
    let tests: Vec<_> = sources.iter().flat_map(test_modules).collect();
    let is_test = |path: &str| {
        tests.iter().any(|test| path == format!("{test}.rs") || path.starts_with(&format!("{test}/")))
    };
    sources.into_iter().filter(|file| file.path.starts_with(folder) && !is_test(&file.path)).collect()
}

/// The modules that `file` declares for tests only, as paths without `.rs`.
fn test_modules(file: &SourceFile) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or_default();
    let folder = match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        _ => format!("{folder}/{}", name.trim_end_matches(".rs")),
    };
    let lines: Vec<_> = file.text.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]");
    let modules = pairs
        .filter_map(|pair| pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';'));
    modules.map(|module| format!("{folder}/{module}")).collect()
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found);
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
}
