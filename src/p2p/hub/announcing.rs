//! Announcing: this node publishes where it is and what it offers, in every configured source that can be written.
//!
//! Invariants:
//! - what is announced is what is on offer here by this node's own sources, never what a peer offers;
//! - it is said again well before it would be forgotten, and withdrawn where that can be done.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::Hub;
use crate::{
    block::Cid,
    catalogue::PEERS,
    clock::now_ms,
    p2p::discovery::{
        CAPABILITIES_MAX, Found, Origin,
        live::{everybody, key},
    },
};

/// Changes of the offer within this time are announced together.
const GATHER: Duration = Duration::from_millis(200);
/// How long the first announcement waits for an address.
const LISTENING_MAX: Duration = Duration::from_secs(10);
/// How often a registry with limits is written to.
const REGISTRY_PAUSE: Duration = Duration::from_secs(600);
/// Keys of the table that one node provides.
const KEYS_MAX: usize = 1_000;

/// Announces this node, and again whenever its offer changes or the announcement is due, until it is dropped.
pub(super) async fn announce(hub: Hub) {
    if let Err(err) = hub.net().listening(LISTENING_MAX).await {
        tracing::warn!(%err, "nothing is announced: this node listens nowhere");
        return;
    }
    let parts = &hub.inner.parts;
    let mut changes = parts.router.changes();
    let mut provided: BTreeSet<Cid> = BTreeSet::new();
    let mut registry = None::<Instant>;
    loop {
        let own = own(&hub);
        if parts.announce {
            provided = provide(&hub, provided).await;
        }
        if let Some(file) = parts.file.clone() {
            let entry = own.clone();
            match tokio::task::spawn_blocking(move || file.announce(&entry)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::warn!(%err, "the file of peers is not written"),
                Err(err) => tracing::error!(%err, "the file of peers is not written"),
            }
        }
        if let Some(github) = &parts.github
            && registry.is_none_or(|last| last.elapsed() >= REGISTRY_PAUSE)
        {
            registry = Some(Instant::now());
            if let Err(err) = github.announce(&own, now_ms()).await {
                tracing::warn!(%err, "the registry of peers is not written");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(parts.ttl / 3) => {}
            // Missed changes are changes too; without a router there is nothing left to announce.
            changed = changes.recv() => match changed {
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                Ok(_) | Err(_) => tokio::time::sleep(GATHER).await,
            },
        }
    }
}

/// Takes this node's entry out of the file that it is in.
pub(super) async fn withdraw(hub: &Hub) {
    if let Some(file) = hub.inner.parts.file.clone() {
        let peer = hub.net().local();
        match tokio::task::spawn_blocking(move || file.withdraw(&peer, now_ms())).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) => tracing::warn!(%err, "this node still stands in the file of peers"),
            Err(err) => tracing::error!(%err, "this node still stands in the file of peers"),
        }
    }
}

/// Returns what this node offers: the names of its tools, and their contracts.
pub(super) fn offered(hub: &Hub) -> (Vec<String>, Vec<Cid>) {
    let tools = hub.inner.parts.router.tools();
    let own = tools.iter().filter(|entry| entry.source != PEERS);
    own.map(|entry| (entry.tool.name.clone(), entry.tool.contract)).unzip()
}

fn own(hub: &Hub) -> Found {
    let (names, contracts) = offered(hub);
    let bare =
        |address: &String| address.rsplit_once("/p2p/").map_or(address.clone(), |(bare, _)| bare.to_owned());
    let words = names.into_iter().chain(contracts.iter().map(Cid::to_string)).take(CAPABILITIES_MAX);
    Found {
        peer: hub.net().local(),
        addrs: hub.net().addrs().iter().map(bare).collect(),
        capabilities: if hub.inner.parts.announce { words.collect() } else { BTreeSet::new() },
        origin: Origin::File,
        seen_ms: now_ms(),
    }
}

/// Provides the key of every contract and tool name on offer. Returns the keys provided now.
async fn provide(hub: &Hub, before: BTreeSet<Cid>) -> BTreeSet<Cid> {
    let (names, contracts) = offered(hub);
    let keys = [everybody()].into_iter().chain(contracts).chain(names.iter().map(|name| key(name)));
    let keys: BTreeSet<Cid> = keys.take(KEYS_MAX).collect();
    let gone: Vec<Cid> = before.difference(&keys).copied().collect();
    if !gone.is_empty() {
        hub.net().stop_providing(gone).await;
    }
    let new: Vec<Cid> = keys.difference(&before).copied().collect();
    if new.is_empty() {
        return keys;
    }
    match hub.net().provide(new).await {
        Ok(()) => keys,
        Err(err) => {
            tracing::warn!(%err, "not all that is on offer is announced in the table");
            before
        }
    }
}
