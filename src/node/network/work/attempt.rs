//! One attempt at a peer's task: calls the local tool, renews the lease meanwhile, and reports the outcome.
//!
//! Invariants:
//! - when the task's lease is lost, a repeatable call is cancelled. One that is not runs to its end, since its answer
//!   is needed if the task comes back;
//! - an outcome is reported under the latest fence, until the peer has accepted or refused it.

use std::{convert::Infallible, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio_util::sync::CancellationToken;

use super::{Given, Held, LOST_PAUSE, Worker, line::Unsaid};
use crate::{
    block::{Cid, splice},
    engine::{Nobody, TOOL},
    error::Code,
    router::{Meta, Method, Request, Response, RpcError, codes::INVALID_PARAMS},
    tools::desk::{message, worth},
};

/// Error code the peer returns to a worker whose lease on the task is over.
const CONFLICT: &str = "conflict";
/// The largest number of characters of a failure's message that the peer's tool takes.
const MESSAGE_MAX: usize = 4096;

/// The outcome of a call, and the event that ended it here.
struct Ended {
    how: How,
    event: Option<Cid>,
}

enum How {
    Done(Box<RawValue>),
    Failed {
        code: String,
        message: String,
        retryable: bool,
    },
    /// The call was cancelled, as asked, and stopped.
    Stopped,
}

impl Worker {
    /// Runs a task and reports its outcome. Returns the task that was handed out with the report, if there is one.
    pub(super) async fn attempt(&self, given: Given) -> Option<Given> {
        let id = given.task_id.clone();
        loop {
            let held = self.stands(&id)?;
            let ended = tokio::select! {
                ended = self.call(&given, &held) => ended,
                never = self.keep(&given) => match never {},
            };
            let now = self.stands(&id)?;
            if now.is_lost() {
                self.held().remove(&id);
                return None;
            }
            if !matches!(ended.how, How::Stopped) || now.unwanted {
                return self.tell(&id, ended).await;
            }
            if !now.cancel.is_cancelled() {
                // The node stops. The lease runs out, and the next start finds the call's outcome by its key.
                return None;
            }
            // The task was lost and has come back, so the call is made again.
            if let Some(held) = self.held().get_mut(&id) {
                held.cancel = CancellationToken::new();
            }
        }
    }

    /// Calls the tool. Each failure of an earlier attempt takes the next idempotency key, so that a retry really runs.
    async fn call(&self, given: &Given, held: &Held) -> Ended {
        if !self.setup.types.contains(&given.task_type) {
            return failed(Code::InvalidArgument, "this worker does not take tasks of this type");
        }
        let Some(payload) = &given.payload else {
            return failed(Code::FailedPrecondition, "the task's input is gone");
        };
        let name = tool(&given.task_type);
        let params = format!(r#"{{"name":{},"arguments":{payload}}}"#, splice::quoted(name));
        let params: Arc<RawValue> = splice::raw(params).into();
        let mut number = 1;
        loop {
            let answer = self.setup.router.call(Request {
                method: Method::ToolsCall,
                name: name.to_owned(),
                params: params.clone(),
                meta: Meta {
                    idempotency_key: Some(format!("work/{}/{number}", given.task_id)),
                    refs: held.claimed.into_iter().collect(),
                    ..Meta::default()
                },
                caller: self.caller(),
                client: Arc::new(Nobody),
                cancel: held.cancel.child_token(),
                cause: None,
                attempt: None,
                begun: None,
            });
            let answer = answer.await;
            let stopped = held.cancel.is_cancelled() || self.setup.claiming.is_cancelled();
            let (ended, replayed) = read(given, answer, stopped);
            // A replayed failure was reported before, or its attempt was given up, so this attempt is another try.
            // There were no more failures than claims, and each claim has a larger fence: this ends the loop.
            let before = replayed && matches!(ended.how, How::Failed { .. });
            if !before || number >= given.fence {
                return ended;
            }
            number += 1;
        }
    }

    /// Renews the lease while the call runs. Never returns.
    async fn keep(&self, given: &Given) -> Infallible {
        #[derive(Deserialize)]
        struct Renewed {
            cancel_requested: bool,
        }
        let entry = self.setup.router.tool(tool(&given.task_type));
        let repeatable = entry.is_none_or(|entry| entry.contract.repeatable());
        loop {
            let pause = self.lease() / 3;
            tokio::time::sleep(pause).await;
            let Some(held) = self.stands(&given.task_id).filter(|held| !held.is_lost()) else { continue };
            let beat = json!({"worker_id": self.name, "task_id": given.task_id, "fence": held.fence});
            let kept = match self.line.ask("task_heartbeat", &beat, None, Some(pause)).await {
                Ok(told) => told.read::<Renewed>(),
                Err(unsaid) => Err(unsaid),
            };
            let mut all = self.held();
            let Some(now) = all.get_mut(&given.task_id) else { continue };
            match kept {
                Ok(Renewed { cancel_requested: true }) => {
                    now.unwanted = true;
                    now.cancel.cancel();
                }
                Err(Unsaid::Refused(refused)) if refused.code == CONFLICT && now.fence == held.fence => {
                    now.lost = Some(held.fence);
                    if repeatable {
                        now.cancel.cancel();
                    }
                }
                Ok(Renewed { cancel_requested: false }) | Err(_) => {}
            }
        }
    }

    /// Reports the outcome of a task until the peer has answered. Returns the task that was handed out with the answer,
    /// if there is one.
    async fn tell(&self, id: &str, mut ended: Ended) -> Option<Given> {
        loop {
            let fence = self.stands(id)?.fence;
            let said = self.say(id, fence, &ended).await;
            let (tool, arguments) = &said;
            match self.line.ask(tool, arguments, ended.event, None).await {
                Ok(told) => {
                    self.held().remove(id);
                    let next = if *tool == "task_complete" { self.taken(&told, 1).ok() } else { None };
                    return next.and_then(|next| next.into_iter().next());
                }
                Err(Unsaid::Lost) => {
                    self.line.ready().await;
                    tokio::time::sleep(LOST_PAUSE).await;
                }
                Err(Unsaid::Refused(refused)) => {
                    let mut all = self.held();
                    let again = all.get(id).is_some_and(|now| now.fence != fence);
                    match &ended.how {
                        _ if refused.code == CONFLICT && again => {}
                        // An output that the peer cannot accept is a failure of the task.
                        How::Done(_) if refused.code != CONFLICT => {
                            ended.how = How::Failed {
                                code: word(&refused.code),
                                message: refused.message,
                                retryable: false,
                            };
                        }
                        How::Done(_) | How::Failed { .. } | How::Stopped => {
                            tracing::debug!(task = id, %refused, "an end came too late");
                            all.remove(id);
                            return None;
                        }
                    }
                }
            }
        }
    }

    async fn say(&self, id: &str, fence: u64, ended: &Ended) -> (&'static str, Box<RawValue>) {
        let attempt = json!({"worker_id": self.name, "task_id": id, "fence": fence});
        let attempt = splice::raw(attempt.to_string());
        let with = |key: &str, value: &RawValue| {
            let own = splice::raw("true".to_owned());
            let mut more = vec![(key, value)];
            if key == "output" {
                more.push(("claim_next", &own));
            }
            splice::edit(&attempt, &more, |_| false).expect("it was made as an object")
        };
        let (code, message, retryable) = match &ended.how {
            How::Done(output) => return ("task_complete", with("output", output)),
            How::Failed { code, message, retryable } => (code.as_str(), message.as_str(), *retryable),
            How::Stopped => (Code::Cancelled.as_str(), "stopped as was asked", false),
        };
        let message: String = message.chars().take(MESSAGE_MAX).collect();
        let error = json!({"code": code, "message": message, "retryable": retryable});
        ("task_fail", with("error", &splice::raw(error.to_string())))
    }

    fn stands(&self, id: &str) -> Option<Held> {
        self.held().get(id).cloned()
    }
}

/// Returns the local tool for tasks of this type.
fn tool(task_type: &str) -> &str {
    task_type.strip_prefix(TOOL).unwrap_or(task_type)
}

/// Returns the outcome that an answer means, and whether it is a replay of an earlier call's.
fn read(given: &Given, answer: Result<Response, RpcError>, stopped: bool) -> (Ended, bool) {
    let Response { result, record, own } = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let code = if error.code == INVALID_PARAMS { Code::InvalidArgument } else { Code::Internal };
            let retryable = code == Code::Internal;
            let how = How::Failed { code: code.as_str().to_owned(), message: error.message, retryable };
            let record = error.record.as_ref();
            let event = record.map(|record| record.event);
            return (Ended { how, event }, record.is_some_and(|record| record.replayed));
        }
    };
    let replayed = record.as_ref().is_some_and(|record| record.replayed);
    let said: Value = serde_json::from_str(result.get()).unwrap_or_default();
    let how = if let Some(own) = own {
        match stopped && own.code == Code::Cancelled {
            true => How::Stopped,
            false => How::Failed {
                code: own.code.as_str().to_owned(),
                message: own.message,
                retryable: own.retryable,
            },
        }
    } else if said["isError"] == true {
        let error = &said["structuredContent"]["error"];
        let code = error["code"].as_str().unwrap_or(Code::Internal.as_str());
        match stopped && code == Code::Cancelled.as_str() {
            true => How::Stopped,
            false => How::Failed {
                code: word(code),
                message: message(&result),
                retryable: error["retryable"].as_bool().unwrap_or(true),
            },
        }
    } else if said["resultType"] == "input_required" {
        let message = "the tool asks for input, and a task has nobody to ask".to_owned();
        How::Failed { code: Code::FailedPrecondition.as_str().to_owned(), message, retryable: false }
    } else if given.task_type.starts_with(TOOL) {
        // The peer's own tools store the whole result too.
        How::Done(result)
    } else {
        How::Done(worth(result))
    };
    (Ended { how, event: record.map(|record| record.event) }, replayed)
}

fn failed(code: Code, message: &str) -> Ended {
    let how = How::Failed { code: code.as_str().to_owned(), message: message.to_owned(), retryable: false };
    Ended { how, event: None }
}

/// Returns a code that fits the peer's tool: its allowed characters only, at most 128, else `internal`.
fn word(code: &str) -> String {
    let fits = |letter: &char| letter.is_ascii_alphanumeric() || "._:/-".contains(*letter);
    let word: String = code.chars().filter(fits).take(128).collect();
    if word.is_empty() { Code::Internal.as_str().to_owned() } else { word }
}
