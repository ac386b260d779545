//! Tasks: calls that clients follow by handles, in both forms of the protocol, on this node's durable queue.
//!
//! In sessions (2025-11-25) a client asks for a task; in revision 2026-07-28 the server decides, for clients that
//! declare the extension.
//!
//! Invariants:
//! - a handle is told once its task is durable, and belongs to the actor that made it: to any other it does not exist;
//! - at the end of its time a handle is gone; what was recorded of its task stays;
//! - nothing here decides about a task: the writer does.

mod wire;
mod looking;

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json, value::RawValue};

use self::{
    looking::look,
    wire::{Ending, created, listed, said},
};
use super::{
    Shared,
    answer::{finish, finish_error},
    envelope::{Incoming, invalid_params},
};
use crate::{
    block::splice,
    caller::Caller,
    engine::TOOL,
    error::{Code, Refusal},
    ledger::work::{CancelTask, Wish},
    mcp::era::Era,
    query::{
        QueryError,
        work::page::{From, TaskFilter},
    },
    questions::Unanswered,
    router::{
        BoxFuture, Client, Entry, Response, RpcError,
        audience::Audience,
        codes::{INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, RATE_LIMITED},
        followed::{Wished, given, going_on, tag},
        handles::{Question, RELATED, TaskSupport},
        sight::Sight,
    },
    task::Task,
};

pub use crate::runtime::upstream_tasks::EXTENSION;

/// How long a handle lasts if its client does not say, and the bounds of what it may say.
const TTL_MS: u64 = 24 * 60 * 60 * 1_000;
const TTL_MIN_MS: u64 = 1_000;
const TTL_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// Tasks on one page of a list.
const PAGE_MAX: u64 = 50;
/// The pause after which a waiting request looks again, though it heard of no change.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same for whoever is only told of changes.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// The first revision of sessions that has tasks.
const FIRST: &str = "2025-11-25";
/// A client lacks a capability that the request needs.
const MISSING_CAPABILITY: i64 = -32021;

/// How a tool call is made.
pub enum Way {
    /// As a call. `handles`: whether the client takes the handle of a task that the tool's server makes of it.
    Call { handles: bool },
    /// As a task of ours.
    Task { entry: Arc<Entry>, ttl_ms: u64 },
}

/// Returns the way in which a tool call is made. Errors: the tool cannot be called in this way.
pub fn way(shared: &Shared, asked: &Incoming, era: Era, version: &str) -> Result<Way, RpcError> {
    const PLAIN: Way = Way::Call { handles: false };
    let entry = shared.router.tool_asked(&asked.name, asked.meta.contract.as_ref());
    let sight = shared.router.sight();
    let Some(entry) = entry.filter(|entry| offered(shared) && sight.sees(&asked.caller, entry)) else {
        return Ok(PLAIN);
    };
    let arguments = arguments(&asked.params);
    let undurable = || shared.router.undurable(&entry, arguments);
    match era {
        Era::Stateless => {
            let required = entry.support == TaskSupport::Required;
            if !declares(asked) {
                return if required { Err(missing()) } else { Ok(PLAIN) };
            }
            // What is refused is refused at once, as any call is.
            let input = serde_json::from_str(arguments.get()).unwrap_or_default();
            let pinned = asked.meta.contract.is_some_and(|pinned| pinned != entry.tool.contract);
            if pinned || entry.check(&input).is_err() || undurable().is_some() {
                return Ok(PLAIN);
            }
            if entry.run.gives_handles(&entry.inner) {
                return Ok(Way::Call { handles: true });
            }
            let wanted = required || entry.support == TaskSupport::Optional;
            Ok(if wanted { Way::Task { entry, ttl_ms: TTL_MS } } else { PLAIN })
        }
        Era::Session => {
            let Some(task) = splice::member(&asked.params, "task").ok().flatten() else {
                // A client of an older revision knows no tasks: its call is made one, and awaited.
                if entry.support == TaskSupport::Required && version >= FIRST {
                    let message = format!("{} must be called as a task", entry.tool.name);
                    return Err(RpcError::new(METHOD_NOT_FOUND, message));
                }
                return Ok(PLAIN);
            };
            if entry.support == TaskSupport::Forbidden || !Sight::lasts(&asked.caller, &entry) {
                let message = format!("{} cannot be called as a task", entry.tool.name);
                return Err(RpcError::new(METHOD_NOT_FOUND, message));
            }
            if let Some(refusal) = undurable() {
                return Err(RpcError::new(METHOD_NOT_FOUND, refusal.message));
            }
            let ttl_ms = ttl_ms(task)?;
            Ok(Way::Task { entry, ttl_ms })
        }
    }
}

