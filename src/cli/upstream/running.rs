//! `cairn upstream add`, `remove`, `list` and `restart`: the upstreams of a node that runs, and of its file.
//!
//! Invariants:
//! - what is changed is in the configuration file, and in force where a node runs; if the node refuses it, it is in neither;
//! - neither a URL nor an argument, a header or a value of an environment is printed.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::editing::Editing;
use crate::{
    cli::{
        Data, Usage,
        client::text,
        out, runtime,
        table::{Table, printable},
    },
    config::{Config, Overrides, Secrets, Upstream},
    node::control::{self, Answered, Asked},
};

#[derive(Args)]
pub struct Place {
    #[command(flatten)]
    data: Data,
    /// The configuration file (TOML); by default that of the node that runs on the data directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Add {
    /// The upstream's name: 1 to 64 of A-Z a-z 0-9 _ -
    name: String,
    /// The URL of a Streamable HTTP server; without one, name a program after `--`.
    #[arg(long, value_name = "URL", conflicts_with = "command")]
    url: Option<String>,
    /// A header of every request to the URL; `${NAME}` and `${file:PATH}` keep secrets out of the file.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = pair)]
    headers: Vec<(String, String)>,
    /// A variable of the program's environment; `${NAME}` and `${file:PATH}` keep secrets out of the file.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A variable that the program gets as the node has it.
    #[arg(long = "inherit-env", value_name = "NAME")]
    inherit_env: Vec<String>,
    /// The program's directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// The user that the program runs as, where the node runs as root.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// What is put before its tools' names; by default its name and `_`.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// A tool that is offered; without any, all are.
    #[arg(long, value_name = "TOOL")]
    enable: Vec<String>,
    /// A tool that is not offered.
    #[arg(long, value_name = "TOOL")]
    disable: Vec<String>,
    /// How long one call may take.
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// The lane of its calls.
    #[arg(long, value_name = "NAME")]
    lane: Option<String>,
    /// Give each session of a client a connection of its own.
    #[arg(long)]
    isolate: bool,
    #[command(flatten)]
    place: Place,
    /// The server's program and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args)]
pub struct Named {
    /// The upstream's name.
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Adds an upstream.
pub fn add(args: Add, quiet: bool) -> anyhow::Result<ExitCode> {
    let Add { place, .. } = &args;
    if args.url.is_none() && args.command.is_empty() {
        return Err(Usage("name a --url, or a program after `--`".to_owned()).into());
    }
    let mut command = args.command.iter().cloned();
    let upstream = Upstream {
        name: args.name.clone(),
        command: command.next(),
        args: command.collect(),
        env: Secrets(args.env.iter().cloned().collect()),
        inherit_env: args.inherit_env.clone(),
        cwd: args.cwd.clone(),
        user: args.user.clone(),
        url: args.url.clone(),
        headers: Secrets(args.headers.iter().cloned().collect()),
        prefix: args.prefix.clone(),
        enable: args.enable.clone(),
        disable: args.disable.clone(),
        timeout_ms: args.timeout_ms,
        lane: args.lane.clone(),
        isolate: args.isolate,
        ..Upstream::default()
    };
    let changed = place.change(|editing| editing.add(&upstream))?;
    let now = changed.iter().flatten().find(|standing| standing["name"] == args.name.as_str());
    told(place, now, &args.name, "added", quiet)
}

/// Removes an upstream.
pub fn remove(args: Named, quiet: bool) -> anyhow::Result<ExitCode> {
    args.place.change(|editing| editing.remove(&args.name))?;
    told(&args.place, None, &args.name, "removed", quiet)
}

/// Connects to an upstream anew.
pub fn restart(args: Named, quiet: bool) -> anyhow::Result<ExitCode> {
    let asked = Asked::Restart { name: args.name.clone() };
    let done = args.place.ask(&asked)?;
    let done = done.with_context(|| format!("no node serves {}", args.place.data.data.display()))?;
    let all = done["upstreams"].as_array();
    let now = all.into_iter().flatten().find(|standing| standing["name"] == args.name.as_str());
    told(&args.place, now, &args.name, "restarted", quiet)
}

/// Shows the upstreams of the node that runs, or those of the file.
pub fn list(place: Place) -> anyhow::Result<ExitCode> {
    let all = match place.ask(&Asked::List)? {
        Some(mut told) => match told["upstreams"].take() {
            Value::Array(all) => all,
            _ => bail!("the node's answer cannot be read"),
        },
        None => {
            let file = place.config.as_ref().ok_or_else(|| place.nowhere())?;
            let config = Config::load(Some(file), std::env::vars(), &Overrides::default())?;
            let shown = |upstream: &Upstream| {
                let transport = if upstream.command.is_some() { "command" } else { "url" };
                json!({"name": upstream.name, "transport": transport, "state": "not running", "prefix": upstream.prefix()})
            };
            config.upstream.iter().map(shown).collect()
        }
    };
    if place.json {
        out::print_json(&Value::Array(all))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["name", "transport", "state", "tools", "server", "reason"]);
    for standing in &all {
        let server = [text(&standing["server"], "name"), text(&standing["server"], "version")].join(" ");
        let tools = standing["tools"].as_u64().map(|tools| tools.to_string()).unwrap_or_default();
        let cell = |key: &str| text(standing, key).to_owned();
        table.row(vec![cell("name"), cell("transport"), cell("state"), tools, server, cell("reason")]);
    }
    out::print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}

/// Tells what was done to an upstream, and how it stands now.
fn told(place: &Place, now: Option<&Value>, name: &str, done: &str, quiet: bool) -> anyhow::Result<ExitCode> {
    if place.json {
        out::print_json(&json!({"name": name, "done": done, "upstream": now}))?;
    } else if !quiet {
        let state = now.map(|now| match (text(now, "state"), text(now, "reason")) {
            ("failed", reason) => format!("; it is not connected: {reason}"),
            (state, _) => format!("; it is {state}, with {} tools", now["tools"]),
        });
        eprintln!("{}", printable(&format!("upstream {name} {done}{}", state.unwrap_or_default())));
    }
    Ok(ExitCode::SUCCESS)
}

impl Place {
    /// Changes the configuration file, and puts it in force where a node runs. Returns how its upstreams stand then;
    /// `None` without a node.
    fn change(
        &self,
        change: impl FnOnce(&mut Editing) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Vec<Value>>> {
        let running = self.ask(&Asked::List)?;
        let file = match &running {
            Some(told) => self.file_of(told)?,
            None => self.config.clone().ok_or_else(|| self.nowhere())?,
        };
        let mut editing = Editing::open(&file)?;
        change(&mut editing)?;
        let text = editing.text();
        if running.is_none() {
            Config::parse(&text, std::env::vars(), &Overrides::default())?;
            editing.write()?;
            return Ok(None);
        }
        self.ask(&Asked::Check { text })?;
        editing.write()?;
        let reloaded = self.ask(&Asked::Reload);
        let reloaded = match reloaded {
            Ok(Some(reloaded)) => reloaded,
            Ok(None) => return Ok(None),
            Err(err) => {
                editing.undo().context("the node refused the change, and the file could not be put back")?;
                return Err(err);
            }
        };
        let told = reloaded["reloaded"]["at_next_start"].as_array().filter(|told| !told.is_empty());
        if let Some(told) = told {
            let settings: Vec<&str> = told.iter().filter_map(Value::as_str).collect();
            eprintln!("of the file, these settings are taken at the next start: {}", settings.join(", "));
        }
        Ok(reloaded["upstreams"].as_array().cloned())
    }

    /// Returns the file that the running node has read. Errors: it has none, or another one was named.
    fn file_of(&self, told: &Value) -> anyhow::Result<PathBuf> {
        let file = told["file"].as_str().map(PathBuf::from);
        let file = file.context(
            "the node that runs was started without a configuration file; start it with --config, or it would forget",
        )?;
        let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if self.config.as_ref().is_some_and(|named| real(named) != real(&file)) {
            let message =
                format!("the node that runs reads another file: {}; leave --config out", file.display());
            return Err(Usage(message).into());
        }
        Ok(file)
    }

    /// Asks the node that serves the data directory. Returns `None` if none does. Errors: it refuses, and why.
    fn ask(&self, asked: &Asked) -> anyhow::Result<Option<Value>> {
        let data = &self.data.data;
        let answer = runtime()?.block_on(control::ask(data, asked));
        match answer.with_context(|| format!("cannot ask the node that serves {}", data.display()))? {
            None => Ok(None),
            Some(Answered::Done(done)) => Ok(Some(done)),
            Some(Answered::Refused(reason)) => bail!("{reason}"),
        }
    }

    fn nowhere(&self) -> anyhow::Error {
        let data = self.data.data.display();
        Usage(format!("no node serves {data}; name the configuration file with --config")).into()
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "expected NAME=VALUE".to_owned())
}
