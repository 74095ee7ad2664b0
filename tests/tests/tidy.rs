//! House rules that a reader of a diff would otherwise have to remember. CONTRIBUTING.md says why.

use std::fs;

use quire_protocol::{ErrorCode, limits};
use quire_tests::repository::{SourceFile, root, rust_files, shipped_files, tracked_files, tracked_paths};

const FILE_LINES_MAX: usize = 900;
const CRATE_FOLDERS: &[&str] =
    &["protocol/", "broker/engine/", "broker/storage/", "broker/", "client/", "tools/", "benches/", "tests/"];

/// What may stand at the top of the repository.
const TOP: &[&str] = &[
    ".ci",
    ".gitattributes",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "broker",
    "client",
    "clippy.toml",
    "config",
    "deny.toml",
    "protocol",
    "rustfmt.toml",
    "tests",
    "tools",
];

/// Fails with every breach, so that they are mended in one go.
fn assert_none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

/// `path:line: text` of every code line for which `is_breach` holds.
fn breaches(files: &[SourceFile], is_breach: impl Fn(&str) -> bool) -> Vec<String> {
    let in_file = |file: &SourceFile| {
        let found = file.code_lines().filter(|(_, line)| is_breach(line));
        found.map(|(number, line)| format!("{}:{number}: {}", file.path, line.trim())).collect::<Vec<_>>()
    };
    files.iter().flat_map(in_file).collect()
}

/// Rust files of the crates that users get.
fn shipped() -> Vec<SourceFile> {
    let is_product =
        |file: &SourceFile| !file.path.starts_with("tests/") && !file.path.starts_with("benches/");
    shipped_files("").into_iter().filter(is_product).collect()
}

/// Whether `word` stands in `line` by itself, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

#[test]
fn only_known_names_stand_at_the_top() {
    let top = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let unknown = tracked_paths().iter().map(top).filter(|name| !TOP.contains(&name.as_str())).collect();
    assert_none("a new name at the top needs a reason in ARCHITECTURE.md", unknown);
}

#[test]
fn no_file_grows_out_of_hand() {
    let is_long = |file: &SourceFile| file.text.lines().count() > FILE_LINES_MAX;
    let long = rust_files("").into_iter().filter(is_long).map(|file| file.path).collect();
    assert_none("split these files: one main idea each", long);
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let allowed = ["broker/storage/src/mmap.rs", "tests/src/power_loss.rs"];
    let files: Vec<_> =
        rust_files("").into_iter().filter(|file| !allowed.contains(&file.path.as_str())).collect();
    let is_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        has_word(code, "unsafe") && !code.contains('"')
    };
    assert_none("unsafe belongs into broker/storage/src/mmap.rs", breaches(&files, is_unsafe));

    let roots = rust_files("").into_iter().filter(|file| {
        CRATE_FOLDERS.iter().any(|folder| {
            file.path == format!("{folder}src/lib.rs") || file.path == format!("{folder}src/main.rs")
        })
    });
    let open = roots
        .filter(|file| !file.text.contains("#![forbid(unsafe_code)]"))
        .filter(|file| !["broker/storage/src/lib.rs", "tests/src/lib.rs"].contains(&file.path.as_str()));
    assert_none("these crates do not forbid unsafe code", open.map(|file| file.path).collect());
}

#[test]
fn files_are_touched_only_behind_the_disk() {
    let is_file_access = |line: &str| {
        [
            "std::fs",
            "tokio::fs",
            "fs::File",
            "File::open",
            "File::create",
            "OpenOptions",
            "memmap2",
            "rustix::fs",
        ]
        .iter()
        .any(|access| line.contains(access))
    };
    let storage: Vec<_> = shipped_files("broker/storage/src/")
        .into_iter()
        .filter(|file| !file.path.ends_with("/disk/os.rs") && !file.path.ends_with("/mmap.rs"))
        .collect();
    assert_none("storage reaches files through trait Disk", breaches(&storage, is_file_access));

    // What the system says of the process is no data of ours.
    let own_files =
        ["broker/src/config/", "broker/src/net/tls", "broker/src/net/certificates", "broker/src/process.rs"];
    let broker: Vec<_> = shipped_files("broker/src/")
        .into_iter()
        .filter(|file| !own_files.iter().any(|allowed| file.path.starts_with(allowed)))
        .collect();
    assert_none("the broker reaches files through storage", breaches(&broker, is_file_access));
}

#[test]
fn the_engine_decides_and_does_nothing_else() {
    let forbidden = [
        "tokio",
        "std::fs",
        "std::net",
        "std::thread",
        "std::process",
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "RandomState",
        "async",
        "println!",
    ];
    let is_breach =
        |line: &str| forbidden.iter().any(|word| has_word(line, word) || line.contains(&format!("{word}::")));
    assert_none(
        "the engine takes time and input and gives back actions",
        breaches(&shipped_files("broker/engine/src/"), is_breach),
    );
}

