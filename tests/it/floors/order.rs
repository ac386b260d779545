//! The order of `mod` lines inside a room: a module uses only siblings that are listed above it.
//!
//! Invariants:
//! - every face of a room is read, and every path of every file below it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Source,
    circles::{Path, place, used},
    report, sources,
};

#[test]
fn modules_are_listed_after_those_they_use() {
    let sources = sources(&["src"]);
    let files: BTreeMap<Path, &Source> = sources
        .iter()
        .filter(|source| !source.is_test())
        .filter_map(|source| Some((place(source)?, source)))
        .collect();
    let mut wrong = Vec::new();
    for (face, source) in &files {
        let listed = listed(source.shipped());
        for (own, source) in files.range(face.clone()..).take_while(|(path, _)| path.starts_with(face)) {
            let Some(user) = own.get(face.len()) else { continue };
            let used = used(own, source, &files);
            let siblings: BTreeSet<&String> = used
                .iter()
                .filter(|path| path.starts_with(face))
                .filter_map(|path| path.get(face.len()))
                .collect();
            for sibling in siblings.into_iter().filter(|sibling| *sibling != user) {
                if at(&listed, sibling) > at(&listed, user) {
                    wrong.push(format!(
                        "{}: `mod {user}` uses `{sibling}`, which is listed below it",
                        source.path
                    ));
                }
            }
        }
    }
    report(wrong);
}

/// Where a module stands in its face; a module of another file than the face's stands nowhere.
fn at(listed: &[String], module: &str) -> Option<usize> {
    listed.iter().position(|name| name == module)
}

/// The modules of a face, in the order of their lines.
fn listed(code: &str) -> Vec<String> {
    let lines = code.lines().filter_map(|line| line.trim().strip_suffix(';'));
    let names = lines.filter_map(|line| {
        line.rsplit_once("mod ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))
    });
    names.map(|(_, name)| name.to_owned()).collect()
}

#[test]
fn module_lines_are_found_however_they_are_shown() {
    let code = "mod a;\npub mod b;\npub(super) mod c;\nlet mod_d = 1;\nmod e {\n}\n";
    assert_eq!(listed(code), ["a", "b", "c"]);
}
