//! The house: each module imports from lower floors alone, and no two files import each other, directly or around
//! other files. The floors are those of the diagram in `src/lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module's path below the crate: `["run", "folder"]`.
type Module = Vec<String>;

/// The code of each module, without comments and in-file tests.
fn sources() -> BTreeMap<Module, String> {
    fn visit(dir: &Path, at: &Module, into: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut module = at.clone();
            if path.is_dir() {
                module.push(stem);
                visit(&path, &module, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                if stem != "mod" {
                    module.push(stem);
                }
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
                let lines = code.lines().map(|line| line.split("//").next().unwrap());
                into.insert(module, lines.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    let mut sources = BTreeMap::new();
    visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &Vec::new(), &mut sources);
    sources
}

/// The paths of a `use` tree such as `a::{b, c::d}`, as lists of names.
fn paths(tree: &str) -> Vec<Module> {
    let names = |path: &str| -> Module {
        let path = path.split(" as ").next().unwrap();
        path.split("::").map(|name| name.trim().to_owned()).filter(|n| !n.is_empty()).collect()
    };
    let Some((head, rest)) = tree.split_once('{') else { return vec![names(tree)] };
    let (mut depth, mut parts, mut part) = (0, Vec::new(), String::new());
    for c in rest.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(part)).map(|tail| [names(head), tail].concat()).collect()
}

/// The crate's own paths that `code` of `module` names, in `use` declarations and elsewhere.
fn named(module: &Module, code: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let line_start = code[..at].rfind(['\n', ';']).map_or(0, |i| i + 1);
            let is_use =
                code[line_start..at].trim_start().trim_start_matches("pub").contains("use");
            let end = match is_use {
                true => code[at..].find(';').unwrap(),
                false => code[at..]
                    .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                    .unwrap_or(code.len() - at),
            };
            for path in paths(&code[at..at + end]) {
                let ups = path.iter().take_while(|name| *name == "super").count();
                let base = match path[0].as_str() {
                    "crate" => Vec::new(),
                    "self" => module.clone(),
                    _ => module[..module.len().saturating_sub(ups)].to_vec(),
                };
                let rest =
                    path.iter().filter(|name| !["crate", "self", "super"].contains(&name.as_str()));
                found.push(base.into_iter().chain(rest.cloned()).collect());
            }
        }
    }
    found
}

/// The module that defines `path`: through re-exports, to the file.
fn resolve(path: &[String], sources: &BTreeMap<Module, String>) -> Option<Module> {
    let module =
        (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|m| sources.contains_key(m))?;
    let Some(name) = path.get(module.len()) else { return Some(module) };
    for line in sources[&module].split(';').map(str::trim) {
        let Some(tree) = line.strip_prefix("pub use ") else { continue };
        for export in paths(tree) {
            if export.last() == Some(name) {
                let full = match export[0].as_str() {
                    "crate" => export[1..].to_vec(),
                    "self" => [&module[..], &export[1..]].concat(),
                    "super" => [&module[..module.len() - 1], &export[1..]].concat(),
                    _ => [&module[..], &export].concat(),
                };
                return resolve(&full, sources);
            }
        }
    }
    Some(module)
}

/// Every import from one file of the crate in another.
fn arrows() -> BTreeSet<(Module, Module)> {
    let sources = sources();
    let mut arrows = BTreeSet::new();
    for (module, code) in &sources {
        if ["lib", "main"].contains(&module.first().map_or("", String::as_str)) {
            continue;
        }
        for path in named(module, code) {
            let to = resolve(&path, &sources);
            arrows.extend(to.filter(|to| to != module).map(|to| (module.clone(), to)));
        }
    }
    arrows
}

/// By module of the top level its floor, and its place among those of one floor that must not know each other.
fn floors() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let mut floors = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("//! ")) {
        let Some((number, rest)) = line.trim_start().split_once("  ") else { continue };
        let Ok(floor) = number.parse::<usize>() else { continue };
        let modules = rest.trim_start().split("   ").next().unwrap();
        for module in modules.split([',', ' ']).filter(|name| !name.is_empty()) {
            assert_eq!(floors.insert(module.to_owned(), floor), None, "{module} is on two floors");
        }
    }
    floors
}

#[test]
fn every_way_to_name_a_module_is_an_arrow() {
    let sources = sources();
    let from = vec!["stage".to_owned(), "sft".to_owned()];
    let to = |code: &str| {
        let paths = named(&from, code);
        let to = paths.iter().filter_map(|path| resolve(path, &sources));
        to.map(|module| module.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(to("use crate::run::lock::{Lock, Locks};"), ["run::lock"; 2]);
    assert_eq!(to("use crate::run::{Context, folder::Log};"), ["run::context", "run::log"]);
    assert_eq!(to("let x = super::task::permutation(1);"), ["stage::task"]);
    assert_eq!(to("fn f(at: &crate::rng::Stream) {}"), ["rng"]);
    assert!(arrows().contains(&(from, vec!["stage".to_owned(), "task".to_owned()])));
}

#[test]
fn every_module_has_a_floor() {
    let modules: BTreeSet<String> = sources().into_keys().map(|m| m[0].clone()).collect();
    let own = modules.into_iter().filter(|name| !["lib", "main"].contains(&name.as_str()));
    assert_eq!(own.collect::<Vec<_>>(), floors().into_keys().collect::<Vec<_>>());
}

#[test]
fn no_arrow_goes_up() {
    let floors = floors();
    let up: Vec<String> = arrows()
        .into_iter()
        .filter(|(from, to)| from[0] != to[0] && floors[&from[0]] <= floors[&to[0]])
        .filter(|(_, to)| floors[&to[0]] > 0)
        .map(|(from, to)| {
            let (a, b) = (floors[&from[0]], floors[&to[0]]);
            format!("src/{} (floor {a}) imports {} (floor {b})", from.join("/"), to.join("::"))
        })
        .collect();
    assert!(up.is_empty(), "imports that do not go down:\n{}", up.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let arrows = arrows();
    let reaches = |from: &Module, to: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            let onward = arrows.iter().filter(|(a, _)| a == module).map(|(_, b)| b);
            next.extend(onward.filter(|b| seen.insert(*b)));
        }
        seen.contains(to)
    };
    let circle = arrows.iter().filter(|(a, b)| reaches(b, a));
    let lines: Vec<String> =
        circle.map(|(a, b)| format!("{} imports {}", a.join("::"), b.join("::"))).collect();
    assert!(lines.is_empty(), "a circle of imports:\n{}", lines.join("\n"));
}
