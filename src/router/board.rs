//! The board: what every source offers, put together once per change and read without locks.
//!
//! Invariants:
//! - every tool on it stands under a published contract;
//! - where two sources offer the same name, the one configured first keeps it.

mod drafts;
mod entry;
mod misfits;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, value::RawValue};

use self::{
    drafts::{Told, drafts, sayable},
    entry::Origin,
    misfits::nearest,
};
pub use self::{
    entry::Entry,
    misfits::{Judged, Misfit, Unfit},
};
use crate::{
    block::{Cid, splice},
    catalogue::PEERS,
    contract::Contract,
    ledger::{Command, Ruling, Stopped, commit::node},
    router::{
        Change, Listed, Offer, Parts, Run, Standing,
        declared::Declared,
        metadata::{Hints, Resolver},
        view::View,
    },
};

/// Bytes of a tool's or prompt's name: events name them.
pub const NAME_MAX: usize = 256;
/// Clients take names of tools up to this length.
const COMMON_NAME_MAX: usize = 64;

/// One tool, prompt or resource of a source: the source's name for it, the public one, and its definition.
pub struct Offered {
    pub inner: String,
    pub name: String,
    pub definition: Box<RawValue>,
    /// The hints of its registration; empty for tools nobody registered.
    pub hints: Hints,
    /// The contract it has at another node, adopted as it is; `None` if its definition makes one here.
    pub contract: Option<Contract>,
}

/// Everything one source offers now.
pub struct Offering {
    pub source: String,
    pub version: String,
    /// Sources of lower rank come first in lists and keep contested names.
    pub rank: u32,
    /// The lane of its tools, unless something more specific names another.
    pub lane: Option<String>,
    pub tools: Vec<Offered>,
    pub prompts: Vec<Offered>,
    pub resources: Vec<Offered>,
    pub templates: Vec<Offered>,
    /// What clients see that do not see everything, the first for those that no other is for; empty if all see all.
    pub views: Vec<View>,
    pub declared: Declared,
    /// Whether calls mirror arguments in headers, so that tools whose marks for these are unsound are left out.
    pub mirrors: bool,
    pub run: Arc<dyn Run>,
}

/// One source, as requests reach it.
pub struct Source {
    pub name: String,
    pub rank: u32,
    pub lane: Option<String>,
    pub run: Arc<dyn Run>,
    pub declared: Declared,
    views: Vec<View>,
    tools: Vec<Arc<Entry>>,
    prompts: Vec<(String, Arc<Listed>)>,
    resources: Vec<Arc<Listed>>,
    templates: Vec<Arc<Listed>>,
}

/// The offer of all sources at one moment.
#[derive(Default)]
pub struct Board {
    pub offer: Arc<Offer>,
    pub entries: Vec<Arc<Entry>>,
    sources: BTreeMap<(u32, String), Arc<Source>>,
    tools: HashMap<String, Arc<Entry>>,
    contracts: HashMap<Cid, Arc<Entry>>,
    prompts: HashMap<String, (Arc<Source>, String)>,
    resources: HashMap<String, Arc<Source>>,
    /// Whether any tool marks something of its input as secret.
    pub guarded: bool,
    told: Told,
}

impl Board {
    /// Returns this board with its source's last offering replaced by `offering`, and which lists differ.
    pub async fn with(
        &self,
        offering: Offering,
        parts: &Parts,
        resolver: &Resolver,
    ) -> Result<(Self, Vec<Change>), Stopped> {
        let before = self.sources.values().find(|source| source.name == offering.source).cloned();
        let mut told = self.told.clone();
        let source = Source::publish(offering, before.as_deref(), (parts, resolver), &mut told).await?;
        let mut sources = self.sources.clone();
        sources.retain(|_, other| other.name != source.name);
        sources.insert((source.rank, source.name.clone()), Arc::new(source));
        let board = Self::of(sources, told);
        let changed = self.offer.differs(&board.offer);
        Ok((board, changed))
    }

    /// The tool of this public name or contract.
    pub fn tool(&self, name: &str) -> Option<Arc<Entry>> {
        let by_name = self.tools.get(name);
        by_name.cloned().or_else(|| self.tool_under(&name.parse().ok()?))
    }

