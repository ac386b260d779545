//! Offers: what peers list, checked, and put together under names of this node's own.
//!
//! Invariants:
//! - what is listed here is made from the contract alone, so that it says what the contract promises;
//! - a name stays with its contract for as long as some peer offers that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::value::RawValue;

use crate::{
    block::{Cid, Codec, decode, splice},
    contract::{Contract, DEFINITION_MAX},
    router::{Offered, metadata::Hints},
    runtime::gateway::text_member,
};

/// What a peer's tools are called here begins so.
pub const PREFIX: &str = "peers_";
/// Bytes of the name that a peer's contract gives its tool.
const NAME_MAX: usize = 128;
/// Characters of the CID that tell two contracts of one name apart.
const TAIL: usize = 6;
/// Where a peer's list names the contract of a tool.
const CONTRACT: &str = "io.cairn/contract";

/// A tool of a peer.
#[derive(Clone)]
pub struct Offer {
    /// Its name there.
    pub name: String,
    pub contract: Arc<Contract>,
}

/// The tools of a list that say under which contract they stand, and their names there.
pub fn listed(tools: &[Box<RawValue>]) -> Vec<(Cid, String)> {
    let named = |tool: &RawValue| {
        let meta = splice::member(tool, "_meta").ok()??;
        Some((text_member(meta, CONTRACT)?.parse().ok()?, text_member(tool, "name")?))
    };
    tools.iter().filter_map(|tool| named(tool)).collect()
}

/// The contract in the bytes of a block, where they are that block's and it can be offered.
pub fn read(cid: &Cid, bytes: &[u8]) -> Option<Contract> {
    if bytes.len() > DEFINITION_MAX || Cid::of(Codec::DagCbor, bytes) != *cid {
        return None;
    }
    let contract: Contract = decode(bytes).ok()?;
    let sayable =
        (1..=NAME_MAX).contains(&contract.name.len()) && !contract.name.chars().any(char::is_control);
    // What would be written otherwise than it came has another CID here.
    (sayable && contract.seal().cid() == *cid && definition(&contract.name, &contract).is_some())
        .then_some(contract)
}

/// What each contract on offer is called here.
#[derive(Default)]
pub struct Names(BTreeMap<Cid, String>);

impl Names {
    /// Fits the names to what is on offer now. True where that has changed.
    pub fn fit(&mut self, offered: &BTreeMap<Cid, Arc<Contract>>) -> bool {
        if self.0.keys().eq(offered.keys()) {
            return false;
        }
        self.0.retain(|cid, _| offered.contains_key(cid));
        let mut taken: BTreeSet<String> = self.0.values().cloned().collect();
        for (cid, contract) in offered {
            if self.0.contains_key(cid) {
                continue;
            }
            let mut name = format!("{PREFIX}{}", contract.name);
            if taken.contains(&name) {
                let cid = cid.to_string();
                name.extend(["_", &cid[cid.len() - TAIL..]]);
            }
            taken.insert(name.clone());
            self.0.insert(*cid, name);
        }
        true
    }

    /// The tools on offer under their names.
    pub fn tools(&self, offered: &BTreeMap<Cid, Arc<Contract>>) -> Vec<Offered> {
        let tool = |(cid, name): (&Cid, &String)| {
            let contract = offered.get(cid)?;
            Some(Offered {
                inner: cid.to_string(),
                name: name.clone(),
                definition: definition(name, contract)?,
                hints: Hints::default(),
                contract: Some((**contract).clone()),
            })
        };
        self.0.iter().filter_map(tool).collect()
    }
}

/// The tool object that lists a contract; none where what stands in it is no JSON.
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
