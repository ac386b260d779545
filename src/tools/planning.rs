//! Plans against the catalogue: what a definition names must be on offer, and fit.
//!
//! Invariants:
//! - a literal value for a field that a tool marks secret is a fault: durable work keeps its inputs.

use std::sync::Arc;

use ipld_core::ipld::Ipld;
use serde_json::{Map, Value};

use crate::{
    caller::Caller,
    error::{Code, Refusal},
    query::{View, list::Filter},
    router::{Entry, Invocation, Misfit},
    tools::{denied::Denied, desk::Desk},
    workflow::{
        self,
        fields::Fault,
        plan::{Definition, ToolFacts, Tools, plan},
        shape::{WORKER, WORKFLOW_RUN},
    },
};

/// The similarity from which on one name is suggested for another.
const NEAR_ENOUGH: f64 = 0.7;

/// The tools on offer, for checking plans.
pub struct Catalogue {
    desk: Desk,
    /// Who sees them; `None` is this node itself, which sees all.
    caller: Option<Caller>,
}

impl Catalogue {
    pub fn whole(desk: &Desk) -> Self {
        Self { desk: desk.clone(), caller: None }
    }

    /// Returns the tools that the caller of this call sees.
    pub fn seen_by(desk: &Desk, call: &Invocation) -> Self {
        Self { desk: desk.clone(), caller: Some(call.caller.clone()) }
    }

    /// Returns the tool with this public name, if it is seen.
    pub fn offered(&self, name: &str) -> Option<Arc<Entry>> {
        match &self.caller {
            Some(caller) => self.desk.offered_to(caller, name),
            None => self.desk.offered(name),
        }
    }
}

impl Tools for Catalogue {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        let entry = self.offered(name)?;
        Some(ToolFacts {
            contract: entry.tool.contract,
            repeatable: entry.contract.repeatable(),
            read_only: entry.contract.effects.get("read_only") == Some(&Ipld::Bool(true)),
        })
    }

    fn check(&self, name: &str, input: &Value) -> Vec<Fault> {
        let Some(entry) = self.offered(name) else { return Vec::new() };
        let misfits = misfits(&entry, input);
        if !misfits.is_empty() {
            return misfits;
        }
        let unkept = self.desk.unkept(&entry, input, "/");
        unkept.map(|refusal| Fault { place: String::new(), fault: refusal.message }).into_iter().collect()
    }

    /// Always true: the writer itself checks the runs that a run waits for.
    fn run_exists(&self, _id: &str) -> bool {
        true
    }

    fn serves(&self, peer: &str, tool: &str) -> Option<bool> {
        self.desk.router.serves(peer, self.offered(tool)?.as_ref())
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let router = &self.desk.router;
        let tools = self.caller.as_ref().map_or_else(|| router.tools(), |caller| router.tools_for(caller));
        let alike = |tool: &str| strsim::jaro_winkler(name, tool);
        let scored = tools.iter().map(|entry| (alike(&entry.tool.name), &entry.tool.name));
        let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
        (best.0 >= NEAR_ENOUGH).then(|| best.1.clone())
    }
}

/// The catalogue, with the runs that are on record.
pub(super) struct Known<'a> {
    pub catalogue: &'a Catalogue,
    pub view: &'a View,
}

impl Tools for Known<'_> {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        self.catalogue.tool(name)
    }

    /// Checks the schema only; what cannot be kept is found by `find_unkept`.
    fn check(&self, name: &str, input: &Value) -> Vec<Fault> {
        self.catalogue.offered(name).map(|entry| misfits(&entry, input)).unwrap_or_default()
    }

    fn run_exists(&self, id: &str) -> bool {
        let filter = Filter { subject: Some(workflow::subject(id)), ..Filter::default() };
        // What cannot be read is left to the writer, which looks again.
        self.view.seqs(&filter, 0, 1).map_or(true, |seqs| !seqs.is_empty())
    }

    fn serves(&self, peer: &str, tool: &str) -> Option<bool> {
        self.catalogue.serves(peer, tool)
    }

    fn nearest(&self, name: &str) -> Option<String> {
        self.catalogue.nearest(name)
    }
}

