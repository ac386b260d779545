//! Tasks of upstreams: a task that an upstream made of a call, looked at until it has ended.
//!
//! Invariants:
//! - what the task asks is put to the client once for each of its keys, and answered under that key;
//! - a cancelled call cancels the task at the upstream, unless the client says that it goes on;
//! - nothing is looked at more often than the upstream wishes, within `POLL_MIN` and `POLL_MAX`.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::{Value, json, value::RawValue};
use tokio::time::{sleep, timeout};

use crate::{
    block::splice,
    error::{Code, Refusal},
    router::{
        Invocation, Outcome, RpcError,
        audience::{Audience, canonical},
        codes::INTERNAL_ERROR,
        handles::RELATED,
    },
    runtime::{
        passing::{exchange, outcome},
        upstream::{Failure, Options, Protocol, Reply, Upstream},
    },
};

/// The extension of revision 2026-07-28 by which clients and servers say that they know tasks.
pub const EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// The pause between two looks if the upstream wishes none, and its bounds.
const POLL: Duration = Duration::from_secs(1);
const POLL_MIN: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(30);
/// Looks that may fail in a row, while the upstream is being reached again, before the task counts as lost.
const FAILED_MAX: usize = 60;
/// Questions of one task in all.
const QUESTIONS_MAX: usize = 256;
/// How long an upstream is given to hear of a cancellation.
const CANCEL_MAX: Duration = Duration::from_secs(1);
/// How long one request for the result of a task in a session may stay open.
const RESULT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a server in a session is asked to keep a task: as long as one may be followed.
const KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// Returns an audience that knows tasks, or one that does not.
pub fn knowing(audience: &Audience, tasks: bool) -> Audience {
    let mut declared: Value = serde_json::from_str(&audience.capabilities).unwrap_or_default();
    let known = declared["extensions"].get(EXTENSION).is_some();
    if known == tasks {
        return audience.clone();
    }
    if !declared.is_object() {
        declared = json!({});
    }
    match (tasks, declared["extensions"].as_object_mut()) {
        (true, Some(extensions)) => drop(extensions.insert(EXTENSION.to_owned(), json!({}))),
        (true, None) => declared["extensions"] = json!({EXTENSION: {}}),
        (false, extensions) => drop(extensions.and_then(|extensions| extensions.remove(EXTENSION))),
    }
    Audience { capabilities: canonical(&declared), ..audience.clone() }
}

