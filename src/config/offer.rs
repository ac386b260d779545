//! `[tools]`, beside the metadata of single tools: which tools are offered to whom, and how they are listed.
//!
//! Invariants:
//! - in `[tools]` a table is the metadata of the tool of its name, and anything else is a key of this file;
//! - a pattern that no tool could ever fit is a fault.

use serde::Deserialize;

use super::{Config, bounds::LISTED_MAX, read::Report};
use crate::{
    caller::{
        pattern::Pattern,
        rights::{self, Rights},
    },
    tools::CATEGORIES,
    words::words,
};

/// `[tools]`: what holds for all principals.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Offer {
    /// When not empty, only these tools. A name or a part of names with `*`; with `group:` before it, categories.
    pub allow: Vec<String>,
    /// Not these tools.
    pub deny: Vec<String>,
    /// The categories of this node's own tools that are offered; by default all, and none in `wrap`.
    pub builtin: Option<Vec<String>>,
    pub catalogue: Listing,
    /// `[[tools.rules]]`
    #[serde(skip)]
    pub rules: Vec<Rule>,
}

words! {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Listing {
        /// Lists hold every tool.
        #[default]
        Full = "full",
        /// Lists hold the tools that find others and call them by name.
        Search = "search",
    }
}

/// `[[tools.rules]]`: what holds for some principals besides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Names of tokens, subjects of JWTs, ids of peers, or `local`; `*` stands for any text.
    pub principals: Vec<String>,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

impl Config {
    /// Returns what everybody may see of the tools. `builtins` says whether all of this node's own tools are offered where
    /// the configuration does not say which.
    pub fn rights(&self, builtins: bool) -> Rights {
        let Offer { allow, deny, builtin, rules, .. } = &self.offer;
        let rule = |rule: &Rule| rights::Rule {
            principals: rule.principals.iter().filter_map(|text| Pattern::of_principals(text)).collect(),
            lists: lists(&rule.allow, &rule.deny),
        };
        Rights {
            builtin: match builtin {
                Some(groups) => Some(groups.iter().cloned().collect()),
                None => (!builtins).then(Default::default),
            },
            all: lists(allow, deny),
            rules: rules.iter().map(rule).collect(),
        }
    }

    /// Returns whether tools are found by name instead of listed.
    pub fn finds(&self) -> bool {
        self.offer.catalogue == Listing::Search
    }
}

fn lists(allow: &[String], deny: &[String]) -> rights::Lists {
    let patterns = |texts: &[String]| texts.iter().filter_map(|text| Pattern::parse(text)).collect();
    rights::Lists { allow: patterns(allow), deny: patterns(deny) }
}

/// Adds a fault for every rule that is broken.
pub(super) fn check(offer: &Offer, report: &mut Report) {
    patterns("tools", &offer.allow, &offer.deny, report);
    let groups = offer.builtin.iter().flatten().enumerate();
    for (index, group) in groups {
        if CATEGORIES.iter().all(|(known, _)| known != group) {
            let known: Vec<&str> = CATEGORIES.iter().map(|(known, _)| *known).collect();
            report.fault(&format!("tools.builtin[{index}]"), format!("expected one of {}", known.join(", ")));
        }
    }
    if offer.rules.len() > LISTED_MAX {
        report.fault("tools.rules", format!("more than {LISTED_MAX} rules"));
    }
    for (index, rule) in offer.rules.iter().enumerate() {
        let place = format!("tools.rules[{index}]");
        if rule.principals.is_empty() || rule.principals.len() > LISTED_MAX {
            report.fault(&format!("{place}.principals"), format!("expected 1 to {LISTED_MAX} names"));
        }
        for (at, name) in rule.principals.iter().enumerate() {
            if Pattern::of_principals(name).is_none() {
                report.fault(
                    &format!("{place}.principals[{at}]"),
                    "expected a principal's name; `*` stands for any text",
                );
            }
        }
        patterns(&place, &rule.allow, &rule.deny, report);
    }
}

fn patterns(place: &str, allow: &[String], deny: &[String], report: &mut Report) {
    for (key, list) in [("allow", allow), ("deny", deny)] {
        if list.len() > LISTED_MAX {
            report.fault(&format!("{place}.{key}"), format!("more than {LISTED_MAX} entries"));
        }
        for (at, _) in list.iter().enumerate().filter(|(_, text)| Pattern::parse(text).is_none()) {
            let wanted = "expected a tool's name, or `group:` and a category; `*` stands for any text";
            report.fault(&format!("{place}.{key}[{at}]"), wanted);
        }
    }
}