    /// The tool of this public name or contract; else the one under the contract that was pinned.
    pub fn tool_asked(&self, name: &str, pinned: Option<&Cid>) -> Option<Arc<Entry>> {
        self.tool(name).or_else(|| self.tool_under(pinned?))
    }

    /// The tool under this contract.
    pub fn tool_under(&self, contract: &Cid) -> Option<Arc<Entry>> {
        self.contracts.get(contract).cloned()
    }

    /// Returns what each source offers, by its name.
    pub fn standings(&self) -> BTreeMap<String, Standing> {
        let standing = |source: &Arc<Source>| Standing {
            name: source.name.clone(),
            tools: source.tools.len(),
            prompts: source.prompts.len(),
            resources: source.resources.len(),
            away: None,
        };
        self.sources.values().map(|source| (source.name.clone(), standing(source))).collect()
    }

    /// Returns the peers as a source, and their name for a tool.
    pub fn at_peers(&self, entry: &Entry) -> Option<(Arc<Source>, String)> {
        let peers = self.sources.values().find(|source| source.name == PEERS)?;
        let theirs = entry.source == PEERS;
        Some((peers.clone(), if theirs { entry.inner.clone() } else { entry.tool.contract.to_string() }))
    }

    /// Returns the source that completes what a completion's `ref` names, and the source's name for it.
    pub fn completes(&self, params: &RawValue) -> Option<(Arc<Source>, String)> {
        let reference: Value = serde_json::from_str(splice::member(params, "ref").ok()??.get()).ok()?;
        let text = |key: &str| reference.get(key).and_then(Value::as_str);
        match text("type")? {
            "ref/prompt" => self.prompt(text("name")?),
            "ref/resource" => {
                let uri = text("uri")?;
                let lists = |source: &&Arc<Source>| source.templates.iter().any(|listed| listed.name == uri);
                let source = self.sources.values().find(lists).cloned().or_else(|| self.resource(uri))?;
                Some((source, uri.to_owned()))
            }
            _ => None,
        }
    }

    /// The known tool name nearest to one that is not known.
    pub fn nearest_tool(&self, name: &str) -> Option<&str> {
        nearest(name, self.tools.keys().map(String::as_str))
    }

    /// Returns the source of this prompt, and the source's name for it.
    pub fn prompt(&self, name: &str) -> Option<(Arc<Source>, String)> {
        self.prompts.get(name).cloned()
    }

    /// Returns the source of this resource: the one that lists it, else one whose template fits, else as `unlisted`
    /// says.
    pub fn resource(&self, uri: &str) -> Option<Arc<Source>> {
        if let Some(source) = self.resources.get(uri) {
            return Some(source.clone());
        }
        let fits =
            |source: &&Arc<Source>| source.templates.iter().any(|listed| template_fits(&listed.name, uri));
        if let Some(source) = self.sources.values().find(fits) {
            return Some(source.clone());
        }
        self.unlisted(uri)
    }

    /// Returns the source of a resource that is in no list: the one whose tools name it, else the only one with
    /// resources, else the only one that lists one of the same scheme. Where several might have it, none is guessed.
    fn unlisted(&self, uri: &str) -> Option<Arc<Source>> {
        let quoted = splice::quoted(uri);
        let has = |source: &&Arc<Source>| source.declared.resources;
        let names = |source: &&Arc<Source>| {
            source.tools.iter().any(|entry| entry.tool.definition.get().contains(&quoted))
        };
        if let Some(source) = self.sources.values().filter(has).find(names) {
            return Some(source.clone());
        }
        let mut with_resources = self.sources.values().filter(has);
        match (with_resources.next(), with_resources.next()) {
            (only, None) => only.cloned(),
            _ => {
                let scheme = uri.split_once(':').map(|(scheme, _)| format!("{scheme}:"))?;
                let alike = |listed: &Arc<Listed>| listed.name.starts_with(&scheme);
                let lists = |source: &&Arc<Source>| {
                    source.resources.iter().any(alike) || source.templates.iter().any(alike)
                };
                let mut alike = self.sources.values().filter(has).filter(lists);
                alike.next().filter(|_| alike.next().is_none()).cloned()
            }
        }
    }