/// Makes a task of a tool call. Returns the result that names it.
pub async fn create(
    shared: &Shared,
    asked: &Incoming,
    (entry, ttl_ms): (&Entry, u64),
    audience: &Audience,
    era: Era,
) -> Result<(String, String), RpcError> {
    let actor = &asked.caller.actor.id;
    let id = match &asked.meta.idempotency_key {
        Some(key) => shared.router.keyed(actor, &entry.tool.name, key),
        None => uuid::Uuid::new_v4().simple().to_string(),
    };
    let wished = Wished {
        entry,
        actor: asked.caller.actor.clone(),
        audience,
        ttl_ms,
        arguments: arguments(&asked.params),
        cause: None,
    };
    let task = shared.router.run_as_task(id.clone(), format!("{TOOL}{}", entry.tool.name), &wished).await;
    let task = task.map_err(|refusal| refused(&refusal))?;
    let told = finished(shared, &created(&task, era), era, &task)?;
    Ok((id, told))
}

/// Returns the answer of a call whose client takes handles: where the tool's server made a task of the call, a handle
/// of ours stands in its place.
pub async fn adopt(
    shared: &Shared,
    asked: &Incoming,
    audience: &Audience,
    answer: Result<Response, RpcError>,
) -> Result<Response, RpcError> {
    let response = answer?;
    let Some(theirs) = given(&response.result) else { return Ok(response) };
    let entry = shared.router.tool_asked(&asked.name, asked.meta.contract.as_ref());
    let entry = entry.ok_or_else(RpcError::internal)?;
    let wished = Wished {
        entry: &entry,
        actor: asked.caller.actor.clone(),
        audience,
        ttl_ms: TTL_MS,
        arguments: arguments(&asked.params),
        cause: response.record.as_ref().map(|record| record.event),
    };
    let id = uuid::Uuid::new_v4().simple().to_string();
    let task = shared.router.follow(id, &theirs, &wished).await.map_err(|refusal| refused(&refusal))?;
    Ok(Response { result: splice::raw(created(&task, Era::Stateless)), ..response })
}

/// Answers one of the methods of tasks, with the finished result. `client` is asked what a task asks, in sessions.
pub async fn answer(
    shared: &Shared,
    method: &str,
    asked: &Incoming,
    era: Era,
    client: &dyn Client,
) -> Result<String, RpcError> {
    let unknown = || RpcError::new(METHOD_NOT_FOUND, format!("there is no method {method}"));
    if !offered(shared) {
        return Err(unknown());
    }
    if era == Era::Stateless
        && !declares(asked)
        && matches!(method, "tasks/get" | "tasks/update" | "tasks/cancel")
    {
        return Err(missing());
    }
    match (method, era) {
        ("tasks/get", _) => {
            let seen = look(shared, &asked.caller, &id(asked)?).await?;
            finished(shared, &said(&seen, era), era, &seen.last)
        }
        ("tasks/cancel", _) => cancel(shared, asked, era).await,
        ("tasks/update", Era::Stateless) => update(shared, asked).await,
        ("tasks/result", Era::Session) => result(shared, asked, client).await,
        ("tasks/list", Era::Session) => list(shared, asked).await,
        _ => Err(unknown()),
    }
}

