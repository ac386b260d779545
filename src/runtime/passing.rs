//! Passing: one request handed to an upstream, what is told and asked meanwhile, and what came of it.
//!
//! Invariants:
//! - a client is asked nothing that it did not declare;
//! - notifications that nobody reads are dropped, and questions that nobody answers are refused.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{
    block::splice,
    error::{Code, Refusal},
    router::{
        Invocation, Outcome, RpcError,
        audience::{Audience, Manner},
        codes::METHOD_NOT_FOUND,
    },
    runtime::{
        rounds::{self, Exchange, ROUNDS_MAX, next_round},
        upstream::{Failure, Notification, Options, Question, Reply, Upstream},
    },
};

/// Notifications of one call that may wait for its caller; more are dropped.
const NOTIFICATIONS_MAX: usize = 256;
/// Questions of one call that are handed over at once; the next ones wait until these are taken.
const QUESTIONS_MAX: usize = 16;
const PROGRESS: &str = "notifications/progress";
/// How long after a question the next one is waited for, so that the client gets both in one answer.
const GATHER: Duration = Duration::from_millis(20);

/// Begins a request that goes on when its client has been answered with `input_required`.
pub(super) fn begin(
    upstream: Upstream,
    invocation: &Invocation,
    params: Box<RawValue>,
    audience: Audience,
) -> Exchange {
    let (to, notifications) = mpsc::channel(NOTIFICATIONS_MAX);
    let (asks, questions) = mpsc::channel(QUESTIONS_MAX);
    let options = Options { notifications: Some(to), questions: Some(asks), audience, ..Options::default() };
    let method = invocation.method.as_str();
    let answer = tokio::spawn(async move { upstream.request(method, params, options).await });
    Exchange::new(answer, notifications, questions)
}

/// Follows an open request until it is answered, or returns `None` as soon as it asks something.
pub(super) async fn attend(
    exchange: &mut Exchange,
    invocation: &Invocation,
) -> Option<Result<Reply, Failure>> {
    loop {
        tokio::select! {
            biased;
            () = invocation.cancel.cancelled() => return Some(Err(Failure::Cancelled)),
            Some(notification) = exchange.notifications.recv() => retell(invocation, notification),
            Some(question) = exchange.questions.recv() => {
                if put(exchange, question, invocation) {
                    return None;
                }
            }
            reply = &mut exchange.answer => {
                while let Ok(notification) = exchange.notifications.try_recv() {
                    retell(invocation, notification);
                }
                return Some(reply.unwrap_or(Err(Failure::Died)));
            }
        }
    }
}

/// Takes what else is asked at the same time, so that the client is asked once for all of it.
pub(super) async fn gather(exchange: &mut Exchange, invocation: &Invocation) {
    while let Ok(Some(question)) = tokio::time::timeout(GATHER, exchange.questions.recv()).await {
        put(exchange, question, invocation);
    }
}

/// Puts a question to a client that can answer it; any other is refused. Returns whether it was put.
fn put(exchange: &mut Exchange, question: Question, invocation: &Invocation) -> bool {
    let declared = invocation.client.audience().answers(&question.method);
    if !declared {
        let refusal = RpcError::new(METHOD_NOT_FOUND, "the client did not declare that it can be asked this");
        // An upstream that has stopped waiting needs no answer.
        let _ = question.answer.send(Err(refusal));
        return false;
    }
    exchange.put(question)
}

fn tell(invocation: &Invocation, notification: Notification) {
    invocation.client.tell(&notification.method, &notification.params);
}

/// Tells of a request that an earlier request of the client began: its progress goes under the token of the one that
/// waits now, or nowhere if that has none.
fn retell(invocation: &Invocation, notification: Notification) {
    if notification.method != PROGRESS {
        return tell(invocation, notification);
    }
    let Some(token) = &invocation.progress_token else { return };
    let token = splice::raw(token.to_string());
    if let Ok(params) = splice::edit(&notification.params, &[("progressToken", &token)], |_| false) {
        tell(invocation, Notification { params, ..notification });
    }
}

