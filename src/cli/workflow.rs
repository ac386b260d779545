//! `cairn workflow`: submits, shows, cancels and draws runs, with the tools that any caller has.
//!
//! Invariant: a definition reaches its tool byte for byte, and each of its faults is shown on a line of its own.

use std::{fs::File, io::stdin, path::Path, process::ExitCode};

use anyhow::Context;
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    cli::{
        args::{Picture, WorkflowCommand},
        call,
        client::{ask, moment, show, text, why},
        out,
        place::Reach,
        table::{self, Table},
        watch,
    },
    drawing,
    workflow::graph::{Graph, span},
};

pub fn run(command: WorkflowCommand, quiet: bool) -> anyhow::Result<ExitCode> {
    match command {
        WorkflowCommand::Submit { file, asked } => {
            let run = ask(&asked.reach, "workflow_submit", &definition(&file)?)?;
            show(&run, &asked, |run| {
                let cid = |key: &str| table::short(text(run, key), asked.shown.wide);
                let known = if run["replayed"] == true { "  known already" } else { "" };
                let line = format!("{}  {}", text(run, "workflow_id"), text(run, "status"));
                format!("{line}  definition {}  run {}{known}", cid("definition"), cid("run"))
            })
        }
        WorkflowCommand::Status { id, as_of_seq, asked } => {
            let mut arguments = json!({"workflow_id": id});
            if let Some(seq) = as_of_seq {
                arguments["as_of_seq"] = seq.into();
            }
            let run = ask(&asked.reach, "workflow_status", &splice::raw(arguments.to_string()))?;
            show(&run, &asked, status)
        }
        WorkflowCommand::Watch { id, reach, json } => watch::run(&id, &reach, json, quiet),
        WorkflowCommand::Cancel { id, force, reason, asked } => {
            let mut arguments = json!({"workflow_id": id, "force": force});
            if let Some(reason) = reason {
                arguments["reason"] = reason.into();
            }
            let run = ask(&asked.reach, "workflow_cancel", &splice::raw(arguments.to_string()))?;
            show(&run, &asked, |run| {
                let (id, status) = (text(run, "workflow_id"), text(run, "status"));
                format!("{id}  {status}  {} steps cancelled", run["cancelled_steps"])
            })
        }
        WorkflowCommand::Graph { id, format, svg, output, reach } => {
            let format = if svg { Picture::Svg } else { format };
            graph(&id, format, &output, &reach)
        }
        WorkflowCommand::Result { id, reach } => {
            let arguments = splice::raw(json!({"workflow_id": id}).to_string());
            out::print_json(&ask(&reach, "workflow_result", &arguments)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Formats a run as a line, and its steps as rows.
fn status(run: &Value) -> String {
    let took = moment(&run["end_time"])
        .zip(moment(&run["start_time"]))
        .map(|(end, start)| end.saturating_sub(start));
    let took = took.map_or(String::new(), |took| format!("  in {}", span(took)));
    let head = format!("{}  {}  {} %{took}", text(run, "workflow_id"), text(run, "status"), run["progress"]);
    let mut table = Table::new(&["step", "status", "attempt", "took", "started", "why"]);
    for step in run["steps"].as_array().into_iter().flatten() {
        let number = |key: &str| step[key].as_u64();
        table.row(vec![
            text(step, "step_id").to_owned(),
            text(step, "status").to_owned(),
            number("attempt").map_or(String::new(), |attempt| attempt.to_string()),
            number("duration_ms").map_or(String::new(), span),
            text(step, "start_time").to_owned(),
            why(step),
        ]);
    }
    format!("{}\n{}", table::printable(&head), table.render())
}

fn graph(id: &str, format: Picture, output: &Path, reach: &Reach) -> anyhow::Result<ExitCode> {
    let arguments = splice::raw(json!({"workflow_id": id}).to_string());
    let answer = ask(reach, "workflow_dependencies", &arguments)?;
    let graph = Graph::read(id, &answer).context("the server's answer is no graph")?;
    let drawn = match format {
        Picture::Json => format!("{}\n", graph.json()),
        Picture::Dot => drawing::run::dot(&graph),
        Picture::Mermaid => drawing::run::mermaid(&graph),
        Picture::Svg => drawing::svg::draw(&graph),
    };
    out::to_file(output, |file| Ok(file.write_all(drawn.as_bytes())?))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a definition from a file or from standard input.
fn definition(file: &Path) -> anyhow::Result<Box<RawValue>> {
    let context = || format!("cannot read {}", file.display());
    let text = match file.as_os_str() == "-" {
        true => call::text(stdin()).context("cannot read the definition from standard input")?,
        false => call::text(File::open(file).with_context(context)?).with_context(context)?,
    };
    call::object(&text)
}
