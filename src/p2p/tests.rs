//! Real nodes over loopback sockets, all in one process.

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{broadcast, mpsc},
    task::JoinSet,
    time,
};

use super::{
    Cause, Connected, Direction, Inbound, Nat, NetError, NetEvent, Settings, Stream, Transport, Verdict,
    Wire, handle::Net, limits, local_peer, peer_id, start, start_counted,
};
use crate::block::{Cid, Codec};

/// Longer than anything here takes; only a fault makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(20);
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

struct Node {
    net: Net,
    inbound: mpsc::Receiver<Inbound>,
    addrs: Vec<String>,
}

impl Node {
    async fn start(seed: u8) -> Self {
        Self::with(Settings::new([seed; 32])).await
    }

    async fn with(settings: Settings) -> Self {
        let (net, inbound) = start(settings).expect("loopback can be listened on");
        let addrs = net.listening(PATIENCE).await.expect("listens");
        Self { net, inbound, addrs }
    }

    async fn dial(&self, other: &Self) -> Result<Connected, NetError> {
        self.net.dial(&other.net.local(), other.addrs.clone(), PATIENCE).await
    }

    /// Answers every stream with the bytes it brings.
    fn echo(self) -> Net {
        let Self { net, mut inbound, .. } = self;
        tokio::spawn(async move {
            while let Some(Inbound { stream, .. }) = inbound.recv().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        let _ = write.shutdown().await;
                    }
                });
            }
        });
        net
    }
}

/// The first event that the test waits for.
async fn event<T>(events: &mut broadcast::Receiver<NetEvent>, wanted: impl Fn(NetEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(events.recv().await.expect("events go on")) {
                return found;
            }
        }
    };
    time::timeout(PATIENCE, found).await.expect("event comes")
}

async fn said(mut stream: Stream, words: &[u8]) -> Vec<u8> {
    stream.write_all(words).await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.expect("read");
    heard
}

fn key(name: &str) -> Cid {
    Cid::of(Codec::Raw, name.as_bytes())
}

#[tokio::test]
async fn a_node_dials_over_tcp_and_over_quic_and_reuses_what_stands() {
    for (listen, transport) in [("/ip4/127.0.0.1/tcp/0", Transport::Tcp), (QUIC, Transport::Quic)] {
        let settings = |seed| Settings { listen: vec![listen.to_owned()], ..Settings::new([seed; 32]) };
        let (a, b) = (Node::with(settings(1)).await, Node::with(settings(2)).await);
        let mut events = b.net.events();
        let first = a.dial(&b).await.expect("dialled");
        assert_eq!((first.transport, first.direction, first.reused), (transport, Direction::Out, false));
        assert_eq!(first.peer, local_peer(&[2; 32]));
        assert!(first.agent.as_deref().is_some_and(|agent| agent.starts_with("cairn/")));
        for wire in Wire::ALL {
            assert!(first.protocols.iter().any(|protocol| protocol == wire.protocol()), "{first:?}");
        }
        let seen = event(&mut events, |event| match event {
            NetEvent::Connected(connected) => Some(connected),
            _ => None,
        });
        let seen = seen.await;
        assert_eq!((seen.peer, seen.direction), (a.net.local(), Direction::In));
        let second = a.dial(&b).await.expect("still there");
        assert_eq!((second.reused, &second.connection_id), (true, &first.connection_id));
        assert_eq!(a.net.snapshot().await.connections.len(), 1);
    }
}

#[tokio::test]
async fn streams_go_both_ways_and_two_hundred_at_once() {
    for listen in ["/ip4/127.0.0.1/tcp/0", QUIC] {
        let settings = |seed| Settings { listen: vec![listen.to_owned()], ..Settings::new([seed; 32]) };
        let (a, b) = (Node::with(settings(1)).await, Node::with(settings(2)).await);
        a.dial(&b).await.expect("dialled");
        let (a, b) = (a.echo(), b.echo());
        // The side that was dialled may open as well, once it knows the peer.
        let back = a.local();
        let connected = b.dial(&back, Vec::new(), PATIENCE).await.expect("there");
        assert!(connected.reused || connected.direction == Direction::In);
        let mut opened = JoinSet::new();
        for n in 0..200_u32 {
            let (from, to) = if n % 2 == 0 { (a.clone(), b.local()) } else { (b.clone(), a.local()) };
            let wire = Wire::ALL[n as usize / 2 % 2];
            opened.spawn(async move {
                let stream = from.open(&to, wire).await.expect("opened");
                assert_eq!(said(stream, &n.to_be_bytes()).await, n.to_be_bytes());
            });
        }
        assert_eq!(opened.join_all().await.len(), 200);
        let snapshot = a.snapshot().await;
        assert_eq!(snapshot.refused.streams, 0);
        let [link] = &snapshot.connections[..] else { panic!("{snapshot:?}") };
        assert_eq!((link.bytes_in, link.bytes_out), (800, 800));
        assert_eq!(snapshot.nat, Nat::Unknown);
    }
}

