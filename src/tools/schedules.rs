//! The schedule tools: work that is submitted again and again.
//!
//! Invariants:
//! - what a schedule makes is checked when it is made, like work that is submitted at once.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    clock::now_ms,
    error::Refusal,
    event::{Body, work::Rhythm},
    ledger::work::{CreateSchedule, DeleteSchedule, Made, Wish, Worked},
    query::{
        QueryError, View,
        list::{Filter, LIMIT_DEFAULT},
        work::{At, Schedule},
    },
    router::Invocation,
    tools::{
        Builtin, arguments,
        denied::Denied,
        desk::{Desk, Told, internal, invalid, told, unexpected},
        doing::{definition, does},
        planning,
        reading::{self, time},
        tasks,
    },
    words::number,
    workflow::fields::Fault,
};

/// The prefix of this list's cursors.
const CURSOR: &str = "after:";

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("schedules", definition, does);
    vec![
        tool(definition!("schedule_create"), does!(create)),
        tool(definition!("schedule_list"), does!(list)),
        tool(definition!("schedule_delete"), does!(delete)),
    ]
}

#[derive(Deserialize)]
struct Create {
    schedule_id: String,
    cron: Option<String>,
    every_ms: Option<u64>,
    task: Option<Box<RawValue>>,
    workflow: Option<Map<String, Value>>,
    #[serde(default)]
    catch_up: bool,
    reason: Option<String>,
}

async fn create(desk: &Desk, call: &Invocation) -> Told {
    let asked: Create = arguments(call)?;
    let rhythm = match (asked.cron, asked.every_ms) {
        (Some(line), None) => Rhythm::Cron { line },
        (None, Some(ms)) => Rhythm::Every { ms },
        _ => return Err(invalid("a schedule needs one of `cron` and `every_ms`").into()),
    };
    let makes = match (asked.task, asked.workflow) {
        (Some(task), None) => task_of(desk, call, &asked.schedule_id, &task)?,
        (None, Some(workflow)) => workflow_of(desk, call, &asked.schedule_id, workflow).await?,
        _ => return Err(invalid("a schedule needs one of `task` and `workflow`").into()),
    };
    let wish = Wish::CreateSchedule(CreateSchedule {
        schedule: asked.schedule_id,
        rhythm,
        catch_up: asked.catch_up,
        makes: Box::new(makes),
    });
    let worked = desk.wish(call, asked.reason.as_deref(), wish).await?;
    let Worked::Schedule { schedule, next_ms: Some(next_ms), replayed } = worked else {
        return Err(unexpected().into());
    };
    told(&json!({"schedule_id": schedule, "next_at": time(next_ms), "replayed": replayed}))
}

/// Checks the task of a schedule by the rules of `task_submit`; each tick's id becomes the task's.
fn task_of(desk: &Desk, call: &Invocation, schedule: &str, task: &RawValue) -> Result<Made, Refusal> {
    let mut fields: Map<String, Value> =
        serde_json::from_str(task.get()).map_err(|_| invalid("`task` must be an object"))?;
    for own in ["task_id", "not_before", "metadata", "reason"] {
        if fields.contains_key(own) {
            return Err(invalid(format!("`task`: `{own}` is not for the task of a schedule")));
        }
    }
    fields.insert("task_id".to_owned(), json!(schedule));
    let submit = desk.offered("task_submit").ok_or_else(internal)?;
    submit
        .check(&Value::Object(fields))
        .map_err(|refusal| invalid(format!("`task`: {}", refusal.message)))?;
    let asked: reading::Wish =
        serde_json::from_str(task.get()).map_err(|err| invalid(format!("`task`: {err}")))?;
    let (facts, tool) = tasks::checked(desk, call, &asked)?;
    Ok(Made::Task { facts, tool, input: asked.payload.get().to_owned() })
}

