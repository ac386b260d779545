//! What is on offer at one moment, as clients list it.
//!
//! Invariant: a definition is as its source wrote it, but for the public name.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::{block::Cid, router::declared::Declared};

/// A tool as offered to callers.
#[derive(Debug)]
pub struct Tool {
    /// The public name, prefix included.
    pub name: String,
    /// The tool object of `tools/list`, as its source gave it, with the public name.
    pub definition: Box<RawValue>,
    pub contract: Cid,
}

/// A prompt, resource or resource template as offered to callers.
#[derive(Debug)]
pub struct Listed {
    /// The public name of a prompt; the URI or URI template of a resource.
    pub name: String,
    pub definition: Box<RawValue>,
}

/// Everything on offer at one moment, each list in its stable order.
#[derive(Debug, Default)]
pub struct Offer {
    pub tools: Vec<Arc<Tool>>,
    pub prompts: Vec<Arc<Listed>>,
    pub resources: Vec<Arc<Listed>>,
    pub templates: Vec<Arc<Listed>>,
    /// What all sources together declare.
    pub declared: Declared,
}

/// Which list of the offer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Tools,
    Prompts,
    Resources,
}

impl Offer {
    /// Which lists of two offers differ.
    pub(super) fn differs(&self, other: &Self) -> Vec<Change> {
        let same = |a: &[Arc<Listed>], b: &[Arc<Listed>]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.definition.get() == b.definition.get())
        };
        let tools = self.tools.len() == other.tools.len()
            && self.tools.iter().zip(&other.tools).all(|(a, b)| a.definition.get() == b.definition.get());
        let resources = same(&self.resources, &other.resources) && same(&self.templates, &other.templates);
        [
            (tools, Change::Tools),
            (same(&self.prompts, &other.prompts), Change::Prompts),
            (resources, Change::Resources),
        ]
        .into_iter()
        .filter_map(|(same, change)| (!same).then_some(change))
        .collect()
    }
}
