//! The public API: the equations, the systems, the model, and each stage's `run`. A change of it is a change of version.
//!
//! `tests/data/api.txt` holds the version and every public declaration of it. Where they differ from the source, the version
//! in Cargo.toml must be larger: by its minor number where something is gone or different, as Cargo understands versions
//! below 1.0, else by any. `WRITE_API=1 cargo test --test api` writes the file anew.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/api.txt");

/// The Rust files below `dir`, sorted.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The public declarations of a file, each on one line: of types with their fields or variants, of functions without bodies.
fn declarations(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines: Vec<&str> =
        code.lines().map(|line| line.split("//").next().unwrap().trim()).collect();
    let kinds = ["fn", "struct", "enum", "trait", "const", "type", "use"];
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(rest) = line.strip_prefix("pub ") else { continue };
        let Some(kind) = kinds.iter().find(|kind| rest.starts_with(&format!("{kind} "))) else {
            continue;
        };
        let whole = ["struct", "enum", "trait", "use"].contains(kind);
        let (mut text, mut depth) = (String::new(), 0);
        for line in lines[i..].iter().filter(|line| !line.starts_with("#[")) {
            let body = line.find('{').filter(|_| !whole);
            text += line[..body.unwrap_or(line.len())].trim();
            text.push(' ');
            depth += line.matches('{').count() as i32 - line.matches('}').count() as i32;
            let ended = line.ends_with(';') || line.ends_with('}') && depth == 0;
            if body.is_some() || ended && (depth == 0) {
                break;
            }
        }
        found.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    found
}

/// Every public declaration, with its file.
fn api() -> Vec<String> {
    let mut found = Vec::new();
    for part in ["equations", "model", "systems", "stage"] {
        for path in sources(&Path::new(ROOT).join("src").join(part)) {
            let name = path.strip_prefix(ROOT).unwrap().to_string_lossy().replace('\\', "/");
            let own = declarations(&fs::read_to_string(&path).unwrap());
            let own = own.into_iter().filter(|of| part != "stage" || of.starts_with("pub fn run("));
            found.extend(own.map(|declaration| format!("{name}: {declaration}")));
        }
    }
    found
}

fn numbers(version: &str) -> [u32; 3] {
    let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn a_changed_api_has_a_new_version() {
    let (version, now) = (env!("CARGO_PKG_VERSION"), api());
    if std::env::var_os("WRITE_API").is_some() {
        return fs::write(FILE, format!("{version}\n{}\n", now.join("\n"))).unwrap();
    }
    let text = fs::read_to_string(FILE).unwrap();
    let mut lines = text.lines();
    let before = lines.next().unwrap();
    let then: Vec<&str> = lines.collect();
    let gone: Vec<&&str> = then.iter().filter(|line| !now.iter().any(|own| own == *line)).collect();
    let new: Vec<&String> = now.iter().filter(|line| !then.contains(&line.as_str())).collect();
    let [old, own] = [before, version].map(numbers);
    let enough = match (gone.is_empty(), new.is_empty()) {
        (true, true) => true,
        (true, false) => own > old,
        (false, _) => own[..2] > old[..2],
    };
    assert!(
        enough,
        "the API differs from that of {before}: raise the version in Cargo.toml, then WRITE_API=1 cargo test --test api\n\
         gone: {gone:#?}\nnew: {new:#?}"
    );
}

#[test]
fn declarations_are_read_whole() {
    let source = "
/// Docs.
pub fn add(
    a: f64, // the first
    b: f64,
) -> f64 {
    a + b
}
#[derive(Clone)]
pub enum Kind {
    /// One.
    One { a: u8 },
    Two,
}
pub(crate) fn hidden() {}
pub const N: usize = 3;
#[cfg(test)]
mod tests {
    pub fn not_this() {}
}";
    let expected = [
        "pub fn add( a: f64, b: f64, ) -> f64",
        "pub enum Kind { One { a: u8 }, Two, }",
        "pub const N: usize = 3;",
    ];
    assert_eq!(declarations(source), expected);
    let api = api();
    let holds = |text: &str| api.iter().any(|line| line.starts_with(text));
    assert!(holds("src/equations/gae.rs: pub fn gae("));
    assert!(holds("src/stage/reward.rs: pub fn run("));
    assert!(holds("src/systems/mod.rs: pub use "));
}
