//! A run's graph as text for Graphviz and Mermaid, and the look of each status in all pictures.
//!
//! Invariant: text of users is quoted, so that no label becomes markup.

use std::{collections::BTreeMap, fmt::Write};

use super::{Tongue, quoted};
use crate::workflow::graph::{Graph, Node, span};

/// The look of a status: its name, the fill of a box and the colour of its border.
pub struct Look {
    pub status: &'static str,
    pub fill: &'static str,
    pub line: &'static str,
}

/// The looks of all statuses of a step. Another status looks like the first.
const LOOKS: [Look; 8] = [
    Look { status: "pending", fill: "#f6f7f9", line: "#8b949e" },
    Look { status: "ready", fill: "#fff8e1", line: "#b7860b" },
    Look { status: "running", fill: "#ddeeff", line: "#1f6feb" },
    Look { status: "succeeded", fill: "#e2f5e6", line: "#2e8540" },
    Look { status: "failed", fill: "#fde4e1", line: "#c62828" },
    Look { status: "skipped", fill: "#eeeeee", line: "#a0a0a0" },
    Look { status: "cancelled", fill: "#f0e6f6", line: "#7b4fa0" },
    Look { status: "timed_out", fill: "#ffe8d6", line: "#d2691e" },
];

/// Returns the graph in DOT, Graphviz's language.
pub fn dot(graph: &Graph) -> String {
    let critical = graph.critical();
    let mut text = format!("digraph \"{}\" {{\n", quoted(graph.title(), &Tongue::Dot));
    text += "  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fontsize=10];\n";
    // Writing to a string cannot fail, here and below.
    for (place, node) in graph.nodes().iter().enumerate() {
        let look = look(&node.status);
        let width = if critical.node(place) { 3 } else { 1 };
        let _ = writeln!(
            text,
            "  n{place} [label=\"{}\", fillcolor=\"{}\", color=\"{}\", penwidth={width}];",
            quoted(&caption(node), &Tongue::Dot),
            look.fill,
            look.line
        );
    }
    for &(from, to) in graph.edges() {
        let width = if critical.edge(from, to) { " [penwidth=3]" } else { "" };
        let _ = writeln!(text, "  n{from} -> n{to}{width};");
    }
    text + "}\n"
}

/// Returns the graph as a Mermaid flowchart.
pub fn mermaid(graph: &Graph) -> String {
    let critical = graph.critical();
    let mut text = String::from("flowchart LR\n");
    let mut classes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (place, node) in graph.nodes().iter().enumerate() {
        let _ = writeln!(text, "  n{place}[\"{}\"]", quoted(&caption(node), &Tongue::Mermaid));
        classes.entry(look(&node.status).status).or_default().push(format!("n{place}"));
    }
    let mut thick = Vec::new();
    for (number, &(from, to)) in graph.edges().iter().enumerate() {
        let _ = writeln!(text, "  n{from} --> n{to}");
        if critical.edge(from, to) {
            thick.push(number.to_string());
        }
    }
    for (status, members) in classes {
        let look = look(status);
        let _ = writeln!(text, "  classDef {status} fill:{},stroke:{},color:#1f2328", look.fill, look.line);
        let _ = writeln!(text, "  class {} {status}", members.join(","));
    }
    if !thick.is_empty() {
        let _ = writeln!(text, "  linkStyle {} stroke-width:3px", thick.join(","));
    }
    text
}

/// Returns the look of this status.
pub fn look(status: &str) -> &'static Look {
    LOOKS.iter().find(|look| look.status == status).unwrap_or(&LOOKS[0])
}

/// Returns the text in a node's box: its id, its label if that is another word, and its status.
fn caption(node: &Node) -> String {
    let mut lines = vec![node.id.clone()];
    if node.label != node.id {
        lines.push(node.label.clone());
    }
    lines.push(standing(node));
    lines.join("\n")
}

/// Returns a step's status, with its duration if it has one.
pub(super) fn standing(node: &Node) -> String {
    match node.duration_ms {
        Some(ms) => format!("{}, {}", node.status, span(ms)),
        None => node.status.clone(),
    }
}

#[cfg(test)]
mod tests;
