//! What is done again at a caller's wish: only what that caller may call itself.
//!
//! Invariants:
//! - a run or task that is repeated calls no tool that whoever repeats it does not see;
//! - what is not known is not refused here: the change itself says so.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    engine::TOOL,
    error::{Code, Refusal},
    router::Invocation,
    tools::{
        desk::{Desk, task_as_of},
        workflows::submitted,
    },
};

/// Refuses to repeat a run whose steps, or whose children's, call a tool that the caller does not see.
pub async fn run(desk: &Desk, call: &Invocation, id: &str) -> Result<(), Refusal> {
    let id = id.to_owned();
    let definition = desk.ask(move |view| {
        let found = submitted(view, &id, None)?;
        Ok(found.map(|(run, _, _)| run.plan.definition(&run.inputs, &Map::new())))
    });
    let mut actions = BTreeSet::new();
    named(&definition.await?.unwrap_or_default(), &mut actions);
    actions.into_iter().try_for_each(|action| seen(desk, call, &action))
}

/// Refuses to repeat a task for a tool that the caller does not see.
pub async fn task(desk: &Desk, call: &Invocation, id: &str) -> Result<(), Refusal> {
    let id = id.to_owned();
    let found =
        desk.ask(move |view| Ok(task_as_of(view, &id, None)?.map(|(task, _, _)| task.facts.task_type)));
    match found.await?.as_deref().and_then(|kind| kind.strip_prefix(TOOL)) {
        Some(tool) => seen(desk, call, tool),
        None => Ok(()),
    }
}

/// Refuses what is for a tool on offer that the caller does not see.
pub fn seen(desk: &Desk, call: &Invocation, tool: &str) -> Result<(), Refusal> {
    let hidden = desk.offered(tool).is_some() && desk.offered_to(&call.caller, tool).is_none();
    let refusal =
        || Refusal::new(Code::PermissionDenied, format!("this calls `{tool}`, which is not on offer"));
    if hidden { Err(refusal()) } else { Ok(()) }
}

/// Adds what the steps of a definition do, and those of the definitions inside it. Strict JSON bounds its depth.
fn named(definition: &Value, actions: &mut BTreeSet<String>) {
    match definition {
        Value::Object(fields) => {
            actions.extend(fields.get("action").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| named(field, actions));
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, actions)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
