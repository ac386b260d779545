//! The rules of the house, read from the source: floors, heads, words that a floor may not know, sizes.
//!
//! The order of modules in `src/lib.rs` is the order of the floors: an arrow points from a module to one above it
//! in that list, or this fails and names the line. Comments and strings are not code and are not read.

mod circles;
mod order;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file before it should become a folder of its own name.
const LINES_MAX: usize = 500;
/// Lines of the `//!` head that every file opens with.
const HEAD_LINES: std::ops::RangeInclusive<usize> = 2..=12;
/// The last of the floors that are pure.
const PURE_FLOOR_LAST: u32 = 2;
/// Crates and types that a pure floor does not know: IO, async, clock, randomness, logging.
const IMPURE: [&str; 7] = ["tokio", "tracing", "rusqlite", "SystemTime", "Instant", "rand", "getrandom"];
/// Parts of `std` that a pure floor does not know.
const IMPURE_STD: [&str; 4] = ["fs", "net", "process", "thread"];
/// Crates that only some rooms may name, or some folders of a room.
const OWNED: [(&str, &[&str]); 6] = [
    ("libp2p", &["p2p"]),
    ("axum", &["problem", "audit", "mcp", "http"]),
    ("reqwest", &["runtime", "p2p", "auth", "cli"]),
    ("rmcp", &["runtime/upstream/credentials"]),
    ("rusqlite", &["log", "state", "query", "archive"]),
    ("rusqlite_migration", &["log", "state"]),
];
/// Marks of unfinished work, and of tests that do not run.
const UNFINISHED: [&str; 4] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore"];

/// One module of `src/lib.rs`.
#[derive(Debug)]
struct Room {
    name: String,
    floor: u32,
}

/// One source file, with comments and strings blanked and lines kept in place.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn read(path: &Path) -> Self {
        let full = root().join(path);
        let text = fs::read_to_string(&full).unwrap_or_else(|err| panic!("{path:?}: {err}"));
        Self { path: path.display().to_string(), code: blank(&text), text }
    }

    /// The module of `src/lib.rs` this file belongs to; none for `lib.rs`, `main.rs` and the tests.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let name = inside.split(['/', '.']).next()?;
        (!["lib", "main"].contains(&name)).then_some(name)
    }

    /// Whether this is the file of a room or folder, or a file below it.
    fn is_in(&self, owner: &str) -> bool {
        let rest = self.path.strip_prefix("src/").and_then(|path| path.strip_prefix(owner));
        rest.is_some_and(|rest| rest.starts_with(['/', '.']))
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// The code that is built into the program: all but tests.
    fn shipped(&self) -> &str {
        if self.is_test() {
            return "";
        }
        let tests = self.code.find("#[cfg(test)]\nmod tests {");
        &self.code[..tests.unwrap_or(self.code.len())]
    }
}

#[test]
fn no_arrow_points_up() {
    let rooms = rooms();
    let place = |name: &str| rooms.iter().position(|room| room.name == name);
    let mut faults = Vec::new();
    for source in sources(&["src"]) {
        let Some(own) = source.room() else { continue };
        let Some(at) = place(own) else {
            faults.push(format!("{}: `{own}` is not listed in src/lib.rs", source.path));
            continue;
        };
        for (line, name) in paths(&source.code, "crate").chain(paths(&source.code, "cairn")) {
            if place(&name).is_some_and(|target| target > at) {
                faults.push(format!(
                    "{}:{line}: `{own}` uses `{name}`, which stands below it in src/lib.rs, on a higher floor",
                    source.path
                ));
            }
        }
    }
    report(faults);
}

#[test]
fn every_file_opens_with_its_head() {
    let mut faults = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        let head = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        let product = source.path.starts_with("src/") && !source.path.ends_with("/tests.rs");
        // What always holds is said of the product; a test or a benchmark may have only what it is for.
        let allowed = if product { HEAD_LINES } else { 1..=*HEAD_LINES.end() };
        if !allowed.contains(&head) {
            faults.push(format!(
                "{}:1: opens with {head} lines of `//!`; say in {} to {} what it is for and what always holds",
                source.path,
                allowed.start(),
                allowed.end()
            ));
        }
    }
    report(faults);
}

#[test]
fn pure_floors_know_no_effects() {
    let rooms = rooms();
    let mut faults = Vec::new();
    for source in sources(&["src"]) {
        let pure = |room: &&Room| Some(room.name.as_str()) == source.room() && room.floor <= PURE_FLOOR_LAST;
        let Some(room) = rooms.iter().find(pure) else {
            continue;
        };
        let words = IMPURE
            .iter()
            .flat_map(|word| words(source.shipped(), word).map(move |line| (line, (*word).to_owned())));
        let std = paths(source.shipped(), "std")
            .filter(|(_, name)| IMPURE_STD.contains(&name.as_str()))
            .map(|(line, name)| (line, format!("std::{name}")));
        for (line, word) in words.chain(std) {
            faults.push(format!(
                "{}:{line}: names `{word}`; floor {} takes effects as arguments and gives them as answers",
                source.path, room.floor
            ));
        }
    }
    report(faults);
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut faults = Vec::new();
    for source in sources(&["src"]) {
        for (krate, owners) in OWNED {
            if owners.iter().any(|owner| source.is_in(owner)) {
                continue;
            }
            for line in words(source.shipped(), krate) {
                faults.push(format!(
                    "{}:{line}: names `{krate}`, which only {} may",
                    source.path,
                    owners.join(", ")
                ));
            }
        }
    }
    report(faults);
}

