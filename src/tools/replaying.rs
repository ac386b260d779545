//! The tools that reproduce runs: decide one again from its record, run it again, compare two.
//!
//! Invariants:
//! - `verify` runs nothing and changes nothing but that the comparison is recorded;
//! - a run of an archive is compared and no more: it is no part of this log;
//! - a repetition is a run of its own, linked to the one it repeats.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    archive::{evidence::Evidence, record::run_record},
    block::Cid,
    error::{Code, Refusal},
    event::work::WorkflowReplayed,
    ledger::work::{ForkRun, Replayed, Wish, Worked},
    query::source::Recorded,
    router::Invocation,
    tools::{
        Builtin, again, arguments,
        desk::{Desk, Told, seen, told, unexpected, unknown},
        doing::{definition, does},
        workflows::{ending, run_as_of},
    },
    workflow::{
        replay::{
            Outcome,
            diff::{Diff, diff},
            verify,
        },
        run::decision::Contents,
    },
};

/// The mode of a replay that runs nothing.
const VERIFY: &str = "verify";
const LISTER: &str = "workflow_list";
/// How long to wait for a rerun; less than a call may take.
const RERUN_WAIT: Duration = Duration::from_secs(50);
/// The pause between two looks at whether it has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

pub fn all(desk: &Desk) -> Vec<Builtin> {
    let tool = |definition, does| desk.tool("provenance", definition, does);
    vec![
        tool(definition!("workflow_replay"), does!(replay)),
        tool(definition!("workflow_diff"), does!(compare)),
    ]
}

#[derive(Deserialize)]
struct Replay {
    workflow_id: String,
    mode: Option<String>,
    #[serde(default)]
    include_steps: bool,
    reason: Option<String>,
}

async fn replay(desk: &Desk, call: &Invocation) -> Told {
    let asked: Replay = arguments(call)?;
    let mode = asked.mode.as_deref().unwrap_or(VERIFY);
    let (report, run, evidence, ours) = match mode {
        "rerun" => {
            let new = rerun(desk, call, &asked).await?;
            let (_, evidence, _) = verified(desk, asked.workflow_id.clone()).await?;
            (compared(desk, asked.workflow_id.clone(), new.clone()).await?, Some(new), evidence, true)
        }
        _ => {
            let (report, evidence, ours) = verified(desk, asked.workflow_id.clone()).await?;
            (report, None, evidence, ours)
        }
    };
    if ours {
        record(desk, call, &asked, &report, run.clone()).await?;
    }
    let mut shown = json!({
        "workflow_id": asked.workflow_id,
        "mode": mode,
        "verdict": report["verdict"],
        "matched": report["matched"],
        "erased": report["erased"],
        "evidence": evidence,
        "complete": report["complete"],
        "compared_steps": report["compared_steps"],
        "first_divergence": report["first_divergence"],
        "run": run,
    });
    if asked.include_steps {
        shown["steps"] = report["steps"].clone();
    }
    told(&shown)
}

/// Records what a comparison found, as an event of the run.
async fn record(
    desk: &Desk,
    call: &Invocation,
    asked: &Replay,
    report: &Value,
    run: Option<String>,
) -> Result<(), Refusal> {
    let facts = WorkflowReplayed {
        mode: asked.mode.clone().unwrap_or_else(|| VERIFY.to_owned()),
        // A step whose content was erased was compared with nothing: then not every step came to the same.
        matched: report["matched"] == true && report["verdict"] != Outcome::Incomplete.as_str(),
        compared: report["compared_steps"].as_u64().unwrap_or(0),
        run,
        diverged: report["first_divergence"]["step_id"].as_str().map(str::to_owned),
    };
    let wish = Wish::Replayed(Replayed { run: asked.workflow_id.clone(), facts });
    match desk.wish(call, asked.reason.as_deref(), wish).await? {
        Worked::Run { .. } => Ok(()),
        _ => Err(unexpected()),
    }
}