#[tokio::test]
async fn streams_beyond_the_queue_are_reset_and_counted() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    a.dial(&b).await.expect("dialled");
    let mut open = Vec::new();
    for _ in 0..=limits::STREAMS_PER_PEER_MAX {
        let mut stream = a.net.open(&b.net.local(), Wire::Mcp).await.expect("opened");
        stream.write_all(b"x").await.expect("written");
        stream.flush().await.expect("sent");
        open.push(stream);
    }
    let mut ended = JoinSet::new();
    open.into_iter().for_each(|mut stream| drop(ended.spawn(async move { stream.read_u8().await.is_err() })));
    let first = time::timeout(PATIENCE, ended.join_next()).await.expect("one ends");
    assert!(first.is_some_and(|ended| ended.expect("no panic")));
    assert_eq!(b.net.snapshot().await.refused.streams, 1);
    ended.abort_all();
}

#[tokio::test]
async fn what_cannot_be_dialled_is_refused_with_its_cause() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    let other = local_peer(&[9; 32]);
    let mut events = a.net.events();
    let place = b.addrs[0].split("/p2p/").next().expect("has a place").to_owned();
    let dial = |peer: String, address: String| {
        let net = a.net.clone();
        async move { net.dial(&peer, vec![address], PATIENCE).await.expect_err("refused").code() }
    };
    assert_eq!(dial(other.clone(), place.clone()).await, "wrong_peer");
    let unreachable = event(&mut events, |event| match event {
        NetEvent::Unreachable { peer, cause, .. } => Some((peer, cause)),
        _ => None,
    });
    assert_eq!(unreachable.await, (other.clone(), Cause::WrongPeer));
    assert_eq!(dial(other.clone(), b.addrs[0].clone()).await, "bad_address");
    assert_eq!(dial("nobody".to_owned(), place).await, "bad_peer");
    assert_eq!(dial(other.clone(), "/nowhere".to_owned()).await, "bad_address");
    assert_eq!(dial(other.clone(), "/ip4/127.0.0.1/tcp/1".to_owned()).await, "refused");
    assert_eq!(dial(other.clone(), "/ip4/127.0.0.1/udp/1".to_owned()).await, "address");
    assert_eq!(dial(a.net.local(), a.addrs[0].clone()).await, "address");
    assert_eq!(a.net.dial(&other, Vec::new(), PATIENCE).await, Err(NetError::NoAddress));
    let unconnected = a.net.open(&other, Wire::Mcp).await.err();
    assert_eq!(unconnected, Some(NetError::NotConnected { peer: other.clone() }));
    assert!(peer_id(&other).is_ok() && peer_id("12D3KooW").is_err());
}

#[tokio::test]
async fn who_was_let_go_is_gone_until_dialled_again() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    let (mut here, mut there) = (a.net.events(), b.net.events());
    a.dial(&b).await.expect("dialled");
    event(&mut there, |event| matches!(event, NetEvent::Connected(_)).then_some(())).await;
    assert!(a.net.disconnect(&b.net.local()).await);
    let cause = |event| match event {
        NetEvent::Disconnected { cause, .. } => Some(cause),
        _ => None,
    };
    assert_eq!(event(&mut here, cause).await, Cause::Local);
    assert_eq!(event(&mut there, cause).await, Cause::Closed);
    assert!(!a.net.disconnect(&b.net.local()).await);
    assert!(a.net.snapshot().await.connections.is_empty());
    assert!(!a.dial(&b).await.expect("dialled again").reused);
    assert!(a.net.disconnect(&b.net.local()).await);
    assert!(!a.dial(&b).await.expect("dialled at once").reused);
    assert_eq!(event(&mut here, cause).await, Cause::Local);
    b.net.stop().await;
    assert_eq!(b.net.dial(&a.net.local(), Vec::new(), PATIENCE).await, Err(NetError::Stopped));
}

