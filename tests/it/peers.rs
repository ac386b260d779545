//! Other nodes as the log knows them: news that becomes events, and what is read back from them.
//!
//! Invariant: nothing in this file has a network; what is told to the ledger is what a network would tell. The
//! files below it start nodes as processes of their own.

mod carried;
mod copies;
mod dying;
mod following;
mod meeting;
mod nodes;
mod outside;
mod reach;
mod registry;
mod remote;
mod typed;

use cairn::{
    event::{
        Body, Kind,
        peer::{
            BootstrapFinished, Direction, Nat, Parting, PeerConnected, PeerDiscovered, PeerMeasured, Source,
            Transport,
        },
    },
    ledger::{Command, Ruling, Sealed, peers::Peering},
    peer::{News, Peer, Status},
    query::{
        QueryError,
        peers::{Filter, Sort},
        work::page::From,
    },
};
use serde_json::json;

use crate::{
    harness::{Server, temp},
    questions::{Kept, open},
    record,
    work::Caller,
};

const PEER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

fn tell(kept: &Kept, peer: &str, news: News) -> Option<Sealed> {
    match kept.ledger.submit_blocking(Command::Peer(Box::new(Peering::new(peer, news)))) {
        Ok(Ruling::Done(sealed)) => Some(sealed),
        Ok(Ruling::Unchanged) => None,
        other => panic!("{other:?}"),
    }
}

fn found(addr: &str, capabilities: &[&str]) -> News {
    let capabilities = Some(capabilities.iter().map(|word| (*word).to_owned()).collect());
    let facts = PeerDiscovered { source: Source::File, addrs: vec![addr.to_owned()], capabilities };
    News::Discovered { facts, ttl_ms: 3_600_000 }
}

fn connected() -> News {
    News::Connected(PeerConnected {
        address: "/ip4/192.0.2.1/tcp/1".to_owned(),
        transport: Transport::Tcp,
        direction: Direction::Out,
        runner: "gone".to_owned(),
        took_us: Some(900),
        agent: Some("cairn/0.1.0".to_owned()),
        protocols: vec!["/mcp+p2p/1.0.0".to_owned()],
    })
}

fn measured(p50_us: u64, bytes: u64) -> News {
    News::Measured(PeerMeasured {
        window_ms: 60_000,
        latency_p50_us: Some(p50_us),
        latency_p99_us: Some(p50_us * 2),
        samples: 4,
        bytes_in: bytes,
        bytes_out: 0,
        served: 1,
        sent: 0,
        failures: 0,
        connected_ms: 60_000,
    })
}

fn names(kept: &Kept, filter: &Filter) -> Vec<String> {
    let (view, _) = kept.view();
    let (mut names, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let from = cursor.as_deref().map_or(From::Offset(0), From::Cursor);
        let page = view.peers(filter, from, 2).expect("reads").what;
        names.extend(page.rows.into_iter().map(|peer| peer.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            assert_eq!(names.len() as u64, page.total);
            return names;
        }
    }
}

#[test]
fn without_a_network_every_peer_tool_names_the_setting() {
    let dir = temp();
    let server = Server::start(dir.path(), &[]);
    let mut caller = Caller::new(&server);
    for (tool, arguments) in [
        ("peer_discover", json!({})),
        ("peer_connect", json!({"peer_id": PEER})),
        ("peer_disconnect", json!({"peer_id": PEER})),
        ("peer_list", json!({})),
        ("peer_metrics", json!({"peer_id": PEER})),
        ("bootstrap_network", json!({})),
        ("peer_follow", json!({"peer_id": PEER})),
        ("peer_unfollow", json!({"peer_id": PEER})),
    ] {
        let error = caller.refused(tool, arguments, "unavailable");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("p2p.enable")), "{tool}: {error}");
    }
    for (tool, arguments) in [
        ("peer_discover", json!({"max_peers": 0})),
        ("peer_connect", json!({"peer_id": "not a peer"})),
        ("peer_connect", json!({"peer_id": PEER, "retry_count": 11})),
        ("peer_metrics", json!({"peer_id": PEER, "history_hours": 169})),
        ("bootstrap_network", json!({"bootstrap_nodes": ["/ip4/192.0.2.1/tcp/1"]})),
    ] {
        caller.refused(tool, arguments, "invalid_argument");
    }
}

