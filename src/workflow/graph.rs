//! A run as a graph: what waits for what, how far it is, and the way through it that took longest.
//!
//! Invariants:
//! - an edge goes from a step to one that waits for it, and both are nodes of the graph;
//! - nothing recurses: a chain of 10,000 steps is walked like any other.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::run::{Run, StepState};
use crate::workflow::shape::Step;

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: String,
    /// Its action, as the label for people.
    pub label: String,
    pub status: String,
    /// The measured duration; `None` if it has not ended, or never ran.
    pub duration_ms: Option<u64>,
}

/// The steps of one run. Made by [`Graph::new`] or [`Graph::read`] only.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    title: String,
    nodes: Vec<Node>,
    edges: Vec<(usize, usize)>,
}

impl Graph {
    /// Each of `edges` names a step and one that waits for it. Edges with an unknown step are left out.
    pub fn new<'a>(
        title: &str,
        nodes: Vec<Node>,
        edges: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let places: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(place, node)| (node.id.as_str(), place)).collect();
        let known = |(from, to)| Some((*places.get(from)?, *places.get(to)?));
        let edges = edges.into_iter().filter_map(known).collect();
        Self { title: title.to_owned(), nodes, edges }
    }

    /// Returns the graph of a run's present state.
    pub fn of(run: &Run) -> Self {
        let node = |(step, state): (&Step, &StepState)| Node {
            id: step.id.clone(),
            label: step.action.clone(),
            status: state.status.as_str().to_owned(),
            duration_ms: state.started_ms.zip(state.ended_ms).map(|(start, end)| end.saturating_sub(start)),
        };
        let nodes = run.plan.steps.iter().zip(&run.steps).map(node).collect();
        let edges = run.plan.steps.iter().flat_map(|step| {
            let id = step.id.as_str();
            step.depends_on.iter().map(move |name| (name.as_str(), id))
        });
        Self::new(&run.id, nodes, edges)
    }

    /// Parses what [`Graph::json`] returns; `None` if it has another shape.
    pub fn read(title: &str, graph: &Value) -> Option<Self> {
        let text = |value: &Value, key: &str| Some(value[key].as_str()?.to_owned());
        let node = |node: &Value| {
            Some(Node {
                id: text(node, "id")?,
                label: text(node, "label")?,
                status: text(node, "status")?,
                duration_ms: node["duration_ms"].as_u64(),
            })
        };
        let edge = |edge: &'_ Value| Some((text(edge, "from")?, text(edge, "to")?));
        let nodes = graph["nodes"].as_array()?.iter().map(node).collect::<Option<_>>()?;
        let edges = graph["edges"].as_array()?.iter().map(edge).collect::<Option<Vec<_>>>()?;
        Some(Self::new(title, nodes, edges.iter().map(|(from, to)| (from.as_str(), to.as_str()))))
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the edges, as indexes into [`Graph::nodes`]: a step, and one that waits for it.
    pub fn edges(&self) -> &[(usize, usize)] {
        &self.edges
    }

    /// `{nodes: [{id, label, status, duration_ms?}], edges: [{from, to}], critical_path: [id]}`.
    pub fn json(&self) -> Value {
        let node = |node: &Node| {
            let mut json = json!({"id": node.id, "label": node.label, "status": node.status});
            if let Some(took) = node.duration_ms {
                json["duration_ms"] = took.into();
            }
            json
        };
        let id = |place: usize| self.nodes[place].id.as_str();
        let edge = |&(from, to): &(usize, usize)| json!({"from": id(from), "to": id(to)});
        json!({
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "edges": self.edges.iter().map(edge).collect::<Vec<_>>(),
            "critical_path": self.critical_path().into_iter().map(id).collect::<Vec<_>>(),
        })
    }

    /// Returns the critical path, as indexes: the path from a first to a last step that took longest. A step of
    /// unknown duration weighs one millisecond. Among equal paths the one with more steps wins, then the one whose
    /// steps come first.
    pub fn critical_path(&self) -> Vec<usize> {
        let mut longest: Vec<(u64, u64)> = vec![(0, 0); self.nodes.len()];
        let mut before: Vec<Option<usize>> = vec![None; self.nodes.len()];
        let after = self.after();
        let mut last: Option<usize> = None;
        for place in self.order() {
            let (weight, steps) = longest[place];
            let reached = (weight.saturating_add(self.nodes[place].duration_ms.unwrap_or(1)), steps + 1);
            longest[place] = reached;
            for &next in &after[place] {
                let nearer = before[next].is_some_and(|before| before <= place);
                if longest[next] < reached || (longest[next] == reached && !nearer) {
                    longest[next] = reached;
                    before[next] = Some(place);
                }
            }
            if last.is_none_or(|last| longest[last] < reached || (longest[last] == reached && place < last)) {
                last = Some(place);
            }
        }
        let mut path: Vec<usize> = std::iter::successors(last, |&place| before[place]).collect();
        path.reverse();
        path
    }

    /// Returns the critical path in a form that answers for nodes and edges.
    pub fn critical(&self) -> Critical {
        let mut follows = vec![None; self.nodes.len()];
        let path = self.critical_path();
        for (step, place) in path.iter().enumerate() {
            follows[*place] = Some(path.get(step + 1).copied());
        }
        Critical { follows }
    }

    /// Returns for each node the nodes that wait for it.
    pub fn after(&self) -> Vec<Vec<usize>> {
        let mut after = vec![Vec::new(); self.nodes.len()];
        for &(from, to) in &self.edges {
            after[from].push(to);
        }
        after
    }

    /// Returns the nodes in topological order. Nodes on a cycle, which no plan has, are left out.
    pub fn order(&self) -> Vec<usize> {
        let after = self.after();
        let mut waits = vec![0_usize; self.nodes.len()];
        for &(_, to) in &self.edges {
            waits[to] += 1;
        }
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|&place| waits[place] == 0).collect();
        let mut next = 0;
        while let Some(&place) = order.get(next) {
            next += 1;
            for &to in &after[place] {
                waits[to] -= 1;
                if waits[to] == 0 {
                    order.push(to);
                }
            }
        }
        order
    }
}

/// Which nodes and edges are on the critical path.
pub struct Critical {
    /// For each node on the path, the node that follows it there.
    follows: Vec<Option<Option<usize>>>,
}

impl Critical {
    pub fn node(&self, place: usize) -> bool {
        self.follows[place].is_some()
    }

    pub fn edge(&self, from: usize, to: usize) -> bool {
        self.follows[from] == Some(Some(to))
    }
}

/// Formats a duration for people, in at most two units.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{seconds}.{} s", ms % 1000 / 100),
        60_000..3_600_000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
impl Graph {
    /// A graph in a few words: steps as `name:status:duration`, edges as `from>to`, all separated by spaces.
    pub(crate) fn told(text: &str) -> Self {
        let (steps, edges): (Vec<&str>, Vec<&str>) = text.split(' ').partition(|word| !word.contains('>'));
        let node = |word: &str| {
            let mut parts = word.split(':');
            let id = parts.next().unwrap_or_default().to_owned();
            Node {
                label: format!("do-{id}"),
                id,
                status: parts.next().unwrap_or("pending").to_owned(),
                duration_ms: parts.next().and_then(|ms| ms.parse().ok()),
            }
        };
        Self::new(
            "g",
            steps.into_iter().map(node).collect(),
            edges.into_iter().filter_map(|edge| edge.split_once('>')),
        )
    }
}

#[cfg(test)]
mod tests;
