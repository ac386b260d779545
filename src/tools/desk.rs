//! What the tools of durable work share: sending commands, asking questions, and showing tasks.
//!
//! Invariants:
//! - a wish carries the caller, the call it is made by, and the reason given;
//! - content is handed out as the text it was recorded as: no number in it changes on the way;
//! - a refusal names the ids that were asked about.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::{
        Cid,
        payload::{JSON, PAYLOAD_MAX, Payload, SaltKey, SealedPayload},
        splice,
    },
    caller::Caller,
    clock::now_ms,
    entity,
    error::{Code, Refusal},
    event::{Body, Event, Role},
    ledger::{
        Command, Ruling, Stopped,
        work::{Handed, Look, Wish, Work, Worked},
    },
    query::{
        QueryError, View,
        list::LIMIT_DEFAULT,
        proof::Head,
        work::{
            At,
            page::{From, Page},
        },
    },
    questions::Audit,
    router::{Entry, Invocation, Router, sight::Sight},
    task::{self, Limits, Status, Task},
    tools::{denied::Denied, network, reading::time, refusal},
    words::number,
};

pub const MINUTE_MS: u64 = 60_000;
/// Minutes from which the rate of starting tasks is taken.
pub const LATELY: u64 = 5;
/// Log lines in one answer; older ones are left out.
const LOGS_MAX: usize = 1000;

/// The context of the tools of durable work: router, questions, salt key, bounds and network.
#[derive(Clone)]
pub struct Desk {
    pub router: Router,
    audit: Audit,
    salt: SaltKey,
    /// The bounds that tasks are held to.
    pub limits: Limits,
    /// Empty until there is a network.
    pub network: network::Slot,
}

/// A success object as JSON text, or why there is none.
pub type Told = Result<String, Denied>;

/// Returns a success object as JSON text.
pub fn told<T: Serialize>(answer: &T) -> Told {
    #[derive(Serialize)]
    struct Success<'a, T> {
        success: bool,
        #[serde(flatten)]
        answer: &'a T,
    }
    let told = serde_json::to_string(&Success { success: true, answer });
    told.map_err(|err| {
        tracing::error!(%err, "an answer cannot be written");
        internal().into()
    })
}

impl Desk {
    pub fn new(router: &Router, salt: &SaltKey, limits: Limits) -> Self {
        let audit = Audit::new(router.ledger().clone());
        Self { router: router.clone(), audit, salt: salt.clone(), limits, network: network::Slot::default() }
    }

    /// Completes a command with the caller, the call and the reason.
    pub fn work(&self, invocation: &Invocation, reason: Option<&str>, wish: Wish) -> Result<Work, Refusal> {
        let note = reason.map(|reason| self.seal_text(reason)).transpose()?;
        Ok(Work { wish, actor: invocation.caller.actor.clone(), cause: invocation.started, note })
    }

    /// Asks the ledger for a change, unless it was ruled with the start of the call.
    ///
    /// Safe to drop midway: it may still be made.
    pub async fn wish(
        &self,
        invocation: &Invocation,
        reason: Option<&str>,
        wish: Wish,
    ) -> Result<Worked, Refusal> {
        let ruled = invocation.ruled.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ruling = match ruled {
            Some(ruling) => Ok(ruling),
            None => {
                let work = self.work(invocation, reason, wish)?;
                self.router.ledger().submit(Command::Work(Box::new(work))).await
            }
        };
        match ruling {
            Ok(Ruling::Worked(worked)) => Ok(*worked),
            Ok(Ruling::Denied(refusal)) => Err(refusal),
            Ok(_) => Err(unexpected()),
            Err(stopped @ Stopped) => Err(Refusal::new(Code::Unavailable, stopped.to_string())),
        }
    }

