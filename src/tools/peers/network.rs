//! The network as the peer tools use it: what they ask of it, and what it answers.
//!
//! Invariants:
//! - peers and addresses are text as libp2p writes them: whoever implements this checks them;
//! - what happens the network tells the ledger itself, naming who asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    block::Cid,
    error::Refusal,
    event::peer::{Nat, Source, Transport},
    p2p::hub::By,
    router::BoxFuture,
};

/// The network as these tools use it. Every refusal says what to do.
///
/// What happens at a network it tells the ledger itself, naming `by` as who asked and by which call.
pub trait Network: Send + Sync {
    fn discover(&self, ask: Discover, by: By) -> BoxFuture<'_, Result<Discovered, Refusal>>;
    fn connect(&self, ask: Connect, by: By) -> BoxFuture<'_, Result<Connected, Refusal>>;
    fn disconnect(&self, ask: Disconnect, by: By) -> BoxFuture<'_, Result<Disconnected, Refusal>>;
    fn bootstrap(&self, ask: Bootstrap, by: By) -> BoxFuture<'_, Result<Bootstrapped, Refusal>>;
    /// Begins to keep the peer's log here; it goes on until it is told to stop.
    fn follow(&self, peer: String, by: By) -> BoxFuture<'_, Result<Following, Refusal>>;
    /// Stops; what is kept stays. False where it was not followed.
    fn unfollow(&self, peer: String, by: By) -> BoxFuture<'_, Result<bool, Refusal>>;
    /// Peers that are being dialled now.
    fn dialling(&self) -> Vec<String>;
}

/// Where the network is, once there is one.
pub type Slot = Arc<OnceLock<Arc<dyn Network>>>;

#[derive(Clone, Debug, PartialEq)]
pub struct Discover {
    /// All of them.
    pub capabilities: Vec<String>,
    pub max: usize,
    pub timeout: Duration,
    /// Empty: all there are.
    pub sources: Vec<Source>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub peer: String,
    pub addrs: Vec<String>,
    pub capabilities: Vec<String>,
    pub source: Source,
    pub seen_ms: u64,
}

/// What one source came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Search {
    pub found: u64,
    /// Why it could not be asked, for people.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Discovered {
    pub peers: Vec<Found>,
    /// By the name of the source.
    pub sources: BTreeMap<String, Search>,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Connect {
    pub peer: String,
    /// None: where it is known to be.
    pub address: Option<String>,
    /// Of all tries together.
    pub timeout: Duration,
    /// Further tries.
    pub retries: u32,
    /// Whether it is connected again when the connection is lost.
    pub persist: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Connected {
    pub peer: String,
    pub address: String,
    pub connection_id: String,
    pub took: Duration,
    pub protocol_version: Option<String>,
    pub agent: Option<String>,
    pub capabilities: Vec<String>,
    pub attempts: u32,
    pub transport: Transport,
    /// Whether there was a connection already.
    pub reused: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disconnect {
    pub peer: String,
    /// Whether running calls may end first.
    pub graceful: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disconnected {
    pub was_connected: bool,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// None: those of the configuration.
    pub nodes: Option<Vec<String>>,
    pub timeout: Duration,
    pub min: u64,
    pub max: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    pub address: String,
    pub method: String,
    pub ok: bool,
    /// Why not, for people.
    pub error: Option<String>,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrapped {
    pub attempts: Vec<Tried>,
    /// Peers that are connected now.
    pub connected: Vec<String>,
    pub ready: bool,
    pub public_addrs: Vec<String>,
    pub nat: Nat,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Following {
    /// The log's genesis, and how far it is kept here; none where the peer has not told yet.
    pub log: Option<Cid>,
    pub size: Option<u64>,
}
