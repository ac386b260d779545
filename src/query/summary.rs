//! Summaries of the state: counts, digests, contracts.
//!
//! Invariant: everything answered together was read at one `seq`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    Current, QueryError, View,
    lookup::{contract_json, corrupt, link},
};
use crate::{
    block::{Cid, decode},
    contract::Contract,
    state::digest,
};

/// The state at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Events folded.
    pub size: u64,
    pub root: String,
    pub counts: BTreeMap<String, u64>,
    /// SHA-256 of every table's rows, in hex; `None` if they were not computed.
    pub digests: Option<BTreeMap<String, String>>,
}

impl View {
    /// Returns the summary. With `digests` it reads every row of every table: half a second for a log of a million
    /// events.
    pub fn summary(&self, digests: bool) -> Result<Summary, QueryError> {
        // One transaction, so that counts, root and digests are of the same events.
        let moment = self.state.unchecked_transaction()?;
        let size = self.applied()?;
        let mut statement = moment
            .prepare_cached("SELECT word.text, tally.n FROM tally JOIN word ON word.id = tally.kind")?;
        let counts = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(Summary {
            size,
            root: data_encoding::HEXLOWER.encode(&self.root(size)?),
            counts: counts.collect::<Result<_, _>>()?,
            digests: digests.then(|| digest::tables(&moment)).transpose()?,
        })
    }

    /// Returns the current contract of every tool, in the order of publication.
    pub fn contracts(&self) -> Result<Vec<Value>, QueryError> {
        let current = super::current_contracts(&self.state)?;
        let shown = current.into_iter().map(|Current { source, name, block, offered }| {
            let cid = self.log.block_named(block)?;
            let cid = cid.ok_or_else(|| corrupt("a contract without its block"))?;
            let contract = self.contract(&cid)?;
            let mut shown = Map::new();
            shown.insert("cid".to_owned(), cid.to_string().into());
            shown.insert("name".to_owned(), name.into());
            shown.insert("source".to_owned(), source.into());
            shown.insert("description".to_owned(), contract.description.into());
            shown.insert("prev".to_owned(), contract.prev.as_ref().map(link).into());
            shown.insert("offered".to_owned(), offered.into());
            Ok(shown.into())
        });
        shown.collect()
    }

    /// Returns one contract in full, with its CID.
    pub fn contract_shown(&self, cid: &Cid) -> Result<Value, QueryError> {
        let mut shown = contract_json(&self.contract(cid)?);
        shown["cid"] = json!(cid.to_string());
        Ok(shown)
    }

    pub fn contract(&self, cid: &Cid) -> Result<Contract, QueryError> {
        let not_found = || QueryError::NotFound(format!("contract {cid}"));
        let bytes = self.log.bytes(cid)?.ok_or_else(not_found)?;
        decode(&bytes).map_err(|_| not_found())
    }
}
