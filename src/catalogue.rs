//! The catalogue: which contract each tool of each source stands under.
//!
//! Invariants:
//! - a changed definition is a new contract whose `prev` is the one it replaces;
//! - a tool that comes back unchanged stands under the contract it had.

use crate::{
    block::{Block, Cid},
    contract::Contract,
    event::{
        Actor, Body, Fact,
        body::{ContractPublished, ContractRetired},
    },
};

/// The subject every event about one tool's contract carries.
pub fn subject(source: &str, name: &str) -> String {
    format!("contract/{source}/{name}")
}

/// One tool of one source: the last contract it was offered under.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub cid: Cid,
    pub contract: Contract,
    /// False once its source stopped offering it.
    pub offered: bool,
}

/// What publishing a definition comes to.
#[derive(Debug, PartialEq)]
pub enum Published {
    /// The tool already stands under this contract.
    Known(Cid),
    /// The event to append, and the contract's block.
    New { fact: Box<Fact>, block: Block, contract: Box<Contract> },
}

/// Offers a tool under `draft`, whose `prev` is set here.
pub fn publish(entry: Option<&Entry>, draft: Contract, actor: &Actor) -> Published {
    let same = entry.filter(|entry| entry.contract.promises_same(&draft));
    if let Some(entry) = same.filter(|entry| entry.offered) {
        return Published::Known(entry.cid);
    }
    let contract = match (same, entry) {
        (Some(same), _) => same.contract.clone(),
        (None, entry) => Contract { prev: entry.map(|entry| entry.cid), ..draft },
    };
    let block = contract.seal();
    let body = ContractPublished {
        contract: block.cid(),
        name: contract.name.clone(),
        source: contract.source.clone(),
        prev: contract.prev,
    };
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor.clone(),
        subject: subject(&contract.source, &contract.name),
        tool: Some(block.cid()),
        payloads: Vec::new(),
        body: Body::ContractPublished(body),
    };
    Published::New { fact: Box::new(fact), block, contract: Box::new(contract) }
}

/// Takes a tool out of the catalogue; nothing happens where it is not offered.
pub fn retire(entry: Option<&Entry>, actor: &Actor) -> Option<Fact> {
    let entry = entry.filter(|entry| entry.offered)?;
    let Contract { name, source, .. } = &entry.contract;
    Some(Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor.clone(),
        subject: subject(source, name),
        tool: Some(entry.cid),
        payloads: Vec::new(),
        body: Body::ContractRetired(ContractRetired {
            contract: entry.cid,
            name: name.clone(),
            source: source.clone(),
        }),
    })
}

#[cfg(test)]
mod tests;
