//! The workflow tools: submit runs of steps, follow them, change their course.
//!
//! Invariants:
//! - a definition is checked whole before anything is wished, and every fault of it is told;
//! - what is read is folded from the run's events: the same at restart, in the past and in a replay.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    archive::record::{RunRecord, run_record},
    block::{Cid, payload::PAYLOAD_MAX},
    drawing,
    error::{Code, Refusal},
    event::{Body, Event, PayloadRef},
    ledger::work::{CancelRun, NewRun, Wish, Worked},
    query::{QueryError, View, source, work::page::RunFilter},
    router::Invocation,
    tools::{
        Builtin, arguments,
        desk::{
            Desk, Line, Paging, Told, internal, lines, message, page, seen, span, told, unexpected, unknown,
            worth,
        },
        doing::{definition, does},
        planning::checked,
        reading::time,
    },
    words::number,
    workflow::{
        self,
        graph::Graph,
        run::{
            Piece, Run, Slot,
            status::{Status, StepStatus, WorkStatus},
        },
        shape,
    },
};

pub(super) const LISTER: &str = "workflow_list";
const SUBMIT: &str = "workflow_submit";
/// Step errors that are shown with their messages; further ones show their codes only.
const MESSAGES_MAX: usize = 1000;

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("workflows", definition, does);
    vec![
        desk.checking("workflows", definition!("workflow_submit"), does!(submit)),
        tool(definition!("workflow_status"), does!(status)),
        tool(definition!("workflow_cancel"), does!(cancel)),
        tool(definition!("workflow_list"), does!(list)),
        tool(definition!("workflow_dependencies"), does!(dependencies)),
        tool(definition!("workflow_result"), does!(result)),
    ]
}

async fn submit(desk: &Desk, call: &Invocation) -> Told {
    let mut definition: Map<String, Value> = arguments(call)?;
    let submit = desk.offered(SUBMIT).ok_or_else(internal)?;
    let misfits = submit.misfits(&Value::Object(definition.clone()));
    let reason = definition.remove("reason").and_then(|reason| reason.as_str().map(str::to_owned));
    let planned = checked(desk, call, "the definition", definition, misfits).await?;
    let peer = planned.peer.clone();
    let new = NewRun {
        id: planned.id.unwrap_or_default(),
        inputs: desk.seal(&planned.inputs.to_string())?,
        priority: planned.priority,
        tags: planned.tags,
        dependencies: planned.dependencies,
        max_parallel: planned.max_parallel,
        deadline_ms: planned.deadline_ms,
        peer: planned.peer,
        plan: planned.plan,
    };
    let wish = Wish::SubmitRun(Box::new(new));
    let Worked::Run { run, replayed, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({
        "workflow_id": run.id,
        "status": run.status,
        "definition": run.definition.to_string(),
        "run": run.submitted.to_string(),
        "peer_assigned": peer,
        "estimated_start_time": null,
        "replayed": replayed,
    }))
}

/// Returns a run as it was submitted, with what it takes over; its later events up to and with `as_of`; and the seq
/// it was read at.
pub(super) fn submitted(
    view: &View,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<(Run, Vec<Event>, u64)>, QueryError> {
    let seq = seen(view.applied()?, as_of)?;
    let found = source::submitted(&view, id, Some(seq))?;
    Ok(found.map(|(run, events)| (run, events, seq)))
}

/// Returns a run after `as_of`, its record, and the seq it was read at, from this log or from an archive that holds
/// the run.
pub fn run_as_of<'a>(
    view: &'a View,
    id: &str,
    as_of: Option<u64>,
) -> Result<Option<(RunRecord<'a>, u64)>, QueryError> {
    // Before anything is read: what is told is never older than the seq that it is told at, and whoever goes on from
    // there misses nothing.
    let applied = view.applied()?;
    let Some(mut record) = run_record(view, id, as_of)? else { return Ok(None) };
    let run = &mut record.run;
    if record.archive.is_some() {
        record.events.iter().for_each(|event| run.apply(event));
        let seq = run.last_seq;
        return Ok(Some((record, seq)));
    }
    let seq = seen(applied, as_of)?.max(run.seq);
    record.events.retain(|event| event.fields().seq <= seq);
    record.events.iter().for_each(|event| run.apply(event));
    if run.status() == Status::Waiting {
        for other in run.facts.dependencies.clone() {
            if let Some(succeeded) = ending(view, &other, seq)? {
                run.dependency_ended(&other, succeeded);
            }
        }
    }
    Ok(Some((record, seq)))
}