#[test]
fn the_protocol_is_pure() {
    let forbidden = ["tokio", "quinn", "std::fs", "std::net", "std::thread", "Instant", "SystemTime"];
    let is_breach = |line: &str| forbidden.iter().any(|word| has_word(line, word));
    assert_none(
        "the protocol is bytes and their meaning",
        breaches(&shipped_files("protocol/src/"), is_breach),
    );
}

#[test]
fn nothing_unwraps_what_came_from_outside() {
    let is_unwrap = |line: &str| line.contains(".unwrap()") || line.contains(".unwrap_err()");
    assert_none("handle it, or expect() with the invariant", breaches(&shipped(), is_unwrap));
}

#[test]
fn nothing_unfinished_is_left_behind() {
    let words = ["todo!", "unimplemented!", "dbg!"];
    let is_breach = |line: &str| words.iter().any(|word| line.contains(word) && !line.contains('"'));
    assert_none("finish it", breaches(&shipped(), is_breach));
    let marks = [concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK")];
    let marked = tracked_files().into_iter().filter(|file| marks.iter().any(|mark| file.text.contains(mark)));
    assert_none("say what is known, or mend it", marked.map(|file| file.path).collect());
}

#[test]
fn no_path_of_one_machine_is_written_down() {
    let paths = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];
    let mut found = Vec::new();
    for file in tracked_files().iter().filter(|file| file.path != "Cargo.lock") {
        for (number, line) in file.text.lines().enumerate() {
            if paths.iter().any(|path| line.contains(path)) {
                found.push(format!("{}:{}: {}", file.path, number + 1, line.trim()));
            }
        }
    }
    assert_none("paths are relative, or come from the environment", found);
}

#[test]
fn every_module_opens_with_its_idea() {
    let is_mute = |file: &SourceFile| {
        let first = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
        !first.is_some_and(|line| line.starts_with("//!"))
    };
    let mute = shipped().into_iter().filter(is_mute).map(|file| file.path).collect();
    assert_none("open the module with a //! that says its idea", mute);
}

#[test]
fn every_limit_is_in_use() {
    let file = fs::read_to_string(root().join("protocol/src/limits.rs")).expect("limits.rs");
    let names: Vec<_> = file
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next().map(str::to_owned))
        .collect();
    assert!(names.len() > 30 && names.contains(&"BATCH_BYTES_MAX".to_owned()), "limits were found");
    let used: Vec<_> =
        shipped().into_iter().filter(|source| source.path != "protocol/src/limits.rs").collect();
    let is_used =
        |name: &str| used.iter().any(|source| source.code_lines().any(|(_, line)| has_word(line, name)));
    let unused = names.into_iter().filter(|name| !is_used(name)).collect();
    assert_none("a limit that nothing obeys is a promise not kept", unused);
}

#[test]
fn every_error_code_is_documented_where_the_format_is() {
    let format = fs::read_to_string(root().join("protocol/FORMAT.md")).expect("FORMAT.md");
    for code in ErrorCode::ALL {
        let retriable = if code.is_retriable() { "yes" } else { "no" };
        let row = format!("| {} | `{}` | {retriable} |", code.number(), code.name());
        assert!(format.contains(&row), "protocol/FORMAT.md lacks the row {row}");
    }
    let rows = format.lines().filter(|line| line.ends_with("| yes |") || line.ends_with("| no |")).count();
    assert_eq!(rows, ErrorCode::ALL.len(), "protocol/FORMAT.md lists a code that is not there");
}

#[test]
fn the_format_states_the_limits_that_hold() {
    let format = fs::read_to_string(root().join("protocol/FORMAT.md")).expect("FORMAT.md");
    let stated = [
        (limits::BATCH_BYTES_MAX, 16 << 20, "at most 16 MiB"),
        (limits::BATCH_RECORDS_MAX, 1_000_000, "1 to 1,000,000"),
        (limits::BATCH_DECOMPRESSED_BYTES_MAX, 64 << 20, "at most 64 MiB"),
        (limits::RECORD_HEADERS_MAX, 1024, "at most 1,024"),
        (limits::RPC_BYTES_MAX, 4 << 20, "at most 4 MiB"),
        (limits::HELLO_BYTES_MAX, 4096, "4,096 bytes"),
        (limits::RPC_REQUEST_ITEMS_MAX, 16_384, "at most 16,384 fields"),
        (limits::ERROR_TEXT_BYTES_MAX, 1024, "`u16`, at most 1,024"),
    ];
    for (limit, value, text) in stated {
        assert_eq!(limit, value, "FORMAT.md says \"{text}\"");
        assert!(format.contains(text), "FORMAT.md no longer says \"{text}\"");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in tracked_files().into_iter().filter(|file| file.path.ends_with(".md")) {
        let folder = root().join(&page.path);
        let folder = folder.parent().expect("a file lies in a folder");
        for target in page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                broken.push(format!("{}: {target}", page.path));
            }
        }
    }
    assert_none("these links lead nowhere", broken);
}
