//! Tasks that clients follow: how a call becomes one, and how a task at a tool's server becomes one of ours.
//!
//! Invariants:
//! - a task is durable before its id is told;
//! - the id of a task at a server stands in payloads alone, which can be erased: it may open that task to anybody;
//! - what is not kept in full becomes no task, since what is queued is kept.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use sha2::{Digest, Sha256};

use crate::{
    block::{Cid, splice},
    error::{Code, Refusal},
    event::{
        Actor,
        work::{Handle, Part, RetryPolicy, TaskSubmitted},
    },
    ledger::{
        Command, Ruling,
        work::{SubmitTask, Wish, Work, Worked},
    },
    router::{
        Entry, Router, RpcError,
        audience::{Audience, Manner, canonical},
        handles::Parked,
    },
    task::{CAPABILITIES_MAX, Task},
};

/// The beginning of the types of tasks that follow one at a server; the name of its source stands after it.
pub const FOLLOW: &str = "follow:";
/// What the id of such a task ends with, where it goes on from a task that made it.
const GOES_ON: &str = ".f";
/// The beginning of the tag by which the tasks of one actor's clients are found.
const TAG: &str = "mcp:";
/// The domain of ids that are made from idempotency keys.
const KEYED: &str = "cairn/task-of-key/1";
/// The capabilities that say what a client can be asked.
const ASKED: [&str; 3] = ["elicitation", "roots", "sampling"];
/// The priority of tasks that are made without one.
const PRIORITY: u64 = 50;
/// A call is made once: whoever asked for it asks again if it fails.
const ONCE: RetryPolicy =
    RetryPolicy { max_retries: 0, backoff_ms: 0, factor_milli: 1_000, max_backoff_ms: 0, jitter: false };
/// Bytes of the id of a task at a server.
const THEIRS_MAX: usize = 1_024;

/// A call that is to be run as a task.
pub struct Wished<'a> {
    pub entry: &'a Entry,
    pub actor: Actor,
    pub audience: &'a Audience,
    pub ttl_ms: u64,
    /// The arguments of the call.
    pub arguments: &'a RawValue,
    /// The call that asks for it, if there is one.
    pub cause: Option<Cid>,
}

/// What a task that follows one at a server is submitted with.
#[derive(Serialize, Deserialize)]
pub struct Followed<'a> {
    /// The public name of the tool that gave the task.
    pub name: String,
    #[serde(borrow)]
    pub arguments: &'a RawValue,
    /// The server's id of its task.
    pub follows: String,
}

/// Returns the id of the task that a result hands over, in the form of either era; `None` for any other result.
pub fn given(result: &RawValue) -> Option<String> {
    let member = |of, key| splice::member(of, key).ok().flatten();
    let marked = member(result, "resultType").is_some_and(|kind| kind.get() == "\"task\"");
    let holder = if marked { Some(result) } else { member(result, "task") };
    let id: String = serde_json::from_str(member(holder?, "taskId")?.get()).ok()?;
    (1..=THEIRS_MAX).contains(&id.len()).then_some(id)
}

/// Returns the id of the task that goes on from this one, which its server answered with a task of its own.
pub fn going_on(task: &str) -> String {
    format!("{task}{GOES_ON}")
}

/// Returns the tag of the tasks that clients of this actor follow.
pub fn tag(actor: &str) -> String {
    let digest = Sha256::digest(actor.as_bytes());
    format!("{TAG}{}", data_encoding::HEXLOWER.encode(&digest[..16]))
}

/// Returns the audience of an attempt at a task that a client follows.
pub fn audience(handle: &Handle) -> Audience {
    let capabilities = handle.capabilities.as_deref();
    let capabilities = capabilities.and_then(|text| serde_json::from_str(text).ok());
    let manner = if capabilities.is_some() { Manner::Requests } else { Manner::Never };
    Audience { capabilities: canonical(&capabilities.unwrap_or_default()), manner, ..Audience::default() }
}