/// Returns whether a run has succeeded; `None` if it has not ended.
pub fn ending(view: &View, id: &str, as_of: u64) -> Result<Option<bool>, QueryError> {
    let events = view.load(&workflow::subject(id), Some(as_of))?.what;
    let mut ended = None;
    for event in &events {
        match event.body() {
            Some(Body::WorkflowSucceeded(_)) => ended = Some(true),
            Some(Body::WorkflowFailed(_) | Body::WorkflowCancelled(_) | Body::WorkflowTimedOut(_)) => {
                ended = Some(false);
            }
            Some(Body::WorkflowRescheduled(_)) => ended = None,
            Some(_) | None => {}
        }
    }
    Ok(ended)
}

#[derive(Deserialize)]
struct AskStatus {
    workflow_id: String,
    #[serde(default = "yes")]
    include_steps: bool,
    #[serde(default)]
    include_metrics: bool,
    #[serde(default, deserialize_with = "number::optional")]
    as_of_seq: Option<u64>,
}

fn yes() -> bool {
    true
}

async fn status(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskStatus = arguments(call)?;
    let id = asked.workflow_id.clone();
    let shown = desk.ask(move |view| {
        let Some((record, seq)) = run_as_of(view, &asked.workflow_id, asked.as_of_seq)? else {
            return Ok(None);
        };
        let run = &record.run;
        let mut shown = json!({
            "workflow_id": run.id,
            "name": run.plan.name,
            "status": run.status().as_str(),
            "progress": run.progress(),
            "current_steps": run.current_steps(),
            "peer_id": run.facts.peer,
            "submitted_at": time(run.submitted_ms),
            "start_time": run.started_ms.map(time),
            "end_time": run.ended_ms.map(time),
            "priority": run.facts.priority,
            "tags": run.facts.tags,
            "metadata": run.inputs.get("metadata").cloned().unwrap_or_else(|| json!({})),
            "failure": failure(run),
            "origin": run.facts.origin.as_ref().map(|origin| {
                json!({"workflow_id": origin.run, "from_step": origin.from_step})
            }),
            "seq": seq,
        });
        if asked.include_steps {
            shown["steps"] = steps(&record)?;
        }
        if asked.include_metrics {
            shown["metrics"] = metrics(run);
        }
        Ok(Some(shown))
    });
    told(&shown.await?.ok_or_else(|| unknown("workflow", &id, LISTER))?)
}

/// Returns why a run failed, if it did.
fn failure(run: &Run) -> Option<Value> {
    let reason = run.reason.as_ref()?;
    let step = run.failed.map(|at| run.plan.steps[at].id.as_str());
    Some(json!({"step_id": step, "reason": reason}))
}

fn steps(record: &RunRecord<'_>) -> Result<Value, QueryError> {
    let run = &record.run;
    let mut messages = 0;
    let mut shown = Vec::with_capacity(run.steps.len());
    for (at, (step, state)) in run.plan.steps.iter().zip(&run.steps).enumerate() {
        let task = state.whole.submitted.map(|_| run.task_id(Slot { step: at, piece: Piece::Whole }));
        let mut one = json!({
            "step_id": step.id,
            "action": step.action,
            "status": state.status.as_str(),
            "depends_on": step.depends_on,
            "task_id": task,
            "attempt": state.whole.attempt,
            "reused": state.whole.reused,
            "start_time": state.started_ms.map(time),
            "end_time": state.ended_ms.map(time),
            "duration_ms": state.started_ms.zip(state.ended_ms).map(|(start, end)| end.saturating_sub(start)),
            "reason": state.reason,
        });
        if let Some(original) = state.whole.reused_from {
            one["reused_from"] = json!(original.to_string());
        }
        if let Some(undo) = &state.undo {
            one["compensated"] = json!(undo.status == WorkStatus::Succeeded);
        }
        if matches!(state.status, StepStatus::Failed | StepStatus::TimedOut) {
            let said = match state.output.filter(|_| messages < MESSAGES_MAX) {
                Some(error) => content(record, &error.cid)?,
                None => None,
            };
            messages += 1;
            let text = said.map(|said| message(&said)).unwrap_or_default();
            one["error"] = json!({"code": state.reason, "message": text});
        }
        if step.each.is_some() {
            let done = state.parts.iter().filter(|part| part.status == WorkStatus::Succeeded).count();
            one["parts"] = json!({"total": state.parts.len(), "done": done});
        }
        shown.push(one);
    }
    Ok(Value::Array(shown))
}

