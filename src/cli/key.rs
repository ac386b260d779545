//! `cairn key`: shows who signs a log and which peer the node is, read from its files, or rotates the key.
//!
//! Invariants:
//! - only public values are shown. The secret key is read for the peer id, which is left out if the key cannot be read or
//!   the program was built without peers;
//! - a key is rotated while nobody else has the log open.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    block::Block,
    cli::{Key, KeyCommand, Rotate, existing, out, progress::Progress},
    identity::rotation::Keys,
    ledger::{fitting, rotating},
    log::{Reader, home::Home, sqlite::SqliteReader},
    node,
    query::keeping,
};

pub fn run(args: Key, quiet: bool) -> anyhow::Result<ExitCode> {
    if let Some(KeyCommand::Rotate(args)) = args.command {
        return rotate(&args, quiet);
    }
    let home = existing(&args.data.data)?;
    let log = SqliteReader::open(&home.log_path())?;
    let genesis = fitting::genesis(&log)?;
    let keys = keeping::keys(&home, &log, &genesis)?;
    let name = Block::encode(&genesis).cid();
    let events = log.tip()?.map_or(0, |tip| tip.seq + 1);
    let bytes = log.size()?;
    let peer = home.keys().ok().and_then(|keys| node::joining::peer_of(&keys.peer));
    let former = former(&keys);
    if args.json {
        let mut shown = json!({
            "origin": genesis.origin,
            "key": keys.current().vkey(),
            "log": name.to_string(),
            "events": events,
            "bytes": bytes,
            "peer": peer,
        });
        if !former.is_empty() {
            let former = former.iter().map(|(key, size)| json!({"key": key, "up_to_size": size}));
            shown["former"] = Value::Array(former.collect());
        }
        out::print_json(&shown)?;
    } else {
        out::print(&format!(
            "origin  {}\nkey     {}\nlog     {name}\nevents  {events}\nbytes   {bytes}\npeer    {}",
            genesis.origin,
            keys.current().vkey(),
            peer.as_deref().unwrap_or("-")
        ))?;
        for (key, size) in former {
            out::print(&format!("former  {key} up to size {size}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the former keys, each with the largest size of a head it may sign.
fn former(keys: &Keys) -> Vec<(String, u64)> {
    let ends = keys.all().skip(1).map(|(from, _)| from - 1);
    keys.all().map(|(_, key)| key.vkey()).zip(ends).collect()
}

fn rotate(args: &Rotate, quiet: bool) -> anyhow::Result<ExitCode> {
    let home = existing(&args.data.data)?;
    let _one = held(&home)?;
    let events = SqliteReader::open(&home.log_path())?.tip()?.map_or(0, |tip| tip.seq + 1);
    let mut progress = Progress::new("folding", events, quiet);
    let rotated = rotating::rotate(&home, &node::random(), &mut |applied| progress.at(applied))?;
    drop(progress);
    if args.json {
        let shown = json!({"key": rotated.now, "before": rotated.before, "seq": rotated.seq});
        out::print_json(&shown)?;
    } else {
        out::print(&rotated.now)?;
        if !quiet {
            say!(
                "event {} names the new key, signed by the one before, {}; back keys/ up again, and tell auditors",
                rotated.seq,
                rotated.before
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn held(home: &Home) -> anyhow::Result<crate::log::home::Lock> {
    Ok(home.lock(&format!("`cairn key rotate` (process {})", std::process::id()))?)
}
