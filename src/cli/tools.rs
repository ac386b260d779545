//! `cairn tools`: lists the tools on offer, as a table or as JSON.
//!
//! Invariant: the list comes from a tool call, so that it is what any caller gets.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    block::splice,
    cli::{
        Tools,
        door::Door,
        out, runtime,
        table::{self, Table},
    },
};

/// The number of tools on one page: the most that the tool allows.
const PAGE: u64 = 1000;
/// The largest number of pages that are read, in case a server never ends its list.
const PAGES_MAX: usize = 100;

pub fn run(args: Tools) -> anyhow::Result<ExitCode> {
    let tools = runtime()?.block_on(async {
        let door = Door::open(&args.reach).await?;
        let tools = all(&door).await;
        door.close().await;
        tools
    })?;
    if args.json {
        out::print_json(&Value::Array(tools))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["name", "category", "runtime", "contract", "description"]);
    for tool in &tools {
        let text = |key: &str| tool[key].as_str().unwrap_or_default();
        table.row(vec![
            text("name").to_owned(),
            text("category").to_owned(),
            text("runtime").to_owned(),
            table::short(text("contract"), args.wide),
            table::brief(text("description")),
        ]);
    }
    out::print(&table.render())?;
    Ok(ExitCode::SUCCESS)
}

async fn all(door: &Door) -> anyhow::Result<Vec<Value>> {
    let mut tools = Vec::new();
    let mut arguments = json!({"limit": PAGE});
    for _ in 0..PAGES_MAX {
        let called = door.call("tools_list_tools", &splice::raw(arguments.to_string())).await?;
        let mut page = called.success()?;
        if let Value::Array(listed) = page["tools"].take() {
            tools.extend(listed);
        }
        match page["next_cursor"].take() {
            Value::String(cursor) => arguments["cursor"] = cursor.into(),
            _ => return Ok(tools),
        }
    }
    anyhow::bail!("the list of tools does not end after {PAGES_MAX} pages")
}