#[tokio::test]
async fn a_thousand_attempts_against_a_limit_leave_the_node_serving() {
    let served = Node::with(Settings { connections_max: 4, ..Settings::new([1; 32]) }).await;
    let peer = Node::start(2).await;
    peer.dial(&served).await.expect("dialled");
    let address = served.addrs[0].split('/').nth(4).expect("a port").to_owned();
    let to = served.net.local();
    let addrs = served.addrs.clone();
    let served = served.echo();
    let mut half_open = JoinSet::new();
    for _ in 0..1000 {
        let address = format!("127.0.0.1:{address}");
        half_open.spawn(async move {
            let stream = tokio::net::TcpStream::connect(address).await;
            stream.ok().map(|mut stream| async move { stream.read_u8().await.is_err() })
        });
    }
    let half_open = half_open.join_all().await;
    let stream = peer.net.open(&to, Wire::Mcp).await.expect("opened");
    assert_eq!(said(stream, b"still here").await, b"still here");
    drop(half_open);
    let refused = served.snapshot().await.refused.connections;
    assert!(refused > 0, "none of a thousand was refused");
    // Real peers over the limit are turned away as well, and those below it are not.
    let mut connected = 1;
    for seed in 10..16 {
        let other = Node::start(seed).await;
        let dialled = other.net.dial(&to, addrs.clone(), PATIENCE).await;
        connected += usize::from(dialled.is_ok());
        if dialled.is_ok() {
            std::mem::forget(other);
        }
    }
    assert_eq!(connected, 4);
    assert_eq!(served.snapshot().await.connections.len(), 4);
}

#[tokio::test]
async fn no_connection_is_taken_where_memory_is_short() {
    let full = Node::with(Settings { memory_share: 0.0, ..Settings::new([1; 32]) }).await;
    let peer = Node::start(2).await;
    assert!(peer.dial(&full).await.is_err());
    assert_eq!(full.dial(&peer).await.map_err(|err| err.code()), Err("denied"));
    assert_eq!(full.net.snapshot().await.refused.connections, 1);
}

#[tokio::test]
async fn a_provider_is_found_across_three_nodes() {
    let (a, b, c) = (Node::start(1).await, Node::start(2).await, Node::start(3).await);
    b.dial(&a).await.expect("dialled");
    c.dial(&a).await.expect("dialled");
    b.net.provide(vec![key("contract")]).await.expect("provided");
    let found = time::timeout(PATIENCE, async {
        loop {
            let found = c.net.providers(key("contract"), PATIENCE).await.expect("asked");
            if let [found] = &found[..] {
                return found.clone();
            }
            // The telling is on its way; each question takes as long as the network does.
            tokio::task::yield_now().await;
        }
    });
    let found = found.await.expect("found");
    assert_eq!(found.peer, b.net.local());
    assert!(!found.addrs.is_empty());
    assert!(c.net.dial(&found.peer, found.addrs, PATIENCE).await.is_ok());
    assert_eq!(c.net.providers(key("another"), PATIENCE).await, Ok(Vec::new()));
    c.net.bootstrap_dht().await.expect("walked");
}

#[tokio::test]
async fn a_head_travels_as_far_as_it_is_true() {
    let (a, b, c) = (Node::start(1).await, Node::start(2).await, Node::start(3).await);
    a.dial(&b).await.expect("dialled");
    b.dial(&c).await.expect("dialled");
    let (mut at_b, mut at_c) = (b.net.heads(), c.net.heads());
    let (mut heard, mut true_ones) = (0_u32, 0);
    // Who listens to whom spreads by itself; until then a head reaches nobody, so a new one is told.
    let told = async {
        for n in 0_u32.. {
            a.net.publish_head(format!("false {n}").into_bytes()).await;
            a.net.publish_head(format!("true {n}").into_bytes()).await;
            while let Ok(Ok(head)) = time::timeout(Duration::from_millis(50), at_b.recv()).await {
                assert_eq!((&head.author, &head.from), (&a.net.local(), &a.net.local()));
                heard += 1;
                let verdict = if head.bytes.starts_with(b"true") { Verdict::Accept } else { Verdict::Reject };
                b.net.judge(&head, verdict).await;
            }
            while let Ok(head) = at_c.try_recv() {
                assert!(head.bytes.starts_with(b"true"), "{head:?}");
                assert_eq!((&head.author, &head.from), (&a.net.local(), &b.net.local()));
                true_ones += 1;
            }
            if true_ones > 2 {
                return;
            }
        }
    };
    time::timeout(PATIENCE, told).await.expect("heads arrive");
    assert!(heard >= 2 * true_ones);
}

#[tokio::test]
async fn what_the_swarm_does_is_counted() {
    let mut registry = Registry::default();
    let (net, _inbound) = start_counted(&Settings::new([1; 32]), &mut registry).expect("started");
    let addrs = net.listening(PATIENCE).await.expect("listens");
    let other = Node::start(2).await;
    other.net.dial(&net.local(), addrs, PATIENCE).await.expect("dialled");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string");
    assert!(text.contains("libp2p_swarm_connections_established_total{"), "{text}");
}