    /// Asks a question; the answer includes everything recorded before now.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.ask_under(move |view, _| question(view)).await
    }

    /// Like [`Desk::ask`], with the signed head over what the answer includes.
    pub async fn ask_under<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View, &Head) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.audit.ask(question).await.map_err(refusal)
    }

    /// Estimates when a task that is ready at `ready_ms` starts, from how many tasks started lately. Returns `None`
    /// if none did.
    pub async fn start_of(&self, ready_ms: u64, before: u64) -> Result<Option<u64>, Refusal> {
        let now_ms = now_ms();
        let first = (now_ms / MINUTE_MS).saturating_sub(LATELY);
        let minutes = self.ask(move |view| Ok(view.minutes(first)?.what)).await?;
        let started: u64 = minutes.iter().map(|minute| minute.started).sum();
        let wait_ms = (before * LATELY * MINUTE_MS).checked_div(started);
        Ok(wait_ms.map(|wait_ms| ready_ms.max(now_ms.saturating_add(wait_ms))))
    }

    /// Returns how many tasks of its kind stand before a task now; `None` if it does not wait any more.
    pub async fn position(&self, call: &Invocation, task: &str) -> Result<Option<u64>, Refusal> {
        match self.wish(call, None, Wish::Look(Look { task: task.to_owned() })).await? {
            Worked::Task { position, .. } => Ok(position),
            _ => Err(unexpected()),
        }
    }

    /// Returns the tool with this public name.
    pub fn offered(&self, name: &str) -> Option<Arc<Entry>> {
        self.router.tool(name).filter(|entry| entry.tool.name == name)
    }

    /// Returns the tool with this public name, if the caller sees it and durable work may call it for that caller.
    pub fn offered_to(&self, caller: &Caller, name: &str) -> Option<Arc<Entry>> {
        self.router
            .tool_for(caller, name)
            .filter(|entry| entry.tool.name == name && Sight::lasts(caller, entry))
    }

    /// Returns why durable work cannot run a tool with this input, or `None` if it can. Durable work keeps inputs and
    /// results in full. `place` is the place of the input, for the message.
    pub fn unkept(&self, entry: &Entry, input: &Value, place: &str) -> Option<Refusal> {
        let name = &entry.tool.name;
        if let Some(refusal) = self.secret(entry, input, place) {
            return Some(refusal);
        }
        let (setting, mode) = self.router.less_kept(name)?;
        let message = format!(
            "{place}: durable work keeps inputs and results in full, and `{name}` is captured as {mode}"
        );
        let hint = format!("call the tool directly, or change `{setting}`");
        Some(Refusal::new(Code::FailedPrecondition, message).hint(hint))
    }

    /// Returns why the input at `place` cannot be kept in full, or `None` if the tool marks nothing in it as secret.
    pub fn secret(&self, entry: &Entry, input: &Value, place: &str) -> Option<Refusal> {
        let keeping = self.router.keeping(entry, input);
        // What a reference brings is not known yet.
        let stands = keeping.unsure || keeping.secrets.stand_in(input, reference);
        let hint = "call the tool directly, or give its server the secret";
        stands.then(|| invalid(format!("invalid input at {place}: {SECRET}")).hint(hint))
    }

    /// Seals JSON as a payload.
    pub fn seal(&self, json: &str) -> Result<SealedPayload, Refusal> {
        Payload::seal(&self.salt, JSON, json.as_bytes()).map_err(|_| {
            let len = json.len();
            let message = format!("content of {len} bytes is over the bound of {PAYLOAD_MAX}");
            Refusal::new(Code::ResourceExhausted, message)
        })
    }

    /// Seals text as a payload, as a JSON string.
    pub fn seal_text(&self, text: &str) -> Result<SealedPayload, Refusal> {
        self.seal(&splice::quoted(text))
    }

    /// Seals metadata as a payload, unless it is absent or empty.
    pub fn seal_metadata(&self, metadata: Option<&RawValue>) -> Result<Option<SealedPayload>, Refusal> {
        let said = metadata.filter(|metadata| metadata.get() != "{}");
        said.map(|metadata| self.seal(metadata.get())).transpose()
    }
}

/// The message for durable work with a secret in it.
const SECRET: &str =
    "the tool marks this value as secret, or it may hold what is marked, and what is queued is kept";