/// Checks the workflow of a schedule by the rules of `workflow_submit`; each tick's id becomes the run's.
async fn workflow_of(
    desk: &Desk,
    call: &Invocation,
    schedule: &str,
    mut workflow: Map<String, Value>,
) -> Result<Made, Denied> {
    let own = ["workflow_id", "dependencies", "peer"].into_iter().filter(|own| workflow.contains_key(*own));
    let faults: Vec<Fault> = own
        .map(|own| Fault {
            place: format!("/{own}"),
            fault: "is not for the workflow of a schedule".to_owned(),
        })
        .collect();
    if !faults.is_empty() {
        return Err(Denied::faulty("`workflow`", faults));
    }
    workflow.insert("workflow_id".to_owned(), json!(schedule));
    let planned = planning::checked(desk, call, "`workflow`", workflow, Vec::new()).await?;
    Ok(Made::Workflow {
        plan: planned.plan,
        inputs: planned.inputs.to_string(),
        priority: planned.priority,
        tags: planned.tags,
        max_parallel: planned.max_parallel,
        deadline_ms: planned.deadline_ms,
    })
}

#[derive(Deserialize)]
struct List {
    limit: Option<u64>,
    cursor: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    offset: Option<u64>,
}

async fn list(desk: &Desk, call: &Invocation) -> Told {
    let List { limit, cursor, offset } = arguments(call)?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT) as usize;
    let shown = desk.ask(move |view| {
        let At { applied, what: mut all } = view.schedules()?;
        // By id, so that pages stay as they are while others come and go.
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let from = match &cursor {
            Some(cursor) => {
                let last = cursor.strip_prefix(CURSOR);
                let last =
                    last.ok_or_else(|| QueryError::Invalid("`cursor` is not one of this list".to_owned()))?;
                all.partition_point(|schedule| schedule.id.as_str() <= last)
            }
            None => offset.unwrap_or(0).min(all.len() as u64) as usize,
        };
        let page = &all[from..(from + limit).min(all.len())];
        let next = page.last().filter(|_| from + page.len() < all.len());
        Ok(json!({
            "schedules": page.iter().map(|schedule| one(view, schedule)).collect::<Result<Vec<_>, _>>()?,
            "total_count": all.len(),
            "returned_count": page.len(),
            "has_more": next.is_some(),
            "next_cursor": next.map(|last| format!("{CURSOR}{}", last.id)),
            "seq": applied.saturating_sub(1),
        }))
    });
    told(&shown.await?)
}

fn one(view: &View, schedule: &Schedule) -> Result<Value, QueryError> {
    let created =
        Filter { from_seq: Some(schedule.created), to_seq: Some(schedule.created), ..Filter::default() };
    let page = view.list(&created, 1, None)?;
    let event = page.events.first();
    let catch_up = match event.and_then(|event| event.body()) {
        Some(Body::ScheduleCreated(facts)) => facts.catch_up,
        Some(_) | None => false,
    };
    Ok(json!({
        "schedule_id": schedule.id,
        "cron": schedule.cron,
        "every_ms": schedule.every_ms,
        "makes": schedule.makes,
        "catch_up": catch_up,
        "next_at": time(schedule.next_ms),
        "last_at": schedule.last_ms.map(time),
        "fired_count": schedule.fired,
        "missed_count": schedule.missed,
        "skipped_count": schedule.skipped,
        "created_at": event.map(|event| time(event.fields().at_ms())),
    }))
}

#[derive(Deserialize)]
struct Delete {
    schedule_id: String,
    reason: Option<String>,
}

async fn delete(desk: &Desk, call: &Invocation) -> Told {
    let Delete { schedule_id: schedule, reason } = arguments(call)?;
    let wish = Wish::DeleteSchedule(DeleteSchedule { schedule });
    let Worked::Schedule { schedule, .. } = desk.wish(call, reason.as_deref(), wish).await? else {
        return Err(unexpected().into());
    };
    told(&json!({"schedule_id": schedule, "deleted_at": time(now_ms())}))
}
