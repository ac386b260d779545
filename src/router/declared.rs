//! Declared: what a source says of itself, and what a client may count on of all sources together.
//!
//! Invariants:
//! - what a source declared is declared to clients, though its list be empty now; what no source declared is not;
//! - where two sources say different things of one extension or of who they are, the first stands.

use std::{any::Any, sync::Arc};

use serde_json::{Map, Value, value::RawValue};

/// Something that lasts until it is dropped.
pub type Held = Box<dyn Any + Send + Sync>;

/// What a source declares.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    /// Whether it tells when a resource that somebody subscribed to changes.
    pub subscriptions: bool,
    pub completions: bool,
    /// Whether its tools can be run as tasks that clients follow.
    pub tasks: bool,
    /// The extensions of the protocol that it declared, each with its settings.
    pub extensions: Map<String, Value>,
    /// Its `serverInfo`, if it is a server of its own.
    pub server: Option<Arc<RawValue>>,
    /// Its text for a client's model. Of several sources, each text after its source's name.
    pub instructions: Option<String>,
    /// The text of the first source that has one, as it came.
    pub sole_instructions: Option<String>,
}

impl Declared {
    /// Adds what the source `name` declares, which comes after all that were added before.
    pub fn join(&mut self, name: &str, other: &Self) {
        self.tools |= other.tools;
        self.prompts |= other.prompts;
        self.resources |= other.resources;
        self.subscriptions |= other.subscriptions;
        self.completions |= other.completions;
        self.tasks |= other.tasks;
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