#[test]
fn news_is_recorded_once_and_read_back() {
    let kept = Kept::new();
    assert!(tell(&kept, "pa", found("/a", &["echo", "add"])).is_some());
    assert_eq!(tell(&kept, "pa", found("/a", &["add", "echo"])), None);
    let before = tell(&kept, "pa", connected()).expect("it is news");
    assert_eq!(tell(&kept, "pa", connected()), None);
    tell(&kept, "pa", measured(800, 6_000));
    tell(&kept, "pa", measured(900, 0));
    let (view, _) = kept.view();
    let now = view.peer("pa", None).expect("known").what;
    assert_eq!((now.status, now.counters.served), (Status::Connected, 2));
    assert_eq!(now.measure.and_then(|measure| measure.latency_p99_us), Some(1_800));
    let then = view.peer("pa", Some(before.seq)).expect("known").what;
    assert_eq!((then.status, then.measure), (Status::Connected, None));
    let first = view.peer("pa", Some(before.seq - 1)).expect("known").what;
    assert_eq!(first.status, Status::Disconnected);
    assert!(matches!(view.peer("pb", None), Err(QueryError::NotFound(_))));
    let points = view.peer_history("pa", 0, None).expect("reads");
    assert_eq!(points.iter().map(|point| point.measured.served).sum::<u64>(), 2);
    let every = view.peer("pa", Some(u64::MAX)).expect("known").what;
    assert_eq!(every, now, "the row is the fold of the events");
}

#[test]
fn lists_are_sorted_filtered_and_cut_into_pages() {
    let kept = Kept::new();
    for (peer, capabilities, p50_us, bytes) in [
        ("pa", &["echo"][..], Some(300), 10),
        ("pb", &["echo", "add"], Some(100), 1_000_000),
        ("pc", &[], None, 0),
        ("pd", &["add"], Some(200), 60_000),
        ("pe", &["echo", "add"], None, 0),
    ] {
        tell(&kept, peer, found("/a", capabilities));
        if let Some(p50_us) = p50_us {
            tell(&kept, peer, connected());
            tell(&kept, peer, measured(p50_us, bytes));
        }
    }
    let by = |sort| Filter { sort, ..Filter::default() };
    let able = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    for (filter, expected) in [
        (by(Sort::PeerId), &["pa", "pb", "pc", "pd", "pe"][..]),
        (by(Sort::Latency), &["pb", "pd", "pa", "pc", "pe"]),
        (by(Sort::Bandwidth), &["pb", "pd", "pa", "pc", "pe"]),
        (Filter { status: Some(Status::Connected), ..by(Sort::PeerId) }, &["pa", "pb", "pd"]),
        (Filter { capabilities: able(&["echo"]), ..by(Sort::PeerId) }, &["pa", "pb", "pe"]),
        (Filter { capabilities: able(&["echo", "add"]), ..by(Sort::PeerId) }, &["pb", "pe"]),
        (Filter { among: Some(able(&["pc", "px"])), ..by(Sort::PeerId) }, &["pc"]),
        (Filter { capabilities: able(&["none"]), ..by(Sort::LastSeen) }, &[]),
    ] {
        assert_eq!(names(&kept, &filter), expected, "{filter:?}");
    }
    let (view, _) = kept.view();
    let first = view.peers(&by(Sort::Latency), From::Offset(0), 2).expect("reads").what;
    let cursor = first.next_cursor.expect("there are more");
    let other = view.peers(&by(Sort::PeerId), From::Cursor(&cursor), 2);
    assert!(matches!(other, Err(QueryError::Invalid(_))), "a cursor of another list");
}

#[test]
fn what_was_connected_is_parted_from_at_the_next_start() {
    let kept = Kept::new();
    tell(&kept, "pa", connected());
    let (home, dir) = kept.close();
    let before = record::digests(dir.path());
    record::forget_state(dir.path());
    let (ledger, running) = open(&home);
    drop(ledger);
    running.join();
    let events = record::events(dir.path());
    let last = events.last().expect("there is one");
    assert_eq!(record::kind(last), Kind::PeerDisconnected.as_str());
    assert!(matches!(last.body(), Some(Body::PeerDisconnected(facts)) if facts.cause == Parting::Stopped));
    let about = events.iter().filter(|event| event.fields().subject == "peer/pa");
    let mut about = about.cloned();
    let mut peer = about.next().as_ref().and_then(Peer::begun).expect("its first event");
    about.for_each(|event| peer.apply(&event));
    assert_eq!((peer.status, peer.link), (Status::Disconnected, None));
    let after = record::digests(dir.path());
    assert_ne!(before["peer"], after["peer"]);
    record::forget_state(dir.path());
    let (ledger, running) = open(&home);
    drop(ledger);
    running.join();
    assert_eq!(record::digests(dir.path()), after, "the state derived again is the same");
}

#[test]
fn bootstraps_are_told_whatever_they_came_to() {
    let kept = Kept::new();
    let finished = |ready| {
        News::BootstrapFinished(BootstrapFinished {
            connected: 0,
            failed: 1,
            ready,
            nat: Nat::Unknown,
            took_us: 5,
            attempts: Vec::new(),
        })
    };
    for (id, ready) in [("b1", true), ("b2", false), ("b3", false)] {
        assert!(tell(&kept, id, finished(ready)).is_some());
    }
    let (home, dir) = kept.close();
    drop(home);
    let told =
        record::events(dir.path()).into_iter().filter(|event| event.fields().subject == "bootstrap/b2");
    assert_eq!(told.count(), 1);
}
