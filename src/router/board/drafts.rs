//! Which tools of a source can be offered, and what the operator is told of the others.
//!
//! Invariant: one thing about one tool is told once, however often its source lists it.

use std::collections::HashSet;

use serde_json::Value;

use super::{NAME_MAX, Offered, Offering};
use crate::{
    contract::{Contract, ContractError, mirrored},
    visible,
};

/// Tools one source may offer.
pub const TOOLS_MAX: usize = 10_000;
/// Warnings that are remembered. After so many, no more are given.
const TOLD_MAX: usize = 10_000;

/// What the operator was told: of which source and name, and what.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(HashSet<(&'static str, String, String)>);

impl Told {
    /// Tells the operator about a name of a source, unless that was told before.
    pub fn warn(&mut self, what: &'static str, source: &str, name: &str) {
        if self.0.len() < TOLD_MAX && self.0.insert((what, source.to_owned(), name.to_owned())) {
            tracing::warn!(source, name, "{what}");
        }
    }
}

impl Offered {
    /// Returns its name in the catalogue: the source's own, or, for an adopted contract, the public one.
    pub(super) fn filed_as(&self) -> &str {
        if self.contract.is_some() { &self.name } else { &self.inner }
    }
}

/// Returns the tools that can be offered, each with its contract.
pub(super) fn drafts(offering: &mut Offering, told: &mut Told) -> Vec<(Offered, Contract)> {
    let (source, version) = (&offering.source, &offering.version);
    let mut seen = HashSet::new();
    let mut drafts = Vec::new();
    for offered in std::mem::take(&mut offering.tools).into_iter().take(TOOLS_MAX) {
        let draft = if sayable(&offered.inner) {
            draft(source, version, &offered, offering.mirrors)
        } else {
            Err("tool is not offered: its name is too long or has control characters")
        };
        let fault = match draft {
            Ok(contract) if seen.insert(offered.inner.clone()) => {
                drafts.push((offered, contract));
                continue;
            }
            Ok(_) => "tool is listed twice; the first stands",
            Err(fault) => fault,
        };
        told.warn(fault, source, &shown(&offered.inner));
    }
    drafts
}

/// Returns the contract of a tool. Errors: why it is not offered.
fn draft(source: &str, version: &str, offered: &Offered, mirrors: bool) -> Result<Contract, &'static str> {
    if let Some(adopted) = &offered.contract {
        return Ok(adopted.clone());
    }
    let contract =
        Contract::of_definition(source, version, &offered.definition).map_err(|err| match err {
            ContractError::Field { .. } => {
                "tool is not offered: its definition has no usable name and schema"
            }
            ContractError::TooLarge { .. } => "tool is not offered: its definition is too large",
        })?;
    let schema = || serde_json::from_slice::<Value>(&contract.input).unwrap_or_default();
    if mirrors && mirrored::fault(&schema()).is_some() {
        return Err("tool is not offered: its marks for headers (x-mcp-header) are unsound");
    }
    // Under its source's own name: a prefix is the operator's choice, not the tool's promise.
    Ok(Contract { name: offered.inner.clone(), ..contract })
}

/// Returns a name as it may be logged.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !visible::acts(*c)).take(NAME_MAX).collect()
}

/// Returns whether a name may be written into an event and a log line.
pub(super) fn sayable(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}
