//! Quotas: how much one caller may ask of us over streams, however many of those it opens.
//!
//! Invariants:
//! - a place is held from a request's arrival until nothing works on it any more;
//! - what is over a quota is refused at once, with the time after which it is worth asking again.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::{
    frames::FRAME_MAX,
    metrics::{Metrics, peers::Request},
    router::{RpcError, codes::RATE_LIMITED},
};

/// The `retry_after_ms` of too many requests at once. It is a guess: nobody knows when one of them ends.
const RETRY: Duration = Duration::from_millis(100);
/// Callers remembered; beyond this, those without a stream are forgotten.
const CALLERS_MAX: usize = 1_024;

/// The bounds of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests under way at once.
    pub in_flight: usize,
    pub requests_per_second: u32,
    /// How long a stream may say nothing while nothing is under way on it.
    pub idle: Duration,
    /// How long one request may take.
    pub request_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            in_flight: 256,
            requests_per_second: 10_000,
            idle: Duration::from_secs(300),
            request_timeout: Duration::from_secs(60),
        }
    }
}

impl Bounds {
    /// Returns the part that a caller is told in the handshake.
    pub fn told(&self) -> Value {
        json!({
            "max_frame_bytes": FRAME_MAX,
            "in_flight": self.in_flight,
            "requests_per_second": self.requests_per_second,
        })
    }
}

/// The quotas of every caller. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    pub bounds: Bounds,
    /// The metrics that count requests, if any.
    pub metrics: Option<Arc<Metrics>>,
    /// Whether the callers of new streams have an entry in the configuration.
    pub known: bool,
    callers: Arc<Mutex<HashMap<String, Arc<Quotum>>>>,
}

/// The quota of one caller.
#[derive(Debug)]
struct Quotum {
    rate: DefaultDirectRateLimiter,
    places: Arc<Semaphore>,
    /// Requests that were given a place.
    taken: AtomicU64,
}

/// One stream, counted for its caller.
pub struct Counted {
    bounds: Bounds,
    metrics: Option<Arc<Metrics>>,
    known: bool,
    own: Arc<Quotum>,
    activity: Arc<Mutex<Activity>>,
}

struct Activity {
    under_way: usize,
    last: Instant,
}

/// The right to have one request under way. Dropping it returns the right and counts the request's outcome.
pub struct RequestPermit {
    activity: Arc<Mutex<Activity>>,
    /// The metrics that count it, its method, and whether its caller is known.
    counted: Option<(Arc<Metrics>, String, bool)>,
    refused: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Quotas {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Returns how many requests of this caller were accepted so far.
    pub fn taken(&self, caller: &str) -> u64 {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.get(caller).map_or(0, |own| own.taken.load(Ordering::Relaxed))
    }

    /// Opens a stream for the caller with this id.
    pub fn stream(&self, caller: &str) -> Counted {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.len() >= CALLERS_MAX {
            callers.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let per_second = NonZeroU32::new(self.bounds.requests_per_second).unwrap_or(NonZeroU32::MIN);
        let fresh = || {
            Arc::new(Quotum {
                rate: RateLimiter::direct(Quota::per_second(per_second)),
                places: Arc::new(Semaphore::new(self.bounds.in_flight.min(Semaphore::MAX_PERMITS))),
                taken: AtomicU64::new(0),
            })
        };
        let own = callers.entry(caller.to_owned()).or_insert_with(fresh).clone();
        let activity = Activity { under_way: 0, last: Instant::now() };
        Counted {
            bounds: self.bounds,
            metrics: self.metrics.clone(),
            known: self.known,
            own,
            activity: Arc::new(Mutex::new(activity)),
        }
    }
}

impl Counted {
    /// Counts a message. Errors: the rate is exceeded, with the time until the next one is accepted.
    pub fn count(&self) -> Result<(), RpcError> {
        let rate = &self.own.rate;
        let wait = rate.check().map_err(|until| until.wait_time_from(rate.clock().now()));
        let bound = self.bounds.requests_per_second as usize;
        wait.map_err(|wait| limited("requests_per_second", bound, wait))
    }

    /// Takes a place for a request. Errors: too many are under way.
    pub fn place(&self, method: &str) -> Result<RequestPermit, RpcError> {
        let permit = self.own.places.clone().try_acquire_owned();
        let permit = permit.map_err(|_| limited("in_flight", self.bounds.in_flight, RETRY))?;
        self.own.taken.fetch_add(1, Ordering::Relaxed);
        lock(&self.activity).under_way += 1;
        let (activity, counted) = (
            self.activity.clone(),
            self.metrics.clone().map(|metrics| (metrics, method.to_owned(), self.known)),
        );
        Ok(RequestPermit { activity, counted, refused: AtomicBool::new(false), _permit: permit })
    }

    /// Counts the outcome of a request without a place.
    pub fn told(&self, method: &str, outcome: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.peers.request(Request { direction: "in", method, known: self.known }, outcome);
        }
    }

    /// Notes that a message came.
    pub fn heard(&self) {
        lock(&self.activity).last = Instant::now();
    }

    /// Waits until the stream has been idle for longer than allowed.
    pub async fn idle(&self) {
        loop {
            let until = {
                let activity = lock(&self.activity);
                let since = if activity.under_way > 0 { Instant::now() } else { activity.last };
                since + self.bounds.idle
            };
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

impl RequestPermit {
    /// Marks the request as refused, for the metrics.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if let Some((metrics, method, known)) = &self.counted {
            let outcome = if *self.refused.get_mut() { "refused" } else { "taken" };
            metrics.peers.request(Request { direction: "in", method, known: *known }, outcome);
        }
        let mut activity = lock(&self.activity);
        activity.under_way -= 1;
        activity.last = Instant::now();
    }
}

fn lock(activity: &Mutex<Activity>) -> MutexGuard<'_, Activity> {
    activity.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limited(which: &str, bound: usize, wait: Duration) -> RpcError {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    let data = json!({"code": "rate_limited", "limit": which, "bound": bound, "retry_after_ms": millis});
    RpcError { data: Some(data), ..RpcError::new(RATE_LIMITED, "rate_limited") }
}
