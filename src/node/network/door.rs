//! The network as the peer tools use it: translates their questions to the hub, and its errors to refusals.
//!
//! Invariant: a refusal is marked retryable only if the same request may succeed later.

use std::collections::BTreeSet;

use crate::{
    caller::By,
    error::{Code, Refusal},
    event::peer::{Nat, Source, Transport},
    p2p::{
        self, NetError,
        discovery::{Known, Origin},
        hub::{self, Attempted, Goal, Hub},
    },
    router::BoxFuture,
    tools::network::{
        Bootstrap, Bootstrapped, Connect, Connected, Disconnect, Disconnected, Discover, Discovered,
        Following, Found, Network, Search, Tried,
    },
};

/// The tools' handle of the hub.
pub struct Tools(pub Hub);

impl Network for Tools {
    fn discover(&self, ask: Discover, _: By) -> BoxFuture<'_, Result<Discovered, Refusal>> {
        Box::pin(async move {
            let wanted: BTreeSet<String> = ask.capabilities.into_iter().collect();
            let origins: Vec<Origin> = ask.sources.into_iter().filter_map(origin).collect();
            let found = self.0.discover(&wanted, ask.max, ask.timeout, &origins).await;
            let searches = found.sources.iter().map(|(origin, looked)| {
                let search = match looked {
                    Ok(looked) if looked.bad > 0 => Search {
                        found: looked.found.len() as u64,
                        error: Some(format!("{} of its entries make no sense", looked.bad)),
                    },
                    Ok(looked) => Search { found: looked.found.len() as u64, error: None },
                    Err(err) => Search { found: 0, error: Some(err.to_string()) },
                };
                (origin.as_str().to_owned(), search)
            });
            let sources = searches.collect();
            Ok(Discovered { peers: found.peers.into_iter().map(shown).collect(), sources, took: found.took })
        })
    }

    fn connect(&self, ask: Connect, by: By) -> BoxFuture<'_, Result<Connected, Refusal>> {
        Box::pin(async move {
            let Connect { peer, address, timeout, retries, persist } = ask;
            p2p::peer_id(&peer).map_err(|err| Refusal::new(Code::InvalidArgument, err.to_string()))?;
            if peer == self.0.net().local() {
                let refusal = Refusal::new(Code::InvalidArgument, "this is the node's own peer id");
                return Err(refusal.hint("name another peer"));
            }
            let Attempted { connected, attempts } =
                self.0.connect(&peer, address, timeout, retries, persist, by).await;
            let made = connected.map_err(|err| refusal(&err, attempts))?;
            Ok(Connected {
                capabilities: self.0.capabilities(&made.peer),
                peer: made.peer,
                address: made.address,
                connection_id: made.connection_id,
                took: made.took,
                protocol_version: made.protocol_version,
                agent: made.agent,
                attempts,
                transport: match made.transport {
                    p2p::Transport::Tcp => Transport::Tcp,
                    p2p::Transport::Quic => Transport::Quic,
                    p2p::Transport::Relay => Transport::Relay,
                },
                reused: made.reused,
            })
        })
    }

    fn disconnect(&self, ask: Disconnect, by: By) -> BoxFuture<'_, Result<Disconnected, Refusal>> {
        Box::pin(async move {
            p2p::peer_id(&ask.peer).map_err(|err| Refusal::new(Code::InvalidArgument, err.to_string()))?;
            let begun = std::time::Instant::now();
            let was_connected = self.0.disconnect(&ask.peer, ask.graceful, by).await;
            Ok(Disconnected { was_connected, took: begun.elapsed() })
        })
    }

    fn bootstrap(&self, ask: Bootstrap, by: By) -> BoxFuture<'_, Result<Bootstrapped, Refusal>> {
        Box::pin(async move {
            let nodes = ask.nodes.unwrap_or_default();
            if let Some(at) = nodes.iter().position(|node| !names_peer(node)) {
                let message = format!("bootstrap_nodes[{at}] names no peer");
                let refusal = Refusal::new(Code::InvalidArgument, message);
                return Err(refusal.hint("give multiaddrs that end in /p2p/<peer id>"));
            }
            let goal = Goal { nodes, min: ask.min as usize, max: ask.max as usize, timeout: ask.timeout };
            let joined = self.0.bootstrap(goal, Some(by)).await;
            let tried = |tried: hub::Tried| Tried {
                address: tried.address,
                method: tried.method.to_owned(),
                ok: tried.error.is_none(),
                error: tried.error,
                took: tried.took,
            };
            Ok(Bootstrapped {
                attempts: joined.attempts.into_iter().map(tried).collect(),
                connected: joined.connected,
                ready: joined.ready,
                public_addrs: joined.external,
                nat: match joined.nat {
                    p2p::Nat::Public => Nat::Public,
                    p2p::Nat::Private => Nat::Private,
                    p2p::Nat::Unknown => Nat::Unknown,
                },
                took: joined.took,
            })
        })
    }

    fn follow(&self, peer: String, _: By) -> BoxFuture<'_, Result<Following, Refusal>> {
        Box::pin(async move {
            p2p::peer_id(&peer).map_err(|err| Refusal::new(Code::InvalidArgument, err.to_string()))?;
            if peer == self.0.net().local() {
                let refusal = Refusal::new(Code::InvalidArgument, "this is the node's own peer id");
                return Err(refusal.hint("name another peer"));
            }
            let held = self.0.follow(&peer).await;
            let (log, size) = held.unzip();
            Ok(Following { log, size })
        })
    }

    fn unfollow(&self, peer: String, _: By) -> BoxFuture<'_, Result<bool, Refusal>> {
        Box::pin(async move { Ok(self.0.unfollow(&peer)) })
    }

    fn dialling(&self) -> Vec<String> {
        self.0.dialling()
    }
}

