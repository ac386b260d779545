//! Addresses and ids that the network would not take, and what is said of each.
//!
//! Invariant: a fault names the key, and the place in its list.

use super::each_has_its_fault;

#[test]
fn an_address_or_id_that_cannot_be_used_is_named() {
    each_has_its_fault(&[
        ("p2p.listen = [\"127.0.0.1\"]", "line 1: p2p.listen[0]: expected /ip4 or /ip6 with /tcp"),
        ("p2p.listen = [\"/memory/1\"]", "p2p.listen[0]: expected /ip4"),
        ("p2p.listen = [\"/dns4/localhost/tcp/1\"]", "p2p.listen[0]: expected /ip4"),
        ("p2p.listen = [\"/ip4/127.0.0.1\"]", "p2p.listen[0]: expected /ip4"),
        ("p2p.listen = [\"/ip4/127.0.0.1/tcp/1/ws\"]", "p2p.listen[0]: expected /ip4"),
        ("p2p.listen = [\"/ip4/127.0.0.1/udp/1\"]", "p2p.listen[0]: expected /ip4"),
        ("p2p.announce_addrs = [\"/dns4/x.org/tcp/1/wss\"]", "p2p.announce_addrs[0]: expected a multiaddr"),
        ("[p2p]\n[[p2p.peers]]\naddrs = []", "line 2: p2p.peers[0].id: expected a peer id"),
        ("[[p2p.peers]]\nid = \"x\"", "p2p.peers[0].id: expected a peer id"),
    ]);
}