/// Returns whether a value is taken from another step, or from the list that a step runs over.
fn reference(value: &Value) -> bool {
    value.get("$from").is_some() || value.get("$item").is_some()
}

pub fn internal() -> Refusal {
    Refusal::new(Code::Internal, "internal error")
}

/// Returns the refusal for a ruling of another kind than the command. It is logged.
pub fn unexpected() -> Refusal {
    tracing::error!("the ledger answered a wish with a ruling of another kind");
    internal()
}

pub fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidArgument, message)
}

/// Returns the refusal of an unknown id.
pub fn unknown(what: &str, id: &str, lister: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no {what} `{id}`")).hint(format!("{lister} names those there are"))
}

/// Returns the time between two moments; 0 if there was no beginning.
pub fn span(started_ms: Option<u64>, ended_ms: Option<u64>) -> u64 {
    started_ms.zip(ended_ms).map_or(0, |(started_ms, ended_ms)| ended_ms.saturating_sub(started_ms))
}

/// Returns the seq that an answer was given at: `as_of`, or the last folded event. Errors: `as_of` is past the end of
/// the log.
pub fn seen(applied: u64, as_of: Option<u64>) -> Result<u64, QueryError> {
    let last = applied.saturating_sub(1);
    match as_of {
        Some(seq) if seq > last => Err(QueryError::Invalid(format!(
            "as_of_seq: {seq} is past the head of the log, whose last event is {last}"
        ))),
        Some(seq) => Ok(seq),
        None => Ok(last),
    }
}

/// Returns a task after the event `as_of`, its events until then, and the seq it was read at.
pub fn task_as_of(
    view: &View,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<(Task, Vec<Event>, u64)>, QueryError> {
    let At { applied, what: events } = view.load(&task::subject(id), as_of)?;
    let seq = seen(applied, as_of)?;
    Ok(entity::folded(&events, &()).map(|task| (task, events, seq)))
}

/// Returns the content of a payload as JSON; `None` if it was erased.
pub fn content(view: &View, payload: &Cid) -> Result<Option<Box<RawValue>>, QueryError> {
    let Some(payload) = view.payload(payload)? else { return Ok(None) };
    let content = match view.content(payload) {
        Ok(content) => content,
        Err(QueryError::Erased { .. }) => return Ok(None),
        Err(err) => return Err(err),
    };
    Ok(String::from_utf8(content).ok().and_then(|text| RawValue::from_string(text).ok()))
}

/// Returns the value in a tool's recorded result: its structured content, else the JSON or the text of its only
/// block.
pub fn worth(result: Box<RawValue>) -> Box<RawValue> {
    let member = |of: &RawValue, name| splice::member(of, name).ok().flatten().map(RawValue::to_owned);
    if let Some(structured) = member(&result, "structuredContent").filter(|raw| raw.get() != "null") {
        return structured;
    }
    let blocks = member(&result, "content");
    let blocks: Option<Vec<Box<RawValue>>> = blocks.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let Some([block]) = blocks.as_deref() else { return result };
    let text = member(block, "text").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    match text {
        Some(text) if serde_json::from_str::<&RawValue>(&text).is_ok() => splice::raw(text),
        Some(text) => splice::raw(json!({"text": text}).to_string()),
        None => result,
    }
}

/// Returns a task's output as other steps read it.
pub fn output(view: &View, task: &Task) -> Result<Option<Box<RawValue>>, QueryError> {
    let Some(output) = &task.output else { return Ok(None) };
    let content = content(view, &output.cid)?;
    let of_tool = task.tool.is_some() && task.status == Status::Succeeded;
    Ok(if of_tool { content.map(worth) } else { content })
}

/// A log line of a task: a worker's message, a failure, or the reason somebody gave for a change.
#[derive(Serialize)]
pub struct Line {
    time: String,
    task_id: String,
    attempt: u64,
    message: String,
}

/// Returns the newest log lines in the events of tasks.
pub fn lines(
    events: &[Event],
    content: impl Fn(&Cid) -> Result<Option<Box<RawValue>>, QueryError>,
) -> Result<Vec<Line>, QueryError> {
    let mut attempts: HashMap<&str, u64> = HashMap::new();
    let mut said = Vec::new();
    for event in events {
        let fields = event.fields();
        let Some(id) = fields.subject.strip_prefix("task/") else { continue };
        if let Some(Body::TaskClaimed(facts)) = event.body() {
            attempts.insert(id, facts.attempt);
        }
        let heard = fields.pay.iter().filter(|pay| matches!(pay.role, Role::Log | Role::Error | Role::Note));
        let attempt = attempts.get(id).copied();
        said.extend(heard.map(|pay| (id, attempt, fields, pay)));
    }
    let older = said.len().saturating_sub(LOGS_MAX);
    let mut lines = Vec::new();
    for (id, attempt, fields, pay) in said.drain(older..) {
        let Some(content) = content(&pay.cid)? else { continue };
        let (task_id, attempt) = (id.to_owned(), attempt.unwrap_or(0));
        let message = match pay.role {
            Role::Note => format!("{} by {}: {}", fields.kind, fields.actor.id, message(&content)),
            _ => message(&content),
        };
        lines.push(Line { time: time(fields.at_ms()), task_id, attempt, message });
    }
    Ok(lines)
}

/// Returns the text for people in a log line or an error.
pub fn message(content: &RawValue) -> String {
    let text = match serde_json::from_str(content.get()) {
        Ok(Value::String(text)) => Some(text),
        Ok(Value::Object(said)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let structured = said.get("structuredContent").and_then(|said| text(&said["error"]["message"]));
            let structured = structured.or_else(|| text(&said.get("_meta")?["io.cairn/error"]["message"]));
            let block = said.get("content").and_then(|blocks| text(&blocks[0]["text"]));
            said.get("message").and_then(text).or(structured).or(block)
        }
        Ok(_) | Err(_) => None,
    };
    text.unwrap_or_else(|| content.get().to_owned())
}

/// Returns the worker of the task's current or last lease.
pub fn worker(task: &Task) -> Option<&str> {
    task.lease.as_ref().map(|lease| lease.worker.as_str())
}

/// A task as its worker gets it.
#[derive(Serialize)]
pub struct Given<'a> {
    task_id: &'a str,
    task_type: &'a str,
    payload: Option<&'a RawValue>,
    attempt: u64,
    lease_until: String,
    fence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_id: Option<&'a str>,
}

