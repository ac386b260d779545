//! The network as the peer tools use it: what they ask of it, and what it answers.
//!
//! Invariants:
//! - peers and addresses are text as libp2p writes them: whoever implements this checks them;
//! - the network itself records what happens, naming who asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    block::Cid,
    caller::By,
    error::Refusal,
    event::peer::{Nat, Source, Transport},
    router::BoxFuture,
};

/// The network as these tools use it. Every refusal says what to do.
///
/// It records what happens itself, with `by` as the actor and the call that asked.
pub trait Network: Send + Sync {
    fn discover(&self, ask: Discover, by: By) -> BoxFuture<'_, Result<Discovered, Refusal>>;
    fn connect(&self, ask: Connect, by: By) -> BoxFuture<'_, Result<Connected, Refusal>>;
    fn disconnect(&self, ask: Disconnect, by: By) -> BoxFuture<'_, Result<Disconnected, Refusal>>;
    fn bootstrap(&self, ask: Bootstrap, by: By) -> BoxFuture<'_, Result<Bootstrapped, Refusal>>;
    /// Begins to follow the peer's log. This goes on until [`Network::unfollow`].
    fn follow(&self, peer: String, by: By) -> BoxFuture<'_, Result<Following, Refusal>>;
    /// Stops following the peer's log; what is kept stays. Returns whether it was followed.
    fn unfollow(&self, peer: String, by: By) -> BoxFuture<'_, Result<bool, Refusal>>;
    /// Peers that are being dialled now.
    fn dialling(&self) -> Vec<String>;
}

/// Holds the network, once there is one.
pub type Slot = Arc<OnceLock<Arc<dyn Network>>>;

#[derive(Clone, Debug, PartialEq)]
pub struct Discover {
    /// A peer must offer all of them.
    pub capabilities: Vec<String>,
    pub max: usize,
    pub timeout: Duration,
    /// The sources to ask; all if empty.
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

/// The result of one source.
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
    /// Where to dial; `None` dials the known addresses.
    pub address: Option<String>,
    /// Of all tries together.
    pub timeout: Duration,
    /// Further tries.
    pub retries: u32,
    /// Whether to connect again when the connection is lost.
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
    /// Whether running calls may end before the connection is closed.
    pub graceful: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disconnected {
    pub was_connected: bool,
    pub took: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// Where to start from; `None` starts from the configuration's nodes.
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
