//! `cairn config check`: says what is wrong with a configuration, all of it at once.
//!
//! Invariant: what passes here is what `cairn serve` would start with, in the same environment.

use std::process::ExitCode;

use crate::{
    cli::{Config, ConfigCommand, out},
    config::{self, ConfigError, Overrides},
};

/// Reads the file as `cairn serve` would, variables of the environment included, and opens the keys or tokens it
/// needs to let callers in.
pub fn run(args: Config) -> anyhow::Result<ExitCode> {
    let ConfigCommand::Check { file, data } = args.command;
    match config::Config::load(Some(&file), std::env::vars(), &Overrides::default()) {
        Ok(config) => {
            config.access(&data.data)?;
            out::print("ok")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ConfigError::Faults(faults)) => {
            for fault in &faults {
                eprintln!("cairn: {fault}");
            }
            Ok(ExitCode::FAILURE)
        }
        Err(err @ ConfigError::Read { .. }) => Err(err.into()),
    }
}
