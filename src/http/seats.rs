//! Seats: the places for connections, and who gives one up when there are too few.
//!
//! Invariants:
//! - a newcomer is let in as long as somebody else can go: of those whose callers are not known, whose last sign of life
//!   is oldest, from the newcomer's own address where that has too many;
//! - callers not known, and addresses that are not loopback, never have all the seats;
//! - a connection whose request is being answered for a known caller is never closed to make room.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// How long the first byte of a connection may take.
const FIRST_MAX: Duration = Duration::from_secs(10);
/// How long the head of a request may take, from its first byte on.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Of so many seats one is given up at once.
const SHARE: usize = 64;
/// How long a connection may be idle between requests.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The seats of one listener.
pub(super) struct Seats {
    bounds: Bounds,
    began: Instant,
    taken: Mutex<Taken>,
}

/// How many seats there are, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub all: usize,
    /// Seats of callers that are not known.
    unknown: usize,
    /// Seats of callers that are not known and come from other machines.
    remote: usize,
    /// The same, from one address; IPv6 addresses count by their network of 64 bits.
    block: usize,
}

#[derive(Default)]
struct Taken {
    next: u64,
    seats: BTreeMap<u64, Arc<Seat>>,
}

/// One connection's seat.
pub(super) struct Seat {
    pub address: IpAddr,
    block: IpAddr,
    loopback: bool,
    began: Instant,
    /// Whether the last request was of a caller that may call.
    known: AtomicBool,
    phase: AtomicU8,
    /// When the phase began, in milliseconds since the listener did.
    since_ms: AtomicU64,
    /// Cancelled when the seat is to be given up.
    leaving: CancellationToken,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Nothing has come yet.
    Opening = 0,
    /// A request's head is arriving.
    Head = 1,
    /// A request is being answered.
    Asked = 2,
    /// The next request is waited for.
    Idle = 3,
}

/// A seat that is given up when this is dropped.
pub(super) struct Held {
    pub seat: Arc<Seat>,
    number: u64,
    seats: Arc<Seats>,
}

impl Bounds {
    /// Divides so many seats: at least a quarter is for known callers, a quarter for this machine, and an address
    /// that is not this machine's has an eighth of them at most.
    pub fn of(all: usize) -> Self {
        let all = all.max(8);
        Self { all, unknown: all - all / 4, remote: all / 2, block: (all / 8).clamp(4, 256) }
    }
}

/// Seats with when their last sign of life was and their numbers.
type Few<'a> = Vec<((u64, u64), &'a Seat)>;

/// The seats that are taken, as a newcomer finds them.
#[derive(Default)]
struct Crowd<'a> {
    /// Those of callers that are not known.
    unknown: Few<'a>,
    /// Those of them that are not this machine's.
    remote: Few<'a>,
    /// Those of them that are of the newcomer's address.
    block: Few<'a>,
    /// Connections of known callers with no request.
    idle: Few<'a>,
    all: usize,
}

impl Seats {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, began: Instant::now(), taken: Mutex::default() }
    }

    /// Gives a newcomer a seat. Returns it, and how many others were asked to give theirs up; `None` if nobody could.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<(Held, usize)> {
        let seat = Arc::new(Seat::new(address, self.began));
        let mut taken = self.taken();
        let left = self.make_room(&taken, &seat)?;
        let number = taken.next;
        taken.next += 1;
        taken.seats.insert(number, Arc::clone(&seat));
        Some((Held { seat, number, seats: Arc::clone(self) }, left))
    }

    /// Asks the least useful connection to leave. Returns whether there was one.
    pub fn shed(&self) -> bool {
        let taken = self.taken();
        let crowd = Crowd::of(&taken, None);
        leave(crowd.unknown, 1) > 0 || leave(crowd.idle, 1) > 0
    }

    /// Returns how many seats are taken.
    pub fn number(&self) -> usize {
        self.taken().seats.len()
    }

    /// Sees to it that there is a seat for a newcomer. Returns how many others have to leave; `None` if nobody could.
    fn make_room(&self, taken: &Taken, newcomer: &Seat) -> Option<usize> {
        let bounds = &self.bounds;
        let free = if newcomer.loopback { bounds.unknown } else { bounds.block };
        // While all the seats together keep the smallest bound, nobody has to be counted.
        if taken.seats.len() < free {
            return Some(0);
        }
        let crowd = Crowd::of(taken, Some(newcomer));
        let left = if !newcomer.loopback && crowd.block.len() >= bounds.block {
            leave(crowd.block, bounds.block)
        } else if !newcomer.loopback && crowd.remote.len() >= bounds.remote {
            leave(crowd.remote, bounds.remote)
        } else if crowd.unknown.len() >= bounds.unknown || crowd.all >= bounds.all {
            match leave(crowd.unknown, bounds.unknown) {
                0 => leave(crowd.idle, bounds.all),
                left => left,
            }
        } else {
            return Some(0);
        };
        (left > 0).then_some(left)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Crowd<'a> {
    fn of(taken: &'a Taken, newcomer: Option<&Seat>) -> Self {
        let mut crowd = Self::default();
        for (number, seat) in taken.seats.iter().filter(|(_, seat)| !seat.leaving.is_cancelled()) {
            let one = ((seat.since_ms.load(Ordering::Relaxed), *number), &**seat);
            crowd.all += 1;
            if seat.known.load(Ordering::Relaxed) {
                if seat.phase() == Phase::Idle {
                    crowd.idle.push(one);
                }
                continue;
            }
            crowd.unknown.push(one);
            if !seat.loopback {
                crowd.remote.push(one);
            }
            if newcomer.is_some_and(|newcomer| newcomer.block == seat.block) {
                crowd.block.push(one);
            }
        }
        crowd
    }
}

