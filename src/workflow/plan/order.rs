//! The graph of a definition: unknown dependencies, cycles, and reads of steps that do not come before.
//!
//! Invariant: nothing recurses, and the ancestors of steps are made out only where a read is not of a direct
//! dependency.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{EDGES_MAX, Standing, step::Draft};
use crate::workflow::fields::{self, Faults, join};

/// Steps of a cycle that a fault names.
const NAMED_MAX: usize = 32;

/// The dependencies of every step, by index, and an order in which each comes after its own.
pub struct Edges {
    ids: HashMap<String, usize>,
    parents: Vec<Vec<usize>>,
    order: Vec<usize>,
}

/// Notes dependencies on unknown steps, on the step itself, and in a cycle.
pub fn check(drafts: &[Draft], faults: &mut Faults) -> Edges {
    let ids: HashMap<String, usize> =
        drafts.iter().enumerate().map(|(at, draft)| (draft.step.id.clone(), at)).collect();
    let mut parents = vec![Vec::new(); drafts.len()];
    let count: usize = drafts.iter().map(|draft| draft.step.depends_on.len()).sum();
    if count > EDGES_MAX {
        faults.add("/steps", format!("{count} dependencies are over the bound of {EDGES_MAX}"));
        return Edges { ids, parents, order: Vec::new() };
    }
    for (at, draft) in drafts.iter().enumerate() {
        for (nth, name) in draft.step.depends_on.iter().enumerate() {
            let place = || format!("{}/{nth}", join(&draft.place, "depends_on"));
            match ids.get(name) {
                Some(&parent) if parent == at => faults.add(place(), "a step cannot wait for itself"),
                Some(&parent) => parents[at].push(parent),
                None => faults.add(place(), unknown(name, &ids, faults)),
            }
        }
    }
    let order = sort(&parents);
    if order.len() < drafts.len() {
        faults.add("/steps", cycle(drafts, &parents, &order));
    }
    Edges { ids, parents, order }
}

fn unknown(name: &str, ids: &HashMap<String, usize>, faults: &Faults) -> String {
    let mut known: Vec<&str> = ids.keys().map(String::as_str).filter(|_| faults.few()).collect();
    known.sort_unstable();
    format!("there is no step `{name}`{}", fields::suggestion(fields::nearest(name, known.into_iter())))
}

/// Returns the steps in topological order. Steps on a cycle, and those that depend on one, are left out.
fn sort(parents: &[Vec<usize>]) -> Vec<usize> {
    let mut children = vec![Vec::new(); parents.len()];
    let mut missing: Vec<usize> = parents.iter().map(Vec::len).collect();
    for (at, own) in parents.iter().enumerate() {
        own.iter().for_each(|&parent| children[parent].push(at));
    }
    let mut free: VecDeque<usize> = (0..parents.len()).filter(|&at| missing[at] == 0).collect();
    let mut order = Vec::with_capacity(parents.len());
    while let Some(at) = free.pop_front() {
        order.push(at);
        for &child in &children[at] {
            missing[child] -= 1;
            if missing[child] == 0 {
                free.push_back(child);
            }
        }
    }
    order
}

/// Describes one cycle, each step after the one it depends on. It always finds one: every step that `sort` leaves out
/// has a parent that is left out.
fn cycle(drafts: &[Draft], parents: &[Vec<usize>], order: &[usize]) -> String {
    let sorted: HashSet<usize> = order.iter().copied().collect();
    let left = |at: &usize| !sorted.contains(at);
    let mut path: Vec<usize> = Vec::new();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut next = (0..parents.len()).find(left);
    while let Some(at) = next {
        if let Some(&start) = seen.get(&at) {
            path.drain(..start);
            break;
        }
        seen.insert(at, path.len());
        path.push(at);
        next = parents[at].iter().copied().find(left);
    }
    path.reverse();
    path.extend(path.first().copied());
    let names: Vec<&str> = path.iter().map(|&at| drafts[at].step.id.as_str()).collect();
    match names.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        None => format!("the steps wait for each other: {}", names.join(" -> ")),
        Some(more) => {
            format!(
                "the steps wait for each other: {} -> ... and {more} more",
                names[..NAMED_MAX].join(" -> ")
            )
        }
    }
}

/// Notes every reference to a step that does not come before the referring one.
pub fn check_references(drafts: &[Draft], edges: &Edges, standing: Standing, faults: &mut Faults) {
    let mut ancestors = None;
    // Of steps in a cycle, or behind one, nobody can say what comes before them.
    let mut ordered = vec![false; drafts.len()];
    edges.order.iter().for_each(|&at| ordered[at] = true);
    for (at, draft) in drafts.iter().enumerate() {
        for read in &draft.reads {
            let Some(&target) = edges.ids.get(&read.step) else {
                if standing == Standing::Own {
                    faults.add(&read.place, unknown(&read.step, &edges.ids, faults));
                }
                continue;
            };
            let before = read.undo && target == at
                || edges.parents[at].contains(&target)
                || !ordered[at]
                || ancestors.get_or_insert_with(|| Ancestors::of(edges)).contains(at, target);
            if !before {
                let (id, step) = (&draft.step.id, &read.step);
                faults.add(&read.place, format!("step `{id}` does not depend on `{step}`, which it reads"));
            }
        }
    }
}

/// A row of bits for every step: which steps come before it.
struct Ancestors {
    words: usize,
    rows: Vec<u64>,
}

impl Ancestors {
    fn of(edges: &Edges) -> Self {
        let words = edges.parents.len().div_ceil(64);
        let mut rows = vec![0_u64; words * edges.parents.len()];
        for &at in &edges.order {
            let mut row = vec![0_u64; words];
            for &parent in &edges.parents[at] {
                let above = &rows[parent * words..(parent + 1) * words];
                row.iter_mut().zip(above).for_each(|(bits, above)| *bits |= above);
                row[parent / 64] |= 1 << (parent % 64);
            }
            rows[at * words..(at + 1) * words].copy_from_slice(&row);
        }
        Self { words, rows }
    }

    fn contains(&self, at: usize, ancestor: usize) -> bool {
        self.rows[at * self.words + ancestor / 64] >> (ancestor % 64) & 1 == 1
    }
}
