//! `cairn manual`: writes a page for `man` of the program and of each of its commands.
//!
//! Invariant: a page says what `--help` says, since both are made of the same definitions.

use std::{fs, io, path::Path, process::ExitCode};

use anyhow::Context;
use clap_mangen::Man;

pub fn run(program: clap::Command, dir: &Path) -> anyhow::Result<ExitCode> {
    // `help` has no page: what it shows is on the pages of the others.
    let mut program = program.disable_help_subcommand(true);
    // Gives each command its full name, which is the name of its page.
    program.build();
    fs::create_dir_all(dir)
        .and_then(|()| write(&program, dir))
        .with_context(|| format!("cannot write the pages to {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write(command: &clap::Command, dir: &Path) -> io::Result<()> {
    let page = Man::new(command.clone());
    page.source(concat!("cairn ", env!("CARGO_PKG_VERSION"))).manual("Cairn").generate_to(dir)?;
    command.get_subcommands().filter(|inner| !inner.is_hide_set()).try_for_each(|inner| write(inner, dir))
}