impl<'a> std::convert::From<&'a Handed> for Given<'a> {
    fn from(handed: &'a Handed) -> Self {
        Self {
            task_id: &handed.task,
            task_type: &handed.task_type,
            payload: handed.input.as_deref().and_then(|input| serde_json::from_str(input).ok()),
            attempt: handed.attempt,
            lease_until: time(handed.lease_until_ms),
            fence: handed.fence,
            timeout_ms: handed.timeout_ms,
            workflow_id: handed.run.as_deref(),
            step_id: handed.step.as_deref(),
        }
    }
}

/// Which page of a list is asked for.
#[derive(Deserialize)]
pub struct Paging {
    limit: Option<u64>,
    cursor: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    offset: Option<u64>,
}

impl Paging {
    pub fn limit(&self) -> u64 {
        self.limit.unwrap_or(LIMIT_DEFAULT)
    }

    pub fn from(&self) -> From<'_> {
        match &self.cursor {
            Some(cursor) => From::Cursor(cursor),
            None => From::Offset(self.offset.unwrap_or(0)),
        }
    }
}

/// Returns one page of a list as a success object, with the items under `name`.
pub fn page<T>(name: &str, listed: At<Page<T>>, shown: impl Fn(T) -> Value) -> Value {
    let At { applied, what: Page { rows, total, next_cursor } } = listed;
    let mut page = json!({
        "total_count": total,
        "returned_count": rows.len(),
        "has_more": next_cursor.is_some(),
        "next_cursor": next_cursor,
        "seq": applied.saturating_sub(1),
    });
    page[name] = rows.into_iter().map(shown).collect();
    page
}
