//! `cairn workflow`: runs of workflows, by the tools that any caller has.
//!
//! Invariant: a definition reaches its tool byte for byte, and what is wrong with it is shown fault by fault.

use std::{fs::File, io::stdin, path::Path, process::ExitCode};

use anyhow::Context;
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    cli::{
        Reach,
        args::{Asked, Picture, WorkflowCommand},
        call,
        door::Door,
        out, runtime,
        table::{self, Table},
        watch,
    },
    drawing,
    workflow::graph::{Graph, span},
};

/// A tool's own word for why it did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub struct Denied {
    said: String,
    pub retryable: bool,
}

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
        WorkflowCommand::Watch { id, reach } => watch::run(&id, &reach, quiet),
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

/// Calls a tool and waits for its success. Errors: the tool's own word, with its hint.
pub fn ask(reach: &Reach, tool: &str, arguments: &RawValue) -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let door = Door::open(reach).await?;
        let answer = call(&door, tool, arguments).await;
        door.close().await;
        answer
    })
}

/// The same through a door that is open.
pub async fn call(door: &Door, tool: &str, arguments: &RawValue) -> anyhow::Result<Value> {
    let called = door.call(tool, arguments).await?;
    let (content, failed) = called.content()?;
    let content: Value = serde_json::from_str(content.get()).context("the result is not json")?;
    if !failed {
        return Ok(content);
    }
    let error = &content["error"];
    for fault in error["faults"].as_array().into_iter().flatten() {
        let fault = format!("{}: {}", text(fault, "place"), text(fault, "fault"));
        eprintln!("{}", table::printable(&fault));
    }
    let message = error["message"].as_str().unwrap_or("the tool answered with an error");
    let hint = error["hint"].as_str().map_or(String::new(), |hint| format!("; {hint}"));
    let retryable = error["retryable"] == true;
    Err(Denied { said: format!("{message}{hint}"), retryable }.into())
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Milliseconds since the epoch of a time a tool named.
pub fn moment(value: &Value) -> Option<u64> {
    let moment: jiff::Timestamp = value.as_str()?.parse().ok()?;
    moment.as_millisecond().try_into().ok()
}

/// Shows an answer to programs as it is, to people through `told`.
pub fn show(answer: &Value, asked: &Asked, told: impl FnOnce(&Value) -> String) -> anyhow::Result<ExitCode> {
    match asked.shown.json {
        true => out::print_json(answer)?,
        false => out::print(&told(answer))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A run in a line, and its steps in rows.
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

/// Why a step was skipped, how it failed, or that its result is another's or was taken back; in a cell.
fn why(step: &Value) -> String {
    if let Some(failure) = failure(step) {
        return table::brief(&failure);
    }
    let reused = match step["reused_from"].as_str() {
        Some(original) => format!("reused from {}", table::short(original, false)),
        None => "reused".to_owned(),
    };
    let said = [
        (step["reused"] == true, reused.as_str()),
        (step["compensated"] == true, "compensated"),
        (step["compensated"] == false, "not compensated"),
        (true, text(step, "reason")),
    ];
    let said = said.into_iter().filter(|(holds, said)| *holds && !said.is_empty());
    said.map(|(_, said)| said).collect::<Vec<_>>().join(", ")
}

/// How a step failed: its code, and all that was said.
pub fn failure(step: &Value) -> Option<String> {
    let message = step["error"]["message"].as_str()?;
    Some(format!("{}: {message}", text(&step["error"], "code")))
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

/// The text of a definition, from a file or from standard input.
fn definition(file: &Path) -> anyhow::Result<Box<RawValue>> {
    let context = || format!("cannot read {}", file.display());
    let text = match file.as_os_str() == "-" {
        true => call::text(stdin()).context("cannot read the definition from standard input")?,
        false => call::text(File::open(file).with_context(context)?).with_context(context)?,
    };
    call::object(&text)
}