fn metrics(run: &Run) -> Value {
    let counts = run.counts();
    let by_status: Map<String, Value> =
        counts.iter().map(|(status, n)| (status.as_str().to_owned(), json!(n))).collect();
    let works = || {
        let of_step = run.steps.iter().flat_map(|state| std::iter::once(&state.whole).chain(&state.parts));
        of_step.filter(|work| work.submitted.is_some())
    };
    let graph = Graph::of(run);
    let critical = graph.critical_path().into_iter().filter_map(|at| graph.nodes()[at].duration_ms);
    json!({
        "steps_by_status": by_status,
        "attempts": works().map(|work| work.attempt).sum::<u64>(),
        "reused_steps": run.steps.iter().filter(|state| state.whole.reused).count(),
        "queue_wait_ms": works().map(|work| span(Some(work.submitted_ms), work.started_ms)).sum::<u64>(),
        "execution_time_ms": works().map(|work| span(work.started_ms, work.ended_ms)).sum::<u64>(),
        "critical_path_ms": critical.sum::<u64>(),
    })
}

#[derive(Deserialize)]
struct Cancel {
    workflow_id: String,
    reason: Option<String>,
    #[serde(default)]
    force: bool,
}

async fn cancel(desk: &Desk, call: &Invocation) -> Told {
    let Cancel { workflow_id: run, reason, force } = arguments(call)?;
    let wish = Wish::CancelRun(CancelRun { run, force });
    let Worked::Run { run, steps, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({"workflow_id": run.id, "status": run.status, "cancelled_steps": steps.len()}))
}

#[derive(Deserialize)]
struct List {
    status_filter: Option<String>,
    peer_filter: Option<String>,
    #[serde(default)]
    tag_filter: Vec<String>,
}

async fn list(desk: &Desk, call: &Invocation) -> Told {
    let List { status_filter: status, peer_filter: peer, tag_filter: tags } = arguments(call)?;
    let paging: Paging = arguments(call)?;
    let filter = RunFilter { status, peer, tags };
    let listed = desk.ask(move |view| view.workflows(&filter, paging.limit(), paging.from())).await?;
    told(&page("workflows", listed, |row| {
        json!({
            "workflow_id": row.id,
            "name": row.name.unwrap_or_default(),
            "status": row.status,
            "progress": row.done * 100 / row.facts.steps.max(1),
            "priority": row.priority,
            "tags": row.facts.tags,
            "steps": row.facts.steps,
            "peer_id": row.facts.peer,
            "submitted_at": time(row.submitted_ms),
            "start_time": row.started_ms.map(time),
            "end_time": row.ended_ms.map(time),
        })
    }))
}

#[derive(Deserialize)]
struct Draw {
    workflow_id: String,
    format: Option<String>,
    fmt: Option<String>,
}

