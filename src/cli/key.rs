//! `cairn key`: who signs this log, and who the node is to others, read from its files.
//!
//! Invariant: only what is public is shown; the secret key is opened for the peer id that follows from it, and where it
//! may not be read there is none.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;

use crate::{
    block::Block,
    cli::{Key, existing, out},
    identity::Verifier,
    ledger::opening,
    log::{Reader, sqlite::SqliteReader},
    p2p,
};

pub fn run(args: Key) -> anyhow::Result<ExitCode> {
    let home = existing(&args.data.data)?;
    let log = SqliteReader::open(&home.log_path())?;
    let genesis = opening::genesis(&log)?;
    let key = genesis.key.as_slice().try_into();
    let key = key.context("the genesis block holds no ed25519 key")?;
    let verifier = Verifier::from_key(&genesis.origin, key)?;
    let name = Block::encode(&genesis).cid();
    let events = log.tip()?.map_or(0, |tip| tip.seq + 1);
    let bytes = log.size()?;
    let peer = home.keys().ok().map(|keys| p2p::local_peer(&keys.seed));
    if args.json {
        out::print_json(&json!({
            "origin": genesis.origin,
            "key": verifier.vkey(),
            "log": name.to_string(),
            "events": events,
            "bytes": bytes,
            "peer": peer,
        }))?;
    } else {
        out::print(&format!(
            "origin  {}\nkey     {}\nlog     {name}\nevents  {events}\nbytes   {bytes}\npeer    {}",
            genesis.origin,
            verifier.vkey(),
            peer.as_deref().unwrap_or("-")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
