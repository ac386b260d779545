//! Aside: work of the processor that may take long, on a thread that answers nobody meanwhile.
//!
//! Invariants:
//! - at most `ASIDE_MAX` such works run at once, and the next ones wait;
//! - what runs here has an end: it cannot be stopped.

use tokio::sync::Semaphore;

/// Works that run at once, so that some processors are left for everything else.
const ASIDE_MAX: usize = 4;

static PLACES: Semaphore = Semaphore::const_new(ASIDE_MAX);

/// Runs `work` here, or on a thread of its own if it may be `long`. A panic of it goes on here.
pub async fn run<T: Send + 'static>(long: bool, work: impl FnOnce() -> T + Send + 'static) -> T {
    if !long {
        return work();
    }
    // Never closed; without a place it would only run beside more others.
    let _place = PLACES.acquire().await;
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(broken) if broken.is_panic() => std::panic::resume_unwind(broken.into_panic()),
        // The runtime is ending, and whoever waits with it.
        Err(_) => std::future::pending().await,
    }
}
