//! Lists the paths to the marked fields of a schema, as contracts state them.
//!
//! Invariant: a path ends with `**` where a schema contains itself, so the list is finite.

use std::collections::BTreeSet;

use super::{Marks, SCHEMA_VISITS_MAX};

impl Marks {
    /// Returns the paths; returns none if the search takes over [`SCHEMA_VISITS_MAX`] steps.
    pub(super) fn list(&self) -> Option<BTreeSet<Vec<String>>> {
        let mut listing = Listing { marks: self, found: BTreeSet::new(), open: Vec::new(), visits: 0 };
        listing.visit(0, &mut Vec::new());
        (listing.visits <= SCHEMA_VISITS_MAX).then_some(listing.found)
    }
}

/// Searches the states depth first.
struct Listing<'a> {
    marks: &'a Marks,
    found: BTreeSet<Vec<String>>,
    /// Holds the states on the way here, each with the length of the path at which it was entered.
    open: Vec<(usize, usize)>,
    visits: usize,
}

impl Listing<'_> {
    fn visit(&mut self, id: usize, path: &mut Vec<String>) {
        self.visits += 1;
        if self.visits > SCHEMA_VISITS_MAX {
            return;
        }
        let state = &self.marks.states[id];
        if state.secret {
            self.found.insert(path.clone());
            return;
        }
        if let Some((_, len)) = self.open.iter().rfind(|(open, _)| *open == id) {
            // A state that is met again without a longer path adds no place.
            if *len < path.len() && state.leads {
                self.found.insert([&path[..], &["**".to_owned()]].concat());
            }
            return;
        }
        self.open.push((id, path.len()));
        for next in &state.same {
            self.visit(*next, path);
        }
        let rest = state.patterned.iter().chain(&state.rest).chain(&state.items);
        let named = state.named.iter().flat_map(|(name, ids)| ids.iter().map(move |id| (name.as_str(), id)));
        for (step, next) in rest.map(|id| ("*", id)).chain(named) {
            path.push(step.to_owned());
            self.visit(*next, path);
            path.pop();
        }
        self.open.pop();
    }
}
