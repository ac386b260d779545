//! What peers may not do to the table, and what an address may claim.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol, SwarmBuilder,
    futures::StreamExt as _,
    identity::Keypair,
    kad::{
        self, ProviderRecord, RecordKey,
        store::{MemoryStore, RecordStore as _},
    },
    noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::time;

use super::{addresses, records::Records, table};
use crate::{
    block::{Cid, Codec},
    p2p::{NetError, Settings, limits, local_peer, start},
};

/// Longer than anything here takes; only a fault makes a test wait so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A peer that speaks the table's protocol under its own name and under another's.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Impostor {
    false_name: kad::Behaviour<MemoryStore>,
    own_name: kad::Behaviour<MemoryStore>,
}

#[tokio::test]
async fn a_record_in_the_name_of_another_is_not_kept() {
    let (node, _inbound) = start(Settings::new([1; 32])).expect("started");
    let addrs = node.listening(PATIENCE).await.expect("listens");
    let victim = addresses::keypair(&[2; 32]).public().to_peer_id();
    let table = |name: PeerId| {
        let config = kad::Config::new(StreamProtocol::new(limits::DHT_PROTOCOL));
        kad::Behaviour::with_config(name, MemoryStore::new(name), config)
    };
    let mut impostor = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("builds")
        .with_behaviour(|key| Impostor {
            false_name: table(victim),
            own_name: table(key.public().to_peer_id()),
        })
        .expect("builds")
        .build();
    let own = impostor.local_peer_id().to_base58();
    let target = addresses::peer(&node.local()).expect("an id");
    let address = addresses::address_of(&target, &addrs[0]).expect("an address");
    impostor.behaviour_mut().false_name.add_address(&target, address.clone());
    impostor.behaviour_mut().own_name.add_address(&target, address);
    let cid = Cid::of(Codec::Raw, b"contract");
    impostor.behaviour_mut().false_name.start_providing(table::key(&cid)).expect("fits");

    let seen = async {
        loop {
            tokio::select! {
                event = impostor.select_next_some() => {
                    // Once the false record is out, the true one goes the same way behind it.
                    if let SwarmEvent::Behaviour(ImpostorEvent::FalseName(kad::Event::OutboundQueryProgressed {
                        result: kad::QueryResult::StartProviding(told), ..
                    })) = event {
                        told.expect("told");
                        impostor.behaviour_mut().own_name.start_providing(table::key(&cid)).expect("fits");
                    }
                }
                found = node.providers(cid, PATIENCE) => {
                    let found = found.expect("asked");
                    if !found.is_empty() {
                        return found;
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    let found = time::timeout(PATIENCE, seen).await.expect("the true record arrives");
    assert_eq!(found.into_iter().map(|found| found.peer).collect::<Vec<_>>(), [own]);
    node.stop().await;
}

#[test]
fn no_peer_fills_the_table() {
    let local = peer(1);
    let refused = Arc::new(AtomicU64::new(0));
    let mut records = Records::new(local, Arc::clone(&refused));
    let record = |name: usize, provider| ProviderRecord {
        key: RecordKey::new(&name.to_be_bytes()),
        provider,
        expires: Some(Instant::now() + Duration::from_secs(60)),
        addresses: vec![Multiaddr::empty(); 100],
    };
    let greedy = peer(2);
    let kept =
        (0..2 * limits::RECORDS_PER_PEER_MAX).filter(|n| records.add_provider(record(*n, greedy)).is_ok());
    assert_eq!(kept.count(), limits::RECORDS_PER_PEER_MAX);
    assert_eq!(refused.load(std::sync::atomic::Ordering::Relaxed), limits::RECORDS_PER_PEER_MAX as u64);
    // Told again is no second record, and another peer has its own share.
    records.add_provider(record(0, greedy)).expect("known");
    records.add_provider(record(0, peer(3))).expect("room for others");
    records.add_provider(record(usize::MAX, local)).expect("room for own");
    let of_zero = records.providers(&RecordKey::new(&0_usize.to_be_bytes()));
    assert_eq!(of_zero.len(), 2);
    assert!(of_zero.iter().all(|record| record.addresses.len() == limits::ADDRESSES_PER_PEER_MAX));
    records.expire(Instant::now() + Duration::from_secs(61));
    assert!(records.providers(&RecordKey::new(&0_usize.to_be_bytes())).is_empty());
    assert_eq!(records.provided().count(), 1);
    records.add_provider(record(7, greedy)).expect("the share is free again");
}

#[test]
fn a_claimed_address_counts_where_it_can_be_true() {
    let cases = [
        ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/9", true),
        ("/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/9", true),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/9", false),
        ("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/9", false),
        ("/ip4/100.64.0.1/tcp/1", "/ip4/8.8.8.8/tcp/9", false),
        ("/ip6/fe80::1/tcp/1", "/ip6/2606:4700::1/tcp/9", false),
        ("/ip6/::ffff:10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/9", false),
        ("/dns/example.org/tcp/1", "/ip4/8.8.8.8/tcp/9", true),
        ("/ip4/8.8.4.4/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/9", true),
        ("/ip4/0.0.0.0/tcp/1", "/ip4/127.0.0.1/tcp/9", false),
        ("/ip4/8.8.8.8/tcp/0", "/ip4/127.0.0.1/tcp/9", false),
    ];
    for (claimed, over, counts) in cases {
        let parse = |text: &str| text.parse::<Multiaddr>().expect("an address");
        assert_eq!(addresses::plausible(&parse(claimed), &parse(over)), counts, "{claimed} over {over}");
    }
}

#[test]
fn a_place_is_seen_from_outside_where_it_listens_to_more_than_its_own_host() {
    for (own, ip, seen) in [
        ("/ip4/192.168.1.2/tcp/7", "45.10.1.2", Some("/ip4/45.10.1.2/tcp/7")),
        ("/ip4/192.168.1.2/udp/7/quic-v1", "45.10.1.2", Some("/ip4/45.10.1.2/udp/7/quic-v1")),
        ("/ip6/fd00::1/tcp/7", "2606:4700::1", Some("/ip6/2606:4700::1/tcp/7")),
        ("/ip4/127.0.0.1/tcp/7", "45.10.1.2", None),
        ("/ip4/192.168.1.2/tcp/7", "2606:4700::1", None),
        ("/ip4/192.168.1.2/tcp/7", "10.0.0.1", None),
    ] {
        let own = own.parse().expect("an address");
        let told = addresses::seen(&own, ip.parse().expect("an address"));
        assert_eq!(told.map(|told| told.to_string()).as_deref(), seen, "{own} from {ip}");
    }
}

#[test]
fn public_is_what_is_global_and_one_place() {
    for (ip, public) in [
        ("/ip4/8.8.8.8", true),
        ("/ip4/100.63.0.1", true),
        ("/ip4/100.64.0.1", false),
        ("/ip4/127.0.0.1", false),
        ("/ip4/0.0.0.0", false),
        ("/ip4/0.1.2.3", false),
        ("/ip4/10.1.2.3", false),
        ("/ip4/172.16.0.1", false),
        ("/ip4/192.168.0.1", false),
        ("/ip4/169.254.1.1", false),
        ("/ip4/192.0.0.8", false),
        ("/ip4/192.0.2.1", false),
        ("/ip4/198.18.0.1", false),
        ("/ip4/198.51.100.1", false),
        ("/ip4/203.0.113.1", false),
        ("/ip4/224.0.0.1", false),
        ("/ip4/240.0.0.1", false),
        ("/ip4/255.255.255.255", false),
        ("/ip6/2606:4700::1111", true),
        ("/ip6/::ffff:8.8.8.8", true),
        ("/ip6/::ffff:10.0.0.1", false),
        ("/ip6/::1", false),
        ("/ip6/::", false),
        ("/ip6/fe80::1", false),
        ("/ip6/fd00::1", false),
        ("/ip6/ff02::1", false),
        ("/ip6/64:ff9b:1::1", false),
        ("/ip6/100::1", false),
        ("/ip6/2001:2::1", false),
        ("/ip6/2001:db8::1", false),
        ("/ip6/3fff::1", false),
        ("/dns/example.org", true),
    ] {
        let address = format!("{ip}/tcp/1").parse().expect("an address");
        assert_eq!(addresses::reach(&address) == addresses::Reach::Public, public, "{ip}");
    }
}

#[test]
fn addresses_are_of_the_transports_that_are_spoken() {
    let id = peer(1);
    for (text, listens, dials) in [
        ("/ip4/0.0.0.0/tcp/1", true, true),
        ("/ip6/::1/udp/1/quic-v1", true, true),
        ("/dns4/example.org/tcp/1", false, true),
        ("/dns/example.org/udp/1/quic-v1", false, true),
        ("/dnsaddr/example.org", false, true),
        (&format!("/ip4/127.0.0.1/tcp/1/p2p/{id}"), false, true),
        (&format!("/ip4/127.0.0.1/tcp/1/p2p/{id}/p2p-circuit"), false, true),
        (&format!("/ip4/127.0.0.1/tcp/1/p2p/{id}/p2p-circuit/p2p/{id}"), false, true),
        ("/ip4/127.0.0.1", false, false),
        ("/ip4/127.0.0.1/udp/1", false, false),
        ("/ip4/127.0.0.1/tcp/1/ws", false, false),
        ("/ip4/127.0.0.1/tcp/1/p2p-circuit", false, false),
        ("/memory/1", false, false),
        (&format!("/p2p/{id}"), false, false),
        ("nonsense", false, false),
    ] {
        assert_eq!(addresses::to_listen(text).is_ok(), listens, "{text}");
        assert_eq!(addresses::to_dial(text).is_ok(), dials, "{text}");
    }
}

#[test]
fn an_address_names_its_peer_or_none() {
    let (one, two) = (peer(1), peer(2));
    let place = "/ip4/127.0.0.1/tcp/1";
    for text in [place.to_owned(), format!("{place}/p2p/{one}")] {
        assert_eq!(
            addresses::address_of(&one, &text).map(|address| address.to_string()),
            Ok(place.to_owned())
        );
    }
    let through = format!("{place}/p2p/{two}/p2p-circuit");
    for text in [through.clone(), format!("{through}/p2p/{one}")] {
        assert_eq!(
            addresses::address_of(&one, &text).map(|address| address.to_string()),
            Ok(through.clone())
        );
    }
    for text in [format!("{place}/p2p/{two}"), format!("/p2p/{one}"), "nonsense".to_owned()] {
        assert!(matches!(addresses::address_of(&one, &text), Err(NetError::BadAddress { .. })), "{text}");
    }
}

#[test]
fn the_identity_is_derived_and_is_not_the_signing_key() {
    let seed = [7; 32];
    let signing = Keypair::ed25519_from_bytes(seed).expect("a seed").public().to_peer_id();
    assert_ne!(local_peer(&seed), signing.to_base58());
    assert_eq!(local_peer(&seed), "12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6");
}

fn peer(seed: u8) -> PeerId {
    addresses::keypair(&[seed; 32]).public().to_peer_id()
}
