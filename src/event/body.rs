//! The kinds of events, and the facts of each: a closed list.
//!
//! Adding a kind: a variant of [`Body`] here, its schema and example in `schemas/events/`, and the entity that
//! remembers it.

use std::collections::BTreeMap;

use ipld_core::{ipld::Ipld, serde::{from_ipld, to_ipld}};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::block::Cid;

/// Declares [`Kind`] and [`Body`] from one list, so that a kind cannot have a name without facts.
macro_rules! kinds {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// What can have happened, by name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }

        /// The facts of one event.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body { $($kind($kind)),* }

        impl Body {
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind),* }
            }

            /// The body as the event's map.
            pub fn into_map(self) -> BTreeMap<String, Ipld> {
                match self { $(Self::$kind(facts) => to_map(&facts)),* }
            }

            /// Reads the facts of `kind`; none where this build does not know the kind or the shape.
            pub fn read(kind: &str, map: &BTreeMap<String, Ipld>) -> Option<Self> {
                match kind { $($name => from_map(map).map(Self::$kind),)* _ => None }
            }
        }
    };
}

kinds! {
    LogOpened = "log.opened",
    LogRecovered = "log.recovered",
    ContractPublished = "contract.published",
    ContractRetired = "contract.retired",
    CallStarted = "call.started",
    CallSucceeded = "call.succeeded",
    CallFailed = "call.failed",
    CallRefused = "call.refused",
    CallInterrupted = "call.interrupted",
    CallCancelled = "call.cancelled",
    PayloadErased = "payload.erased",
    AccessExported = "access.exported",
}

fn to_map<T: Serialize>(facts: &T) -> BTreeMap<String, Ipld> {
    match to_ipld(facts) {
        Ok(Ipld::Map(map)) => map,
        _ => unreachable!("a body is a struct of ipld values"),
    }
}

fn from_map<T: DeserializeOwned>(map: &BTreeMap<String, Ipld>) -> Option<T> {
    from_ipld(Ipld::Map(map.clone())).ok()
}
