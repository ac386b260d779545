//! Replays: answers of calls that were taken up again, kept for the case that they are lost on their way.
//!
//! Invariants:
//! - an answer is given again to the same request alone: the same state, actor, name, arguments and answers;
//! - at most `KEPT_MAX` answers of one upstream are kept, of `BYTES_MAX` together.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::router::{Outcome, RpcError, codes::INVALID_PARAMS};

/// Answers that are kept of one upstream; the oldest makes room.
const KEPT_MAX: usize = 256;
/// Bytes of all of them.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The digest of a request.
type Digest = [u8; 32];

/// What a request got.
#[derive(Clone)]
enum Kept {
    Result(Box<RawValue>),
    Error(Box<RpcError>),
}

struct Replay {
    state: String,
    request: Digest,
    since: Instant,
    /// `None` until the request is answered.
    answer: watch::Receiver<Option<Kept>>,
}

/// The answers of one upstream, the oldest first.
#[derive(Default)]
pub struct Replays(Arc<Mutex<VecDeque<Replay>>>);

/// Keeps the answer of one request. Dropped without one, the same request finds none.
pub struct Ticket(watch::Sender<Option<Kept>>, Replays);

/// The answer of a request that came before, or is under way.
pub struct Before(watch::Receiver<Option<Kept>>);

impl Kept {
    fn of(outcome: &Outcome) -> Option<Self> {
        match outcome {
            Outcome::Result { result, .. } => Some(Self::Result(result.clone())),
            Outcome::Rpc(error) => Some(Self::Error(error.clone())),
            Outcome::Refused(_)
            | Outcome::Untaken(_)
            | Outcome::Transport { .. }
            | Outcome::TimedOut
            | Outcome::Cancelled => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Result(result) => result.get().len(),
            Self::Error(error) => error.message.len(),
        }
    }
}

impl Replays {
    /// Opens a place for the answer of a request that takes up the call of this state.
    pub fn open(&self, state: String, request: Digest) -> Ticket {
        let (to, answer) = watch::channel(None);
        let mut kept = self.kept();
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Replay { state, request, since: Instant::now(), answer });
        Ticket(to, Self(Arc::clone(&self.0)))
    }

    /// Finds the answer that the same request got before.
    pub fn find(&self, state: &str, request: &Digest) -> Option<Before> {
        let kept = self.kept();
        let same = |replay: &&Replay| replay.state == state && replay.request == *request;
        kept.iter().find(same).map(|replay| Before(replay.answer.clone()))
    }

    /// Forgets answers that are older than this.
    pub fn sweep(&self, age: Duration) {
        self.kept().retain(|replay| replay.since.elapsed() < age);
    }

    /// Makes room where the answers have too many bytes.
    fn trim(&self) {
        let mut kept = self.kept();
        let bytes = |replay: &Replay| replay.answer.borrow().as_ref().map_or(0, Kept::bytes);
        let mut all: usize = kept.iter().map(bytes).sum();
        while all > BYTES_MAX
            && let Some(oldest) = kept.pop_front()
        {
            all -= bytes(&oldest);
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Replay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Keeps what the request got, if its upstream said it.
    pub fn keep(self, outcome: &Outcome) {
        if let Some(kept) = Kept::of(outcome) {
            self.0.send_replace(Some(kept));
            self.1.trim();
        }
    }
}

impl Before {
    /// Waits for the answer. Safe to drop.
    pub async fn outcome(self) -> Outcome {
        let Self(mut answer) = self;
        let kept = answer.wait_for(Option::is_some).await.ok().and_then(|kept| kept.clone());
        match kept {
            Some(Kept::Result(result)) => Outcome::of_result(result),
            Some(Kept::Error(error)) => Outcome::Rpc(error),
            None => {
                let message =
                    "the call that requestState names has ended without an answer; call anew without it";
                Outcome::Rpc(Box::new(RpcError::new(INVALID_PARAMS, message)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BYTES_MAX, KEPT_MAX, Replays};
    use crate::{
        block::splice::raw,
        router::{Outcome, RpcError},
    };

    fn said(text: &str) -> Outcome {
        Outcome::of_result(raw(text.to_owned()))
    }

    async fn again(replays: &Replays, state: &str, request: u8) -> Option<String> {
        match replays.find(state, &[request; 32])?.outcome().await {
            Outcome::Result { result, .. } => Some(result.get().to_owned()),
            other => Some(format!("{other:?}")),
        }
    }

    #[tokio::test]
    async fn the_same_request_alone_gets_the_answer_again() {
        let replays = Replays::default();
        let ticket = replays.open("s".to_owned(), [1; 32]);
        let waiting = replays.find("s", &[1; 32]).expect("it is under way");
        ticket.keep(&said("{}"));
        assert!(matches!(waiting.outcome().await, Outcome::Result { .. }));
        assert_eq!(again(&replays, "s", 1).await.as_deref(), Some("{}"));
        assert_eq!(again(&replays, "s", 2).await, None);
        assert_eq!(again(&replays, "t", 1).await, None);
        replays.sweep(Duration::ZERO);
        assert_eq!(again(&replays, "s", 1).await, None);
        replays.open("e".to_owned(), [1; 32]).keep(&Outcome::Rpc(Box::new(RpcError::new(-1, "no"))));
        assert!(again(&replays, "e", 1).await.is_some_and(|said| said.contains("no")));
        for lost in [Outcome::Cancelled, Outcome::TimedOut] {
            replays.open("l".to_owned(), [1; 32]).keep(&lost);
            assert!(again(&replays, "l", 1).await.is_some_and(|said| said.contains("call anew")));
        }
    }

    #[tokio::test]
    async fn the_oldest_make_room() {
        let replays = Replays::default();
        for n in 0..=KEPT_MAX {
            replays.open(n.to_string(), [0; 32]).keep(&said("{}"));
        }
        assert_eq!(again(&replays, "0", 0).await, None);
        assert!(again(&replays, "1", 0).await.is_some());
        let large = format!("\"{}\"", "x".repeat(BYTES_MAX - 100));
        replays.open("large".to_owned(), [0; 32]).keep(&said(&large));
        assert_eq!(again(&replays, "1", 0).await, None);
        assert!(again(&replays, "large", 0).await.is_some());
    }
}
