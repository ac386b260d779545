//! The whole server from outside, beside the machine's own limits and another server in the same run.
//!
//! `cargo bench --profile dist --bench system [-- calls|durable|million|peers|tools ...]`; without a name, all of them.
//! Prints medians and ranges of at least five rounds, and PASS or FAIL beside each bound; README.md says what is
//! measured how.

mod calls;
mod durable;
#[path = "../echo/mod.rs"]
mod echo;
mod history;
mod load;
#[path = "../machine/mod.rs"]
mod machine;
mod million;
mod peers;
mod server;
mod table;
mod tools;

use std::path::PathBuf;

/// A part of the run: its name, and what prints it.
type Section = (&'static str, fn());

const SECTIONS: &[Section] = &[
    ("calls", calls::section),
    ("durable", durable::section),
    ("million", million::section),
    ("peers", peers::section),
    ("tools", tools::section),
];

fn main() {
    // Cargo adds a flag of its own.
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for name in &asked {
        if !SECTIONS.iter().any(|(section, _)| section == name) {
            eprintln!("no section `{name}`; there are calls, durable, million, peers, tools");
            std::process::exit(2);
        }
    }
    table::header();
    for (name, section) in SECTIONS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("{name}");
            section();
        }
    }
}

/// Where data is kept: on the disk of the build, so that an fsync is a real one.
pub fn data_dir() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let dir = target.with_file_name("bench-data");
    std::fs::create_dir_all(&dir).expect("a directory for data");
    dir
}
