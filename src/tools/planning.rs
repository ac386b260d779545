//! Plans against the catalogue: what a definition names must be on offer, and fit.
//!
//! Invariants:
//! - a literal value for a field that a tool marks secret is a fault: durable work keeps its inputs.

use ipld_core::ipld::Ipld;
use serde_json::{Map, Value};

use crate::tools::denied::Denied;
use crate::{
    query::{View, list::Filter},
    tools::work::{Desk, SECRET},
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
        self.0.offered(name)?.check(input).err().map(|refusal| refusal.message)
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

    fn check(&self, name: &str, input: &Value) -> Option<String> {
        self.catalogue.check(name, input)
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
        let mut faults = Vec::new();
        secrets(&catalogue.0, &definition, "", &mut faults);
        Ok(match planned {
            Ok(planned) if faults.is_empty() => Ok(planned),
            Ok(_) => Err(faults),
            Err(first) => Err(first.into_iter().chain(faults).collect()),
        })
    });
    planned.await?.map_err(|faults| {
        Denied::faulty(what, faults).hint("each place is a JSON pointer into the definition")
    })
}

/// Finds values that tools mark as secret: steps are kept, so they cannot hold them.
pub(super) fn secrets(desk: &Desk, definition: &Value, place: &str, faults: &mut Vec<Fault>) {
    let steps = definition.get("steps").and_then(Value::as_array);
    for (at, step) in steps.into_iter().flatten().enumerate() {
        let place = format!("{place}/steps/{at}");
        let undo = step.get("compensate").map(|undo| (undo, format!("{place}/compensate/inputs")));
        for (does, place) in std::iter::once((step, format!("{place}/inputs"))).chain(undo) {
            let Some((action, inputs)) = does.get("action").and_then(Value::as_str).zip(does.get("inputs"))
            else {
                continue;
            };
            if action == WORKFLOW_RUN {
                secrets(desk, inputs, &place, faults);
            } else if desk.offered(action).is_some_and(|entry| desk.keeps_secret(&entry, inputs)) {
                faults.push(Fault { place, fault: SECRET.to_owned() });
            }
        }
    }
}
