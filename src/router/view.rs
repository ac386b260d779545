//! Views: what of a source's lists clients see that do not see everything.
//!
//! Invariant: what is in no view of a source is seen by nobody, unless the source has no views.

use std::{collections::HashSet, sync::Arc};

/// The public names that clients with certain capabilities see.
#[derive(Clone, Debug, Default)]
pub struct View {
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