/// Tells of each change of a task, in the params of a session's notification, until the task has ended.
pub async fn tell(
    shared: Arc<Shared>,
    caller: Caller,
    id: String,
    tell: impl Fn(Value) -> BoxFuture<'static, ()> + Send,
) {
    let mut changes = shared.router.parked().changes();
    let mut told = String::new();
    loop {
        changes.borrow_and_update();
        let Ok(seen) = look(&shared, &caller, &id).await else { return };
        let now = seen.status(Era::Session).to_owned();
        if now != told && !told.is_empty() {
            tell(serde_json::from_str(&said(&seen, Era::Session)).unwrap_or_default()).await;
        }
        if seen.ending.is_some() {
            return;
        }
        told = now;
        // The parked questions last as long as the router, which `shared` holds.
        let _ = tokio::time::timeout(TELL_EVERY, changes.changed()).await;
    }
}

/// Returns whether tasks are offered here.
pub fn offered(shared: &Shared) -> bool {
    shared.router.offer().declared.tasks
}

/// Returns whether the client of a request declares the extension.
pub fn declares(asked: &Incoming) -> bool {
    let declared = asked.capabilities.as_deref().filter(|declared| declared.contains(EXTENSION));
    let declared: Option<Value> = declared.and_then(|declared| serde_json::from_str(declared).ok());
    declared.is_some_and(|declared| declared["extensions"].get(EXTENSION).is_some())
}

