//! What the tools of durable work share: wishing, asking, and how tasks are told.
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
    error::{Code, Refusal},
    event::{Body, Event, Role},
    ledger::{
        Command, Ruling, Stopped,
        work::{Handed, Wish, Work, Worked},
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
    router::{Entry, Invocation, Router, lane},
    task::{self, Limits, Status, Task},
    tools::{
        Builtin,
        denied::Denied,
        doing::{Does, Foretells, Tool},
        peers,
        reading::time,
        refusal,
    },
};

pub const MINUTE_MS: u64 = 60_000;
/// Minutes that say how fast tasks start and end.
pub const LATELY: u64 = 5;
/// Lines of log in one answer, the newest.
const LOGS_MAX: usize = 1000;

/// Where the tools of durable work do what they do.
#[derive(Clone)]
pub struct Desk {
    pub router: Router,
    audit: Audit,
    salt: SaltKey,
    /// The bounds that tasks are held to.
    pub limits: Limits,
    /// Filled once there is a network.
    pub network: peers::network::Slot,
}

/// A success object as text, or why there is none.
pub type Told = Result<String, Denied>;

/// A success object.
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
        Self {
            router: router.clone(),
            audit,
            salt: salt.clone(),
            limits,
            network: peers::network::Slot::default(),
        }
    }

    /// A tool at this desk.
    pub fn tool(&self, category: &'static str, definition: &'static str, does: Does) -> Builtin {
        self.foretelling(category, definition, does, None)
    }

    /// A tool at this desk that checks its input against its schema itself.
    pub fn checking(&self, category: &'static str, definition: &'static str, does: Does) -> Builtin {
        let run = Arc::new(Tool { desk: self.clone(), does, foretells: None, checks: true });
        Builtin { definition, category, lane: lane::BUILTIN, run }
    }

    /// A tool at this desk that does nothing but ask the ledger for one change.
    pub fn foretelling(
        &self,
        category: &'static str,
        definition: &'static str,
        does: Does,
        foretells: Option<Foretells>,
    ) -> Builtin {
        let run = Arc::new(Tool { desk: self.clone(), does, foretells, checks: false });
        Builtin { definition, category, lane: lane::BUILTIN, run }
    }

    /// A wish of whoever calls, by this call, for this reason.
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

    /// Asks a question of everything recorded before now.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.ask_under(move |view, _| question(view)).await
    }

    /// The same, with the head that signs what was recorded before now.
    pub async fn ask_under<T: Send + 'static>(
        &self,
        question: impl FnOnce(&View, &Head) -> Result<T, QueryError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.audit.ask(question).await.map_err(refusal)
    }

    /// When a task that is ready at `ready_ms` starts, if those before it start as fast as tasks did lately; none
    /// where none did.
    pub async fn start_of(&self, ready_ms: u64, before: u64) -> Result<Option<u64>, Refusal> {
        let now_ms = now_ms();
        let first = (now_ms / MINUTE_MS).saturating_sub(LATELY);
        let minutes = self.ask(move |view| Ok(view.minutes(first)?.what)).await?;
        let started: u64 = minutes.iter().map(|minute| minute.started).sum();
        let wait_ms = (before * LATELY * MINUTE_MS).checked_div(started);
        Ok(wait_ms.map(|wait_ms| ready_ms.max(now_ms.saturating_add(wait_ms))))
    }

    /// How many tasks of its kind stand before a waiting task now; none where it waits no more.
    pub async fn position(&self, call: &Invocation, task: &str) -> Result<Option<u64>, Refusal> {
        match self.wish(call, None, Wish::Look { task: task.to_owned() }).await? {
            Worked::Task { position, .. } => Ok(position),
            _ => Err(unexpected()),
        }
    }

    /// The tool of this public name.
    pub fn offered(&self, name: &str) -> Option<Arc<Entry>> {
        self.router.tool(name).filter(|entry| entry.tool.name == name)
    }

    /// Why durable work, which keeps its inputs and results whole, cannot do a tool with this input; none where it
    /// can. `place` is where the input stands.
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

    /// Why an input that stands at `place` cannot be kept whole; none where a tool marks nothing of it.
    pub fn secret(&self, entry: &Entry, input: &Value, place: &str) -> Option<Refusal> {
        let keeping = self.router.keeping(entry, input);
        // What a reference brings is not known yet.
        let stands = keeping.unsure || keeping.secrets.stand_in(input, reference);
        let hint = "call the tool directly, or give its server the secret";
        stands.then(|| invalid(format!("invalid input at {place}: {SECRET}")).hint(hint))
    }

    /// JSON as a payload.
    pub fn seal(&self, json: &str) -> Result<SealedPayload, Refusal> {
        Payload::seal(&self.salt, JSON, json.as_bytes()).map_err(|_| {
            let len = json.len();
            let message = format!("content of {len} bytes is over the bound of {PAYLOAD_MAX}");
            Refusal::new(Code::ResourceExhausted, message)
        })
    }

    /// Text as a payload, written as JSON.
    pub fn seal_text(&self, text: &str) -> Result<SealedPayload, Refusal> {
        self.seal(&splice::quoted(text))
    }

    /// A payload for metadata that says anything.
    pub fn seal_metadata(&self, metadata: Option<&RawValue>) -> Result<Option<SealedPayload>, Refusal> {
        let said = metadata.filter(|metadata| metadata.get() != "{}");
        said.map(|metadata| self.seal(metadata.get())).transpose()
    }
}

