//! `cairn trace`: shows what produced something, and what it led to.
//!
//! Invariant: each node is shown once, at its shortest distance from the start.

use std::{
    collections::{BTreeSet, HashMap},
    process::ExitCode,
};

use serde_json::Value;

use crate::{
    cli::{
        args::{Drawn, Trace},
        out, runtime,
        source::{Source, logs},
        table,
    },
    drawing,
    query::walk::LIMIT_MAX,
};

pub fn run(args: Trace, quiet: bool) -> anyhow::Result<ExitCode> {
    let source = Source::open(&args.place, quiet)?;
    let runtime = runtime()?;
    let cid = runtime.block_on(source.resolve(&args.cid))?;
    let format = if args.json { Drawn::Json } else { args.format };
    let drawn = match source {
        Source::Files(files) => {
            let walk = logs(&files.home, &files.view).walk(&cid, args.direction, args.depth, LIMIT_MAX)?;
            match format {
                Drawn::Dot => drawing::walk::dot(&walk),
                Drawn::Mermaid => drawing::walk::mermaid(&walk),
                Drawn::Json => return json(&serde_json::to_value(&walk)?),
                Drawn::Text => text(&serde_json::to_value(&walk)?, args.wide),
            }
        }
        Source::Server(remote) => {
            let wanted = match format {
                Drawn::Dot => "dot",
                Drawn::Mermaid => "mermaid",
                Drawn::Json | Drawn::Text => "json",
            };
            let query = [
                ("format", wanted.to_owned()),
                ("direction", args.direction.as_str().to_owned()),
                ("depth", args.depth.to_string()),
            ];
            let path = format!("/v1/provenance/{cid}");
            let body = runtime.block_on(remote.read(&path, &query, "*/*"))?;
            match format {
                Drawn::Dot | Drawn::Mermaid => String::from_utf8(body)?,
                Drawn::Json => return json(&serde_json::from_slice(&body)?),
                Drawn::Text => text(&serde_json::from_slice(&body)?, args.wide),
            }
        }
    };
    out::print(&drawn)?;
    Ok(ExitCode::SUCCESS)
}

fn json(walk: &Value) -> anyhow::Result<ExitCode> {
    out::print_json(walk)?;
    Ok(ExitCode::SUCCESS)
}

/// Formats the walk as a tree: each node once, under one of the nodes it was reached from.
fn text(walk: &Value, wide: bool) -> String {
    let list = |key: &str| walk[key].as_array().map_or(&[][..], Vec::as_slice);
    let depths: HashMap<&str, u64> = list("nodes")
        .iter()
        .filter_map(|node| Some((node["cid"].as_str()?, node["depth"].as_u64()?)))
        .collect();
    // The edge by which a node was reached: from a node that is one step nearer to the start.
    let mut reached: HashMap<&str, (&str, String)> = HashMap::new();
    for edge in list("edges") {
        let name = |key: &str| edge[key].as_str().unwrap_or_default();
        let (from, to) = (name("from"), name("to"));
        let (Some(a), Some(b)) = (depths.get(from), depths.get(to)) else {
            continue;
        };
        if a < b {
            reached.entry(to).or_insert((from, format!("{}: ", name("kind"))));
        } else if b < a {
            reached.entry(from).or_insert((to, format!("{} of: ", name("kind"))));
        }
    }
    let mut under: HashMap<&str, Vec<&Value>> = HashMap::new();
    let mut roots = Vec::new();
    for node in list("nodes").iter().rev() {
        match node["cid"].as_str().and_then(|cid| reached.get(cid)) {
            Some((parent, _)) => under.entry(parent).or_default().push(node),
            None => roots.push(node),
        }
    }
    let mut lines = Vec::new();
    let mut open: Vec<(usize, &Value)> = roots.into_iter().map(|node| (0, node)).collect();
    while let Some((indent, node)) = open.pop() {
        let cid = node["cid"].as_str().unwrap_or_default();
        let via = reached.get(cid).map_or("", |(_, via)| via.as_str());
        lines.push(format!(
            "{}{via}{}  {}",
            "  ".repeat(indent),
            table::printable(&label(node)),
            table::short(cid, wide)
        ));
        let children = under.remove(cid).unwrap_or_default();
        open.extend(children.into_iter().map(|child| (indent + 1, child)));
    }
    if walk["truncated"] == true {
        lines.push(format!(
            "there is more beyond {} events; raise --depth, or go on from them (--format json names them)",
            list("frontier").len()
        ));
    }
    let foreign = list("nodes").iter().filter(|node| node["type"] == "foreign");
    let owners: BTreeSet<&str> = foreign.filter_map(|node| node["peer"].as_str()).collect();
    for peer in owners {
        let follow =
            format!("what led to it there is shown once that log is kept here: cairn peers follow {peer}");
        lines.push(table::printable(&follow));
    }
    lines.join("\n")
}

/// Describes a node in a few words.
fn label(node: &Value) -> String {
    let text = |key: &str| node[key].as_str().unwrap_or_default();
    let log = match node["origin"].as_str() {
        Some(origin) => format!("the log {origin} ({})", text("log")),
        None => "another log".to_owned(),
    };
    match text("type") {
        "event" => {
            let place = if node["log"].is_string() { format!(", in {log}") } else { String::new() };
            format!(
                "{} {} {} by {} at {}{place}",
                node["seq"],
                text("kind"),
                text("subject"),
                text("actor"),
                table::moment(node["ts"].as_u64().unwrap_or(0))
            )
        }
        "payload" => {
            let erased = if node["erased"] == true { ", erased" } else { "" };
            format!("payload of {} bytes{erased}", node["len"])
        }
        "contract" => format!("contract {}/{}", text("source"), text("name")),
        _ => match node["peer"].as_str() {
            Some(peer) => format!("an event of {log}, of peer {peer}"),
            None => format!("an event of {log}"),
        },
    }
}
