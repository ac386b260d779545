//! Offers: what peers list, checked, and put together under names of this node's own.
//!
//! Invariants:
//! - a tool that has a contract at its peer is listed from that contract alone, so that it says what that promises;
//! - a tool that has none is listed as its one peer defines it, and gets a contract of this node's own;
//! - a name stays with its tool for as long as some peer offers that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::value::RawValue;

use crate::{
    block::{Cid, Codec, decode, splice},
    contract::{Contract, DEFINITION_MAX},
    router::{Offered, metadata::Hints, renamed},
    runtime::gateway::text_member,
};

/// The prefix of the names that peers' tools have here.
pub const PREFIX: &str = "peers_";
/// Bytes of the name that a peer's contract gives its tool.
const NAME_MAX: usize = 128;
/// Characters of the CID that tell two contracts of one name apart.
const TAIL: usize = 6;
/// Separates the name of a tool without a contract from its peer. No peer id contains it.
const AT: char = '@';
/// The metadata key under which a peer's list names the contract of a tool.
const CONTRACT: &str = "io.cairn/contract";

/// A tool of a peer.
#[derive(Clone)]
pub struct Offer {
    /// Its name there.
    pub name: String,
    pub contract: Arc<Contract>,
}

/// What a tool's name stands for.
#[derive(Clone)]
pub enum Behind {
    /// A contract that peers have.
    Contract(Arc<Contract>),
    /// The definition by its one peer, a server without contracts.
    Definition(Arc<RawValue>),
}

impl Behind {
    /// Returns whether both stand for the same thing. A contract never changes under its CID; a definition may
    /// change.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Contract(_), Self::Contract(_)) => true,
            (Self::Definition(one), Self::Definition(other)) => one.get() == other.get(),
            _ => false,
        }
    }
}

/// Returns the key of a tool without a contract.
pub fn placed(name: &str, peer: &str) -> String {
    format!("{name}{AT}{peer}")
}

/// Splits such a key into the tool's name and the peer.
pub fn place(placed: &str) -> Option<(&str, &str)> {
    placed.rsplit_once(AT)
}

/// Returns the tools of a list without a contract, by the peer's names for them.
pub fn uncontracted(tools: &[Box<RawValue>]) -> BTreeMap<String, Arc<RawValue>> {
    let plain = |tool: &RawValue| {
        let meta = splice::member(tool, "_meta").ok()?;
        let named =
            meta.is_some_and(|meta| splice::member(meta, CONTRACT).is_ok_and(|member| member.is_some()));
        (!named).then_some(())?;
        text_member(tool, "name").filter(|name| sayable(name))
    };
    tools.iter().filter_map(|tool| Some((plain(tool)?, Arc::from(tool.clone())))).collect()
}

fn sayable(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// Returns the contracts that a list names, with the peer's names for their tools.
pub fn listed(tools: &[Box<RawValue>]) -> Vec<(Cid, String)> {
    let named = |tool: &RawValue| {
        let meta = splice::member(tool, "_meta").ok()??;
        Some((text_member(meta, CONTRACT)?.parse().ok()?, text_member(tool, "name")?))
    };
    tools.iter().filter_map(|tool| named(tool)).collect()
}

/// Reads a contract. Returns `None` if the bytes do not hash to `cid` or the tool cannot be offered.
pub fn read(cid: &Cid, bytes: &[u8]) -> Option<Contract> {
    if bytes.len() > DEFINITION_MAX || Cid::of(Codec::DagCbor, bytes) != *cid {
        return None;
    }
    let contract: Contract = decode(bytes).ok()?;
    // What would be written otherwise than it came, or is out of bounds, is no contract here either.
    (sayable(&contract.name) && Contract::is_block(bytes) && definition(&contract.name, &contract).is_some())
        .then_some(contract)
}

/// The public name of each tool on offer. Its key is the contract's CID, or the tool's name and peer.
#[derive(Default)]
pub struct Names {
    names: BTreeMap<String, String>,
    offered: BTreeMap<String, Behind>,
}

impl Names {
    /// Gives names to the tools that are on offer now. Returns whether anything has changed.
    pub fn fit(&mut self, offered: BTreeMap<String, Behind>) -> bool {
        let same =
            |((known, was), (key, is)): ((&String, &Behind), (&String, &Behind))| known == key && was.is(is);
        if self.offered.len() == offered.len() && self.offered.iter().zip(&offered).all(same) {
            return false;
        }
        self.names.retain(|key, _| offered.contains_key(key));
        let mut taken: BTreeSet<String> = self.names.values().cloned().collect();
        for (key, behind) in &offered {
            if self.names.contains_key(key) {
                continue;
            }
            let own = match behind {
                Behind::Contract(contract) => contract.name.as_str(),
                Behind::Definition(_) => place(key).map_or(key.as_str(), |(name, _)| name),
            };
            let mut name = format!("{PREFIX}{own}");
            if taken.contains(&name) {
                // CIDs and peer ids end in letters and digits of one byte each.
                name.extend(["_", &key[key.len() - TAIL..]]);
            }
            taken.insert(name.clone());
            self.names.insert(key.clone(), name);
        }
        self.offered = offered;
        true
    }

    /// The tools on offer under their names.
    pub fn tools(&self) -> Vec<Offered> {
        let tool = |(key, name): (&String, &String)| {
            let (definition, contract) = match self.offered.get(key)? {
                Behind::Contract(contract) => (definition(name, contract)?, Some((**contract).clone())),
                Behind::Definition(definition) => (renamed(definition, name)?, None),
            };
            let (inner, name) = (key.clone(), name.clone());
            Some(Offered { inner, name, definition, hints: Hints::default(), contract })
        };
        self.names.iter().filter_map(tool).collect()
    }
}

/// Returns the tool object that lists a contract, or `None` if the contract holds invalid JSON.
fn definition(name: &str, contract: &Contract) -> Option<Box<RawValue>> {
    let (name, description) = (splice::quoted(name), splice::quoted(&contract.description));
    let input = str::from_utf8(&contract.input).ok()?;
    let mut text = format!(r#"{{"name":{name},"description":{description},"inputSchema":{input}"#);
    for (key, value) in [("outputSchema", &contract.output), ("annotations", &contract.annotations)] {
        if let Some(value) = value {
            text.extend([",\"", key, "\":", str::from_utf8(value).ok()?]);
        }
    }
    text.push('}');
    RawValue::from_string(text).ok()
}
