//! Circles between the files of one room: files that can only be read together.
//!
//! Every path is read, `crate::`, `super::` and `self::`, alone and in groups. A file and its own folder are not held apart:
//! the face of a room names its children, and they name what stands in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, is_word, report, sources, word_at};

pub type Path = Vec<String>;

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources(&["src"]);
    let files: BTreeMap<Path, &Source> = sources
        .iter()
        .filter(|source| !source.is_test())
        .filter_map(|source| Some((place(source)?, source)))
        .collect();
    let uses: BTreeMap<&Path, BTreeSet<&Path>> =
        files.iter().map(|(own, source)| (own, used(own, source, &files))).collect();
    let mut open = Vec::new();
    for circle in circles(&uses) {
        let names: Vec<String> = circle.iter().map(|path| path.join("/")).collect();
        open.push(format!(
            "{} use each other in a circle; move what they share to a file of its own",
            names.join(", ")
        ));
    }
    report(open);
}

#[test]
fn paths_are_read_however_they_are_written() {
    let own: Path = ["a", "b"].map(str::to_owned).to_vec();
    let code = "use crate::{c::{self, D}, e};\nuse super::f::G; fn h() { self::i::j(); crate::k::l() }";
    let found = named(code, &own);
    for path in ["c", "c/D", "e", "a/f/G", "a/b/i/j", "k/l"] {
        assert!(found.iter().any(|found| found.join("/") == path), "{path} is not in {found:?}");
    }
}

/// The module that a file is.
pub fn place(source: &Source) -> Option<Path> {
    let inside = source.path.strip_prefix("src/")?.strip_suffix(".rs")?;
    (!["lib", "main"].contains(&inside)).then(|| inside.split('/').map(str::to_owned).collect())
}

/// The other files that a file names, without its own face and its own children.
pub fn used<'a>(own: &Path, source: &Source, files: &'a BTreeMap<Path, &Source>) -> BTreeSet<&'a Path> {
    let file_of = |path: Path| {
        let lengths = (1..=path.len()).rev();
        lengths.filter_map(|len| files.get_key_value(&path[..len]).map(|(file, _)| file)).next()
    };
    let named = named(source.shipped(), own).into_iter().filter_map(file_of);
    named.filter(|file| !own.starts_with(file) && !file.starts_with(own)).collect()
}

/// The paths from the root of the crate that some code names.
fn named(code: &str, own: &Path) -> Vec<Path> {
    let mut found = Vec::new();
    for root in ["crate", "super", "self"] {
        let prefix = format!("{root}::");
        for (at, _) in code.match_indices(&prefix) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| is_word(c) || c == ':') {
                continue;
            }
            let base = match root {
                "crate" => Path::new(),
                "super" => own[..own.len() - 1].to_vec(),
                _ => own.clone(),
            };
            tree(&code[at + prefix.len()..], &base, &mut found);
        }
    }
    found
}

/// Reads one tree of a path after its `::`, and returns what follows it.
fn tree<'a>(mut code: &'a str, base: &Path, found: &mut Vec<Path>) -> &'a str {
    let mut path = base.clone();
    loop {
        if let Some(group) = code.strip_prefix('{') {
            code = group.trim_start();
            while !code.starts_with('}') && !code.is_empty() {
                code = tree(code, &path, found).trim_start();
                code = code.strip_prefix(',').unwrap_or(code).trim_start();
            }
            return code.strip_prefix('}').unwrap_or(code);
        }
        let word = word_at(code);
        if word.is_empty() {
            return code.strip_prefix('*').unwrap_or(&code[code.chars().next().map_or(0, char::len_utf8)..]);
        }
        match word {
            "super" => drop(path.pop()),
            "self" => {}
            _ => path.push(word.to_owned()),
        }
        code = &code[word.len()..];
        match code.strip_prefix("::") {
            Some(rest) => code = rest,
            None => {
                found.push(path);
                let alias = code.trim_start().strip_prefix("as ").map(str::trim_start);
                return alias.map_or(code, |alias| &alias[word_at(alias).len()..]);
            }
        }
    }
}

/// Files that reach each other, in groups of two and more.
fn circles<'a>(uses: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> Vec<BTreeSet<&'a Path>> {
    let reached: BTreeMap<&Path, BTreeSet<&Path>> =
        uses.keys().map(|file| (*file, reach(file, uses))).collect();
    let mut circles: Vec<BTreeSet<&Path>> = Vec::new();
    for (file, far) in &reached {
        let circle: BTreeSet<&Path> =
            far.iter().filter(|other| reached[*other].contains(*file)).copied().collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reach<'a>(from: &'a Path, uses: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> BTreeSet<&'a Path> {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(file) = open.pop() {
        for next in uses.get(file).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}
