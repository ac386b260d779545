//! A walk through the log as text for Graphviz and Mermaid.
//!
//! Invariant: text of users stands in quotes, which it cannot end.

use std::{collections::HashMap, fmt::Write};

use super::{Tongue, quoted};
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
        let label = quoted(&label(node), &Tongue::Dot);
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
        let label = quoted(&label(node), &Tongue::Mermaid);
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

#[cfg(test)]
mod tests;
