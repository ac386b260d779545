//! A walk through the log as text for Graphviz and Mermaid.
//!
//! Invariant: text of users stands in quotes, which it cannot end.

use std::{collections::HashMap, fmt::Write};

use crate::{
    block::Cid,
    query::walk::{Node, Walk, What},
};

/// Returns the walk in DOT, Graphviz's language.
pub fn dot(walk: &Walk) -> String {
    let mut text = String::from("digraph provenance {\n  rankdir=BT;\n  node [fontsize=10];\n");
    // Writing to a string cannot fail, here and below.
    for node in &walk.nodes {
        let shape = match node.what {
            What::Event { .. } => "box",
            What::Payload { .. } => "note",
            What::Contract { .. } => "component",
            What::Foreign { .. } => "ellipse",
        };
        let label = escape(&label(node), "\\\"", "\\n");
        let _ = writeln!(text, "  \"{}\" [shape={shape}, label=\"{label}\"];", node.cid);
    }
    for edge in &walk.edges {
        let _ = writeln!(text, "  \"{}\" -> \"{}\" [label=\"{}\"];", edge.from, edge.to, edge.kind);
    }
    text + "}\n"
}

/// Returns the walk as a Mermaid flowchart.
pub fn mermaid(walk: &Walk) -> String {
    let numbers: HashMap<Cid, usize> =
        walk.nodes.iter().enumerate().map(|(number, node)| (node.cid, number)).collect();
    let mut text = String::from("flowchart BT\n");
    for (number, node) in walk.nodes.iter().enumerate() {
        let label = escape(&label(node), "#quot;", "<br/>");
        let (open, close) = match node.what {
            What::Event { .. } => ("[", "]"),
            What::Payload { .. } => ("(", ")"),
            What::Contract { .. } => ("[[", "]]"),
            What::Foreign { .. } => ("([", "])"),
        };
        let _ = writeln!(text, "  n{number}{open}\"{label}\"{close}");
    }
    for edge in &walk.edges {
        let (from, to) = (numbers[&edge.from], numbers[&edge.to]);
        let _ = writeln!(text, "  n{from} -- {} --> n{to}", edge.kind);
    }
    text
}

/// Returns a node's label: at most two lines, the second with the end of its CID.
fn label(node: &Node) -> String {
    let name = node.cid.to_string();
    let end = &name[name.len() - 8..];
    let of = node.log.as_ref().map_or(String::new(), |log| format!("{} ", log.origin));
    match &node.what {
        What::Event { seq, kind, subject, .. } => format!("{of}{seq} {kind}\n{subject} ..{end}"),
        What::Payload { len, erased } => {
            let erased = if *erased { ", erased" } else { "" };
            format!("payload, {len} bytes{erased}\n..{end}")
        }
        What::Contract { name, source } => format!("{source}/{name}\n..{end}"),
        What::Foreign { .. } => format!("{of}another log's event\n..{end}"),
    }
}

/// Escapes text for a string in double quotes, with `quote` for `"` and `line` for a line break. In Mermaid it escapes
/// `<`, `>`, `&`, `#` and backquotes too.
fn escape(text: &str, quote: &str, line: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => quoted += quote,
            '\n' => quoted += line,
            '\\' => quoted += "\\\\",
            '<' | '>' | '&' | '#' | '`' if line != "\\n" => {
                let _ = write!(quoted, "#{};", u32::from(c));
            }
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted
}
