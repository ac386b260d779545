//! Plans against the catalogue: what a definition names must be on offer, and fit.
//!
//! Invariants:
//! - a literal value for a field that a tool marks secret is a fault: durable work keeps its inputs.

use ipld_core::ipld::Ipld;
use serde_json::{Map, Value};

use crate::tools::denied::Denied;
use crate::{
    query::{View, list::Filter},
    router::Misfit,
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

    fn check(&self, name: &str, input: &Value) -> Vec<Fault> {
        let Some(entry) = self.0.offered(name) else { return Vec::new() };
        match entry.misfits(input) {
            Ok(misfits) => misfits.into_iter().map(fault).collect(),
            Err(refusal) => vec![Fault { place: String::new(), fault: refusal.message }],
        }
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
    pub catalogue: &'a Catalogue,
    pub view: &'a View,
}

impl Tools for Known<'_> {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        self.catalogue.tool(name)
    }

    fn check(&self, name: &str, input: &Value) -> Vec<Fault> {
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

/// Checks a definition against the catalogue and the runs on record; `what` names it in a refusal. `misfits` are what
/// a schema finds wrong with it: of those, only what the plan's rules do not see is told.
pub async fn checked(
    desk: &Desk,
    what: &'static str,
    definition: Map<String, Value>,
    misfits: Vec<Misfit>,
) -> Result<Definition, Denied> {
    let definition = Value::Object(definition);
    let catalogue = Catalogue(desk.clone());
    let found = desk.ask(move |view| {
        let planned = planned(&definition, &Known { catalogue: &catalogue, view });
        if misfits.is_empty() {
            return Ok(planned);
        }
        let mut faults = planned.err().unwrap_or_default();
        let places: Vec<String> = faults.iter().map(|fault| fault.place.clone()).collect();
        let told = |at: &str| {
            let within = |place: &String| !at.is_empty() && place.starts_with(&format!("{at}/"));
            places.iter().any(|place| place == at || within(place))
        };
        faults.extend(misfits.into_iter().filter(|misfit| !told(&misfit.place)).map(fault));
        Ok(Err(faults))
    });
    found.await?.map_err(|faults| {
        Denied::faulty(what, faults).hint("each place is a JSON pointer into the definition")
    })
}

fn fault(Misfit { place, fault }: Misfit) -> Fault {
    Fault { place, fault }
}

/// The plan of a definition, or all that is wrong with it.
fn planned(definition: &Value, known: &Known<'_>) -> Result<Definition, Vec<Fault>> {
    let planned = plan(definition, known);
    let mut faults = Vec::new();
    secrets(&known.catalogue.0, definition, "", &mut faults);
    match planned {
        Ok(planned) if faults.is_empty() => Ok(planned),
        Ok(_) => Err(faults),
        Err(first) => Err(first.into_iter().chain(faults).collect()),
    }
}

/// What is wrong with a definition; nothing where it is sound.
pub(super) fn faults_of(definition: &Value, known: &Known<'_>) -> Vec<Fault> {
    planned(definition, known).err().unwrap_or_default()
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
