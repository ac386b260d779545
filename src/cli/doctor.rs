//! `cairn doctor`: looks at everything a node needs, and says of each whether it is well and what to do.
//!
//! Invariants:
//! - nothing is changed and no tool is called; of upstream servers only whether they can be reached is tried;
//! - exit code 0 means that no finding is a failure; warnings do not count.

mod finding;
mod directory;
mod log;
mod outside;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Value, json};

use self::finding::{Finding, Level};
use crate::{
    cli::{
        Data, config, out,
        table::{Table, printable},
    },
    config::{Config, ConfigError},
    log::home::Home,
};

#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    data: Data,
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
    config: Option<PathBuf>,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Doctor) -> anyhow::Result<ExitCode> {
    let home = Home::of(&args.data.data);
    let mut found = vec![Finding::ok("version", format!("cairn {}", env!("CARGO_PKG_VERSION")))];
    let config = configured(args, &mut found);
    directory::look(&home, &mut found);
    log::look(&home, &mut found);
    outside::limits(&mut found);
    if let Some(config) = &config {
        outside::upstreams(&home, config, &mut found)?;
    }
    let failed = found.iter().any(|finding| finding.level == Level::Fail);
    if args.json {
        let shown: Vec<Value> = found.iter().map(Finding::shown).collect();
        out::print_json(&json!({"ok": !failed, "findings": shown}))?;
    } else {
        let mut table = Table::new(&["", "what", "finding"]);
        for finding in &found {
            table.row(vec![finding.level.as_str().to_owned(), finding.what.clone(), finding.said.clone()]);
            if let Some(todo) = &finding.todo {
                table.row(vec![String::new(), String::new(), format!("→ {}", printable(todo))]);
            }
        }
        out::print(&table.render())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Loads the configuration as `cairn serve` does, and listens where it would.
fn configured(args: &Doctor, found: &mut Vec<Finding>) -> Option<Config> {
    let named = args.config.as_ref().map_or("the defaults".to_owned(), |file| file.display().to_string());
    let faults = match config::faults(args.config.as_deref(), &args.data.data) {
        Ok(config) => {
            found.push(Finding::ok("configuration", format!("{named}: every rule is kept")));
            found.push(Finding::ok("address", format!("{} can be listened on", config.server.listen)));
            return Some(config);
        }
        Err(ConfigError::Faults(faults)) => faults,
        Err(err) => {
            let said = format!("{:#}", anyhow::Error::new(err));
            found.push(Finding::fail("configuration", said, "name a file that can be read with --config"));
            return None;
        }
    };
    for fault in faults {
        let todo = format!("mend it, then try `cairn config check {named}`");
        found.push(Finding::fail("configuration", fault.to_string(), todo));
    }
    None
}
