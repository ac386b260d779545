//! Relays: nodes of the configuration that carry connections to this one while nobody can reach it directly.
//!
//! Invariants:
//! - only relays that the configuration names are asked, and only while this node has no public address of its own;
//! - a place that is lost is asked for again, at growing pauses, for as long as its relay is connected.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{PeerId, core::transport::ListenerId};

use crate::p2p::limits;

/// What relays are spoken to in.
pub const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";

/// The places at relays that this node has, or has asked for.
pub struct Relays {
    named: HashSet<PeerId>,
    places: HashMap<PeerId, Place>,
}

/// A place at one relay.
struct Place {
    listener: Option<ListenerId>,
    /// When it is asked for again, and the pause after that.
    next: Instant,
    pause: Duration,
}

impl Relays {
    pub fn new(named: HashSet<PeerId>) -> Self {
        Self { named, places: HashMap::new() }
    }

    /// Whether a place at this relay is to be asked for now.
    pub fn wants(&self, relay: &PeerId, now: Instant) -> bool {
        let place = self.places.get(relay);
        self.named.contains(relay) && place.is_none_or(|place| place.listener.is_none() && place.next <= now)
    }

    /// A place has been asked for; none where that could not even be tried.
    pub fn asked(&mut self, relay: PeerId, listener: Option<ListenerId>, now: Instant) {
        let first = Place { listener: None, next: now, pause: limits::RESERVE_FIRST };
        let place = self.places.entry(relay).or_insert(first);
        place.listener = listener;
        place.next = now + place.pause;
        place.pause = limits::RESERVE_MAX.min(place.pause * 2);
    }

    /// A listener has an address: where it is a place, the relay has given it.
    pub fn given(&mut self, listener: ListenerId) {
        if let Some(place) = self.of(listener) {
            place.pause = limits::RESERVE_FIRST;
        }
    }

    /// A listener has ended. True where it was a place at a relay.
    pub fn lost(&mut self, listener: ListenerId, now: Instant) -> bool {
        let Some(place) = self.of(listener) else {
            return false;
        };
        place.listener = None;
        place.next = place.next.max(now);
        true
    }

    fn of(&mut self, listener: ListenerId) -> Option<&mut Place> {
        self.places.values_mut().find(|place| place.listener == Some(listener))
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
            relays.asked(relay, Some(listener), at);
            assert!(!relays.wants(&relay, at + limits::RESERVE_MAX), "it is under way");
            assert!(relays.lost(listener, at) && !relays.lost(listener, at));
            let pause = limits::RESERVE_FIRST * 2_u32.pow(round);
            assert!(!relays.wants(&relay, at), "not at once");
            at += pause;
            assert!(relays.wants(&relay, at), "round {round}");
        }
        let listener = ListenerId::next();
        relays.asked(relay, Some(listener), at);
        relays.given(listener);
        relays.lost(listener, at + limits::RESERVE_MAX);
        assert!(relays.wants(&relay, at + limits::RESERVE_MAX), "one that was given is asked for at once");
    }
}