    fn of(sources: BTreeMap<(u32, String), Arc<Source>>, told: Told) -> Self {
        let mut board = Self { told, ..Self::default() };
        let mut offer = Offer::default();
        for source in sources.values() {
            for entry in &source.tools {
                let name = &entry.tool.name;
                if board.tools.contains_key(name) {
                    let what = "tool name is taken by an earlier source; not offered";
                    board.told.warn(what, &source.name, name);
                    continue;
                }
                if name.chars().count() > COMMON_NAME_MAX {
                    let what = "tool name is over 64 characters, which some clients refuse";
                    board.told.warn(what, &source.name, name);
                }
                board.tools.insert(entry.tool.name.clone(), entry.clone());
                board.contracts.insert(entry.tool.contract, entry.clone());
                offer.tools.push(entry.tool.clone());
                board.guarded |= !entry.secrets.is_empty();
                board.entries.push(entry.clone());
            }
            for (inner, listed) in &source.prompts {
                let place = (source.clone(), inner.clone());
                if board.prompts.try_put(&listed.name, place) {
                    offer.prompts.push(listed.clone());
                } else {
                    let what = "prompt name is taken by an earlier source; not offered";
                    board.told.warn(what, &source.name, &listed.name);
                }
            }
            for listed in &source.resources {
                if board.resources.try_put(&listed.name, source.clone()) {
                    offer.resources.push(listed.clone());
                }
            }
            offer.templates.extend(source.templates.iter().cloned());
            offer.declared.join(&source.name, &source.declared);
        }
        board.offer = Arc::new(offer);
        board.sources = sources;
        board
    }

    /// Returns what a client with these capabilities sees: the whole offer, unless some source shows it less.
    pub fn offer_to(&self, capabilities: &str) -> Arc<Offer> {
        if self.sources.values().all(|source| source.views.is_empty()) {
            return self.offer.clone();
        }
        let mut offer = Offer { declared: self.offer.declared.clone(), ..Offer::default() };
        for source in self.sources.values() {
            let seen = View::of(&source.views, capabilities);
            let shown = |list: fn(&View) -> &HashSet<String>, name: &str| {
                seen.is_none_or(|view| list(view).contains(name))
            };
            let first = |entry: &&Arc<Entry>| {
                self.tools.get(&entry.tool.name).is_some_and(|kept| Arc::ptr_eq(kept, entry))
            };
            let tools = source.tools.iter().filter(first);
            let tools = tools.filter(|entry| shown(|view| &view.tools, &entry.tool.name));
            offer.tools.extend(tools.map(|entry| entry.tool.clone()));
            let prompts = source.prompts.iter().map(|(_, listed)| listed).filter(|listed| {
                let owner = self.prompts.get(&listed.name);
                owner.is_some_and(|(owner, _)| Arc::ptr_eq(owner, source))
                    && shown(|view| &view.prompts, &listed.name)
            });
            offer.prompts.extend(prompts.cloned());
            let resources = source.resources.iter().filter(|listed| {
                let owner = self.resources.get(&listed.name);
                owner.is_some_and(|owner| Arc::ptr_eq(owner, source))
                    && shown(|view| &view.resources, &listed.name)
            });
            offer.resources.extend(resources.cloned());
            let templates = source.templates.iter();
            let templates = templates.filter(|listed| shown(|view| &view.templates, &listed.name));
            offer.templates.extend(templates.cloned());
        }
        Arc::new(offer)
    }

    /// Returns what runs the calls of each source.
    pub fn runs(&self) -> Vec<Arc<dyn Run>> {
        self.sources.values().map(|source| source.run.clone()).collect()
    }
}

trait TryPut<V> {
    fn try_put(&mut self, name: &str, value: V) -> bool;
}

impl<V> TryPut<V> for HashMap<String, V> {
    /// Inserts a value, unless the name is taken; returns whether it did.
    fn try_put(&mut self, name: &str, value: V) -> bool {
        let free = !self.contains_key(name);
        if free {
            self.insert(name.to_owned(), value);
        }
        free
    }
}

