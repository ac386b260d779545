//! News as data: what of it becomes an event, and what the events come to.

use super::*;
use crate::{
    block::Codec,
    event::{Actor, Fact, Position, body::LogOpened},
};

const HOUR_MS: u64 = 3_600_000;

/// A peer whose news are told one after another.
#[derive(Default)]
struct Story {
    peer: Option<Peer>,
    seq: u64,
    now_ms: u64,
}

impl Story {
    /// Tells the news at a time; true where it became an event.
    fn tell(&mut self, now_ms: u64, news: News) -> bool {
        self.now_ms = now_ms;
        let Some(body) = told(self.peer.as_ref(), "p1", news, now_ms) else { return false };
        self.fold(body);
        true
    }

    fn fold(&mut self, body: Body) {
        self.seq += 1;
        let actor = Actor { id: "cairn".into(), role: "system".into(), proof: None };
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor,
            subject: subject("p1"),
            tool: None,
            payloads: Vec::new(),
            body,
        };
        let place = Position { log: cid(1), seq: self.seq, prev: Some(cid(2)), ts: self.now_ms * 1000 };
        let event = Event::seal(fact, place).expect("news keep every rule");
        match &mut self.peer {
            Some(peer) => peer.apply(&event),
            None => self.peer = Peer::begun(&event),
        }
    }

    fn peer(&self) -> &Peer {
        self.peer.as_ref().expect("it was heard of")
    }
}

fn cid(n: u8) -> Cid {
    Cid::from_digest(Codec::DagCbor, [n; 32])
}

fn found(addrs: &[&str], capabilities: Option<&[&str]>) -> News {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let facts =
        PeerDiscovered { source: Source::Dht, addrs: owned(addrs), capabilities: capabilities.map(owned) };
    News::Discovered { facts, ttl_ms: HOUR_MS }
}

fn connected(address: &str) -> News {
    News::Connected(PeerConnected {
        address: address.into(),
        transport: Transport::Tcp,
        direction: Direction::Out,
        runner: "r1".into(),
        took_us: None,
        agent: None,
        protocols: Vec::new(),
    })
}

fn measured(p50: Option<u64>, bytes: u64) -> News {
    News::Measured(PeerMeasured {
        window_ms: 60_000,
        latency_p50_us: p50,
        latency_p99_us: p50,
        samples: p50.map_or(0, |_| 4),
        bytes_in: bytes,
        bytes_out: bytes,
        served: 0,
        sent: 0,
        failures: 0,
        connected_ms: 60_000,
    })
}

#[test]
fn being_seen_again_is_no_news_until_something_changes() {
    let mut story = Story::default();
    for (at_ms, news, told) in [
        (0, found(&["/a"], None), true),
        (1, found(&["/a"], None), false),
        (2, found(&["/b"], None), true),
        (3, found(&["/a"], None), false),
        (4, found(&["/a"], Some(&["y", "x"])), true),
        (5, found(&["/a"], Some(&["x", "y", "x"])), false),
        (6, found(&["/a"], Some(&["x"])), true),
        (6 + HOUR_MS - 1, found(&["/a"], None), false),
        (6 + HOUR_MS, found(&["/a"], None), true),
        (7 + HOUR_MS, connected("/a"), true),
        (9 * HOUR_MS, found(&["/a"], None), false),
    ] {
        assert_eq!(story.tell(at_ms, news.clone()), told, "{news:?} at {at_ms}");
    }
    assert_eq!(story.peer().addrs, ["/a", "/b"]);
    assert_eq!(story.peer().capabilities.as_deref(), Some(&["x".to_owned()][..]));
}

#[test]
fn a_peer_is_connected_once_and_parted_from_once() {
    let mut story = Story::default();
    let gone =
        || News::Unreachable(PeerUnreachable { address: "/a".into(), cause: "timeout".into(), attempts: 3 });
    for (at_ms, news, told, status) in [
        (0, gone(), true, Status::Unreachable),
        (1, gone(), false, Status::Unreachable),
        (UNREACHABLE_EVERY_MS, gone(), true, Status::Unreachable),
        (UNREACHABLE_EVERY_MS + 1, News::Disconnected(Parting::Closed), false, Status::Unreachable),
        (UNREACHABLE_EVERY_MS + 2, connected("/a"), true, Status::Connected),
        (UNREACHABLE_EVERY_MS + 3, connected("/b"), false, Status::Connected),
        (UNREACHABLE_EVERY_MS + 4, gone(), false, Status::Connected),
        (UNREACHABLE_EVERY_MS + 5, News::Disconnected(Parting::Closed), true, Status::Disconnected),
        (UNREACHABLE_EVERY_MS + 6, News::Disconnected(Parting::Closed), false, Status::Disconnected),
    ] {
        assert_eq!(story.tell(at_ms, news.clone()), told, "{news:?} at {at_ms}");
        assert_eq!(story.peer().status, status);
    }
    let links = story.peer().links.samples();
    assert!((2_990_000..3_000_000).contains(&links), "two in vain and one that held, minutes ago: {links}");
}