/// Checks a definition against the catalogue and the runs on record. `what` names it in a refusal. `misfits` are the
/// faults that a schema finds; those that the plan's rules find too are left out.
pub async fn checked(
    desk: &Desk,
    call: &Invocation,
    what: &'static str,
    definition: Map<String, Value>,
    misfits: Vec<Misfit>,
) -> Result<Definition, Denied> {
    let definition = Value::Object(definition);
    let catalogue = Catalogue::seen_by(desk, call);
    let found = desk.ask(move |view| {
        let planned = planned(&definition, &Known { catalogue: &catalogue, view });
        if misfits.is_empty() {
            return Ok(planned);
        }
        let mut wrong = planned.err().unwrap_or_default();
        let places: Vec<String> = wrong.places().map(str::to_owned).collect();
        let told = |at: &str| {
            let within = |place: &String| !at.is_empty() && place.starts_with(&format!("{at}/"));
            places.iter().any(|place| place == at || within(place))
        };
        wrong.faults.extend(misfits.into_iter().filter(|misfit| !told(&misfit.place)).map(fault));
        Ok(Err(wrong))
    });
    found.await?.map_err(|wrong| wrong.denied(what, "each place is a JSON pointer into the definition"))
}

/// The faults of a definition.
#[derive(Debug, Default)]
pub(super) struct Wrong {
    pub faults: Vec<Fault>,
    /// Inputs that durable work cannot keep in full: each place, and why.
    pub unkept: Vec<(String, Refusal)>,
}

impl Wrong {
    /// Makes the refusal. If only settings stand in the way, it is that of the first of them.
    pub fn denied(self, what: &'static str, hint: &str) -> Denied {
        let of_setting = |(_, refusal): &(String, Refusal)| refusal.code == Code::FailedPrecondition;
        match self.unkept.first() {
            Some((_, first)) if self.faults.is_empty() && self.unkept.iter().all(of_setting) => {
                Denied::from(first.clone())
            }
            _ => {
                let unkept = self.unkept.into_iter();
                let unkept = unkept.map(|(place, refusal)| Fault { place, fault: refusal.message });
                Denied::faulty(what, self.faults.into_iter().chain(unkept).collect()).hint(hint)
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.faults.is_empty() && self.unkept.is_empty()
    }

    /// Moves the faults to other places; a fault for which `to` has none is left out.
    pub fn moved(self, to: impl Fn(&str) -> Option<String>) -> Self {
        let faults = self.faults.into_iter();
        let unkept = self.unkept.into_iter();
        Self {
            faults: faults.filter_map(|fault| Some(Fault { place: to(&fault.place)?, ..fault })).collect(),
            unkept: unkept.filter_map(|(place, refusal)| Some((to(&place)?, refusal))).collect(),
        }
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        let faults = self.faults.iter().map(|fault| fault.place.as_str());
        faults.chain(self.unkept.iter().map(|(place, _)| place.as_str()))
    }
}

fn misfits(entry: &Entry, input: &Value) -> Vec<Fault> {
    entry.misfits(input).into_iter().map(fault).collect()
}

fn fault(Misfit { place, fault, .. }: Misfit) -> Fault {
    Fault { place, fault }
}

/// Plans a definition. Errors: all its faults.
fn planned(definition: &Value, known: &Known<'_>) -> Result<Definition, Wrong> {
    let planned = plan(definition, known);
    let mut unkept = Vec::new();
    find_unkept(&known.catalogue.desk, definition, "", &mut unkept);
    match planned {
        Ok(planned) if unkept.is_empty() => Ok(planned),
        planned => Err(Wrong { faults: planned.err().unwrap_or_default(), unkept }),
    }
}

/// Returns the faults of a definition; empty if there are none.
pub(super) fn wrong_with(definition: &Value, known: &Known<'_>) -> Wrong {
    planned(definition, known).err().unwrap_or_default()
}

/// Finds inputs of steps that durable work cannot keep in full: each place, and why.
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
            let refusal = match action.strip_prefix(WORKER) {
                None => desk.offered(action).and_then(|entry| desk.unkept(&entry, inputs, &place)),
                // Work for others under the name of a tool here was meant for that tool.
                Some(word) => {
                    let entry = desk.offered(word).filter(|entry| !entry.secrets.is_empty());
                    entry.and_then(|entry| desk.secret(&entry, inputs, &place))
                }
            };
            found.extend(refusal.map(|refusal| (place, refusal)));
        }
    }
}
