//! `cairn replay` and `cairn diff`: tell whether a run can be reproduced, and where two runs differ.
//!
//! Exit codes: 0 if all is the same, 1 if something differs, 20 if nothing differs but erased content kept a replay
//! from comparing all.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    block::splice,
    cli::{
        args::{Diff, Replay},
        client::{ask, show, text},
        table::{self, Table},
    },
    verify,
};

const MATCHED: &str = "matched";
const INCOMPLETE: &str = "incomplete";
/// How many erased payloads are named to people. Further ones are counted; `--json` names all.
const ERASED_MAX: usize = 10;

pub fn replay(args: Replay) -> anyhow::Result<ExitCode> {
    let mode = if args.rerun { "rerun" } else { "verify" };
    let arguments = json!({"workflow_id": args.workflow, "mode": mode, "include_steps": true});
    let report = ask(&args.asked.reach, "workflow_replay", &splice::raw(arguments.to_string()))?;
    show(&report, &args.asked, |report| {
        let mut table = Table::new(&["step", "verdict"]);
        for step in rows(report, |step| step["verdict"] != "match") {
            table.row(vec![text(step, "step_id").to_owned(), text(step, "verdict").to_owned()]);
        }
        let run = report["run"].as_str().map_or(String::new(), |run| format!("  run again as {run}"));
        let evidence = match report["evidence"]["head"].as_u64() {
            Some(head) => format!(", verified under head {head} of {}", text(&report["evidence"], "origin")),
            None => ", unsigned".to_owned(),
        };
        told(&args.workflow, report, &evidence, &table, &run, args.asked.shown.wide)
    })?;
    Ok(match verdict(&report) {
        INCOMPLETE => ExitCode::from(verify::Verdict::Incomplete.exit_code()),
        verdict => code(verdict == MATCHED),
    })
}

pub fn diff(args: Diff) -> anyhow::Result<ExitCode> {
    let arguments = json!({"left": args.left, "right": args.right});
    let report = ask(&args.asked.reach, "workflow_diff", &splice::raw(arguments.to_string()))?;
    show(&report, &args.asked, |report| {
        let mut table = Table::new(&["step", "contract", "input", "output", &args.left, &args.right]);
        let differs = |step: &Value| {
            let differs = |key| step[key] != "same";
            differs("contract")
                || differs("input")
                || differs("output")
                || statuses(step).0 != statuses(step).1
        };
        for step in rows(report, differs) {
            let cell = |key: &str| text(step, key).to_owned();
            let (left, right) = statuses(step);
            let (left, right) = (left.to_owned(), right.to_owned());
            table.row(vec![cell("step_id"), cell("contract"), cell("input"), cell("output"), left, right]);
        }
        told(&format!("{} and {}", args.left, args.right), report, "", &table, "", args.asked.shown.wide)
    })?;
    Ok(code(report["matched"] == true))
}

/// Returns a step's status on either side; `none` if that run has no such step.
fn statuses(step: &Value) -> (&str, &str) {
    let of = |side: &str| step[side]["status"].as_str();
    (of("left").unwrap_or("none"), of("right").unwrap_or("none"))
}

/// Returns the steps of a report that get a row.
fn rows(report: &Value, worth: impl Fn(&Value) -> bool) -> impl Iterator<Item = &Value> {
    report["steps"].as_array().into_iter().flatten().filter(move |step| worth(step))
}

/// Returns the verdict of a report.
fn verdict(report: &Value) -> &str {
    report["verdict"].as_str().unwrap_or(match report["matched"] == true {
        true => MATCHED,
        false => "differs",
    })
}

/// Formats a report for people: the verdict, the evidence that the record is what was signed, the steps that differ,
/// and the first difference.
fn told(what: &str, report: &Value, evidence: &str, differ: &Table, run: &str, wide: bool) -> String {
    let verdict = verdict(report);
    let verdict = match report["complete"] == false {
        true => format!("{verdict} so far (it has not ended)"),
        false => verdict.to_owned(),
    };
    let compared = report["compared_steps"].as_u64().unwrap_or(0);
    let said = format!("{what}  {verdict}{evidence}  {compared} steps compared{run}");
    let mut lines = vec![table::printable(&said)];
    if !differ.is_empty() {
        lines.push(differ.render());
    }
    let first = &report["first_divergence"];
    if first.is_object() {
        let step = first["step_id"].as_str().unwrap_or("the run as a whole");
        let mut line = format!("first at {step}: {}", text(first, "why"));
        for side in ["expected", "actual", "left", "right"] {
            if let Some(cid) = first[side].as_str() {
                line += &format!("; {side} {}", table::short(cid, wide));
            }
        }
        lines.push(table::printable(&line));
    }
    let erased = report["erased"].as_array().map_or(&[][..], Vec::as_slice);
    for payload in erased.iter().take(ERASED_MAX).filter_map(Value::as_str) {
        let line = format!("the content of {payload} was erased: what depends on it cannot be compared");
        lines.push(table::printable(&line));
    }
    if erased.len() > ERASED_MAX {
        lines.push(format!("and of {} more payloads", erased.len() - ERASED_MAX));
    }
    lines.join("\n")
}

fn code(matched: bool) -> ExitCode {
    match matched {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