/// Returns what of a client's capabilities is kept: those by which it can be asked, without their settings if these are
/// too long.
fn kept(audience: &Audience) -> Option<String> {
    let declared: Map<String, Value> = serde_json::from_str(&audience.capabilities).unwrap_or_default();
    let asked: Map<String, Value> =
        declared.into_iter().filter(|(key, _)| ASKED.contains(&key.as_str())).collect();
    if asked.is_empty() || audience.manner == Manner::Never {
        return None;
    }
    let bare = asked.keys().map(|key| (key.clone(), json!({}))).collect();
    let text = canonical(&Value::Object(asked)).to_string();
    match text.len() <= CAPABILITIES_MAX {
        true => Some(text),
        false => Some(canonical(&Value::Object(bare)).to_string()),
    }
}

impl Wished<'_> {
    fn facts(&self, task_type: String, repeatable: bool) -> TaskSubmitted {
        TaskSubmitted {
            task_type,
            priority: PRIORITY,
            order: 0,
            not_before_ms: None,
            timeout_ms: Some(self.ttl_ms),
            retry: ONCE,
            tags: vec![tag(&self.actor.id)],
            requires: Vec::new(),
            unique_key: None,
            concurrency_key: None,
            rate_key: None,
            run: None,
            step: None,
            part: Part::Whole,
            hold: None,
            repeatable,
            reuse: false,
            handle: Some(Handle { ttl_ms: self.ttl_ms, capabilities: kept(self.audience) }),
        }
    }
}

impl Router {
    /// Returns what running tasks ask the clients that follow them.
    pub fn parked(&self) -> &Arc<Parked> {
        &self.inner.parked
    }

    /// Returns why a call of this tool cannot be a task, or `None` if it can.
    pub fn undurable(&self, entry: &Entry, arguments: &RawValue) -> Option<Refusal> {
        let name = &entry.tool.name;
        if let Some((setting, mode)) = self.less_kept(name) {
            let message =
                format!("tasks keep inputs and results in full, and `{name}` is captured as {mode}");
            let refusal = Refusal::new(Code::FailedPrecondition, message);
            return Some(refusal.hint(format!("call it without a task, or change `{setting}`")));
        }
        let input = serde_json::from_str(arguments.get()).unwrap_or_default();
        let keeping = self.keeping(entry, &input);
        (keeping.unsure || keeping.secrets.stand_in(&input, |_| false)).then(|| {
            let message = format!("tasks keep inputs in full, and `{name}` marks some of this one as secret");
            Refusal::new(Code::FailedPrecondition, message).hint("call it without a task")
        })
    }

    /// Returns the id of the task that an actor asks for under an idempotency key: nobody guesses it, and asked for again
    /// it is the same.
    pub fn keyed(&self, actor: &str, tool: &str, key: &str) -> String {
        let fields = [actor, tool, key].map(str::as_bytes);
        data_encoding::HEXLOWER.encode(&self.inner.parts.salt.bind(KEYED, &fields)[..16])
    }

    /// Puts a call in the queue, as a task of this id. `task_type` names the tool. The task is durable when this
    /// returns.
    pub async fn run_as_task(
        &self,
        id: String,
        task_type: String,
        wished: &Wished<'_>,
    ) -> Result<Task, Refusal> {
        let facts = wished.facts(task_type, wished.entry.contract.repeatable());
        self.submit_followed(id, facts, wished.arguments.get(), wished).await
    }

    /// Makes a task of ours, of this id, that follows one at the tool's server. To say so again changes nothing.
    pub async fn follow(&self, id: String, theirs: &str, wished: &Wished<'_>) -> Result<Task, Refusal> {
        let entry = wished.entry;
        let input = Followed {
            name: entry.tool.name.clone(),
            arguments: wished.arguments,
            follows: theirs.to_owned(),
        };
        let input = serde_json::to_string(&input).map_err(|_| internal())?;
        // To look at a task once more does no more than to look once.
        let facts = wished.facts(format!("{FOLLOW}{}", entry.source), true);
        self.submit_followed(id, facts, &input, wished).await
    }

