//! Plans: what a definition says, checked whole and made into a block.
//!
//! Invariants:
//! - a plan holds the structure of the steps and none of what users wrote into their inputs;
//! - a refusal lists every fault, each with its place as a JSON pointer;
//! - no check recurses over the graph: chains of ten thousand steps are as safe as short ones.

mod form;
mod restore;
mod step;
mod order;

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::step::Draft;
use crate::{
    block::{Block, Cid},
    error::Code,
    event::work::Hold,
    task::SPAN_MAX_MS,
    workflow::{
        fields::{self, Fault, Faults, Object},
        shape::{Step, WAIT_SIGNAL, WORKER},
        wrong::Wrong,
    },
};

/// Steps of one workflow.
pub const STEPS_MAX: usize = 10_000;
/// Dependencies between the steps of one workflow.
pub const EDGES_MAX: usize = 100_000;
/// Elements of a list that a step runs over, where the step names no bound.
pub const EACH_DEFAULT: u64 = 1_000;
/// The highest bound a step may name.
pub const EACH_MAX: u64 = 10_000;
/// Bytes of a step's output that other steps may read, and of what inputs take from them.
const OUTPUT_MAX: u64 = 4 * 1024 * 1024;
/// Tags of one run, and runs it waits for: both stand in its first event.
pub const TAGS_MAX: usize = 32;
const DEPENDENCIES_MAX: usize = 32;
/// Bytes of the name of a step, of a task's type, of a tag.
pub const NAME_MAX: usize = 128;
/// Bytes of the id of a run. Long enough for children of children, short enough for an event.
const RUN_ID_MAX: usize = 256;

/// The fields of a step.
pub const STEP_FIELDS: [&str; 11] = [
    "step_id",
    "action",
    "inputs",
    "depends_on",
    "retry",
    "timeout_ms",
    "when",
    "compensate",
    "for_each",
    "reuse",
    "repeatable",
];

pub const PRIORITY: RangeInclusive<u64> = 0..=100;
pub const PRIORITY_DEFAULT: u64 = 50;

const DEFINITION_FIELDS: [&str; 11] = [
    "workflow_id",
    "name",
    "steps",
    "priority",
    "tags",
    "dependencies",
    "metadata",
    "max_parallel_steps",
    "deadline_ms",
    "peer",
    "reuse",
];

/// The structure of a workflow, as the block that a run names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub v: u64,
    pub name: String,
    /// In the order they were given.
    pub steps: Vec<Step>,
    /// The bounds under which its runs are decided. They are kept so that a later build decides the same.
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    pub output_max: u64,
}

/// A definition that passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub plan: Plan,
    /// `{"steps": {id: {"inputs", "when"?, "for_each"?, "compensate"?}}, "metadata": {...}}`: the run's payload.
    pub inputs: Value,
    /// `None` if a child leaves it to its parent.
    pub id: Option<String>,
    pub priority: u64,
    pub tags: Vec<String>,
    /// Runs that must succeed first.
    pub dependencies: Vec<String>,
    pub max_parallel: Option<u64>,
    /// How long the run may take.
    pub deadline_ms: Option<u64>,
    /// The peer that the tools of its steps are called at.
    pub peer: Option<String>,
}

/// What planning has to know about tools and runs.
pub trait Tools {
    fn tool(&self, name: &str) -> Option<ToolFacts>;

    /// Returns all faults of `input` under the tool's schema; places are within the input.
    fn check(&self, name: &str, input: &Value) -> Vec<Fault>;

    fn run_exists(&self, id: &str) -> bool;

    /// Returns whether this peer can run this tool, or `None` if no such peer offers tools here.
    fn serves(&self, _peer: &str, _tool: &str) -> Option<bool> {
        None
    }