#[test]
fn nothing_unwraps_and_nothing_is_unfinished() {
    let mut faults = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (at, _) in source.shipped().match_indices(".unwrap()") {
            faults.push(format!(
                "{}:{}: unwraps; return the error, or `expect` with the reason it cannot fail",
                source.path,
                line_of(&source.code, at)
            ));
        }
        for mark in UNFINISHED {
            for (at, _) in source.code.match_indices(mark) {
                let line = line_of(&source.code, at);
                faults.push(format!("{}:{line}: holds `{mark}`", source.path));
            }
        }
    }
    report(faults);
}

#[test]
fn files_are_short_enough_to_read() {
    let mut faults = Vec::new();
    for source in sources(&["src"]).into_iter().filter(|source| !source.is_test()) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            faults.push(format!(
                "{}: {lines} lines, over {LINES_MAX}; give its parts files in a folder of its name",
                source.path
            ));
        }
    }
    report(faults);
}

#[test]
fn the_rules_see_what_they_forbid() {
    let code = blank(
        "use crate::{\n    block::{Cid, car::Reader},\n    ledger,\n};\n// crate::mcp\nlet a = \"crate::http\"; $crate::tools::x!();\n",
    );
    let found: Vec<_> = paths(&code, "crate").collect();
    let expected = [(2, "block"), (3, "ledger"), (6, "tools")];
    assert_eq!(found, expected.map(|(line, name)| (line, name.to_owned())));
    let code =
        blank("let random = operand; /* rand */ rand::random(); '\"'; r#\"rand \"#; 'a: loop { rand }");
    assert_eq!(words(&code, "rand").count(), 2);
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn report(mut faults: Vec<String>) {
    faults.sort();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The modules of `src/lib.rs`, lowest first, each with the floor whose comment it stands under.
fn rooms() -> Vec<Room> {
    let text = Source::read(Path::new("src/lib.rs")).text;
    let mut floor = None;
    let mut rooms = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("// Floor ") {
            floor = rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
        }
        let module = line.trim_start_matches("pub ").strip_prefix("mod ");
        if let Some(name) = module.and_then(|rest| rest.strip_suffix(';')) {
            let floor = floor.unwrap_or_else(|| panic!("src/lib.rs: `{name}` stands on no floor"));
            rooms.push(Room { name: name.to_owned(), floor });
        }
    }
    assert!(!rooms.is_empty(), "src/lib.rs lists no modules");
    rooms
}

/// Every Rust file under these folders, those of them that exist.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut open: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(root().join(&folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap_or_else(|err| panic!("{folder:?}: {err}"));
            let path = folder.join(entry.file_name());
            if entry.path().is_dir() {
                // Installed programs of other people are not ours to judge.
                if path != Path::new("tests/clients") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(Source::read(&path));
            }
        }
    }
    found
}

/// The first segment of every path that begins with `root::`, groups opened, with its line.
fn paths(code: &str, root: &str) -> impl Iterator<Item = (usize, String)> {
    let prefix = format!("{root}::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&prefix).filter(|(at, _)| !inside_word(code, *at)) {
        let start = at + prefix.len();
        let Some(group) = code[start..].strip_prefix('{') else {
            found.push((line_of(code, at), word_at(&code[start..]).to_owned()));
            continue;
        };
        let (mut depth, mut fresh) = (1, true);
        for (offset, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => fresh = fresh || depth == 1,
                c if fresh && depth == 1 && is_word(c) => {
                    let place = line_of(code, start + 1 + offset);
                    found.push((place, word_at(&group[offset..]).to_owned()));
                    fresh = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.into_iter()
}

/// The lines on which `word` stands alone.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .filter(move |(at, _)| !inside_word(code, *at) && word_at(&code[*at..]) == word)
        .map(move |(at, _)| line_of(code, at))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn inside_word(code: &str, at: usize) -> bool {
    code[..at].chars().next_back().is_some_and(is_word)
}

fn word_at(code: &str) -> &str {
    code.split(|c| !is_word(c)).next().unwrap_or_default()
}

fn line_of(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// The source with comments and the insides of strings replaced by spaces; offsets and lines stay.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = hidden(rest, out.chars().next_back());
        let (taken, shown) = match hidden {
            0 => (first.len_utf8(), true),
            len => (len, false),
        };
        let (part, after) = rest.split_at(taken);
        if shown {
            out.push_str(part);
        } else {
            // One byte for one byte, so that offsets stay true.
            out.extend(part.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    out
}

/// Bytes of the comment, string or character literal that `rest` opens with; zero where it opens with code.
fn hidden(rest: &str, before: Option<char>) -> usize {
    let until =
        |open: usize, close: &str| rest[open..].find(close).map_or(rest.len(), |at| open + at + close.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    if rest.starts_with('r') && !before.is_some_and(|c| is_word(c) && c != 'b') {
        let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
        if rest[1 + hashes..].starts_with('"') {
            return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    let literal = |quote: u8| {
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let ends = byte == quote && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        end.map_or(rest.len(), |at| at + 2)
    };
    if rest.starts_with('"') {
        return literal(b'"');
    }
    // A lifetime has no closing quote right after its first character.
    let mut chars = rest.chars().skip(1);
    match (rest.starts_with('\''), chars.next(), chars.next()) {
        (true, Some('\\'), _) | (true, Some(_), Some('\'')) => literal(b'\''),
        _ => 0,
    }
}
