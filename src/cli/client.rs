//! Calls of a node's tools, and their answers on the terminal, as several commands need them.
//!
//! Invariant: a tool's refusal is an error of the command, in the tool's own words and with its hint.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, value::RawValue};

use crate::cli::{
    args::ToolsQuery,
    door::Door,
    out,
    place::Reach,
    runtime,
    table::{self},
};

/// A tool's refusal, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
pub struct Denied {
    said: String,
    pub retryable: bool,
}

/// Calls a tool and returns the content of its success. Errors: `Denied` with the tool's message and hint.
pub fn ask(reach: &Reach, tool: &str, arguments: &RawValue) -> anyhow::Result<Value> {
    runtime()?.block_on(async {
        let door = Door::open(reach).await?;
        let answer = call(&door, tool, arguments).await;
        door.close().await;
        answer
    })
}

/// Does the same through an open door.
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
        say!("{}", table::printable(&fault));
    }
    let message = error["message"].as_str().unwrap_or("the tool answered with an error");
    let hint = error["hint"].as_str().map_or(String::new(), |hint| format!("; {hint}"));
    let retryable = error["retryable"] == true;
    Err(Denied { said: format!("{message}{hint}"), retryable }.into())
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Parses a time of a tool's answer to milliseconds since the Unix epoch.
pub fn moment(value: &Value) -> Option<u64> {
    let moment: jiff::Timestamp = value.as_str()?.parse().ok()?;
    moment.as_millisecond().try_into().ok()
}

/// Prints an answer as JSON if that is asked for, else as `told` formats it.
pub fn show(
    answer: &Value,
    asked: &ToolsQuery,
    told: impl FnOnce(&Value) -> String,
) -> anyhow::Result<ExitCode> {
    match asked.shown.json {
        true => out::print_json(answer)?,
        false => out::print(&told(answer))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats for a cell why a step was skipped or failed, or that its result was reused or compensated.
pub fn why(step: &Value) -> String {
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

/// Returns how a step failed: its code and the whole message.
pub fn failure(step: &Value) -> Option<String> {
    let message = step["error"]["message"].as_str()?;
    Some(format!("{}: {message}", text(&step["error"], "code")))
}
