//! `cairn config`: writes a file with every setting at its default, and reports every fault of one at once.
//!
//! Invariants:
//! - a file that passes `check` is one that `cairn serve` accepts without flags, in the same environment;
//! - `init` replaces no file.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    cli::{Data, out, place::served},
    config::{self, ConfigError, Fault, Origin, Overrides, template::TEMPLATE},
    runtime::upstream::credentials::assertion,
    visible,
};

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Say `ok`, or everything that is wrong with a file.
    Check {
        /// The configuration file (TOML).
        #[arg(env = "CAIRN_CONFIG")]
        file: PathBuf,
        #[command(flatten)]
        data: Data,
        /// One JSON document for programs.
        #[arg(long)]
        json: bool,
    },
    /// Write a file with every setting at its default, and what each means.
    Init {
        /// The file to write, which must not be there; `-` is standard output.
        #[arg(default_value = "cairn.toml")]
        file: PathBuf,
    },
}

pub fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check { file, data, json } => check(&file, &data.data, json),
        ConfigCommand::Init { file } => init(&file),
    }
}

fn init(file: &Path) -> anyhow::Result<ExitCode> {
    if file.as_os_str() == "-" {
        out::print(TEMPLATE)?;
        return Ok(ExitCode::SUCCESS);
    }
    // It may come to hold secrets.
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let made = options.create_new(true).write(true).open(file);
    let made = made.and_then(|mut made| made.write_all(TEMPLATE.as_bytes()));
    made.with_context(|| format!("cannot write {}", file.display()))?;
    out::print(&file.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &Path, data: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let faults = match faults(Some(file), data) {
        Err(err @ ConfigError::Read { .. }) => return Err(err.into()),
        Err(ConfigError::Faults(faults)) => faults,
        Ok(_) => Vec::new(),
    };
    if json {
        let shown: Vec<Value> = faults.iter().map(shown).collect();
        out::print_json(&json!({"ok": faults.is_empty(), "faults": shown}))?;
    } else if faults.is_empty() {
        out::print("ok")?;
    } else {
        for fault in &faults {
            say!("cairn: {}", visible::line(&fault.to_string()));
        }
    }
    Ok(match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Loads a configuration as `cairn serve` does, with the environment, and tries what it does with it at the start: reads
/// the keys or tokens that authentication needs, and listens.
pub fn faults(file: Option<&Path>, data: &Path) -> Result<config::Config, ConfigError> {
    let config = config::Config::load(file, std::env::vars(), &Overrides::default())?;
    let at =
        |place: &str, message: String| Fault { place: place.to_owned(), origin: Origin::Elsewhere, message };
    let mut faults = Vec::new();
    if let Err(err) = config.access(data) {
        faults.push(at("auth", format!("{:#}", anyhow::Error::new(err))));
    }
    for (n, upstream) in config.upstream.iter().enumerate() {
        let key = upstream.oauth.as_ref().and_then(|oauth| oauth.private_key_file.as_deref());
        if let Some(Err(message)) = key.map(assertion::key) {
            faults.push(at(&format!("upstream[{n}].oauth.private_key_file"), message));
        }
    }
    if let Err(message) = listens(&config, data) {
        faults.push(at("server.listen", message));
    }
    match faults.is_empty() {
        true => Ok(config),
        false => Err(ConfigError::Faults(faults)),
    }
}

/// Returns whether the address of a configuration can be listened on, or a server of this directory does so now.
pub fn listens(config: &config::Config, data: &Path) -> Result<(), String> {
    let address = config.server.listen;
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => match served(data) {
            Some(_) => Ok(()),
            None => Err(format!("another program listens on {address}; choose another port, or stop it")),
        },
        Err(err) => Err(format!("cannot listen on {address}: {err}")),
    }
}

fn shown(fault: &Fault) -> Value {
    let (line, variable) = match &fault.origin {
        Origin::Line(line) => (Some(*line), None),
        Origin::Variable(name) => (None, Some(name.as_str())),
        Origin::Elsewhere => (None, None),
    };
    json!({"setting": fault.place, "line": line, "variable": variable, "message": fault.message})
}