/// Asks those of a few to leave whose last sign of life is oldest: one, or one of [`SHARE`] seats that they may have, so
/// that a flood is not counted anew for each newcomer. Returns how many.
fn leave(mut few: Few<'_>, most: usize) -> usize {
    let leaving = (most / SHARE).max(1).min(few.len());
    let Some(last) = leaving.checked_sub(1) else { return 0 };
    few.select_nth_unstable_by_key(last, |(since, _)| *since);
    few.iter().take(leaving).for_each(|(_, seat)| seat.leaving.cancel());
    leaving
}

impl Seat {
    fn new(address: IpAddr, began: Instant) -> Self {
        let address = address.to_canonical();
        let seat = Self {
            address,
            block: block(address),
            loopback: address.is_loopback(),
            began,
            known: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Opening as u8),
            since_ms: AtomicU64::new(0),
            leaving: CancellationToken::new(),
        };
        seat.turn(Phase::Opening);
        seat
    }

    /// Says that bytes of a request have come.
    pub fn heard(&self) {
        if matches!(self.phase(), Phase::Opening | Phase::Idle) {
            self.turn(Phase::Head);
        }
    }

    /// Says that the head of a request has come.
    pub fn asked(&self) {
        self.turn(Phase::Asked);
    }

    /// Says that the request is answered.
    pub fn answered(&self) {
        self.turn(Phase::Idle);
    }

    /// Says whether the request was of a caller that may call.
    pub fn knows(&self, known: bool) {
        self.known.store(known, Ordering::Relaxed);
    }

    /// Returns whether what is waited for is late.
    pub fn is_late(&self) -> bool {
        let most = match self.phase() {
            Phase::Opening => FIRST_MAX,
            Phase::Head => HEAD_MAX,
            Phase::Idle => IDLE_MAX,
            Phase::Asked => return false,
        };
        let since = Duration::from_millis(self.since_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(since) >= most
    }

    /// Waits until the seat is to be given up.
    pub async fn left(&self) {
        self.leaving.cancelled().await;
    }

    fn turn(&self, phase: Phase) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since_ms.store(since, Ordering::Relaxed);
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Opening,
            1 => Phase::Head,
            2 => Phase::Asked,
            _ => Phase::Idle,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.seats.taken().seats.remove(&self.number);
    }
}

/// Returns what an address is counted by: an IPv6 address by its network of 64 bits, which one host has to itself.
fn block(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn seats(all: usize) -> Arc<Seats> {
        Arc::new(Seats::new(Bounds::of(all)))
    }

    /// Seats so many; returns those that were not asked to leave.
    fn fill(seats: &Arc<Seats>, number: usize, from: impl Fn(usize) -> String) -> Vec<Held> {
        let mut held: Vec<Held> =
            (0..number).filter_map(|n| seats.take(address(&from(n)))).map(|(held, _)| held).collect();
        held.retain(|held| !held.seat.leaving.is_cancelled());
        held
    }

    #[test]
    fn one_address_has_a_part_of_the_seats_and_a_network_of_64_bits_is_one() {
        let seats = seats(64);
        assert_eq!(fill(&seats, 100, |_| "192.0.2.1".to_owned()).len(), 8);
        assert_eq!(fill(&seats, 100, |n| format!("2001:db8::{n}")).len(), 8);
        assert_eq!(fill(&seats, 100, |_| "::ffff:192.0.2.9".to_owned()).len(), 8);
        assert_eq!(seats.number(), 0);
    }

    #[test]
    fn many_addresses_leave_room_for_this_machine_and_for_those_who_are_known() {
        let seats = seats(64);
        let remote = fill(&seats, 500, |n| format!("198.51.{}.{}", n / 250, n % 250));
        assert_eq!(remote.len(), 32);
        let local = fill(&seats, 16, |_| "127.0.0.1".to_owned());
        assert_eq!(local.len(), 16);
        assert!(remote.iter().all(|held| !held.seat.leaving.is_cancelled()), "there was room");
        local.iter().for_each(|held| held.seat.knows(true));
        let more = fill(&seats, 100, |_| "::1".to_owned());
        assert!(local.iter().all(|held| !held.seat.leaving.is_cancelled()), "who is known stays");
        assert!(!more.is_empty());
    }

    #[test]
    fn who_is_known_stays_while_this_machine_floods_itself() {
        let seats = seats(64);
        let (kept, _) = seats.take(address("127.0.0.1")).expect("a seat");
        kept.seat.asked();
        kept.seat.knows(true);
        kept.seat.answered();
        let flood = fill(&seats, 5000, |_| "127.0.0.1".to_owned());
        assert_eq!(flood.len(), 48);
        assert!(!kept.seat.leaving.is_cancelled());
        let (last, left) = seats.take(address("127.0.0.1")).expect("a seat");
        assert!(left == 1 && !last.seat.leaving.is_cancelled());
    }

    #[test]
    fn those_that_are_answered_stay_and_idle_ones_make_room() {
        let seats = seats(8);
        let all = fill(&seats, 6, |_| "127.0.0.1".to_owned());
        for held in &all {
            held.seat.asked();
            held.seat.knows(true);
        }
        let more = fill(&seats, 2, |_| "127.0.0.1".to_owned());
        for held in &more {
            held.seat.asked();
            held.seat.knows(true);
        }
        assert!(seats.take(address("127.0.0.1")).is_none(), "everybody is busy");
        all[3].seat.answered();
        assert!(seats.take(address("127.0.0.1")).is_some());
        assert!(all[3].seat.leaving.is_cancelled());
    }
}
