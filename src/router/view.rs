//! Views: the part of a source's lists that clients with certain capabilities see.
//!
//! Invariants:
//! - a source without views shows everything to everybody; else what is in none of its views is in no list;
//! - a view hides a name from lists only: a call of it is not refused.

use std::{collections::HashSet, sync::Arc};

/// The public names that clients with certain capabilities see.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The canonical text of the capabilities; empty for the view of all that no other view is for.
    pub capabilities: Arc<str>,
    pub tools: HashSet<String>,
    pub prompts: HashSet<String>,
    pub resources: HashSet<String>,
    pub templates: HashSet<String>,
}

impl View {
    /// Returns what clients with these capabilities see: the view made for them, else the first; `None` if they see
    /// everything.
    pub fn of<'a>(views: &'a [Self], capabilities: &str) -> Option<&'a Self> {
        views.iter().find(|view| &*view.capabilities == capabilities).or_else(|| views.first())
    }
}
