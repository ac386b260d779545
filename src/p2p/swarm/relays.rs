//! Relays: nodes of the configuration that carry connections to this one while nobody can reach it directly.
//!
//! Invariants:
//! - only relays that the configuration names are asked, and only while this node has no public address of its own;
//! - a place that is lost is asked for again at growing pauses, and its relay dialled for that where it is gone.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId};

use crate::p2p::limits;

/// The protocol that relays speak.
pub const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// The reservations at relays that this node has, or has asked for.
pub struct Relays {
    named: HashSet<PeerId>,
    places: HashMap<PeerId, Reservation>,
}

/// A reservation ("place") at one relay.
struct Reservation {
    /// Where the relay was when it was asked.
    at: Multiaddr,
    listener: Option<ListenerId>,
    /// When it is asked for again or its relay is dialled; `pause` follows that try.
    next: Instant,
    pause: Duration,
}

impl Relays {
    pub fn new(named: HashSet<PeerId>) -> Self {
        Self { named, places: HashMap::new() }
    }

    /// Returns whether to ask this relay for a reservation now.
    pub fn wants(&self, relay: &PeerId, now: Instant) -> bool {
        let place = self.places.get(relay);
        self.named.contains(relay) && place.is_none_or(|place| place.listener.is_none() && place.next <= now)
    }

    /// Notes that a reservation was asked for; `listener` is `None` if the request could not be sent.
    pub fn asked(&mut self, relay: PeerId, at: Multiaddr, listener: Option<ListenerId>, now: Instant) {
        let first = Reservation { at: at.clone(), listener: None, next: now, pause: limits::RESERVE_FIRST };
        let place = self.places.entry(relay).or_insert(first);
        place.at = at;
        place.listener = listener;
        place.wait(now);
    }

    /// Returns the relays to dial now: the reservation is lost and the relay is not connected.
    pub fn missed(&mut self, gone: impl Fn(&PeerId) -> bool, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let lost = |(relay, place): &(&PeerId, &mut Reservation)| {
            place.listener.is_none() && place.next <= now && gone(relay)
        };
        let missed = self.places.iter_mut().filter(lost).map(|(relay, place)| {
            place.wait(now);
            (*relay, place.at.clone())
        });
        missed.collect()
    }

    /// Notes that a peer is connected. If it is a relay with a lost reservation, that is asked for at once.
    pub fn returned(&mut self, relay: &PeerId, now: Instant) {
        if let Some(place) = self.places.get_mut(relay) {
            place.next = now;
        }
    }

    /// Notes that a listener has an address. If it is a reservation's, the relay has granted it.
    pub fn given(&mut self, listener: ListenerId) {
        if let Some(place) = self.of(listener) {
            place.pause = limits::RESERVE_FIRST;
        }
    }

    /// Notes that a listener has ended. Returns whether it was a reservation's.
    pub fn lost(&mut self, listener: ListenerId, now: Instant) -> bool {
        let Some(place) = self.of(listener) else {
            return false;
        };
        place.listener = None;
        place.next = place.next.max(now);
        true
    }

    fn of(&mut self, listener: ListenerId) -> Option<&mut Reservation> {
        self.places.values_mut().find(|place| place.listener == Some(listener))
    }
}

impl Reservation {
    /// Schedules the next try, and doubles the pause.
    fn wait(&mut self, now: Instant) {
        self.next = now + self.pause;
        self.pause = limits::RESERVE_MAX.min(self.pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_place_is_asked_for_at_growing_pauses() {
        let (relay, stranger, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut relays = Relays::new([relay].into());
        assert!(relays.wants(&relay, now) && !relays.wants(&stranger, now));
        let mut at = now;
        for round in 0..3 {
            let listener = ListenerId::next();
            relays.asked(relay, Multiaddr::empty(), Some(listener), at);
            assert!(!relays.wants(&relay, at + limits::RESERVE_MAX), "it is under way");
            assert!(relays.lost(listener, at) && !relays.lost(listener, at));
            let pause = limits::RESERVE_FIRST * 2_u32.pow(round);
            assert!(!relays.wants(&relay, at), "not at once");
            at += pause;
            assert!(relays.wants(&relay, at), "round {round}");
        }
        let listener = ListenerId::next();
        relays.asked(relay, Multiaddr::empty(), Some(listener), at);
        relays.given(listener);
        relays.lost(listener, at + limits::RESERVE_MAX);
        assert!(relays.wants(&relay, at + limits::RESERVE_MAX), "one that was given is asked for at once");
    }

    #[test]
    fn a_relay_that_is_gone_is_dialled_at_growing_pauses_and_asked_when_it_is_back() {
        let (relay, now) = (PeerId::random(), Instant::now());
        let at: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().expect("an address");
        let mut relays = Relays::new([relay].into());
        let listener = ListenerId::next();
        relays.asked(relay, at.clone(), Some(listener), now);
        relays.given(listener);
        assert!(relays.missed(|_| true, now + limits::RESERVE_MAX).is_empty(), "the place stands");
        let mut then = now + limits::RESERVE_MAX;
        relays.lost(listener, then);
        assert!(relays.missed(|_| false, then).is_empty(), "it is connected");
        for round in 0..3 {
            assert_eq!(relays.missed(|_| true, then), [(relay, at.clone())], "round {round}");
            assert!(relays.missed(|_| true, then).is_empty(), "not at once");
            then += limits::RESERVE_FIRST * 2_u32.pow(round);
        }
        let soon = then - limits::RESERVE_FIRST;
        assert!(!relays.wants(&relay, soon));
        relays.returned(&relay, soon);
        assert!(relays.wants(&relay, soon));
    }
}