async fn dependencies(desk: &Desk, call: &Invocation) -> Told {
    let Draw { workflow_id, format, fmt } = arguments(call)?;
    let id = workflow_id.clone();
    let drawn = desk.ask(move |view| {
        let Some((record, seq)) = run_as_of(view, &workflow_id, None)? else { return Ok(None) };
        let run = &record.run;
        let graph = Graph::of(run);
        let mut shown = graph.json();
        shown["dag"] = match format.or(fmt).as_deref() {
            Some("dot") => json!(drawing::run::dot(&graph)),
            Some("mermaid") => json!(drawing::run::mermaid(&graph)),
            Some(_) | None => {
                let needs = |step: &shape::Step| (step.id.clone(), json!(step.depends_on));
                Value::Object(run.plan.steps.iter().map(needs).collect())
            }
        };
        shown["workflow_id"] = json!(run.id);
        shown["seq"] = json!(seq);
        Ok(Some(shown))
    });
    told(&drawn.await?.ok_or_else(|| unknown("workflow", &id, LISTER))?)
}

#[derive(Deserialize)]
struct AskResult {
    workflow_id: String,
    #[serde(default = "yes")]
    include_outputs: bool,
    #[serde(default)]
    include_logs: bool,
}

/// Outputs by step id, in the order of the plan, as the text they were recorded as.
struct Outputs(Vec<(String, Box<RawValue>)>);

impl Serialize for Outputs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, output)| (id, output)))
    }
}

#[derive(Serialize)]
struct Gave {
    workflow_id: String,
    status: &'static str,
    result: Outputs,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Outputs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<Vec<Line>>,
    failure: Option<Value>,
    execution_time_ms: u64,
    seq: u64,
}

async fn result(desk: &Desk, call: &Invocation) -> Told {
    let asked: AskResult = arguments(call)?;
    let id = asked.workflow_id.clone();
    let gave = desk.ask(move |view| {
        let Some((record, seq)) = run_as_of(view, &asked.workflow_id, None)? else { return Ok(None) };
        let run = &record.run;
        let status = run.status();
        if !status.ended() {
            return Ok(Some(Err(status)));
        }
        let sinks = outputs(&record, run.sinks().collect())?;
        let all = (0..run.steps.len()).collect();
        let gave = Gave {
            workflow_id: run.id.clone(),
            status: status.as_str(),
            result: sinks,
            outputs: asked.include_outputs.then(|| outputs(&record, all)).transpose()?,
            logs: asked
                .include_logs
                .then(|| lines(&record.events, |cid| content(&record, cid)))
                .transpose()?,
            failure: failure(run),
            execution_time_ms: span(run.started_ms, run.ended_ms),
            seq,
        };
        Ok(Some(Ok(gave)))
    });
    match gave.await?.ok_or_else(|| unknown("workflow", &id, LISTER))? {
        Ok(gave) => told(&gave),
        Err(status) => {
            let message = format!("workflow {id} has not ended: it is {}", status.as_str());
            let refusal = Refusal::new(Code::FailedPrecondition, message).retryable();
            Err(refusal.hint("follow it with workflow_status").into())
        }
    }
}

/// Returns the content of a payload of a run as JSON; `None` if it was erased.
fn content(record: &RunRecord<'_>, payload: &Cid) -> Result<Option<Box<RawValue>>, QueryError> {
    let content = record.contents.content(payload)?;
    let text = content.and_then(|content| String::from_utf8(content).ok());
    Ok(text.and_then(|text| RawValue::from_string(text).ok()))
}

/// Returns the outputs of those steps that succeeded.
fn outputs(record: &RunRecord<'_>, steps: Vec<usize>) -> Result<Outputs, QueryError> {
    let run = &record.run;
    let of_step = |at: usize| {
        let state = &run.steps[at];
        state.output.filter(|_| state.status == StepStatus::Succeeded)
    };
    let len: u64 = steps.iter().filter_map(|at| of_step(*at)).map(|output: PayloadRef| output.len).sum();
    if len > PAYLOAD_MAX as u64 / 2 {
        let message = format!("the outputs are {len} bytes: ask for those of single steps with task_result");
        return Err(QueryError::TooMuch(message));
    }
    let mut outputs = Vec::new();
    for at in steps {
        let Some(output) = of_step(at) else { continue };
        let Some(content) = content(record, &output.cid)? else { continue };
        let step = &run.plan.steps[at];
        let content = if step.tool.is_some() { worth(content) } else { content };
        outputs.push((step.id.clone(), content));
    }
    Ok(Outputs(outputs))
}
