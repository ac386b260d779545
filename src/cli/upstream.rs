//! `cairn upstream`: which upstream servers a node has, and its logins at them.
//!
//! Invariants:
//! - no token, code or secret is printed; the page's URL is, once, on standard output;
//! - a running server needs no word: it finds the new token in the data directory.

mod editing;
mod running;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

use crate::{
    cli::{
        Data, Usage, out, runtime,
        table::{self, Table, printable},
    },
    clock::now_s,
    config::{Config, Overrides},
    log::home::Home,
    node::upstreams,
    runtime::upstream::credentials::{
        Credentials,
        login::{Standing, forget},
        vault::{Vault, caller, key},
    },
};

#[derive(Subcommand)]
pub enum UpstreamCommand {
    /// Add a server to the configuration file, and to the node that runs.
    Add(Box<running::Add>),
    /// Remove a server from the configuration file, and from the node that runs; its calls may end.
    Remove(running::Named),
    /// Show the servers, and how they stand.
    List(running::Place),
    /// Connect to a server anew: its program is started again, and no call is lost.
    Restart(running::Named),
    /// Log in to an upstream: open the URL that this prints, and allow it there.
    Login(Login),
    /// Show which upstreams this node is logged in to.
    Status(Status),
    /// Forget the token of an upstream, and who this node is there.
    Logout(Logout),
}

#[derive(Args)]
pub struct Configured {
    #[command(flatten)]
    data: Data,
    /// The configuration file (TOML) that names the upstreams.
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
    config: PathBuf,
}

#[derive(Args)]
pub struct Login {
    /// The upstream's name.
    name: String,
    /// The caller whose login it is, by the name of its token or its `sub`, where each has one of its own (`per_caller`).
    #[arg(long = "as", value_name = "CALLER")]
    caller: Option<String>,
    #[command(flatten)]
    place: Configured,
    /// Read the URL that the page led back to from standard input too: for a browser on another machine.
    #[arg(long)]
    paste: bool,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    place: Configured,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Logout {
    /// The upstream's name, as it is or was configured.
    name: String,
    /// The caller whose login it is, where each has one of its own.
    #[arg(long = "as", value_name = "CALLER")]
    caller: Option<String>,
    #[command(flatten)]
    data: Data,
}

pub fn run(command: UpstreamCommand, quiet: bool) -> anyhow::Result<ExitCode> {
    match command {
        UpstreamCommand::Add(args) => running::add(*args, quiet),
        UpstreamCommand::Remove(args) => running::remove(args, quiet),
        UpstreamCommand::List(place) => running::list(place),
        UpstreamCommand::Restart(args) => running::restart(args, quiet),
        UpstreamCommand::Login(args) => login(&args, quiet),
        UpstreamCommand::Status(args) => status(&args),
        UpstreamCommand::Logout(args) => {
            let vault = Vault::of(&args.data.data);
            let known = args.data.data.is_dir()
                && runtime()?.block_on(forget(&vault, &key(&args.name, args.caller.as_deref())))?;
            if !known {
                anyhow::bail!("nothing is kept of an upstream {}; see `cairn upstream status`", args.name);
            }
            if !quiet {
                say!("logged out of {}; its authorization server was not told", args.name);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn login(args: &Login, quiet: bool) -> anyhow::Result<ExitCode> {
    let name = &args.name;
    let (home, config) = args.place.load()?;
    let upstream = config.upstream.iter().find(|upstream| upstream.name == *name);
    let upstream = upstream.ok_or_else(|| Usage(format!("the configuration names no upstream {name}")))?;
    let credentials = upstreams::credentials(&home, upstream).ok_or_else(|| {
        Usage(format!("upstream {name} takes no login: it is a command, or its headers say who asks"))
    })?;
    let credentials = match &args.caller {
        Some(caller) if credentials.is_per_caller() => credentials.of_caller(caller),
        Some(_) => {
            return Err(Usage(format!("upstream {name} has one login for all; say per_caller = true")).into());
        }
        None => credentials,
    };
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let show = |page: &str| {
            if !quiet {
                say!("open this URL in a browser, within ten minutes:");
            }
            // Without a reader nobody can log in, and the time runs out.
            let _ = out::print(page);
            if args.paste && !quiet {
                say!("then paste the address that the page leads back to, and press enter:");
            }
        };
        credentials.login(show, pasted(args.paste)).await
    });
    // A blocking read of standard input cannot be cancelled, and must not keep the process alive.
    runtime.shutdown_background();
    let scopes = done.with_context(|| format!("no login at {name}"))?;
    if !quiet {
        let scopes =
            if scopes.is_empty() { String::new() } else { format!(" ({})", printable(&scopes.join(" "))) };
        let caller =
            args.caller.as_ref().map_or(String::new(), |caller| format!(" as {}", printable(caller)));
        say!("logged in to {name}{caller}{scopes}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the first line of standard input; waits for ever where none is wanted or there is no more input.
async fn pasted(wanted: bool) -> String {
    let mut line = String::new();
    if wanted && BufReader::new(stdin()).read_line(&mut line).await.is_ok_and(|read| read > 0) {
        return line;
    }
    std::future::pending().await
}

fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let (home, config) = args.place.load()?;
    let mut table = Table::new(&["name", "caller", "login", "expires", "scopes"]);
    let mut all = Vec::new();
    let kept = Vault::of(home.dir()).read()?;
    for (upstream, caller) in config.upstream.iter().flat_map(|upstream| {
        let callers = kept.keys().filter_map(|name| caller(name, &upstream.name)).map(Some);
        std::iter::once(None).chain(callers).map(move |caller| (upstream, caller))
    }) {
        let credentials = upstreams::credentials(&home, upstream);
        let credentials = match caller {
            Some(caller) => credentials.map(|credentials| credentials.of_caller(caller)),
            None => credentials,
        };
        let standing = credentials.as_ref().map(Credentials::standing).transpose()?;
        let login = word(standing.as_ref());
        let token = standing.as_ref().and_then(|standing| standing.token.as_ref());
        let expires = token.and_then(|token| token.expires_s());
        let expires = expires.map(|seconds| table::moment(seconds.saturating_mul(1_000_000)));
        let scopes = token.map(|token| token.scopes().to_vec()).unwrap_or_default();
        let shown = printable(&scopes.join(" "));
        let caller = caller.map(str::to_owned);
        let shown_caller = caller.clone().unwrap_or_default();
        table.row(vec![
            upstream.name.clone(),
            shown_caller,
            login.to_owned(),
            expires.clone().unwrap_or_default(),
            shown,
        ]);
        all.push(json!({"name": upstream.name, "caller": caller, "login": login, "expires": expires, "scopes": scopes}));
    }
    match args.json {
        true => out::print_json(&Value::Array(all))?,
        false => out::print(&table.render())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns where a login stands, in a word or two.
pub fn word(standing: Option<&Standing>) -> &'static str {
    match standing {
        None => "none taken",
        Some(Standing { token: None, wanted: None }) => "none",
        Some(Standing { token: Some(_), wanted: Some(wanted) }) if !wanted.scopes.is_empty() => "more needed",
        Some(Standing { wanted: Some(_), .. }) => "needed",
        Some(Standing { token: Some(token), wanted: None }) => {
            let over = token.expires_s().is_some_and(|at| at <= now_s());
            if over && !token.renewable { "expired" } else { "yes" }
        }
    }
}

impl Configured {
    fn load(&self) -> anyhow::Result<(Home, Config)> {
        let config = Config::load(Some(&self.config), std::env::vars(), &Overrides::default())?;
        Ok((Home::open(&self.data.data)?, config))
    }
}
