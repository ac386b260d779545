//! The catalogue: which contract each tool of each source stands under.
//!
//! Invariants:
//! - a changed definition is a new contract whose `prev` is the one it replaces;
//! - a tool that comes back unchanged stands under the contract it had;
//! - a contract made elsewhere is adopted as it is, under a name of this node's own.

use crate::{
    block::{Block, Cid},
    contract::Contract,
    event::{
        Actor, Body, Fact,
        body::{ContractPublished, ContractRetired},
    },
};

/// The source of this node's own tools.
pub const BUILTIN: &str = "builtin";
/// The source of contracts made elsewhere.
pub const PEERS: &str = "peers";

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
    let id = (contract.source.clone(), contract.name.clone());
    offered_as((&id.0, &id.1), contract.prev, contract, actor)
}

/// Offers a tool of another node under the `contract` it has there. Here it is called `name`.
pub fn adopt(entry: Option<&Entry>, name: &str, contract: Contract, actor: &Actor) -> Published {
    let cid = contract.seal().cid();
    match entry {
        Some(entry) if entry.cid == cid && entry.offered => Published::Known(cid),
        entry => {
            let prev = entry.map(|entry| entry.cid).filter(|prev| *prev != cid);
            offered_as((PEERS, name), prev, contract, actor)
        }
    }
}

fn offered_as(id: (&str, &str), prev: Option<Cid>, contract: Contract, actor: &Actor) -> Published {
    let block = contract.seal();
    let body =
        ContractPublished { contract: block.cid(), name: id.1.to_owned(), source: id.0.to_owned(), prev };
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor.clone(),
        subject: subject(id.0, id.1),
        tool: Some(block.cid()),
        payloads: Vec::new(),
        body: Body::ContractPublished(body),
    };
    Published::New { fact: Box::new(fact), block, contract: Box::new(contract) }
}

/// Takes a tool out of the catalogue; nothing happens where it is not offered.
pub fn retire((source, name): (&str, &str), entry: Option<&Entry>, actor: &Actor) -> Option<Fact> {
    let entry = entry.filter(|entry| entry.offered)?;
    Some(Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor.clone(),
        subject: subject(source, name),
        tool: Some(entry.cid),
        payloads: Vec::new(),
        body: Body::ContractRetired(ContractRetired {
            contract: entry.cid,
            name: name.to_owned(),
            source: source.to_owned(),
        }),
    })
}

#[cfg(test)]
mod tests;
