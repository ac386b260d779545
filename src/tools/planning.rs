//! Plans against the catalogue: what a definition names must be on offer, and fit.
//!
//! Invariants:
//! - a value for a field that a tool marks secret is a fault, and so is a tool of which not all may be kept: durable
//!   work keeps its inputs and results.

use ipld_core::ipld::Ipld;
use serde_json::{Map, Value};

use crate::tools::denied::Denied;
use crate::{
    call::{Code, Refusal},
    query::{View, list::Filter},
    tools::work::Desk,
    workflow::{
        self,
        plan::{Definition, Fault, ToolFacts, Tools, WORKFLOW_RUN, plan},
    },
};

/// How alike two names are for one to be offered in the other's place.
const NEAR_ENOUGH: f64 = 0.7;

/// What is on offer, for whoever checks plans.
pub struct Catalogue(pub Desk);

impl Tools for Catalogue {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        let entry = self.0.offered(name)?;
        Some(ToolFacts {
            contract: entry.tool.contract,
            repeatable: entry.contract.repeatable(),
            read_only: entry.contract.effects.get("read_only") == Some(&Ipld::Bool(true)),
        })
    }

    fn check(&self, name: &str, input: &Value) -> Option<String> {
        let entry = self.0.offered(name)?;
        let refusal = entry.check(input).err().or_else(|| self.0.unkept(&entry, input, "/"));
        refusal.map(|refusal| refusal.message)
    }

    /// The writer looks for the runs that a run waits for.
    fn run_exists(&self, _id: &str) -> bool {
        true
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let tools = self.0.router.tools();
        let alike = |tool: &str| strsim::jaro_winkler(name, tool);
        let scored = tools.iter().map(|entry| (alike(&entry.tool.name), &entry.tool.name));
        let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        (best.0 >= NEAR_ENOUGH).then(|| best.1.clone())
    }
}

/// The same with the runs that are on record.
pub(super) struct Known<'a> {
    catalogue: &'a Catalogue,
    view: &'a View,
}

impl Tools for Known<'_> {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        self.catalogue.tool(name)
    }

    /// What cannot be kept is told apart.
    fn check(&self, name: &str, input: &Value) -> Option<String> {
        self.catalogue.0.offered(name)?.check(input).err().map(|refusal| refusal.message)
    }

    fn run_exists(&self, id: &str) -> bool {
        let filter = Filter { subject: Some(workflow::subject(id)), ..Filter::default() };
        // What cannot be read is left to the writer, which looks again.
        self.view.seqs(&filter, 0, 1).map_or(true, |seqs| !seqs.is_empty())
    }

    fn nearest(&self, name: &str) -> Option<String> {
        self.catalogue.nearest(name)
    }
}

/// Checks a definition against the catalogue and the runs on record; `what` names it in a refusal.
pub async fn checked(
    desk: &Desk,
    what: &'static str,
    definition: Map<String, Value>,
) -> Result<Definition, Denied> {
    let definition = Value::Object(definition);
    let catalogue = Catalogue(desk.clone());
    let planned = desk.ask(move |view| {
        let known = Known { catalogue: &catalogue, view };
        let planned = plan(&definition, &known);
        let mut unkept = Vec::new();
        find_unkept(&catalogue.0, &definition, "", &mut unkept);
        let of_setting = |(_, refusal): &(String, Refusal)| refusal.code == Code::FailedPrecondition;
        Ok(match (planned, unkept.first()) {
            (Ok(planned), None) => Ok(planned),
            (Ok(_), Some((_, first))) if unkept.iter().all(of_setting) => Err(Denied::from(first.clone())),
            (planned, _) => {
                let unkept =
                    unkept.into_iter().map(|(place, refusal)| Fault { place, fault: refusal.message });
                let faults = planned.err().into_iter().flatten().chain(unkept).collect();
                Err(Denied::faulty(what, faults).hint("each place is a JSON pointer into the definition"))
            }
        })
    });
    planned.await?
}

/// Finds steps that durable work cannot keep whole: where their inputs stand, and why.
fn find_unkept(desk: &Desk, definition: &Value, place: &str, found: &mut Vec<(String, Refusal)>) {
    let steps = definition.get("steps").and_then(Value::as_array);
    for (at, step) in steps.into_iter().flatten().enumerate() {
        let place = format!("{place}/steps/{at}");
        let undo = step.get("compensate").map(|undo| (undo, format!("{place}/compensate/inputs")));
        for (does, place) in std::iter::once((step, format!("{place}/inputs"))).chain(undo) {
            let Some(action) = does.get("action").and_then(Value::as_str) else { continue };
            let inputs = does.get("inputs").unwrap_or(&Value::Null);
            if action == WORKFLOW_RUN {
                find_unkept(desk, inputs, &place, found);
                continue;
            }
            let refusal = desk.offered(action).and_then(|entry| desk.unkept(&entry, inputs, &place));
            found.extend(refusal.map(|refusal| (place, refusal)));
        }
    }
}
