//! What is done to runs that are there: forked, continued, signalled.
//!
//! Invariants:
//! - nothing of an old run is changed or deleted by a new one.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::tools::denied::Denied;
use crate::{
    call::Code,
    ledger::work::{RunTold, Wish, Worked},
    router::Invocation,
    tools::{
        Builtin, arguments,
        planning::Catalogue,
        work::{Desk, Told, told, unexpected, unknown},
        workflows::{LISTER, submitted},
    },
    workflow::{plan::Fault, run::Run},
};

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("workflows", definition, does);
    vec![
        tool(include_str!("../../schemas/tools/workflow_fork.json"), |desk, call| {
            Box::pin(async move { fork(&desk, &call).await })
        }),
        tool(include_str!("../../schemas/tools/workflow_reschedule.json"), |desk, call| {
            Box::pin(async move { reschedule(&desk, &call).await })
        }),
        tool(include_str!("../../schemas/tools/workflow_signal.json"), |desk, call| {
            Box::pin(async move { signal(&desk, &call).await })
        }),
    ]
}

#[derive(Deserialize)]
struct Fork {
    workflow_id: String,
    new_workflow_id: String,
    from_step: Option<String>,
    #[serde(default)]
    overrides: Map<String, Value>,
    reason: Option<String>,
}

async fn fork(desk: &Desk, call: &Invocation) -> Told {
    let Fork { workflow_id: id, new_workflow_id: new, from_step, overrides, reason } = arguments(call)?;
    if !overrides.is_empty() {
        let (catalogue, asked, overrides) = (Catalogue(desk.clone()), id.clone(), overrides.clone());
        let checked = desk.ask(move |view| {
            let Some((run, _, _)) = submitted(view, &asked, None)? else { return Ok(None) };
            Ok(Some(check_overrides(&catalogue, &run, &overrides)))
        });
        checked.await?.ok_or_else(|| unknown("workflow", &id, LISTER))??;
    }
    let overrides = Value::Object(overrides).to_string();
    let wish = Wish::ForkRun { run: id.clone(), new, from_step, overrides, rerun: false };
    let Worked::Run { run, replayed, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    let new = run.id.clone();
    let split = desk.ask(move |view| {
        let Some((run, _, _)) = submitted(view, &new, None)? else { return Ok(None) };
        let kept: Vec<String> = run.taken_steps().map(str::to_owned).collect();
        let again = run.plan.steps.iter().filter(|step| !kept.contains(&step.id));
        Ok(Some((again.map(|step| step.id.clone()).collect::<Vec<_>>(), kept)))
    });
    let (again, kept) = split.await?.unwrap_or_default();
    let RunTold { id: new, status, definition, submitted, .. } = run;
    told(&json!({
        "workflow_id": id,
        "new_workflow_id": new,
        "status": status,
        "definition": definition.to_string(),
        "run": submitted.to_string(),
        "kept_steps": kept,
        "rerun_steps": again,
        "replayed": replayed,
    }))
}

/// Checks new inputs for the steps of a run.
fn check_overrides(catalogue: &Catalogue, run: &Run, overrides: &Map<String, Value>) -> Result<(), Denied> {
    let mut faults = Vec::new();
    let mut unkept = None;
    for (id, inputs) in overrides {
        let place = format!("/overrides/{}", id.replace('~', "~0").replace('/', "~1"));
        let fault = match run.step(id).map(|at| &run.plan.steps[at]) {
            None => Some(format!("workflow `{}` has no such step", run.id)),
            Some(_) if !inputs.is_object() => Some("must be an object".to_owned()),
            Some(step) => match catalogue.0.offered(&step.action) {
                None if step.tool.is_some() => Some(format!("`{}` is not on offer now", step.action)),
                None => None,
                Some(entry) => match catalogue.0.unkept(&entry, inputs, &place) {
                    Some(refusal) if refusal.code == Code::FailedPrecondition => {
                        unkept = unkept.or(Some(refusal));
                        None
                    }
                    Some(refusal) => Some(refusal.message),
                    None if literal(inputs) => entry.check(inputs).err().map(|refusal| refusal.message),
                    None => None,
                },
            },
        };
        faults.extend(fault.map(|fault| Fault { place, fault }));
    }
    match unkept {
        _ if !faults.is_empty() => Err(Denied::faulty("the fork", faults)),
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// Whether inputs take nothing from other steps.
fn literal(inputs: &Value) -> bool {
    match inputs {
        Value::Object(fields) => {
            !fields.contains_key("$from") && !fields.contains_key("$item") && fields.values().all(literal)
        }
        Value::Array(items) => items.iter().all(literal),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

#[derive(Deserialize)]
struct Reschedule {
    workflow_id: String,
    from_step: Option<String>,
    priority: Option<u64>,
    reason: Option<String>,
}

async fn reschedule(desk: &Desk, call: &Invocation) -> Told {
    let Reschedule { workflow_id: run, from_step, priority, reason } = arguments(call)?;
    let wish = Wish::RescheduleRun { run, from_step, priority };
    let Worked::Run { run, steps, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({"workflow_id": run.id, "status": run.status, "rerun_steps": steps}))
}

#[derive(Deserialize)]
struct Signal {
    workflow_id: String,
    signal: String,
    payload: Option<Box<RawValue>>,
    reason: Option<String>,
}

async fn signal(desk: &Desk, call: &Invocation) -> Told {
    let Signal { workflow_id: run, signal, payload, reason } = arguments(call)?;
    let input = desk.seal(payload.as_deref().map_or("{}", RawValue::get))?;
    let wish = Wish::Signal { run, signal: signal.clone(), input };
    let Worked::Run { run, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({"workflow_id": run.id, "signal": signal, "status": run.status}))
}
