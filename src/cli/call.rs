//! `cairn call`: calls one tool.
//!
//! Invariants:
//! - standard output holds the result and nothing else, unchanged unless it is a terminal. The event's CID goes to
//!   standard error;
//! - arguments reach the tool byte for byte.

use std::{
    io::{Read, stdin},
    process::ExitCode,
};

use anyhow::Context;
use serde_json::{Value, value::RawValue};

use crate::{
    block::splice,
    cli::{Call, Usage, door::Door, out, runtime},
};

/// The largest number of bytes of arguments from standard input or a file.
const ARGUMENTS_MAX: u64 = 64 * 1024 * 1024;

/// The answer to a call, from a server or from this process.
pub struct Called {
    /// The result object, or why there is none.
    pub answer: Result<Box<RawValue>, String>,
    /// The CID of the event that ended the call.
    pub event: Option<String>,
}

impl Called {
    /// Makes an answer of a result. Without `event`, the CID is read from the result's `_meta`.
    pub fn of_result(result: Box<RawValue>, event: Option<String>) -> Self {
        let event = event.or_else(|| {
            let meta = splice::member(&result, "_meta").ok().flatten()?;
            let event = splice::member(meta, "io.cairn/event").ok().flatten()?;
            serde_json::from_str(event.get()).ok()
        });
        Self { answer: Ok(result), event }
    }

    /// Returns the structured content, or the whole result if there is none, and whether the tool calls it an error.
    pub fn content(&self) -> anyhow::Result<(&RawValue, bool)> {
        let result = match &self.answer {
            Ok(result) => result,
            Err(message) => anyhow::bail!("{message}"),
        };
        let member = |key| splice::member(result, key).ok().flatten();
        let failed = member("isError").is_some_and(|raw| raw.get() == "true");
        Ok((member("structuredContent").unwrap_or(result), failed))
    }

    /// Returns whether the tool answered `input_required` instead of a result.
    fn asks(&self) -> bool {
        let kind = self.answer.as_deref().ok();
        let kind = kind.and_then(|result| splice::member(result, "resultType").ok().flatten());
        kind.is_some_and(|kind| kind.get() == r#""input_required""#)
    }

    /// Returns the structured content of a success.
    pub fn success(&self) -> anyhow::Result<Value> {
        let (content, failed) = self.content()?;
        let content: Value = serde_json::from_str(content.get()).context("the result is not json")?;
        match failed {
            true => {
                let told = [&content["error"], &content["_meta"]["io.cairn/error"]];
                let message = told.into_iter().find_map(|error| error["message"].as_str());
                anyhow::bail!("{}", message.unwrap_or("the tool answered with an error"))
            }
            false => Ok(content),
        }
    }
}

pub fn run(args: Call, quiet: bool) -> anyhow::Result<ExitCode> {
    let arguments = arguments(args.arguments.as_deref())?;
    let called = runtime()?.block_on(async {
        let door = Door::open(&args.reach).await?;
        let called = door.call(&args.tool, &arguments).await;
        door.close().await;
        called
    })?;
    if let Some(event) = called.event.as_ref().filter(|_| !quiet) {
        say!("{event}");
    }
    let (content, failed) = called.content()?;
    print(content)?;
    if called.asks() {
        anyhow::bail!("the tool asks for input, which a command line cannot give; nothing was done yet");
    }
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Prints JSON as it came, but indented on a terminal.
fn print(content: &RawValue) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    if std::io::stdout().is_terminal()
        && let Ok(value) = serde_json::from_str::<Value>(content.get())
    {
        return Ok(out::print_json(&value)?);
    }
    Ok(out::print(content.get())?)
}

/// Parses the arguments as typed, or from standard input. They must be an object.
fn arguments(typed: Option<&str>) -> anyhow::Result<Box<RawValue>> {
    match typed {
        Some("-") => object(&text(stdin()).context("cannot read the arguments from standard input")?),
        typed => object(typed.unwrap_or("{}")),
    }
}

/// Reads a text of at most [`ARGUMENTS_MAX`] bytes.
pub fn text(from: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = from.take(ARGUMENTS_MAX + 1).read_to_string(&mut text)?;
    match read as u64 > ARGUMENTS_MAX {
        true => Err(Usage("the arguments are over 64 MiB".to_owned()).into()),
        false => Ok(text),
    }
}

/// Parses arguments, which must be a JSON object.
pub fn object(text: &str) -> anyhow::Result<Box<RawValue>> {
    let arguments = serde_json::from_str::<Box<RawValue>>(text);
    let arguments = arguments.map_err(|err| Usage(format!("the arguments are not json: {err}")))?;
    match arguments.get().starts_with('{') {
        true => Ok(arguments),
        false => Err(Usage("the arguments must be a json object, like '{\"a\": 1}'".to_owned()).into()),
    }
}
