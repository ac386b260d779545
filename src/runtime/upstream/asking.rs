//! Asking: what an upstream asks while a request is open, handed to the caller, and the answers handed back.
//!
//! Invariants:
//! - every request of the upstream that was taken gets one answer while the exchange lasts;
//! - what is asked when the exchange ends is answered by nobody: the upstream has answered already.

use std::pin::pin;

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use crate::{
    router::{RpcError, codes::INTERNAL_ERROR},
    runtime::upstream::{Question, inbox::Asked, wire},
};

/// Runs `exchange` to its end and meanwhile hands what is asked to `to` and the answers to `tell`.
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
            Some(one) = asked.recv() => open.push(put(one, to)),
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