    async fn submit_followed(
        &self,
        id: String,
        facts: TaskSubmitted,
        input: &str,
        wished: &Wished<'_>,
    ) -> Result<Task, Refusal> {
        let input = self.seal(input).map_err(|error| Refusal::new(Code::ResourceExhausted, error.message))?;
        let tool = Some(wished.entry.tool.contract);
        let wish = Wish::SubmitTask(Box::new(SubmitTask { id, facts, tool, input, metadata: None }));
        self.of_task(wish, wished.actor.clone(), wished.cause).await
    }

    /// Asks for a change of a task, or a look at it, and returns the task.
    pub async fn of_task(&self, wish: Wish, actor: Actor, cause: Option<Cid>) -> Result<Task, Refusal> {
        let work = Work { wish, actor, cause, note: None };
        let ruling = self.ledger().submit(Command::Work(Box::new(work))).await;
        match ruling.map_err(|stopped| Refusal::new(Code::Unavailable, stopped.to_string()))? {
            Ruling::Worked(worked) => match *worked {
                Worked::Task { task, .. } => Ok(*task),
                _ => Err(internal()),
            },
            Ruling::Denied(refusal) => Err(refusal),
            _ => Err(internal()),
        }
    }
}

fn internal() -> Refusal {
    let RpcError { message, .. } = RpcError::internal();
    Refusal::new(Code::Internal, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        block::splice::raw,
        router::{
            audience::{Audience, Manner},
            followed::{CAPABILITIES_MAX, audience, given, kept, tag},
        },
    };

    #[test]
    fn a_handed_over_task_is_seen_in_both_forms() {
        for (result, id) in [
            (r#"{"resultType":"task","taskId":"a","status":"working"}"#, Some("a")),
            (r#"{"task":{"taskId":"b","status":"working"}}"#, Some("b")),
            (r#"{"resultType":"complete","taskId":"c"}"#, None),
            (r#"{"resultType":"task","taskId":""}"#, None),
            (r#"{"content":[],"task":"d"}"#, None),
            (r#"{"content":[]}"#, None),
        ] {
            assert_eq!(given(&raw(result.to_owned())).as_deref(), id, "{result}");
        }
    }

    #[test]
    fn of_a_client_only_that_is_kept_by_which_it_is_asked() {
        let client = |capabilities: &serde_json::Value, manner| Audience {
            capabilities: capabilities.to_string().into(),
            manner,
            ..Audience::default()
        };
        let declared = json!({"roots": {}, "elicitation": {"url": {}}, "experimental": {"x": 1}});
        let kept_of = |manner| kept(&client(&declared, manner));
        assert_eq!(kept_of(Manner::Rounds).as_deref(), Some(r#"{"elicitation":{"url":{}},"roots":{}}"#));
        assert_eq!(kept_of(Manner::Never), None);
        let long = json!({"sampling": {"x": "y".repeat(CAPABILITIES_MAX)}});
        assert_eq!(kept(&client(&long, Manner::Requests)).as_deref(), Some(r#"{"sampling":{}}"#));
        assert_eq!(kept(&client(&json!({"extensions": {}}), Manner::Rounds)), None);
    }

    #[test]
    fn a_task_is_asked_in_the_manner_of_its_queue_whoever_its_client_is() {
        let handle = |capabilities: Option<&str>| crate::event::work::Handle {
            ttl_ms: 1,
            capabilities: capabilities.map(str::to_owned),
        };
        let asked = audience(&handle(Some(r#"{"roots":{}}"#)));
        assert!(asked.answers("roots/list") && asked.can_be_asked());
        assert!(!audience(&handle(None)).can_be_asked());
        assert_eq!(tag("a").len(), tag("another").len());
        assert_ne!(tag("a"), tag("another"));
    }
}
