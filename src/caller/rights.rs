//! Rights over tools: which of them a principal sees and may call, whatever its scopes.
//!
//! Invariants:
//! - what is denied anywhere is denied, and what all are denied no rule allows;
//! - without any rule every tool is allowed, so that rights only ever take away.

use std::collections::BTreeSet;

use crate::caller::pattern::{Named, Pattern};

/// Tools that are allowed and denied.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// When not empty, only these.
    pub allow: Vec<Pattern>,
    /// Not these; wins over `allow`.
    pub deny: Vec<Pattern>,
}

/// What some principals may call.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    pub principals: Vec<Pattern>,
    pub lists: Lists,
}

/// The rights of everybody.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// The groups of this node's own tools that are offered; `None` offers all.
    pub builtin: Option<BTreeSet<String>>,
    /// What holds for all.
    pub all: Lists,
    /// What holds for some besides.
    pub rules: Vec<Rule>,
}

impl Rights {
    /// Returns whether they take nothing away from anybody.
    pub fn are_open(&self) -> bool {
        let Self { builtin, all, rules } = self;
        builtin.is_none() && all.allow.is_empty() && all.deny.is_empty() && rules.is_empty()
    }

    /// Returns whether this node offers a group of its own tools.
    pub fn offer(&self, group: &str) -> bool {
        self.builtin.as_ref().is_none_or(|offered| offered.contains(group))
    }

    /// Returns whether a principal may call a tool. Of several rules for it each takes away what it denies, and what
    /// one of them allows is allowed.
    pub fn allow(&self, principal: &str, tool: &Named<'_>) -> bool {
        let means = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(tool));
        let only = |allow: &[Pattern]| allow.is_empty() || means(allow);
        if means(&self.all.deny) || !only(&self.all.allow) {
            return false;
        }
        let named = |rule: &&Rule| rule.principals.iter().any(|pattern| pattern.names(principal));
        let (mut narrowed, mut allowed) = (false, false);
        for Rule { lists: Lists { allow, deny }, .. } in self.rules.iter().filter(named) {
            if means(deny) {
                return false;
            }
            narrowed |= !allow.is_empty();
            allowed |= means(allow);
        }
        allowed || !narrowed
    }
}
