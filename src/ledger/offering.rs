//! Contracts of tools: publishing them, and retiring those that are no longer listed.
//!
//! Invariants:
//! - a contract is published once, however often it is offered;
//! - contracts are retired in the order of their names: the log does not depend on chance.

use std::collections::HashSet;

use crate::{
    catalogue::{self, Entry, Published},
    contract::Contract,
    event::Actor,
    ledger::{Ruling, commit::Stop, world::World},
};

impl World {
    /// Publishes a contract for the tool of its source and name.
    pub(super) fn publish(&mut self, contract: Contract, actor: &Actor) -> Result<Ruling, Stop> {
        let id = (contract.source.clone(), contract.name.clone());
        let ruled = catalogue::publish(self.contracts.get(&id), contract, actor);
        self.offer(id, ruled)
    }

    /// Publishes another node's contract under the name that it is offered by here.
    pub(super) fn adopt(&mut self, contract: Contract, name: String, actor: &Actor) -> Result<Ruling, Stop> {
        let id = (catalogue::PEERS.to_owned(), name);
        let ruled = catalogue::adopt(self.contracts.get(&id), &id.1, contract, actor);
        self.offer(id, ruled)
    }

    fn offer(&mut self, id: (String, String), ruled: Published) -> Result<Ruling, Stop> {
        match ruled {
            Published::Known(cid) => {
                let contract = self.contracts[&id].contract.clone();
                Ok(Ruling::Published { cid, contract: Box::new(contract), new: false })
            }
            Published::New { fact, block, contract } => {
                let cid = block.cid();
                self.commit.batch.blocks.push(block);
                self.commit.seal(*fact)?;
                self.contracts.insert(id, Entry { cid, contract: (*contract).clone(), offered: true });
                Ok(Ruling::Published { cid, contract, new: true })
            }
        }
    }

    /// Stops offering what a source no longer lists.
    pub(super) fn retain(&mut self, source: &str, names: &[String], actor: &Actor) -> Result<Ruling, Stop> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let gone = |(id, entry): (&(String, String), &Entry)| {
            let listed = id.0 != source || names.contains(id.1.as_str());
            (!listed && entry.offered).then(|| id.clone())
        };
        let mut gone: Vec<_> = self.contracts.iter().filter_map(gone).collect();
        // The map has no order of its own; the log must not depend on chance.
        gone.sort_unstable();
        let mut ruling = Ruling::Unchanged;
        for id in gone {
            let entry = self.contracts.get(&id);
            let Some(fact) = catalogue::retire((&id.0, &id.1), entry, actor) else {
                continue;
            };
            ruling = Ruling::Done(self.commit.seal(fact)?.into());
            if let Some(entry) = self.contracts.get_mut(&id) {
                entry.offered = false;
            }
        }
        Ok(ruling)
    }
}
