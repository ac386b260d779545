//! The part of the golden log about other nodes. The first event of each kind carries everything it can.
//!
//! Invariant: these events come after all that were in the golden log before them.

use super::{Story, link};
use crate::event::{
    Role,
    body::Body,
    peer::{
        Attempt, BootstrapFinished, BootstrapStarted, Direction, LogFollowed, Nat, Parting, PeerConnected,
        PeerDisconnected, PeerDiscovered, PeerForked, PeerMeasured, PeerReleased, PeerUnreachable,
        RemoteCalled, Source, Transport,
    },
};

const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";
const ADDR: &str = "/ip4/192.0.2.7/udp/4001/quic-v1";

impl Story {
    pub(super) fn peers(&mut self) {
        self.bootstrap();
        self.found();
        self.asked();
        self.doubted();
    }

    fn bootstrap(&mut self) {
        let id = "bootstrap/019b76da-a800-7000-8000-0000000000b1";
        let started = BootstrapStarted { nodes: 2, min: 1, max: 10, timeout_ms: 60_000 };
        let cause = self.add(id, Body::BootstrapStarted(started));
        let attempt = |address: &str, cause: Option<&str>| Attempt {
            address: address.to_owned(),
            method: "configured".into(),
            ok: cause.is_none(),
            cause: cause.map(str::to_owned),
            took_us: 2_500,
        };
        let finished = BootstrapFinished {
            connected: 1,
            failed: 1,
            ready: true,
            nat: Nat::Private,
            took_us: 5_000,
            attempts: vec![attempt(ADDR, None), attempt("/ip4/192.0.2.8/tcp/4001", Some("timeout"))],
        };
        let mut fact = self.fact(id, Body::BootstrapFinished(finished));
        fact.cause = Some(cause);
        self.seal(fact);
    }

    fn found(&mut self) {
        let subject = ["peer/", PEER].concat();
        let capabilities = Some(vec!["echo".to_owned(), link(4).to_string()]);
        let discovered = PeerDiscovered { source: Source::Mdns, addrs: vec![ADDR.into()], capabilities };
        self.add(&subject, Body::PeerDiscovered(discovered));
        let plain = PeerDiscovered { source: Source::Dht, addrs: vec![ADDR.into()], capabilities: None };
        self.add(&subject, Body::PeerDiscovered(plain));
        let unreachable = PeerUnreachable { address: ADDR.into(), cause: "timeout".into(), attempts: 3 };
        self.add(&subject, Body::PeerUnreachable(unreachable));
        let connected = PeerConnected {
            address: ADDR.into(),
            transport: Transport::Quic,
            direction: Direction::Out,
            runner: "019b76da-a800-7000-8000-000000000000".into(),
            took_us: Some(12_000),
            agent: Some("cairn/0.1.0".into()),
            protocols: vec!["/mcp+p2p/1.0.0".into(), "/cairn/log/1.0.0".into()],
        };
        self.add(&subject, Body::PeerConnected(connected));
    }

    /// Adds everything that is asked of a peer that answers.
    fn asked(&mut self) {
        let subject = ["peer/", PEER].concat();
        let called = RemoteCalled {
            peer: PEER.into(),
            contract: self.contract,
            ok: true,
            code: None,
            took_us: 900,
            rule: "best of 2: 0.81 at 1.2 ms".into(),
            attempt: 1,
        };
        let failed = RemoteCalled { ok: false, code: Some("transport".into()), ..called.clone() };
        let mut fact = self.fact(&subject, Body::RemoteCalled(failed));
        fact.refs = vec![link(5)];
        self.seal(fact);
        self.add(&subject, Body::RemoteCalled(RemoteCalled { attempt: 2, ..called }));
        let log = link(6);
        let origin = "cairn.example/other".to_owned();
        self.add(&subject, Body::LogFollowed(LogFollowed { peer: PEER.into(), log, origin, size: 40 }));
        let measured = PeerMeasured {
            window_ms: 60_000,
            latency_p50_us: Some(800),
            latency_p99_us: Some(2_000),
            samples: 4,
            bytes_in: 4_096,
            bytes_out: 2_048,
            served: 3,
            sent: 2,
            failures: 1,
            connected_ms: 60_000,
        };
        self.add(&subject, Body::PeerMeasured(measured.clone()));
        let bare = PeerMeasured { latency_p50_us: None, latency_p99_us: None, samples: 0, ..measured };
        self.add(&subject, Body::PeerMeasured(bare));
    }

    fn doubted(&mut self) {
        let subject = ["peer/", PEER].concat();
        let origin = "cairn.example/other".to_owned();
        let mut fact = self
            .fact(&subject, Body::PeerForked(PeerForked { log: link(6), origin, size_a: 40, size_b: 41 }));
        fact.payloads = vec![self.output];
        fact.payloads[0].role = Role::Artifact;
        self.seal(fact);
        self.add(&subject, Body::PeerDisconnected(PeerDisconnected { cause: Parting::Local }));
        self.add(&subject, Body::PeerReleased(PeerReleased {}));
    }
}