/// Decides the run again from its record. Returns the report, the evidence that the record is what was signed, and
/// whether the run is in this node's log.
async fn verified(desk: &Desk, id: String) -> Result<(Value, Evidence, bool), Refusal> {
    let asked = id.clone();
    let report = desk.ask_under(move |view, head| {
        let Some(record) = run_record(view, &asked, None)? else { return Ok(None) };
        let evidence = record.evidence(view, head)?;
        let report = verify(record.run, &record.events, &record.contents);
        Ok(Some((report.json(), evidence, record.archive.is_none())))
    });
    report.await?.ok_or_else(|| unknown("workflow", &id, LISTER))
}

/// Starts a rerun, waits until it has ended, and returns its id.
async fn rerun(desk: &Desk, call: &Invocation, asked: &Replay) -> Result<String, Refusal> {
    let id = &asked.workflow_id;
    again::run(desk, call, id).await?;
    let ledger = desk.router.ledger();
    let new = format!("{id}/rerun-{}", *ledger.committed().borrow());
    let wish = Wish::ForkRun(ForkRun {
        run: id.clone(),
        new: new.clone(),
        from_step: None,
        overrides: "{}".to_owned(),
        rerun: true,
    });
    let Worked::Run { .. } = desk.wish(call, asked.reason.as_deref(), wish).await? else {
        return Err(unexpected());
    };
    let deadline = Instant::now() + RERUN_WAIT;
    let mut committed = ledger.committed();
    loop {
        let looked = *committed.borrow_and_update();
        let run = new.clone();
        if desk.ask(move |view| ending(view, &run, looked)).await?.is_some() {
            return Ok(new);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        match tokio::time::timeout_at(deadline, committed.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Refusal::new(Code::Unavailable, "the ledger has stopped")),
            Err(_) => {
                let message = format!("the new run `{new}` has not ended yet");
                let hint = "follow it with workflow_status, then compare both with workflow_diff";
                return Err(Refusal::new(Code::DeadlineExceeded, message).hint(hint));
            }
        }
    }
}

/// Compares a rerun with the original run; the report has the form of a replay's.
async fn compared(desk: &Desk, left: String, right: String) -> Result<Value, Refusal> {
    let (diff, _) = differing(desk, left, right).await?;
    Ok(diff.report().json())
}

#[derive(Deserialize)]
struct Compare {
    left: String,
    right: String,
}

async fn compare(desk: &Desk, call: &Invocation) -> Told {
    let Compare { left, right } = arguments(call)?;
    let (diff, seq) = differing(desk, left.clone(), right.clone()).await?;
    let mut shown = diff.json();
    shown["left"] = json!(left);
    shown["right"] = json!(right);
    shown["seq"] = json!(seq);
    told(&shown)
}

/// The contents of two records as one source.
struct Either<'a> {
    left: &'a Recorded<'a>,
    right: &'a Recorded<'a>,
}

impl Contents for Either<'_> {
    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        self.left.json(payload).or_else(|| self.right.json(payload))
    }

    fn is_there(&self, payload: &Cid) -> bool {
        self.left.is_there(payload) || self.right.is_there(payload)
    }
}

/// Compares two runs step by step. Returns the seq they were read at, too.
async fn differing(desk: &Desk, left: String, right: String) -> Result<(Diff, u64), Refusal> {
    let differing = desk.ask(move |view| {
        let seq = seen(view.applied()?, None)?;
        let Some((one, _)) = run_as_of(view, &left, None)? else { return Ok(Err(left)) };
        let Some((other, _)) = run_as_of(view, &right, None)? else { return Ok(Err(right)) };
        let contents = Either { left: &one.contents, right: &other.contents };
        Ok(Ok((diff(&one.run, &other.run, &contents), seq)))
    });
    differing.await?.map_err(|id| unknown("workflow", &id, LISTER))
}
