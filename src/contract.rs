//! Contracts: what a tool promises, as a block. The CID of the block is the tool's identity.
//!
//! Invariants:
//! - schemas are stored as the bytes that their source sent, so a re-encoding cannot change a CID;
//! - a contract has no salt: the same promise with the same predecessor has the same CID on every node.

pub mod dialect;
pub mod mirrored;
pub mod secret;

use std::collections::BTreeMap;

use ipld_core::ipld::Ipld;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::block::{Block, Cid, decode_exactly};

/// A tool definition has at most this many bytes.
pub const DEFINITION_MAX: usize = 1024 * 1024;

/// The block that is hashed, which has exactly these keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub v: u64,
    /// The name that the source uses for the tool, without a prefix.
    pub name: String,
    /// The source is `builtin`, or the configured name of an upstream.
    pub source: String,
    /// The version of the source; empty if it states none.
    pub version: String,
    pub description: String,
    /// The JSON Schema of the input, as the source sent it.
    #[serde(with = "serde_bytes")]
    pub input: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub output: Option<Vec<u8>>,
    /// The MCP annotations, as the source sent them.
    #[serde(with = "serde_bytes")]
    pub annotations: Option<Vec<u8>>,
    /// Says what follows from the annotations (`read_only`, `idempotent`, `destructive`, `open_world`), and lists the
    /// paths of secrets (`secrets`).
    pub effects: BTreeMap<String, Ipld>,
    /// The contract that this one replaces.
    pub prev: Option<Cid>,
}

/// Says why a tool definition cannot become a contract.
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
    /// Parses a tool object of `tools/list`. `prev` is none, because only whoever publishes the contract knows its
    /// predecessor.
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
        // The MCP specification sets these defaults for `ToolAnnotations`.
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

    /// Returns whether these bytes are a contract, within the bounds of `schemas/contract.json`.
    pub fn is_block(bytes: &[u8]) -> bool {
        decode_exactly::<Self>(bytes)
            .is_ok_and(|contract| contract.v == 1 && !contract.name.is_empty() && !contract.source.is_empty())
    }

    pub fn seal(&self) -> Block {
        Block::encode(self)
    }

    /// Returns whether the effect of running the tool twice is that of running it once.
    pub fn repeatable(&self) -> bool {
        self.effects.get("idempotent") == Some(&Ipld::Bool(true))
    }

    /// Returns whether two contracts are equal except for their predecessors.
    pub fn promises_same(&self, other: &Self) -> bool {
        let without_past = |contract: &Self| Self { prev: None, ..contract.clone() };
        without_past(self) == without_past(other)
    }
}

#[cfg(test)]
mod tests;
