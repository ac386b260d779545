//! Tool metadata: what a tool needs and where it runs, and the rule that said so.
//!
//! Invariants:
//! - the lane is found in a fixed order: registry, cache, the tool's own `_meta`, its source, name patterns, default;
//! - the rule that decided is kept, shown by `tools_get_schema` and recorded with every call.

use std::{collections::HashMap, sync::RwLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{block::Cid, router::lane, words::words};

/// The default priority of a tool in its lane's queue; 0 to 100, higher runs sooner.
pub const PRIORITY: u8 = 50;
/// The key of our hints in a tool's own `_meta`.
pub const META_KEY: &str = "io.cairn/tool";
/// The most retries that a tool's own `_meta` may ask for, as in the configuration.
const RETRIES_MAX: u32 = 100;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Resolutions remembered; beyond this the cache starts again.
const CACHE_MAX: usize = 16 * 1024;
/// The lane of a tool that no other rule places.
const DEFAULT_LANE: &str = lane::BUILTIN;
/// Words in a name that tell of work for the processor rather than for the network.
const HEAVY_WORDS: &[&str] =
    &["compress", "embed", "encrypt", "hash", "index", "render", "transcode", "train", "verify"];

/// How much of a resource a tool asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    #[default]
    Low,
    Medium,
    High,
}

/// When and how often a failed call is tried again. Only tools whose contract allows it are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    pub max_retries: u32,
    pub backoff_ms: u64,
    pub backoff_factor: f64,
    pub max_backoff_ms: u64,
    /// Whether pauses are spread, so that many callers do not come back at once.
    pub jitter: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_retries: 0, backoff_ms: 1_000, backoff_factor: 2.0, max_backoff_ms: 60_000, jitter: true }
    }
}

impl Retry {
    /// Returns the pause before attempt `attempt` (1 is the first retry). The jitter is drawn from `draw`, the call's
    /// own event, so that the same call always waits the same time.
    pub fn pause_ms(&self, attempt: u32, draw: &Cid) -> u64 {
        let steps = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.backoff_ms as f64 * self.backoff_factor.powi(steps);
        let pause = (grown as u64).min(self.max_backoff_ms);
        let byte = draw.digest()[attempt as usize % draw.digest().len()];
        // In twice the width: a tool's own `_meta` may ask for any number.
        let spread = u128::from(pause / 2) * u128::from(byte) / 255;
        if self.jitter { pause / 2 + spread as u64 } else { pause }
    }
}

/// What one source of metadata says about a tool; a field that it does not set is `None`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Hints {
    pub runtime: Option<String>,
    pub category: Option<String>,
    pub priority: Option<u8>,
    pub timeout_ms: Option<u64>,
    pub retry: Option<Retry>,
    pub cpu: Option<Need>,
    pub io: Option<Need>,
    pub memory: Option<Need>,
}

words! {
    /// Which rule found the lane.
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Rule {
        Registry = "registry",
        Meta = "meta",
        Source = "source",
        Pattern = "pattern",
        Default = "default",
    }
}

/// A tool's metadata, complete.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metadata {
    pub runtime: String,
    pub category: String,
    /// 0 to 100; higher runs sooner.
    pub priority: u8,
    pub timeout_ms: Option<u64>,
    pub retry: Retry,
    pub cpu: Need,
    pub io: Need,
    pub memory: Need,
}

/// A tool by name and contract, with what is no part of the contract: its `_meta` hints, and its source's lane.
type Asked = (String, Cid, Option<String>, Option<String>);

/// Finds lanes, and remembers what it found.
#[derive(Default)]
pub struct Resolver {
    cache: RwLock<HashMap<Asked, (String, Rule)>>,
}

impl Hints {
    /// Returns the hints in the tool's own `_meta`, under [`META_KEY`]. Unreadable ones are ignored.
    pub fn of_meta(definition: &Value) -> Self {
        let hints = definition.get("_meta").and_then(|meta| meta.get(META_KEY));
        let hints: Self = hints.and_then(|hints| Self::deserialize(hints).ok()).unwrap_or_default();
        let bounded = |retry: Retry| Retry {
            max_retries: retry.max_retries.min(RETRIES_MAX),
            backoff_factor: if retry.backoff_factor.is_finite() {
                retry.backoff_factor.clamp(1.0, 10.0)
            } else {
                1.0
            },
            max_backoff_ms: retry.max_backoff_ms.min(DAY_MS),
            ..retry
        };
        Self {
            timeout_ms: hints.timeout_ms.map(|ms| ms.min(DAY_MS)),
            retry: hints.retry.map(bounded),
            ..hints
        }
    }

    /// Returns these hints, with missing fields taken from `others`.
    pub fn or(self, others: Self) -> Self {
        Self {
            runtime: self.runtime.or(others.runtime),
            category: self.category.or(others.category),
            priority: self.priority.or(others.priority),
            timeout_ms: self.timeout_ms.or(others.timeout_ms),
            retry: self.retry.or(others.retry),
            cpu: self.cpu.or(others.cpu),
            io: self.io.or(others.io),
            memory: self.memory.or(others.memory),
        }
    }
}

impl Resolver {
    /// The lane of a tool, and the rule that found it. `known` answers whether a lane of that name exists.
    pub fn lane(
        &self,
        (name, contract): (&str, Cid),
        registry: Option<&str>,
        meta: Option<&str>,
        source: Option<&str>,
        known: impl Fn(&str) -> bool,
    ) -> (String, Rule) {
        // What the registry says is asked first: it is as quick as the cache and the operator may have changed it.
        let place = (name.to_owned(), contract, meta.map(str::to_owned), source.map(str::to_owned));
        if registry.is_none()
            && let Some(found) = self.cache.read().ok().and_then(|cache| cache.get(&place).cloned())
        {
            return found;
        }
        let found = [
            (registry, Rule::Registry),
            (meta, Rule::Meta),
            (source, Rule::Source),
            (pattern(name), Rule::Pattern),
        ]
        .into_iter()
        .find_map(|(lane, rule)| Some((lane.filter(|lane| known(lane))?.to_owned(), rule)))
        .unwrap_or((DEFAULT_LANE.to_owned(), Rule::Default));
        if let Ok(mut cache) = self.cache.write() {
            if cache.len() >= CACHE_MAX {
                cache.clear();
            }
            cache.insert(place, found.clone());
        }
        found
    }
}

fn pattern(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let heavy = name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| HEAVY_WORDS.contains(&word));
    heavy.then_some(lane::BLOCKING)
}

#[cfg(test)]
mod tests;
