//! Contracts: what a tool promises, as a block. Its CID is the tool's identity.
//!
//! Invariants:
//! - schemas stand as the bytes their source gave, so nobody's re-encoding changes a CID;
//! - a contract carries no salt: the same promise with the same past is the same CID everywhere.

pub mod secret;

use std::collections::BTreeMap;

use ipld_core::ipld::Ipld;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::block::{Block, Cid};

/// Bytes of one tool definition.
pub const DEFINITION_MAX: usize = 1024 * 1024;

/// The block that is hashed: exactly these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub v: u64,
    /// The name its source knows it by.
    pub name: String,
    /// `builtin`, or the upstream's configured name.
    pub source: String,
    /// The source's version; empty where it names none.
    pub version: String,
    pub description: String,
    /// JSON Schema of the input, as it came.
    #[serde(with = "serde_bytes")]
    pub input: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub output: Option<Vec<u8>>,
    /// MCP annotations, as they came.
    #[serde(with = "serde_bytes")]
    pub annotations: Option<Vec<u8>>,
    /// What follows from the annotations: `read_only`, `idempotent`, `destructive`, `open_world`, `secrets`.
    pub effects: BTreeMap<String, Ipld>,
    /// The contract this one took the place of.
    pub prev: Option<Cid>,
}

/// Why a tool definition cannot become a contract.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    #[error("tool definition has no usable `{field}`")]
    Field { field: &'static str },
    #[error("tool definition of {len} bytes is over the bound of {max}", max = DEFINITION_MAX)]
    TooLarge { len: usize },
}

#[derive(Deserialize)]
struct Definition<'a> {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(borrow, rename = "inputSchema")]
    input: Option<&'a RawValue>,
    #[serde(borrow, rename = "outputSchema", default)]
    output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    annotations: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    read_only_hint: bool,
    idempotent_hint: bool,
    destructive_hint: Option<bool>,
    open_world_hint: Option<bool>,
}

impl Contract {
    /// Reads a tool object as `tools/list` gives it. `prev` is left to the rules that publish it.
    pub fn of_definition(source: &str, version: &str, definition: &RawValue) -> Result<Self, ContractError> {
        let text = definition.get();
        if text.len() > DEFINITION_MAX {
            return Err(ContractError::TooLarge { len: text.len() });
        }
        let parsed: Definition<'_> =
            serde_json::from_str(text).map_err(|_| ContractError::Field { field: "name" })?;
        let input = parsed.input.ok_or(ContractError::Field { field: "inputSchema" })?;
        let schema: Value =
            serde_json::from_str(input.get()).map_err(|_| ContractError::Field { field: "inputSchema" })?;
        if !schema.is_object() {
            return Err(ContractError::Field { field: "inputSchema" });
        }
        let hints: Hints =
            parsed.annotations.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        // The defaults are those of the MCP specification's ToolAnnotations.
        let mut effects = BTreeMap::from([
            ("read_only".to_owned(), Ipld::Bool(hints.read_only_hint)),
            ("idempotent".to_owned(), Ipld::Bool(hints.read_only_hint || hints.idempotent_hint)),
            (
                "destructive".to_owned(),
                Ipld::Bool(!hints.read_only_hint && hints.destructive_hint.unwrap_or(true)),
            ),
            ("open_world".to_owned(), Ipld::Bool(hints.open_world_hint.unwrap_or(true))),
        ]);
        let secrets = secret::Paths::of_schema(&schema);
        if !secrets.is_empty() {
            let paths = secrets.iter().map(Ipld::String).collect();
            effects.insert("secrets".to_owned(), Ipld::List(paths));
        }
        let bytes = |raw: &RawValue| raw.get().as_bytes().to_vec();
        Ok(Self {
            v: 1,
            name: parsed.name,
            source: source.to_owned(),
            version: version.to_owned(),
            description: parsed.description.unwrap_or_default(),
            input: bytes(input),
            output: parsed.output.map(bytes),
            annotations: parsed.annotations.map(bytes),
            effects,
            prev: None,
        })
    }

    pub fn seal(&self) -> Block {
        Block::encode(self)
    }

    /// Whether running the tool twice does no more than running it once.
    pub fn repeatable(&self) -> bool {
        self.effects.get("idempotent") == Some(&Ipld::Bool(true))
    }

    /// Whether two contracts promise the same, whatever came before them.
    pub fn promises_same(&self, other: &Self) -> bool {
        let without_past = |contract: &Self| Self { prev: None, ..contract.clone() };
        without_past(self) == without_past(other)
    }
}

#[cfg(test)]
mod tests;
