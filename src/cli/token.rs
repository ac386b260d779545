//! `cairn token`: makes, lists and revokes tokens for a server whose `auth.mode` is `static`.
//!
//! Invariants:
//! - a token is printed once, when it is made. Only it, or the JSON document with it, goes to standard output;
//! - a token is recorded in the log before it is in force, if there is a log.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    auth::tokens::{self, Entry, Held},
    caller::Scope,
    cli::{
        Token, TokenCommand, out, runtime,
        table::{self, Table},
    },
    clock::now_s,
    event::keeping::TokenRevoked,
    ledger::{
        Command,
        commit::operator,
        keeping::Keeping,
        opening::Settings,
        sharing::{self, Member},
    },
    log::home::Home,
    node::{self, recording::token_added},
};

pub fn run(args: Token, quiet: bool) -> anyhow::Result<ExitCode> {
    match args.command {
        TokenCommand::Add(args) => {
            let home = Home::open(&args.data.data)?;
            let expires = args.expires.map(|seconds| now_s().saturating_add(seconds));
            let held = Held::take(home.dir())?;
            let (entry, token) = held.draft(&args.name, &args.scopes, expires)?;
            record(home.dir(), Keeping::TokenAdded(token_added(entry.clone())))
                .context("the token cannot be recorded in the log, so none was made")?;
            // A crash before this leaves a token on record that nobody has and that is not in force; the next start of
            // a server records it as revoked. In the other order, a token could be in force without a record.
            if let Err(err) = held.put(entry.clone()) {
                // If this fails too, the next start of a server records it; it must not hide the first error.
                let _ = record(home.dir(), Keeping::TokenRevoked(TokenRevoked { token: entry.id }));
                return Err(err).context("the token cannot be put in force, so none was made");
            }
            if args.json {
                let mut shown = shown(&entry);
                shown["token"] = Value::String(token);
                out::print_json(&shown)?;
            } else {
                if !quiet {
                    say!("token {} for {}; it is not shown again", entry.id, entry.name);
                }
                out::print(&token)?;
            }
        }
        TokenCommand::List(args) => {
            list(&tokens::list(directory(&args.data.data)?)?, args.json)?;
        }
        TokenCommand::Revoke(args) => {
            let data = directory(&args.data.data)?;
            let held = Held::take(data)?;
            held.revoke(&args.id)?;
            record(data, Keeping::TokenRevoked(TokenRevoked { token: args.id.clone() })).with_context(|| {
                let id = &args.id;
                format!("token {id} is revoked, but the log does not say so yet; the next start of a server records it")
            })?;
            if args.json {
                out::print_json(&json!({"id": args.id, "revoked": true}))?;
            } else if !quiet {
                say!("token {} revoked", args.id);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Records a change of tokens in the directory's log, through whichever process owns it. If there is no log yet, the
/// first start of a server records the tokens it finds.
fn record(data: &Path, keeping: Keeping) -> anyhow::Result<()> {
    let Ok(home) = Home::existing(data) else {
        return Ok(());
    };
    let member = Member {
        home,
        settings: Settings::default(),
        runner: uuid::Uuid::now_v7().simple().to_string(),
        owner: format!("`cairn token` (process {})", std::process::id()),
        random: node::random,
    };
    runtime()?.block_on(async {
        let (ledger, sharing) = sharing::join(member).await?;
        let ruling = ledger.submit(Command::Keep { keeping, actor: operator() }).await;
        ledger.close().await;
        sharing.end().await;
        ruling?;
        Ok(())
    })
}

/// Checks that the directory exists. It need not hold a log yet: tokens may be made before.
fn directory(data: &Path) -> anyhow::Result<&Path> {
    match data.is_dir() {
        true => Ok(data),
        false => anyhow::bail!("there is no data directory {}; name it with --data", data.display()),
    }
}

fn list(entries: &[Entry], json: bool) -> anyhow::Result<()> {
    if json {
        let entries: Vec<Value> = entries.iter().map(shown).collect();
        return Ok(out::print_json(&Value::Array(entries))?);
    }
    let mut table = Table::new(&["id", "name", "scopes", "created", "expires"]);
    for entry in entries {
        let expires = match entry.expires {
            None => "never".to_owned(),
            Some(at) if at <= now_s() => format!("{} (expired)", moment(at)),
            Some(at) => moment(at),
        };
        table.row(vec![
            entry.id.clone(),
            entry.name.clone(),
            entry.scopes.join(" "),
            moment(entry.created),
            expires,
        ]);
    }
    Ok(out::print(&table.render())?)
}

/// Returns an entry as JSON, without the digest of its token.
fn shown(entry: &Entry) -> Value {
    json!({
        "id": entry.id,
        "name": entry.name,
        "scopes": entry.scopes,
        "created": moment(entry.created),
        "expires": entry.expires.map(moment),
    })
}

/// Formats seconds since the Unix epoch as RFC 3339.
fn moment(seconds: u64) -> String {
    table::moment(seconds.saturating_mul(1_000_000))
}

/// Parses a scope by its name on the command line.
pub fn scope(name: &str) -> Result<Scope, String> {
    Scope::parse(name).ok_or_else(|| {
        format!("the scopes are {}, with any pattern in the place of *", Scope::WORDS.join(", "))
    })
}