impl Offer {
    /// Which lists of two offers differ.
    fn differs(&self, other: &Self) -> Vec<Change> {
        let same = |a: &[Arc<Listed>], b: &[Arc<Listed>]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.definition.get() == b.definition.get())
        };
        let tools = self.tools.len() == other.tools.len()
            && self.tools.iter().zip(&other.tools).all(|(a, b)| a.definition.get() == b.definition.get());
        let resources = same(&self.resources, &other.resources) && same(&self.templates, &other.templates);
        [
            (tools, Change::Tools),
            (same(&self.prompts, &other.prompts), Change::Prompts),
            (resources, Change::Resources),
        ]
        .into_iter()
        .filter_map(|(same, change)| (!same).then_some(change))
        .collect()
    }
}

impl Source {
    /// Publishes the contract of every tool, retires those that are gone, and makes the source's entries.
    async fn publish(
        mut offering: Offering,
        before: Option<&Self>,
        (parts, resolver): (&Parts, &Resolver),
        told: &mut Told,
    ) -> Result<Self, Stopped> {
        let drafts = drafts(&mut offering, told);
        let Offering { source, rank, lane, prompts, resources, templates, views, declared, run, .. } =
            offering;
        let names = drafts.iter().map(|(offered, _)| offered.filed_as().to_owned()).collect();
        let retain = Command::Retain { source: source.clone(), names, actor: node() };
        parts.ledger.submit(retain).await?;
        let publish = |(offered, contract): &(Offered, Contract)| {
            let contract = contract.clone();
            parts.ledger.submit(match offered.contract {
                None => Command::Publish { contract, actor: node() },
                Some(_) => Command::Adopt { contract, name: offered.name.clone(), actor: node() },
            })
        };
        // All at once, so that a source of hundreds of tools costs a few commits.
        let rulings = futures_util::future::join_all(drafts.iter().map(publish)).await;
        let mut entries = Vec::with_capacity(drafts.len());
        for ((offered, _), ruling) in drafts.into_iter().zip(rulings) {
            let (cid, contract) = match ruling? {
                Ruling::Published { cid, contract, .. } => (cid, contract),
                other => {
                    tracing::warn!(
                        source,
                        tool = offered.inner,
                        ?other,
                        "tool is not offered: its contract was not published"
                    );
                    continue;
                }
            };
            let known = before.and_then(|before| before.same_tool(&offered, cid));
            let entry = known.unwrap_or_else(|| {
                let from = Origin { source: &source, lane: lane.as_deref(), run: &run, parts, resolver };
                Arc::new(Entry::new(offered, cid, *contract, &from))
            });
            entries.push(entry);
        }
        let listed =
            |offered: Offered| Arc::new(Listed { name: offered.name, definition: offered.definition });
        Ok(Self {
            name: source,
            rank,
            lane,
            run,
            declared,
            views,
            tools: entries,
            prompts: prompts
                .into_iter()
                .filter(|prompt| sayable(&prompt.inner))
                .map(|prompt| (prompt.inner.clone(), listed(prompt)))
                .collect(),
            resources: resources.into_iter().map(listed).collect(),
            templates: templates.into_iter().map(listed).collect(),
        })
    }

    /// The entry of a tool that has not changed, so that its schema need not be compiled again.
    fn same_tool(&self, offered: &Offered, contract: Cid) -> Option<Arc<Entry>> {
        let same = |entry: &&Arc<Entry>| {
            entry.inner == offered.inner
                && entry.tool.contract == contract
                && entry.tool.definition.get() == offered.definition.get()
        };
        self.tools.iter().find(same).cloned()
    }
}

/// Replaces a definition's name by the public one; every other byte stays.
pub fn renamed(definition: &RawValue, name: &str) -> Option<Box<RawValue>> {
    let quoted = splice::raw(splice::quoted(name));
    splice::edit(definition, &[("name", &quoted)], |_| false).ok()
}

/// Returns whether a URI can come from a template, judged by the text before, between and after its expressions.
fn template_fits(template: &str, uri: &str) -> bool {
    let mut rest = uri;
    for (n, piece) in template.split('{').enumerate() {
        let literal = if n == 0 { piece } else { piece.split_once('}').map_or(piece, |(_, after)| after) };
        let found = if n == 0 {
            rest.strip_prefix(literal)
        } else {
            rest.find(literal).map(|at| &rest[at + literal.len()..])
        };
        match found {
            Some(after) => rest = after,
            None => return false,
        }
    }
    template.ends_with('}') || rest.is_empty()
}
