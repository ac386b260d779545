//! `cairn replay` and `cairn diff`: whether a run can be reproduced, and where two runs part.
//!
//! Invariant: exit 0 says that everything that was compared is the same, 1 that something is not.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    block::splice,
    cli::{
        args::{Diff, Replay},
        table::{self, Table},
        workflow::{ask, show, text},
    },
};

pub fn replay(args: Replay) -> anyhow::Result<ExitCode> {
    let mode = if args.rerun { "rerun" } else { "verify" };
    let arguments = json!({"workflow_id": args.workflow, "mode": mode});
    let report = ask(&args.asked.reach, "workflow_replay", &splice::raw(arguments.to_string()))?;
    show(&report, &args.asked, |report| {
        let mut table = Table::new(&["step", "verdict"]);
        for step in rows(report, |step| step["verdict"] != "match") {
            table.row(vec![text(step, "step_id").to_owned(), text(step, "verdict").to_owned()]);
        }
        let run = report["run"].as_str().map_or(String::new(), |run| format!("  run again as {run}"));
        told(&args.workflow, report, &table, &run, args.asked.shown.wide)
    })?;
    Ok(code(report["matched"] == true))
}

pub fn diff(args: Diff) -> anyhow::Result<ExitCode> {
    let arguments = json!({"left": args.left, "right": args.right});
    let report = ask(&args.asked.reach, "workflow_diff", &splice::raw(arguments.to_string()))?;
    show(&report, &args.asked, |report| {
        let mut table = Table::new(&["step", "contract", "input", "output", "status"]);
        for step in rows(report, |step| {
            ["contract", "input", "output", "status"].iter().any(|key| step[key] != "same")
        }) {
            let cell = |key: &str| text(step, key).to_owned();
            table.row(vec![cell("step_id"), cell("contract"), cell("input"), cell("output"), cell("status")]);
        }
        told(&format!("{} and {}", args.left, args.right), report, &table, "", args.asked.shown.wide)
    })?;
    Ok(code(report["matched"] == true))
}

/// The steps of a report that are worth a row.
fn rows(report: &Value, worth: impl Fn(&Value) -> bool) -> impl Iterator<Item = &Value> {
    report["steps"].as_array().into_iter().flatten().filter(move |step| worth(step))
}

/// A report for people: what was found, the steps that differ, and where that began.
fn told(what: &str, report: &Value, differ: &Table, run: &str, wide: bool) -> String {
    let verdict = if report["matched"] == true { "matched" } else { "differs" };
    let compared = report["compared_steps"].as_u64().unwrap_or(0);
    let mut lines = vec![table::printable(&format!("{what}  {verdict}  {compared} steps compared{run}"))];
    if !differ.is_empty() {
        lines.push(differ.render());
    }
    let first = &report["first_divergence"];
    if first.is_object() {
        let value = |key: &str| match &first[key] {
            Value::String(value) => table::short(value, wide),
            Value::Null => "nothing".to_owned(),
            value => value.to_string(),
        };
        let line = format!(
            "first at {}: {}; expected {}, found {}",
            text(first, "step_id"),
            text(first, "why"),
            value("expected"),
            value("actual")
        );
        lines.push(table::printable(&line));
    }
    lines.join("\n")
}

fn code(matched: bool) -> ExitCode {
    match matched {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
