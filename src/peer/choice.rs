//! Choosing a peer for a call: the one that will most likely answer soonest, and now and then one that nobody knows yet.
//!
//! Invariants:
//! - who is not connected or is in quarantine is never chosen;
//! - the same candidates, time and random number give the same choice, which says why.
//!
//! A call at a peer will cost `(its calls in flight + 1) * time of a call + latency`, and is worth that over the lower
//! bound of its success: the candidates are ranked by it. One of the best tenth, two at least, is taken at random, so
//! that nodes which see the same do not all run to one peer. Of twenty choices one goes to a peer with few samples.

use crate::peer::score::{ONE, Score};

/// Samples below which a peer is not known well.
const KNOWN_SAMPLES: u64 = 20;
/// Choices of which one goes to a peer that is not known well.
const EXPLORED_ONE_IN: u64 = 20;
/// The best that are drawn from: a tenth of all, and at least these.
const BEST_MIN: usize = 2;
const BEST_ONE_IN: usize = 10;
/// What a call takes where nobody has taken one.
const CALL_US: u64 = 10_000;

/// A peer that serves what is called.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub peer: &'a str,
    pub connected: bool,
    pub quarantined: bool,
    pub success: Score,
    /// The mean time of its answers.
    pub call_us: Option<u64>,
    pub latency_us: Option<u64>,
    /// This node's calls that it has not answered yet.
    pub in_flight: u64,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The chosen one, then the others as they rank: whom to try next.
    pub order: Vec<String>,
    /// Why the first of them.
    pub rule: String,
}

/// The peer for a call; none where nobody may be asked. `random` is any number, each as likely as another.
pub fn choose(candidates: &[Candidate<'_>], now_ms: u64, random: u64) -> Option<Choice> {
    let usual_us = usual_us(candidates);
    let feasible = candidates.iter().filter(|candidate| candidate.connected && !candidate.quarantined);
    let mut ranked: Vec<Ranked<'_>> =
        feasible.map(|candidate| Ranked::of(candidate, usual_us, now_ms)).collect();
    ranked.sort_unstable_by_key(|ranked| (ranked.worth, ranked.peer));
    // Two independent numbers: whether to explore, and whom to draw.
    let (explore, draw) = (random & u64::from(u32::MAX), (random >> 32) as usize);
    let unknown: Vec<usize> =
        (0..ranked.len()).filter(|at| ranked[*at].samples < KNOWN_SAMPLES * ONE).collect();
    let explores = explore % EXPLORED_ONE_IN == 0 && !unknown.is_empty() && unknown.len() < ranked.len();
    let best = ranked.len().div_ceil(BEST_ONE_IN).max(BEST_MIN).min(ranked.len());
    let chosen = match explores {
        true => unknown[draw % unknown.len()],
        false => draw.checked_rem(best)?,
    };
    let of = ranked.len();
    let chosen = ranked.remove(chosen);
    let Ranked { cost_us, bound, samples, .. } = chosen;
    let rule = match explores {
        true => format!("explored: {} of {KNOWN_SAMPLES} samples", samples / ONE),
        false => format!("best {best} of {of}: at least {} % in {cost_us} us", bound * 100 / ONE),
    };
    let order = [chosen].iter().chain(&ranked).map(|ranked| ranked.peer.to_owned()).collect();
    Some(Choice { order, rule })
}

struct Ranked<'a> {
    peer: &'a str,
    /// The cost over the lower bound: less is better.
    worth: u128,
    cost_us: u64,
    bound: u64,
    samples: u64,
}

impl<'a> Ranked<'a> {
    fn of(candidate: &Candidate<'a>, usual_us: u64, now_ms: u64) -> Self {
        let success = candidate.success.at(now_ms);
        let call_us = candidate.call_us.unwrap_or(usual_us).max(1);
        let waits_us = call_us.saturating_mul(candidate.in_flight.saturating_add(1));
        let cost_us = waits_us.saturating_add(candidate.latency_us.unwrap_or(0));
        // One in a million is as good as never, and divides.
        let bound = success.lower_bound().max(1);
        let worth = u128::from(cost_us) * u128::from(ONE) / u128::from(bound);
        Self { peer: candidate.peer, worth, cost_us, bound, samples: success.samples() }
    }
}

/// What a call takes at those that have taken one.
fn usual_us(candidates: &[Candidate<'_>]) -> u64 {
    let known: Vec<u64> = candidates.iter().filter_map(|candidate| candidate.call_us).collect();
    let sum: u128 = known.iter().map(|us| u128::from(*us)).sum();
    sum.checked_div(known.len() as u128).map_or(CALL_US, |mean| u64::try_from(mean).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