/// Translates a failed connection to a refusal, with a hint if the caller can do something about it.
fn refusal(err: &NetError, attempts: u32) -> Refusal {
    let told = match attempts {
        1 => err.to_string(),
        _ => format!("{err} (tried {attempts} times)"),
    };
    match err {
        NetError::BadPeer(_) | NetError::BadAddress { .. } | NetError::BadProtocol { .. } => {
            Refusal::new(Code::InvalidArgument, told)
                .hint("give a peer id, and a multiaddr such as /ip4/192.0.2.1/tcp/4001")
        }
        NetError::NoAddress => {
            Refusal::new(Code::NotFound, told).hint("give its multiaddr, or find it with peer_discover first")
        }
        NetError::Timeout(_) => {
            Refusal::new(Code::DeadlineExceeded, told).retryable().hint("ask again with a longer timeout_ms")
        }
        NetError::Busy => Refusal::new(Code::ResourceExhausted, told).retryable().hint("ask again later"),
        NetError::Unreachable { .. } | NetError::NotConnected { .. } | NetError::Stream { .. } => {
            let refusal = Refusal::new(Code::Unavailable, told);
            if err.may_pass() {
                refusal.retryable().hint("see that the peer runs and listens there")
            } else {
                refusal
            }
        }
        NetError::Unsupported { .. } | NetError::Off(_) | NetError::Start { .. } | NetError::Stopped => {
            Refusal::new(Code::Unavailable, told)
        }
    }
}

fn names_peer(address: &str) -> bool {
    address.starts_with('/')
        && address.rsplit_once("/p2p/").is_some_and(|(_, peer)| p2p::peer_id(peer).is_ok())
}

fn origin(source: Source) -> Option<Origin> {
    match source {
        Source::Dht => Some(Origin::Dht),
        Source::Mdns => Some(Origin::Mdns),
        Source::File => Some(Origin::File),
        Source::Github => Some(Origin::Github),
        Source::Bootstrap => Some(Origin::Bootstrap),
        // These are not sources that can be searched.
        Source::Configured | Source::Connection => None,
    }
}

fn shown(known: Known) -> Found {
    Found {
        peer: known.peer,
        addrs: known.addrs,
        capabilities: known.capabilities.into_iter().collect(),
        source: match known.origin {
            Origin::Dht => Source::Dht,
            Origin::Mdns => Source::Mdns,
            Origin::File => Source::File,
            Origin::Github => Source::Github,
            Origin::Bootstrap => Source::Bootstrap,
        },
        seen_ms: known.seen_ms,
    }
}