/// Returns params that ask a server in a session to run the call as a task.
pub fn as_task(params: &RawValue) -> Option<Box<RawValue>> {
    let task = splice::raw(format!(r#"{{"ttl":{KEPT_MS}}}"#));
    splice::edit(params, &[("task", &task)], |_| false).ok()
}

/// Follows a task of an upstream until it has ended, and returns what came of it.
pub async fn follow(upstream: &Upstream, invocation: &Invocation, task: &str) -> Outcome {
    let following = Following { upstream, invocation, task };
    let in_session = matches!(upstream.offer().borrow().protocol, Some(Protocol::Session(_)));
    let ended = async {
        match in_session {
            true => following.result().await,
            false => following.polled().await,
        }
    };
    tokio::select! {
        biased;
        // First, since an open request to the upstream ends with the same token.
        () = invocation.cancel.cancelled() => {
            if invocation.client.abandons() {
                following.cancel().await;
            }
            Outcome::Cancelled
        }
        ended = ended => ended,
    }
}

/// An answer of the client, under its question's key.
type Answered = (String, Result<Value, RpcError>);

struct Following<'a> {
    upstream: &'a Upstream,
    invocation: &'a Invocation,
    task: &'a str,
}

impl Following<'_> {
    /// Waits for the result of a task in a session. The request for it stays open, and what the task asks comes with it.
    async fn result(&self) -> Outcome {
        let who = self.who();
        let audience = self.invocation.client.audience();
        for _ in 0..FAILED_MAX {
            let asked = exchange(
                self.upstream,
                self.invocation,
                ("tasks/result", Some(RESULT_MAX)),
                self.params(&[]),
                &audience,
            );
            match asked.await {
                Ok(Reply::Result(result)) => return Outcome::of_result(unrelated(result)),
                Err(Failure::Unavailable { .. } | Failure::Gone | Failure::Died) => sleep(POLL).await,
                reply => return outcome(reply, &who),
            }
        }
        self.lost()
    }

    /// Looks at a task of revision 2026-07-28 until it has ended.
    async fn polled(&self) -> Outcome {
        let mut asked = HashSet::new();
        let mut open: FuturesUnordered<BoxFuture<'_, Answered>> = FuturesUnordered::new();
        let mut failed = 0;
        loop {
            let pause = match self.ask("tasks/get", &[]).await {
                Ok(Reply::Result(result)) => {
                    failed = 0;
                    let status = member(&result, "status").unwrap_or_default();
                    if let Some(ended) = self.ended(&status, &result) {
                        return ended;
                    }
                    if status == "input_required" {
                        for (key, method, params) in questions(&result) {
                            if asked.len() < QUESTIONS_MAX && asked.insert(key.clone()) {
                                open.push(Box::pin(async move {
                                    (key, self.invocation.client.request(&method, params).await)
                                }));
                            }
                        }
                    }
                    pause(&result)
                }
                Err(Failure::Unavailable { .. } | Failure::Gone | Failure::Died | Failure::TimedOut)
                    if failed < FAILED_MAX =>
                {
                    failed += 1;
                    POLL
                }
                reply => return outcome(reply, &self.who()),
            };
            tokio::select! {
                Some((key, answer)) = open.next() => match answer {
                    Ok(answer) => self.answer(&key, answer).await,
                    Err(refused) => {
                        // No server can be told that nobody answers.
                        self.cancel().await;
                        return Outcome::Rpc(Box::new(refused));
                    }
                },
                () = sleep(pause) => {}
            }
        }
    }

    /// Returns the outcome of a task with this status, if it has ended.
    fn ended(&self, status: &str, task: &RawValue) -> Option<Outcome> {
        let inner = |key| splice::member(task, key).ok().flatten().map(RawValue::to_owned);
        let broken =
            |what| Outcome::Transport { message: format!("{} ended a task without {what}", self.who()) };
        match status {
            "working" | "input_required" => None,
            "completed" => Some(inner("result").map_or_else(|| broken("its result"), Outcome::of_result)),
            "failed" => Some(inner("error").map_or_else(
                || broken("its error"),
                |error| {
                    let told: Value = serde_json::from_str(error.get()).unwrap_or_default();
                    let message = told["message"].as_str().unwrap_or("the task failed");
                    let code = told["code"].as_i64().unwrap_or(INTERNAL_ERROR);
                    let data = told.get("data").filter(|data| !data.is_null()).cloned();
                    Outcome::Rpc(Box::new(RpcError { data, ..RpcError::new(code, message) }))
                },
            )),
            "cancelled" => {
                let refusal = Refusal::new(Code::Cancelled, format!("{} cancelled its task", self.who()));
                Some(Outcome::Refused(refusal))
            }
            _ => Some(Outcome::Transport {
                message: format!("{} told a task's status that is none", self.who()),
            }),
        }
    }

    async fn answer(&self, key: &str, answer: Value) {
        let responses = splice::raw(json!({key: answer}).to_string());
        // Whether it arrived is seen at the next look: a question that is still open is not asked again, but the
        // upstream that lost an answer lost its task.
        if let Err(failure) = self.ask("tasks/update", &[("inputResponses", &responses)]).await {
            tracing::warn!(%failure, "an upstream's task did not get an answer");
        }
    }

    /// Cancels the task at the upstream, as far as that can be told in time.
    async fn cancel(&self) {
        if timeout(CANCEL_MAX, self.ask("tasks/cancel", &[])).await.is_err() {
            tracing::warn!(
                upstream = self.upstream.name(),
                "an upstream did not take a cancellation in time"
            );
        }
    }

    async fn ask(&self, method: &str, more: &[(&str, &RawValue)]) -> Result<Reply, Failure> {
        let audience = knowing(&self.invocation.client.audience(), true);
        let options = Options { audience, ..Options::default() };
        self.upstream.request(method, self.params(more), options).await
    }

    fn params(&self, more: &[(&str, &RawValue)]) -> Box<RawValue> {
        let id = splice::raw(format!(r#"{{"taskId":{}}}"#, splice::quoted(self.task)));
        splice::edit(&id, more, |_| false).expect("this is an object")
    }

    fn lost(&self) -> Outcome {
        Outcome::Transport { message: format!("{} could not be reached while its task ran", self.who()) }
    }

    fn who(&self) -> String {
        format!("upstream {}", self.upstream.name())
    }
}

/// Returns what a task asks: keys, methods and params. What has no method is left out.
fn questions(task: &RawValue) -> Vec<(String, String, Value)> {
    let asked = splice::member(task, "inputRequests").ok().flatten();
    let asked: HashMap<String, Value> =
        asked.and_then(|asked| serde_json::from_str(asked.get()).ok()).unwrap_or_default();
    let mut asked: Vec<_> = asked
        .into_iter()
        .filter_map(|(key, mut question)| {
            let method = question["method"].as_str()?.to_owned();
            let params = question.get_mut("params").map_or_else(|| json!({}), Value::take);
            Some((key, method, params))
        })
        .collect();
    asked.sort_by(|one, other| one.0.cmp(&other.0));
    asked
}

/// Returns the pause before the next look that the upstream wishes, within the bounds.
fn pause(task: &RawValue) -> Duration {
    let wished = splice::member(task, "pollIntervalMs").ok().flatten();
    let wished = wished.and_then(|wished| wished.get().parse().ok()).map(Duration::from_millis);
    wished.unwrap_or(POLL).clamp(POLL_MIN, POLL_MAX)
}

fn member(object: &RawValue, key: &str) -> Option<String> {
    serde_json::from_str(splice::member(object, key).ok()??.get()).ok()
}

/// Returns a result without the name of the server's own task.
fn unrelated(result: Box<RawValue>) -> Box<RawValue> {
    let Some(meta) = splice::member(&result, "_meta").ok().flatten() else { return result };
    let Ok(meta) = splice::edit(meta, &[], |key| key == RELATED) else { return result };
    let edited = match meta.get().trim_matches(['{', '}', ' ']).is_empty() {
        true => splice::edit(&result, &[], |key| key == "_meta"),
        false => splice::edit(&result, &[("_meta", &meta)], |_| false),
    };
    edited.unwrap_or(result)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use crate::{
        block::splice::raw,
        router::audience::Audience,
        runtime::upstream_tasks::{POLL, POLL_MAX, POLL_MIN, as_task, knowing, pause, questions, unrelated},
    };

    #[test]
    fn an_audience_is_said_to_know_tasks_and_nothing_else_of_it_changes() {
        let client =
            |capabilities: &str| Audience { capabilities: capabilities.into(), ..Audience::default() };
        let shown =
            |capabilities: &str, tasks| knowing(&client(capabilities), tasks).capabilities.to_string();
        let with = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
        assert_eq!(shown("{}", true), with);
        assert_eq!(shown(with, true), with);
        assert_eq!(shown("{}", false), "{}");
        assert_eq!(
            shown(r#"{"elicitation":{},"extensions":{"a/b":{},"io.modelcontextprotocol/tasks":{}}}"#, false),
            r#"{"elicitation":{},"extensions":{"a/b":{}}}"#
        );
    }

    #[test]
    fn the_pause_is_the_upstreams_within_bounds() {
        let wished = |ms: &str| pause(&raw(format!(r#"{{"pollIntervalMs":{ms}}}"#)));
        assert_eq!(wished("250"), Duration::from_millis(250));
        assert_eq!(wished("0"), POLL_MIN);
        assert_eq!(wished("99999999"), POLL_MAX);
        for nothing in ["null", "-1", "0.5", "\"soon\""] {
            assert_eq!(wished(nothing), POLL, "{nothing}");
        }
    }

    #[test]
    fn what_a_task_asks_is_read_and_what_is_no_question_is_left_out() {
        let task = json!({"inputRequests": {
            "b": {"method": "roots/list"},
            "a": {"method": "elicitation/create", "params": {"message": "?"}},
            "c": {"params": {}}, "d": 7,
        }});
        let asked = questions(&raw(task.to_string()));
        let keys: Vec<_> = asked.iter().map(|(key, method, _)| (key.as_str(), method.as_str())).collect();
        assert_eq!(keys, [("a", "elicitation/create"), ("b", "roots/list")]);
        for odd in [r#"{"inputRequests":null}"#, r#"{"inputRequests":[1]}"#, "{}"] {
            assert!(questions(&raw(odd.to_owned())).is_empty(), "{odd}");
        }
    }

    #[test]
    fn the_servers_own_name_of_its_task_is_taken_out_and_all_else_stays() {
        let of = |text: &str| unrelated(raw(text.to_owned())).get().to_owned();
        assert_eq!(
            of(r#"{ "content":[],"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"x"}}}"#),
            r#"{ "content":[]}"#
        );
        assert_eq!(
            of(r#"{"_meta":{"a":1.0, "io.modelcontextprotocol/related-task":{}},"n":1e2}"#),
            r#"{"_meta":{"a":1.0},"n":1e2}"#
        );
        assert_eq!(of(r#"{"content":[]}"#), r#"{"content":[]}"#);
        let asked = as_task(&raw(r#"{"name":"t"}"#.to_owned())).expect("an object");
        assert!(asked.get().starts_with(r#"{"name":"t","task":{"ttl":"#), "{asked}");
    }
}
