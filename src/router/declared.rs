//! Declared: what a source says of itself, and what all sources together let a client count on.
//!
//! Invariants:
//! - what a source declared is offered though its list be empty now, and nothing else is.

use std::sync::Arc;

use serde_json::{Map, Value, value::RawValue};

/// What a source declares.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    /// Whether it tells when a resource that somebody subscribed to changes.
    pub subscriptions: bool,
    pub completions: bool,
    /// The extensions of the protocol that it speaks, each with its settings.
    pub extensions: Map<String, Value>,
    /// Its `serverInfo`, if it is a server of its own.
    pub server: Option<Arc<RawValue>>,
    /// Its text for a client's model. Of several sources, each text after its source's name.
    pub instructions: Option<String>,
    /// The text of the first source that has one, as it came.
    pub sole_instructions: Option<String>,
}

impl Declared {
    /// Adds what the source `name` declares.
    pub fn join(&mut self, name: &str, other: &Self) {
        self.tools |= other.tools;
        self.prompts |= other.prompts;
        self.resources |= other.resources;
        self.subscriptions |= other.subscriptions;
        self.completions |= other.completions;
        for (key, settings) in &other.extensions {
            self.extensions.entry(key).or_insert_with(|| settings.clone());
        }
        self.server = self.server.take().or_else(|| other.server.clone());
        self.sole_instructions = self.sole_instructions.take().or_else(|| other.instructions.clone());
        if let Some(text) = &other.instructions {
            let text = format!("{name}: {text}");
            self.instructions = Some(match self.instructions.take() {
                Some(before) => format!("{before}\n\n{text}"),
                None => text,
            });
        }
    }
}
