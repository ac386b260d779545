//! Asking: what an upstream asks while a request is open, handed to the caller, and the answers handed back.
//!
//! Invariants:
//! - every request of the upstream that was taken gets one answer while the exchange lasts;
//! - what is still open when the exchange ends gets no answer: the upstream has answered already.

use std::pin::pin;

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use crate::{
    router::{RpcError, codes::INTERNAL_ERROR},
    runtime::upstream::{Question, inbox::Asked, wire},
};

/// Questions of one request that are open at once.
const OPEN_MAX: usize = 16;

/// Runs `exchange` to its end, and meanwhile hands what is asked to `to` and the answers to `tell`. Without `to`,
/// nothing is handed on.
pub async fn answering<T, Told: Future<Output = ()>>(
    exchange: impl Future<Output = T>,
    mut asked: mpsc::Receiver<Asked>,
    to: Option<&mpsc::Sender<Question>>,
    tell: impl Fn(String) -> Told,
) -> T {
    let Some(to) = to else {
        return exchange.await;
    };
    let mut exchange = pin!(exchange);
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            // What finds no place here waits in the channel, and what finds none there is refused.
            Some(one) = asked.recv(), if open.len() < OPEN_MAX => open.push(put(one, to)),
            Some(answer) = open.next() => tell(answer).await,
            outcome = &mut exchange => return outcome,
        }
    }
}

/// Puts one question to the caller. Returns the message to send back.
async fn put(asked: Asked, to: &mpsc::Sender<Question>) -> String {
    let Asked { id, method, params } = asked;
    let (answer, answered) = oneshot::channel();
    let nobody = || RpcError::new(INTERNAL_ERROR, "the client did not answer");
    let answer = match to.send(Question { method, params, answer }).await {
        Ok(()) => answered.await.unwrap_or_else(|_| Err(nobody())),
        Err(_) => Err(nobody()),
    };
    wire::answer(&id, &answer)
}