    /// Returns the known tool whose name is most like this one.
    fn nearest(&self, _name: &str) -> Option<String> {
        None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToolFacts {
    pub contract: Cid,
    pub repeatable: bool,
    pub read_only: bool,
}

impl Plan {
    pub fn block(&self) -> Block {
        Block::encode(self)
    }
}

/// Checks a definition and makes its plan, or lists all its faults.
pub fn plan(definition: &Value, tools: &dyn Tools) -> Result<Definition, Vec<Fault>> {
    let mut faults = Faults::default();
    let checked = check(definition, "", Standing::Own, tools, &mut faults);
    match (checked, faults.list()) {
        (Some(definition), faults) if faults.is_empty() => Ok(definition),
        (_, faults) => Err(faults),
    }
}

/// Whose definition it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Own,
    /// A child run's definition. References to steps that it does not have are to its parent's.
    Child,
}

fn check(
    definition: &Value,
    place: &str,
    standing: Standing,
    tools: &dyn Tools,
    faults: &mut Faults,
) -> Option<Definition> {
    let object = Object::open(definition, place, &DEFINITION_FIELDS, faults)?;
    let id = match standing {
        Standing::Own => object.required("workflow_id", faults).and_then(|_| run_id(&object, faults)),
        Standing::Child => run_id(&object, faults),
    };
    let name = object.required("name", faults).and_then(|_| object.title("name", NAME_MAX, faults));
    let reuse = object.flag("reuse", faults).unwrap_or(false);
    let priority = object.whole("priority", PRIORITY, faults).unwrap_or(PRIORITY_DEFAULT);
    let tags = object.names("tags", TAGS_MAX, NAME_MAX, faults);
    let dependencies = object.names("dependencies", DEPENDENCIES_MAX, RUN_ID_MAX, faults);
    check_dependencies(&object, &dependencies, id.as_deref(), tools, faults);
    let max_parallel = object.whole("max_parallel_steps", 1..=STEPS_MAX as u64, faults);
    let deadline_ms = object.whole("deadline_ms", 1..=SPAN_MAX_MS, faults);
    let metadata = object.object("metadata", faults);
    let peer = object.text("peer", NAME_MAX, faults);
    let drafts = steps(&object, reuse, tools, faults)?;
    if let Some(peer) = peer {
        check_peer(peer, object.place("peer"), &drafts, tools, faults);
    }
    let edges = order::check(&drafts, faults);
    order::check_references(&drafts, &edges, standing, faults);

    let (steps, inputs): (Vec<Step>, Map<String, Value>) =
        drafts.into_iter().map(|draft| (draft.step.clone(), (draft.step.id, draft.inputs))).unzip();
    let plan = Plan { v: 1, name: name?.to_owned(), steps, limits: Limits { output_max: OUTPUT_MAX } };
    let inputs = json!({ "steps": inputs, "metadata": metadata.cloned().unwrap_or_default() });
    let peer = peer.map(str::to_owned);
    Some(Definition { plan, inputs, id, priority, tags, dependencies, max_parallel, deadline_ms, peer })
}

/// Returns the hold of a waiting step, from its resolved inputs.
pub fn hold(action: &str, inputs: &Value, now_ms: u64) -> Result<Hold, Wrong> {
    let mut faults = Faults::default();
    match (read_hold(action, inputs, "", now_ms, &mut faults), faults.list().first()) {
        (Some(hold), None) => Ok(hold),
        (_, fault) => {
            let text = fault.map_or_else(String::new, |fault| format!("{} {}", fault.place, fault.fault));
            Err(Wrong::new(Code::InvalidArgument, format!("{action} {}", text.trim_start())))
        }
    }
}

fn read_hold(action: &str, inputs: &Value, place: &str, now_ms: u64, faults: &mut Faults) -> Option<Hold> {
    if action == WAIT_SIGNAL {
        let object = Object::open(inputs, place, &["signal", "timeout_ms"], faults)?;
        let timeout_ms = object.whole("timeout_ms", 1..=SPAN_MAX_MS, faults);
        object.required("signal", faults)?;
        let name = object.text("signal", NAME_MAX, faults)?.to_owned();
        return Some(Hold::Signal { name, until_ms: timeout_ms.map(|ms| now_ms.saturating_add(ms)) });
    }
    let object = Object::open(inputs, place, &["ms", "until"], faults)?;
    let until_ms = until(&object, place, now_ms, faults)?;
    Some(Hold::Time { until_ms })
}

fn until(object: &Object<'_>, place: &str, now_ms: u64, faults: &mut Faults) -> Option<u64> {
    match (object.get("ms"), object.get("until")) {
        (Some(_), None) => Some(now_ms.saturating_add(object.whole("ms", 0..=SPAN_MAX_MS, faults)?)),
        (None, Some(until)) => {
            let instant = until.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            let ms = instant.and_then(|instant| u64::try_from(instant.as_millisecond()).ok());
            if ms.is_none() {
                faults.add(object.place("until"), "must be a time as RFC 3339 writes it");
            }
            ms
        }
        _ => {
            faults.add(place, "needs one of `ms` and `until`");
            None
        }
    }
}

fn run_id(object: &Object<'_>, faults: &mut Faults) -> Option<String> {
    let id = object.text("workflow_id", RUN_ID_MAX, faults)?;
    if !fields::is_name(id, "/") {
        faults.add(object.place("workflow_id"), fields::NOT_A_RUN_ID);
    }
    Some(id.to_owned())
}

fn check_dependencies(
    object: &Object<'_>,
    dependencies: &[String],
    own: Option<&str>,
    tools: &dyn Tools,
    faults: &mut Faults,
) {
    for (at, id) in dependencies.iter().enumerate() {
        let place = || format!("{}/{at}", object.place("dependencies"));
        if own == Some(id) {
            faults.add(place(), "a workflow cannot wait for itself");
        } else if !tools.run_exists(id) {
            faults.add(place(), format!("there is no workflow `{id}`"));
        }
    }
}

/// Checks that every tool that the steps name can be called at the run's peer. Waiting and child runs stay on this
/// node.
fn check_peer(peer: &str, place: String, drafts: &[Draft], tools: &dyn Tools, faults: &mut Faults) {
    let actions = drafts.iter().flat_map(|Draft { step, place, .. }| {
        let undo = step.compensate.as_ref();
        let undo = undo.map(|undo| (undo.action.as_str(), undo.tool, format!("{place}/compensate/action")));
        [Some((step.action.as_str(), step.tool, format!("{place}/action"))), undo].into_iter().flatten()
    });
    for (action, tool, at) in actions {
        if tool.is_none() {
            if action.starts_with(WORKER) {
                let fault = "is done by whoever takes it, and cannot be carried to a peer";
                faults.add(at, format!("`{action}` {fault}"));
            }
            continue;
        }
        match tools.serves(peer, action) {
            Some(true) => {}
            Some(false) => faults.add(at, format!("peer `{peer}` does not offer `{action}`")),
            None => {
                let known = "peer_list names those that are known";
                return faults.add(place, format!("no peer `{peer}` offers tools here ({known})"));
            }
        }
    }
}

fn steps(object: &Object<'_>, reuse: bool, tools: &dyn Tools, faults: &mut Faults) -> Option<Vec<Draft>> {
    object.required("steps", faults)?;
    let list = object.list("steps", faults)?;
    let place = object.place("steps");
    if list.is_empty() {
        faults.add(place, "a workflow needs at least one step");
        return None;
    }
    if list.len() > STEPS_MAX {
        faults.add(place, format!("{} steps are over the bound of {STEPS_MAX}", list.len()));
        return None;
    }
    let mut first_at = BTreeMap::new();
    let mut drafts = Vec::with_capacity(list.len());
    for (at, value) in list.iter().enumerate() {
        let Some(draft) = step::read(value, &format!("{place}/{at}"), reuse, tools, faults) else { continue };
        match first_at.get(&draft.step.id) {
            Some(first) => faults.add(
                format!("{place}/{at}/step_id"),
                format!("`{}` is the id of step {first} already", draft.step.id),
            ),
            None => {
                first_at.insert(draft.step.id.clone(), at);
                drafts.push(draft);
            }
        }
    }
    Some(drafts)
}
