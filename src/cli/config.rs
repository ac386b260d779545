//! `cairn config check`: reports every fault of a configuration at once.
//!
//! Invariant: a file that passes here is one that `cairn serve` accepts without flags, in the same environment.

use std::process::ExitCode;

use crate::{
    cli::{Config, ConfigCommand, out},
    config::{self, ConfigError, Overrides},
    visible,
};

/// Loads the file as `cairn serve` would, with the environment, and opens the keys or tokens that authentication needs.
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
                eprintln!("cairn: {}", visible::line(&fault.to_string()));
            }
            Ok(ExitCode::FAILURE)
        }
        Err(err @ ConfigError::Read { .. }) => Err(err.into()),
    }
}
