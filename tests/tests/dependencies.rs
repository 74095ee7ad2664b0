//! Which crate may know which, and what may be built at all: the arrows of ARCHITECTURE.md and the lists of deny.toml.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use quire_tests::repository::root;
use toml::{Table, Value};

/// What a crate may be built from (tests of its own aside), and what it must never touch.
struct Crate {
    folder: &'static str,
    may_use: &'static [&'static str],
    may_not_touch: &'static [&'static str],
}

const ASYNC_AND_NETWORK: &[&str] =
    &["tokio", "quinn", "rustls", "axum", "futures-util", "socket2", "memmap2", "rustix"];

const CRATES: &[Crate] = &[
    Crate { folder: "protocol", may_use: &[], may_not_touch: ASYNC_AND_NETWORK },
    Crate {
        folder: "broker/engine",
        may_use: &["quire-protocol"],
        may_not_touch: &[
            "tokio",
            "quinn",
            "rustls",
            "axum",
            "memmap2",
            "rustix",
            "tempfile",
            "rand",
            "getrandom",
        ],
    },
    Crate {
        folder: "broker/storage",
        may_use: &["quire-protocol"],
        may_not_touch: &["tokio", "quinn", "rustls", "axum", "futures-util"],
    },
    Crate {
        folder: "broker",
        may_use: &["quire-protocol", "quire-engine", "quire-storage"],
        may_not_touch: &["memmap2"],
    },
    Crate { folder: "client", may_use: &["quire-protocol"], may_not_touch: &["memmap2", "axum"] },
    Crate {
        folder: "tools",
        may_use: &["quire-protocol", "quire-storage", "quire-broker", "quire-client"],
        may_not_touch: &["memmap2", "quinn", "rustls"],
    },
];

fn manifest(folder: &str) -> Table {
    let path = root().join(folder).join("Cargo.toml");
    fs::read_to_string(&path).expect("a crate has a manifest").parse().expect("a manifest is TOML")
}

fn dependencies(manifest: &Table, section: &str) -> BTreeSet<String> {
    let table = manifest.get(section).and_then(Value::as_table);
    table.into_iter().flat_map(|table| table.keys().cloned()).collect()
}

#[test]
fn arrows_point_one_way() {
    for krate in CRATES {
        let used = dependencies(&manifest(krate.folder), "dependencies");
        for name in &used {
            let ours = name == "quire" || name.starts_with("quire-");
            assert!(
                !ours || krate.may_use.contains(&name.as_str()),
                "{} may not depend on {name}: see the arrows in ARCHITECTURE.md",
                krate.folder
            );
            assert!(!krate.may_not_touch.contains(&name.as_str()), "{} may not touch {name}", krate.folder);
        }
    }
}

#[test]
fn every_crate_has_its_rules() {
    let members = manifest(".")["workspace"]["members"].clone();
    let members: BTreeSet<_> =
        members.as_array().expect("a list").iter().filter_map(|m| m.as_str().map(str::to_owned)).collect();
    let ruled = CRATES.iter().map(|krate| krate.folder.to_owned());
    // Tests and benches may use everything.
    let known: BTreeSet<_> = ruled.chain(["tests".to_owned(), "benches".to_owned()]).collect();
    assert_eq!(members, known);
}

#[test]
fn versions_stand_in_one_place() {
    for folder in CRATES.iter().map(|krate| krate.folder).chain(["tests", "benches"]) {
        let manifest = manifest(folder);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(Value::as_table) else { continue };
            for (name, value) in table {
                let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
                assert!(inherited, "{folder}: {name} belongs into the workspace's dependencies");
            }
        }
    }
}

/// A crate that is part of some build here: what `cargo tree` says of it.
struct Built {
    name: String,
    license: String,
}

fn built() -> Vec<Built> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let tree = Command::new(cargo)
        .args(["tree", "--workspace", "--locked", "--offline", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--format", "{p}\t{l}"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "cargo tree: {}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).expect("names are UTF-8");
    let parse = |line: &str| {
        let (package, license) = line.trim_end_matches(" (*)").split_once('\t')?;
        let name = package.split(' ').next()?.to_owned();
        Some(Built { name, license: license.to_owned() })
    };
    text.lines().filter_map(parse).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn deny() -> Table {
    fs::read_to_string(root().join("deny.toml")).expect("deny.toml").parse().expect("deny.toml is TOML")
}

#[test]
fn every_license_is_allowed() {
    let deny = deny();
    let allowed = strings(&deny["licenses"]["allow"]);
    let exceptions = deny["licenses"]["exceptions"].as_array().expect("a list").clone();
    let built = built();
    assert!(built.len() > 100, "cargo tree lists what is built");
    for Built { name, license } in built {
        let mut allowed = allowed.clone();
        let excepted = |entry: &&Value| entry["crate"].as_str() == Some(&name);
        allowed.extend(exceptions.iter().filter(excepted).flat_map(|entry| strings(&entry["allow"])));
        assert!(is_allowed(&license, &allowed), "{name} is under \"{license}\": not in deny.toml");
    }
}

#[test]
fn nothing_banned_is_built() {
    let deny = deny();
    let banned = deny["bans"]["deny"].as_array().expect("a list").clone();
    for Built { name, .. } in built() {
        let entry = banned.iter().find(|entry| entry["crate"].as_str() == Some(&name));
        assert!(entry.is_none(), "{name} is banned: {entry:?}");
    }
}

#[test]
fn every_crate_comes_from_the_registry() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let lock: Table = lock.parse().expect("Cargo.lock is TOML");
    let registries = strings(&deny()["sources"]["allow-registry"]);
    for package in lock["package"].as_array().expect("a list") {
        let Some(source) = package.get("source").and_then(Value::as_str) else { continue };
        let known = registries.iter().any(|registry| source == format!("registry+{registry}"));
        assert!(known, "{} comes from {source}", package["name"]);
    }
}

/// Whether an SPDX expression can be satisfied from `allowed`. `AND` binds tighter than `OR`; old manifests write `/`
/// for `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let result = any_of(&mut words, allowed);
    assert!(words.next().is_none(), "\"{expression}\" is not a license expression");
    result
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        result |= all_of(words, allowed);
    }
    result
}

fn all_of(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let result = any_of(words, allowed);
        assert_eq!(words.next(), Some(")"), "a parenthesis is closed");
        return result;
    }
    let mut license = words.next().unwrap_or_default().to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        license = format!("{license} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&license)
}

#[test]
fn license_expressions_are_understood() {
    let allowed = ["MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND (GPL-3.0 OR MIT)", true),
        ("MIT OR GPL-3.0 AND GPL-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
