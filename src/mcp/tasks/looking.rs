//! Looking: what has become of a task, whoever ran it and wherever it goes on.
//!
//! Invariants:
//! - a task of another actor, and one whose time is over, is not told apart from one that never was;
//! - to look changes nothing, but that a task which goes on elsewhere is followed if nobody does yet.

use serde_json::value::RawValue;

use super::{
    refused,
    wire::{Ending, Seen},
};
use crate::{
    block::{Cid, splice},
    caller::Caller,
    clock::now_ms,
    engine::TOOL,
    error::{Code, Refusal},
    event::work::Handle,
    ledger::work::{Look, Wish},
    mcp::{Shared, envelope::invalid_params},
    query,
    router::{
        RpcError,
        codes::INTERNAL_ERROR,
        followed::{self, Wished, given, going_on},
        telling::read_error,
    },
    task::{Status, Task, name_allowed},
};

/// Returns a task as its client sees it. Errors: there is none of this id that the caller made, or its time is over.
pub async fn look(shared: &Shared, caller: &Caller, id: &str) -> Result<Seen, RpcError> {
    let unknown = || invalid_params("there is no such task");
    if !name_allowed(id) {
        return Err(unknown());
    }
    let task = look_at(shared, caller, id).await?.ok_or_else(unknown)?;
    let handle =
        task.facts.handle.clone().filter(|_| task.actor.id == caller.actor.id).ok_or_else(unknown)?;
    if now_ms() > task.submitted_ms.saturating_add(handle.ttl_ms) {
        return Err(invalid_params("the task has expired"));
    }
    let last = match going_on_at(shared, &task, &handle).await? {
        Some(last) => last,
        None => task.clone(),
    };
    let questions = shared.router.parked().questions(&last.id);
    let ending = ending(shared, &last).await?;
    Ok(Seen { task, ttl_ms: handle.ttl_ms, last, questions, ending })
}

async fn look_at(shared: &Shared, caller: &Caller, id: &str) -> Result<Option<Task>, RpcError> {
    let wish = Wish::Look(Look { task: id.to_owned() });
    match shared.router.of_task(wish, caller.actor.clone(), None).await {
        Ok(task) => Ok(Some(task)),
        Err(Refusal { code: Code::NotFound, .. }) => Ok(None),
        Err(refusal) => Err(refused(&refusal)),
    }
}

/// Returns the task that goes on where the tool's server answered this one with a task of its own. It is made if there
/// is none: the node may have ended in between.
async fn going_on_at(shared: &Shared, task: &Task, handle: &Handle) -> Result<Option<Task>, RpcError> {
    let of_tool = task.facts.task_type.strip_prefix(TOOL);
    let (Some(name), Some(output)) = (of_tool, task.output.filter(|_| task.status == Status::Succeeded))
    else {
        return Ok(None);
    };
    let Some(theirs) = content(shared, &output.cid).await?.and_then(|result| given(&result)) else {
        return Ok(None);
    };
    let id = going_on(&task.id);
    let by = Caller { actor: task.actor.clone(), scopes: Vec::new() };
    if let Some(last) = look_at(shared, &by, &id).await? {
        return Ok(Some(last));
    }
    let gone = || RpcError::new(INTERNAL_ERROR, "the tool of this task is not on offer any more");
    let entry = shared.router.tool(name).ok_or_else(gone)?;
    let input = match &task.input {
        Some(input) => content(shared, &input.cid).await?,
        None => None,
    };
    let arguments = input.unwrap_or_else(|| splice::raw("{}".to_owned()));
    let wished = Wished {
        entry: &entry,
        actor: task.actor.clone(),
        audience: &followed::audience(handle),
        ttl_ms: handle.ttl_ms,
        arguments: &arguments,
        cause: Some(task.last),
    };
    Ok(Some(shared.router.follow(id, &theirs, &wished).await.map_err(|refusal| refused(&refusal))?))
}

/// Returns how a task ended; `None` if it has not.
async fn ending(shared: &Shared, task: &Task) -> Result<Option<Ending>, RpcError> {
    let output = match (&task.output, task.status.ended()) {
        (Some(output), true) => content(shared, &output.cid).await?,
        _ => None,
    };
    let failed = |message: &str| Ending::Error(RpcError::new(INTERNAL_ERROR, message));
    Ok(match (task.status, output) {
        (Status::Queued | Status::Running, _) => None,
        (Status::Cancelled, _) => Some(Ending::Cancelled),
        (Status::Succeeded, Some(result)) => Some(Ending::Result(result)),
        (Status::Succeeded, None) => Some(failed("the result of this task has been erased")),
        (Status::TimedOut, _) => Some(failed("the task did not end in time")),
        (Status::Failed | Status::Dead, Some(error)) => {
            let is_result = splice::member(&error, "content").ok().flatten().is_some();
            Some(if is_result { Ending::Result(error) } else { Ending::Error(read_error(&error)) })
        }
        (Status::Failed | Status::Dead, None) => Some(failed(
            "the node ended while the task ran, which may have taken effect; it is not run again",
        )),
    })
}

/// Returns a payload's content as JSON; `None` if it was erased.
async fn content(shared: &Shared, payload: &Cid) -> Result<Option<Box<RawValue>>, RpcError> {
    let (home, payload) = (shared.router.ledger().home().clone(), *payload);
    let read = tokio::task::spawn_blocking(move || query::content(&home, &payload)).await;
    let Ok(Ok(read)) = read else { return Err(RpcError::internal()) };
    Ok(read.and_then(|bytes| RawValue::from_string(String::from_utf8(bytes).ok()?).ok()))
}
