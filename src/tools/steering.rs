//! Changes to existing runs: fork, continue, signal.
//!
//! Invariants:
//! - nothing of an old run is changed or deleted by a new one.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    ledger::work::{self, RunTold, Wish, Worked},
    router::Invocation,
    tools::{
        Builtin, again, arguments,
        desk::{Desk, Told, told, unexpected, unknown},
        doing::{definition, does},
        planning::{Catalogue, Known, Wrong, wrong_with},
        workflows::{LISTER, submitted},
    },
    workflow::{
        fields::{Fault, join, nearest, suggestion},
        run::Run,
    },
};

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("workflows", definition, does);
    vec![
        tool(definition!("workflow_fork"), does!(fork)),
        tool(definition!("workflow_reschedule"), does!(reschedule)),
        tool(definition!("workflow_signal"), does!(signal)),
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
    again::run(desk, call, &id).await?;
    if !overrides.is_empty() {
        let (catalogue, asked, overrides) = (Catalogue::seen_by(desk, call), id.clone(), overrides.clone());
        let checked = desk.ask(move |view| {
            let Some((run, _, _)) = submitted(view, &asked, None)? else { return Ok(None) };
            Ok(Some(override_faults(&Known { catalogue: &catalogue, view }, &run, &overrides)))
        });
        let wrong = checked.await?.ok_or_else(|| unknown("workflow", &id, LISTER))?;
        if !wrong.is_empty() {
            return Err(wrong.denied("the fork", "each place is a JSON pointer into the arguments"));
        }
    }
    let overrides = Value::Object(overrides).to_string();
    let wish = Wish::ForkRun(work::ForkRun { run: id.clone(), new, from_step, overrides, rerun: false });
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

/// Returns the faults of new inputs for the steps of a run, found by checking the whole definition with them. Faults
/// of other steps, whose tools may have changed since, are left out.
fn override_faults(tools: &Known<'_>, run: &Run, overrides: &Map<String, Value>) -> Wrong {
    let (known, strange): (Map<_, _>, Map<_, _>) =
        overrides.clone().into_iter().partition(|(id, _)| run.step(id).is_some());
    let place = |id: &str| join("/overrides", id);
    let no_step = |id: &String| {
        let nearest = nearest(id, run.plan.steps.iter().map(|step| step.id.as_str()));
        let fault = format!("workflow `{}` has no such step{}", run.id, suggestion(nearest));
        Fault { place: place(id), fault }
    };
    let not_offered = |id: &String| {
        let step = &run.plan.steps[run.step(id)?];
        let gone = step.tool.is_some() && tools.catalogue.offered(&step.action).is_none();
        gone.then(|| Fault { place: place(id), fault: format!("`{}` is not on offer now", step.action) })
    };
    let definition = run.plan.definition(&run.inputs, &known);
    let places: Vec<(String, String)> =
        known.keys().filter_map(|id| Some((format!("/steps/{}/inputs", run.step(id)?), place(id)))).collect();
    let ours = |place: &str| {
        places.iter().find_map(|(from, to)| {
            let inside = place.strip_prefix(from.as_str())?;
            (inside.is_empty() || inside.starts_with('/')).then(|| format!("{to}{inside}"))
        })
    };
    let mut wrong = wrong_with(&definition, tools).moved(ours);
    wrong.faults.extend(strange.keys().map(no_step).chain(known.keys().filter_map(not_offered)));
    wrong
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
    again::run(desk, call, &run).await?;
    let wish = Wish::RescheduleRun(work::RescheduleRun { run, from_step, priority });
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
    let wish = Wish::Signal(work::Signal { run, signal: signal.clone(), input });
    let Worked::Run { run, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({"workflow_id": run.id, "signal": signal, "status": run.status}))
}
