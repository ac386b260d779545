//! Away: the sources that cannot be reached now, so that a name which only they may know is not called unknown.
//!
//! Invariants:
//! - what a source offered before stays on the board while it is away;
//! - what is told is why it is away, and at most the name that was asked for, bounded and printable.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use crate::{
    error::{Code, Refusal},
    router::{Router, telling::shown},
};

/// The sources that are away, by name.
#[derive(Default)]
pub struct Away(RwLock<BTreeMap<String, Absence>>);

/// How a source that is away would name its tools, and why it is away.
#[derive(Clone, Debug)]
pub struct Absence {
    pub prefix: String,
    pub why: String,
}

impl Away {
    /// Notes that a source is away, or that it is there again.
    pub fn note(&self, source: &str, absence: Option<Absence>) {
        let mut away = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match absence {
            Some(absence) => drop(away.insert(source.to_owned(), absence)),
            None => drop(away.remove(source)),
        }
    }

    /// Returns why each source that is away is so.
    pub fn reasons(&self) -> Vec<(String, String)> {
        let away = self.0.read().unwrap_or_else(PoisonError::into_inner);
        away.iter().map(|(source, absence)| (source.clone(), absence.why.clone())).collect()
    }

    /// Returns the refusal of a name that is not on offer, if a source that is away might offer it. Of several such
    /// sources it tells of the one with the longest prefix.
    pub fn refusal(&self, name: &str) -> Option<Refusal> {
        let away = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let might = away.iter().filter(|(_, absence)| name.starts_with(&absence.prefix));
        let (source, Absence { prefix, why }) = might.max_by_key(|(_, absence)| absence.prefix.len())?;
        let name = shown(name);
        let message = match prefix.is_empty() {
            false => format!("upstream {source} is unavailable: {why}"),
            true => format!("upstream {source} is unavailable, and nothing else offers `{name}`: {why}"),
        };
        Some(Refusal::new(Code::Unavailable, message).retryable())
    }
}

impl Router {
    /// Notes that a source cannot be reached now and how it would name its tools, or that it is there again.
    pub fn note_away(&self, source: &str, absence: Option<Absence>) {
        self.inner.away.note(source, absence);
    }
}

#[cfg(test)]
mod tests {
    use crate::router::away::*;

    #[test]
    fn a_name_is_that_of_the_nearest_source_that_is_away() {
        let away = Away::default();
        let told = |name: &str| away.refusal(name).map(|refusal| refusal.message);
        let absent = |prefix: &str| Some(Absence { prefix: prefix.to_owned(), why: "refused".to_owned() });
        assert_eq!(told("a_x"), None);
        away.note("a", absent("a_"));
        away.note("ab", absent("a_b_"));
        assert_eq!(told("a_x").as_deref(), Some("upstream a is unavailable: refused"));
        assert_eq!(told("a_b_x").as_deref(), Some("upstream ab is unavailable: refused"));
        assert_eq!(told("other"), None);
        away.note("plain", absent(""));
        let plain = "upstream plain is unavailable, and nothing else offers `other`: refused";
        assert_eq!(told("other").as_deref(), Some(plain));
        for source in ["a", "ab", "plain"] {
            away.note(source, None);
        }
        assert_eq!(told("a_x"), None);
    }
}