/// Changes what the handshake of a session declares to the form of sessions, for clients of this revision.
pub fn declare_in_session(greeting: &mut Value, version: &str, offered: bool) {
    if let Some(extensions) = greeting["capabilities"]["extensions"].as_object_mut() {
        extensions.remove(EXTENSION);
        if extensions.is_empty()
            && let Some(capabilities) = greeting["capabilities"].as_object_mut()
        {
            capabilities.remove("extensions");
        }
    }
    if offered && version >= FIRST {
        greeting["capabilities"]["tasks"] =
            json!({"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}});
    }
}

/// Returns the error of a client that lacks the extension.
pub fn missing() -> RpcError {
    let data = Some(json!({"requiredCapabilities": {"extensions": {EXTENSION: {}}}}));
    RpcError { data, ..RpcError::new(MISSING_CAPABILITY, "Missing required client capability") }
}

async fn cancel(shared: &Shared, asked: &Incoming, era: Era) -> Result<String, RpcError> {
    let id = id(asked)?;
    let seen = look(shared, &asked.caller, &id).await?;
    if seen.ending.is_some() && era == Era::Session {
        let message = format!("the task cannot be cancelled: it is {}", seen.status(era));
        return Err(invalid_params(message));
    }
    if seen.ending.is_none() {
        let wish = Wish::CancelTask(CancelTask { task: seen.last.id.clone(), force: true });
        let actor = asked.caller.actor.clone();
        match shared.router.of_task(wish, actor, None).await {
            // It has ended in this moment.
            Ok(_) | Err(Refusal { code: Code::FailedPrecondition, .. }) => {}
            Err(refusal) => return Err(refused(&refusal)),
        }
        shared.router.parked().changed();
    }
    let seen = look(shared, &asked.caller, &id).await?;
    match era {
        Era::Session => finished(shared, &said(&seen, era), era, &seen.last),
        Era::Stateless => finished(shared, "{}", era, &seen.last),
    }
}

async fn update(shared: &Shared, asked: &Incoming) -> Result<String, RpcError> {
    let seen = look(shared, &asked.caller, &id(asked)?).await?;
    let given = splice::member(&asked.params, "inputResponses").ok().flatten();
    let given: serde_json::Map<String, Value> = given
        .and_then(|given| serde_json::from_str(given.get()).ok())
        .ok_or_else(|| invalid_params("inputResponses must be an object"))?;
    for (key, answer) in given.into_iter().filter(|(_, answer)| answer.is_object()) {
        shared.router.parked().answer(&seen.last.id, &key, Ok(answer));
    }
    finished(shared, "{}", Era::Stateless, &seen.last)
}

/// Waits for the end of a task, and puts to the client what the task asks meanwhile.
async fn result(shared: &Shared, asked: &Incoming, client: &dyn Client) -> Result<String, RpcError> {
    let id = id(asked)?;
    let parked = shared.router.parked().clone();
    let mut changes = parked.changes();
    let (mut put, mut asking) = (HashSet::new(), FuturesUnordered::new());
    let (seen, ending) = loop {
        changes.borrow_and_update();
        let mut seen = look(shared, &asked.caller, &id).await?;
        if let Some(ending) = seen.ending.take() {
            break (seen, ending);
        }
        for question in seen.questions.into_iter().filter(|question| put.insert(question.key.clone())) {
            let Question { key, method, params } = question;
            let (parked, task, params) = (parked.clone(), seen.last.id.clone(), related(params, &id));
            asking.push(async move {
                let answer = client.request(&method, params).await;
                parked.answer(&task, &key, answer);
            });
        }
        tokio::select! {
            _ = changes.changed() => {}
            Some(()) = asking.next() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    };
    match ending {
        Ending::Result(result) => {
            let meta = splice::member(&result, "_meta").ok().flatten();
            let empty = splice::raw("{}".to_owned());
            let named = splice::raw(json!({"taskId": id}).to_string());
            let meta = splice::edit(meta.unwrap_or(&empty), &[(RELATED, &named)], |_| false).ok();
            let result = match meta {
                Some(meta) => splice::edit(&result, &[("_meta", &meta)], |_| false).unwrap_or(result),
                None => result,
            };
            finished(shared, result.get(), Era::Session, &seen.last)
        }
        Ending::Error(error) => Err(finish_error(error)),
        Ending::Cancelled => Err(RpcError::new(INTERNAL_ERROR, "the task was cancelled")),
    }
}

async fn list(shared: &Shared, asked: &Incoming) -> Result<String, RpcError> {
    let cursor = splice::member(&asked.params, "cursor").ok().flatten();
    let cursor: Option<String> = cursor.and_then(|cursor| serde_json::from_str(cursor.get()).ok());
    let filter = TaskFilter { tags: vec![tag(&asked.caller.actor.id)], ..TaskFilter::default() };
    let page = shared.audit.ask(move |view, _| {
        let from = cursor.as_deref().map_or(From::Offset(0), From::Cursor);
        view.tasks(&filter, PAGE_MAX, from)
    });
    let page = match page.await {
        Ok(page) => page.what,
        Err(Unanswered::Query(QueryError::Invalid(message))) => return Err(invalid_params(message)),
        Err(_) => return Err(RpcError::internal()),
    };
    let mut tasks = Vec::with_capacity(page.rows.len());
    for row in page.rows {
        // What goes on from another is that one's; what has expired, or is another's, is in no list.
        if row.facts.handle.is_none() || going_on_from_another(&row.id) {
            continue;
        }
        if let Ok(seen) = look(shared, &asked.caller, &row.id).await {
            tasks.push(said(&seen, Era::Session));
        }
    }
    let mut out = String::new();
    finish(&mut out, &splice::raw(listed(&tasks, page.next_cursor.as_deref())), Era::Session, None, None)?;
    Ok(out)
}

fn going_on_from_another(id: &str) -> bool {
    id.rsplit_once('.').is_some_and(|(first, _)| going_on(first) == id)
}

/// Returns a result in the form that leaves, with the place of the task's last event.
fn finished(shared: &Shared, result: &str, era: Era, task: &Task) -> Result<String, RpcError> {
    let mut out = String::new();
    let record = wire::record(task, shared.router.ledger().about().log);
    finish(&mut out, &splice::raw(result.to_owned()), era, None, Some(&record))?;
    Ok(out)
}

fn refused(refusal: &Refusal) -> RpcError {
    let message = match &refusal.hint {
        Some(hint) => format!("{} ({hint})", refusal.message),
        None => refusal.message.clone(),
    };
    let code = match refusal.code {
        Code::ResourceExhausted => RATE_LIMITED,
        Code::AlreadyExists => INVALID_PARAMS,
        _ => INTERNAL_ERROR,
    };
    RpcError::new(code, message)
}

fn id(asked: &Incoming) -> Result<String, RpcError> {
    let id = splice::member(&asked.params, "taskId").ok().flatten();
    id.and_then(|id| serde_json::from_str(id.get()).ok())
        .ok_or_else(|| invalid_params("taskId must be a string"))
}

fn arguments(params: &RawValue) -> &RawValue {
    let none: &'static RawValue = serde_json::from_str("{}").expect("this is JSON");
    splice::member(params, "arguments").ok().flatten().unwrap_or(none)
}

/// Returns how long the handle that a client asks for lasts.
fn ttl_ms(task: &RawValue) -> Result<u64, RpcError> {
    let wished: Value = serde_json::from_str(task.get()).unwrap_or_default();
    match (wished.as_object(), &wished["ttl"]) {
        (None, _) => Err(invalid_params("task must be an object")),
        (Some(_), Value::Null) => Ok(TTL_MS),
        (Some(_), Value::Number(ttl)) if ttl.as_f64().is_some_and(|ttl| ttl >= 0.0) => {
            let ttl = ttl.as_f64().unwrap_or_default();
            Ok((ttl as u64).clamp(TTL_MIN_MS, TTL_MAX_MS))
        }
        _ => Err(invalid_params("task.ttl must be a number of milliseconds")),
    }
}

/// Returns params of a request to a client that names the task it belongs to.
fn related(mut params: Value, task: &str) -> Value {
    params["_meta"][RELATED] = json!({"taskId": task});
    params
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        block::splice::raw,
        mcp::tasks::{
            EXTENSION, TTL_MAX_MS, TTL_MIN_MS, TTL_MS, declare_in_session, going_on_from_another, ttl_ms,
        },
    };

    #[test]
    fn the_time_of_a_handle_is_the_clients_within_bounds() {
        let of = |task: &str| ttl_ms(&raw(task.to_owned()));
        assert_eq!(of("{}").expect("none is said"), TTL_MS);
        assert_eq!(of(r#"{"ttl":null}"#).expect("none is said"), TTL_MS);
        assert_eq!(of(r#"{"ttl":60000,"pollInterval":1}"#).expect("a time"), 60_000);
        assert_eq!(of(r#"{"ttl":1.5}"#).expect("a time"), TTL_MIN_MS);
        assert_eq!(of(r#"{"ttl":1e300}"#).expect("a time"), TTL_MAX_MS);
        for odd in ["7", "null", "[]", r#"{"ttl":-1}"#, r#"{"ttl":"1"}"#, r#"{"ttl":{}}"#] {
            assert!(of(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_session_hears_of_tasks_in_its_own_form() {
        let greeting = || json!({"capabilities": {"tools": {}, "extensions": {EXTENSION: {}, "a/b": {}}}});
        let told = |version, offered| {
            let mut greeting = greeting();
            declare_in_session(&mut greeting, version, offered);
            greeting["capabilities"].clone()
        };
        let known = told("2025-11-25", true);
        assert_eq!(known["tasks"]["requests"]["tools"]["call"], json!({}));
        assert_eq!(known["extensions"], json!({"a/b": {}}));
        for nothing in [told("2025-06-18", true), told("2025-11-25", false)] {
            assert!(nothing.get("tasks").is_none() && nothing["extensions"].get(EXTENSION).is_none());
        }
    }

    #[test]
    fn what_goes_on_from_a_task_is_told_from_it() {
        assert!(going_on_from_another("a.f"));
        assert!(!going_on_from_another("a"));
        assert!(!going_on_from_another("a.g"));
    }
}