#[test]
fn nothing_measured_is_invented() {
    let mut story = Story::default();
    assert!(!story.tell(0, measured(Some(5), 1)), "of whom?");
    story.tell(0, connected("/a"));
    assert!(!story.tell(60_000, measured(None, 0)));
    assert_eq!(story.peer().measure, None);
    assert_eq!((story.peer().reliability(), story.peer().connection_quality()), (None, None));
    assert!(story.tell(120_000, measured(None, 3_000)));
    let measure = story.peer().measure.expect("it was");
    assert_eq!((measure.latency_p50_us, measure.bandwidth), (None, Some(100)));
    story.tell(180_000, measured(Some(800), 0));
    assert_eq!(story.peer().measure.and_then(|measure| measure.latency_p50_us), Some(800));
    assert!(story.peer().connection_quality().is_some_and(|quality| quality > 600_000));
    assert_eq!(story.peer().counters.bytes_in, 3_000);
}

#[test]
fn two_histories_are_held_against_a_peer_until_it_is_released() {
    let mut story = Story::default();
    let forked = |size_b| News::Forked(PeerForked { log: cid(3), origin: "other".into(), size_a: 4, size_b });
    assert!(!story.tell(0, News::Released));
    assert!(story.tell(1, forked(5)));
    assert!(!story.tell(2, forked(5)), "the same evidence again");
    assert!(story.peer().quarantine.is_some());
    assert!(story.tell(3, News::Released));
    assert_eq!(story.peer().quarantine, None);
    assert!(story.tell(4, forked(6)));
}

#[test]
fn a_log_that_grows_is_told_of_once_a_minute() {
    let mut story = Story::default();
    let followed = |size| News::Followed { log: cid(3), origin: "other".into(), size };
    for (at_ms, size, told) in
        [(0, 4, true), (1, 5, false), (FOLLOWED_EVERY_MS, 4, false), (FOLLOWED_EVERY_MS, 6, true)]
    {
        assert_eq!(story.tell(at_ms, followed(size)), told, "{size} at {at_ms}");
    }
    assert_eq!(story.peer().followed[0].size, 6);
}

#[test]
fn what_others_say_is_cut_to_its_bounds() {
    let many: Vec<String> = (0..500).map(|n| format!("{n:0>100}")).collect();
    let facts = PeerDiscovered {
        source: Source::Mdns,
        addrs: [vec!["x".repeat(ADDR_MAX + 1)], many.clone()].concat(),
        capabilities: Some(many.clone()),
    };
    let mut story = Story::default();
    assert!(story.tell(0, News::Discovered { facts, ttl_ms: 0 }));
    assert_eq!(story.peer().addrs.len(), ADDRS_MAX);
    let words = |story: &Story| story.peer().capabilities.clone().unwrap_or_default();
    assert_eq!(words(&story).len(), CAPABILITIES_BYTES_MAX / 100);
    let short: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let contract = crate::block::Cid::of(crate::block::Codec::DagCbor, b"a contract").to_string();
    let facts = PeerDiscovered {
        source: Source::Mdns,
        addrs: Vec::new(),
        capabilities: Some([vec![contract.clone()], short].concat()),
    };
    assert!(story.tell(0, News::Discovered { facts, ttl_ms: 0 }));
    assert_eq!(words(&story).len(), CAPABILITIES_MAX);
    assert!(!words(&story).contains(&contract), "names come first");
    let News::Connected(facts) = connected(&"é".repeat(ADDR_MAX)) else { panic!("it is") };
    let facts = PeerConnected { agent: Some("é".repeat(WORD_MAX)), protocols: many, ..facts };
    assert!(story.tell(1, News::Connected(facts)));
    assert_eq!(story.peer().agent.as_ref().map(String::len), Some(WORD_MAX));
    let attempt = crate::event::peer::Attempt {
        address: "/a".repeat(ADDR_MAX),
        method: "m".repeat(1_000),
        ok: false,
        cause: Some("c".repeat(1_000)),
        took_us: 1,
    };
    let finished = BootstrapFinished {
        connected: 0,
        failed: 900,
        ready: false,
        nat: crate::event::peer::Nat::Unknown,
        took_us: 1,
        attempts: vec![attempt; 900],
    };
    let body = told(None, "b1", News::BootstrapFinished(finished), 0).expect("it is always told");
    story.fold(body);
}

#[test]
fn events_of_other_kinds_change_nothing() {
    let mut story = Story::default();
    story.tell(0, found(&["/a"], None));
    let before = story.peer().clone();
    story.fold(Body::LogOpened(LogOpened { genesis: cid(1), software: "cairn".into(), salt: None }));
    assert_eq!(Peer { last_seq: before.last_seq, ..story.peer().clone() }, before);
}