/// What is wrong with durable work that holds a secret.
const SECRET: &str =
    "the tool marks this value as secret, or it may hold what is marked, and what is queued is kept";

/// Whether a value is taken from another step, or from the list a step runs over.
fn reference(value: &Value) -> bool {
    value.get("$from").is_some() || value.get("$item").is_some()
}

pub fn internal() -> Refusal {
    Refusal::new(Code::Internal, "internal error")
}

/// The ledger answered another question than was asked.
pub fn unexpected() -> Refusal {
    tracing::error!("the ledger answered a wish with a ruling of another kind");
    internal()
}

pub fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidArgument, message)
}

/// There is none of this id.
pub fn unknown(what: &str, id: &str, lister: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("no {what} `{id}`")).hint(format!("{lister} names those there are"))
}

/// The time between two moments; none where there was no beginning.
pub fn span(started_ms: Option<u64>, ended_ms: Option<u64>) -> u64 {
    started_ms.zip(ended_ms).map_or(0, |(started_ms, ended_ms)| ended_ms.saturating_sub(started_ms))
}

pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The seq an answer was given at: that of the last event it saw, or could have seen. Errors: one that nothing has yet.
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

/// A task, its events up to and with `as_of`, and the seq it was read at.
pub fn task_as_of(
    view: &View,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<(Task, Vec<Event>, u64)>, QueryError> {
    let At { applied, what: events } = view.load(&task::subject(id), as_of)?;
    let seq = seen(applied, as_of)?;
    let Some((first, later)) = events.split_first() else { return Ok(None) };
    let Some(mut task) = Task::begun(first) else { return Ok(None) };
    later.iter().for_each(|event| task.apply(event));
    Ok(Some((task, events, seq)))
}

/// The content of a payload as the JSON it is; none where it was erased.
pub fn content(view: &View, payload: &Cid) -> Result<Option<Box<RawValue>>, QueryError> {
    let Some(payload) = view.payload(payload)? else { return Ok(None) };
    let content = match view.content(payload) {
        Ok(content) => content,
        Err(QueryError::Erased { .. }) => return Ok(None),
        Err(err) => return Err(err),
    };
    Ok(String::from_utf8(content).ok().and_then(|text| RawValue::from_string(text).ok()))
}

/// What a tool's recorded result says: its structured content, else the JSON or the text of its only block.
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

/// What a task gave, as other steps read it.
pub fn output(view: &View, task: &Task) -> Result<Option<Box<RawValue>>, QueryError> {
    let Some(output) = &task.output else { return Ok(None) };
    let content = content(view, &output.cid)?;
    let of_tool = task.tool.is_some() && task.status == Status::Succeeded;
    Ok(if of_tool { content.map(worth) } else { content })
}

/// One line of what workers, failures and those said who changed something, with the reason they gave.
#[derive(Serialize)]
pub struct Line {
    time: String,
    task_id: String,
    attempt: u64,
    message: String,
}

/// What was said in the events of tasks, the newest lines of it.
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
        lines.push(Line { time: time(fields.ts / 1000), task_id, attempt, message });
    }
    Ok(lines)
}

/// What a log line or an error says to people.
pub fn message(content: &RawValue) -> String {
    let text = match serde_json::from_str(content.get()) {
        Ok(Value::String(text)) => Some(text),
        Ok(Value::Object(said)) => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let structured = said.get("structuredContent").and_then(|said| text(&said["error"]["message"]));
            let block = said.get("content").and_then(|blocks| text(&blocks[0]["text"]));
            said.get("message").and_then(text).or(structured).or(block)
        }
        Ok(_) | Err(_) => None,
    };
    text.unwrap_or_else(|| content.get().to_owned())
}

/// Who has the task, or had it when it ended.
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

/// One page of a list, under the name of what it lists.
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