/// Passes an invocation to an upstream, and to the caller what the upstream tells and asks meanwhile.
///
/// A caller in a session is asked what results ask for, and the upstream is then asked again, within `ROUNDS_MAX`.
pub(super) async fn ask(
    upstream: &Upstream,
    invocation: &Invocation,
    timeout: Option<Duration>,
    params: Box<RawValue>,
    audience: &Audience,
) -> Result<Reply, Failure> {
    let mut params = params;
    for _ in 0..ROUNDS_MAX {
        let method = (invocation.method.as_str(), timeout);
        let reply = exchange(upstream, invocation, method, params.clone(), audience).await;
        let Ok(Reply::Result(result)) = &reply else {
            return reply;
        };
        if audience.manner != Manner::Requests || !rounds::asks(result) {
            return reply;
        }
        params = match next_round(invocation.client.as_ref(), &params, result).await {
            Ok(params) => params,
            // What the client says instead of an answer ends its call.
            Err(RpcError { code, message, data, .. }) => {
                let data = data.map(|data| splice::raw(data.to_string()));
                return Ok(Reply::Error { code, message, data });
            }
        };
    }
    Err(Failure::Broken(format!("it asked for input {ROUNDS_MAX} times without an end")))
}

/// Asks once, by this method and within this time, and hands on what is told and asked meanwhile.
pub(super) async fn exchange(
    upstream: &Upstream,
    invocation: &Invocation,
    (method, timeout): (&str, Option<Duration>),
    params: Box<RawValue>,
    audience: &Audience,
) -> Result<Reply, Failure> {
    let (notifications, mut told) = mpsc::channel(NOTIFICATIONS_MAX);
    let (asks, mut questions) = mpsc::channel(QUESTIONS_MAX);
    let can_be_asked = audience.manner == Manner::Requests && audience.can_be_asked();
    let options = Options {
        timeout,
        cancel: invocation.cancel.clone(),
        notifications: Some(notifications),
        questions: can_be_asked.then_some(asks),
        audience: audience.clone(),
    };
    let request = upstream.request(method, params, options);
    tokio::pin!(request);
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(notification) = told.recv() => tell(invocation, notification),
            Some(question) = questions.recv() => open.push(answer(invocation, question)),
            Some(()) = open.next() => {}
            reply = &mut request => return reply,
        }
    }
}

/// Puts a question to the caller.
async fn answer(invocation: &Invocation, question: Question) {
    let Question { method, params, answer } = question;
    let params = serde_json::from_str(params.get()).unwrap_or_default();
    let said = invocation.client.request(&method, params).await;
    // An upstream that has stopped waiting needs no answer.
    let _ = answer.send(said.map(|said| splice::raw(said.to_string())));
}

/// Returns the outcome of a call with this reply; `who` names the side that was asked.
pub(super) fn outcome(reply: Result<Reply, Failure>, who: &str) -> Outcome {
    match reply {
        Ok(Reply::Result(result)) => Outcome::of_result(result),
        Ok(Reply::Error { code, message, data }) => {
            let data = data.and_then(|data| serde_json::from_str(data.get()).ok());
            Outcome::Rpc(Box::new(RpcError { data, ..RpcError::new(code, message) }))
        }
        Err(failure @ Failure::Oversize { .. }) => {
            Outcome::Untaken(Refusal::new(Code::ResourceExhausted, format!("{who} {failure}")))
        }
        Err(failure @ (Failure::Unavailable { .. } | Failure::Gone)) => {
            Outcome::Untaken(Refusal::new(Code::Unavailable, format!("{who} {failure}")).retryable())
        }
        Err(Failure::TimedOut) => Outcome::TimedOut,
        Err(Failure::Cancelled) => Outcome::Cancelled,
        Err(failure @ (Failure::Died | Failure::Broken(_) | Failure::TooLarge)) => {
            Outcome::Transport { message: format!("{who} {failure}") }
        }
    }
}
