//! The board: what every source offers, put together once per change and read without locks.
//!
//! Invariants:
//! - every tool on it stands under a published contract;
//! - where two sources offer the same name, the one configured first keeps it;
//! - a client is shown what it may see, and what it does not see is reached all the same where it may.

mod drafts;
mod entry;
mod misfits;
mod places;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use serde_json::{Value, value::RawValue};

use self::{
    drafts::{Told, drafts, sayable},
    entry::{Given, Origin, Schemas},
    misfits::nearest,
    places::{Placed, Places},
};
pub use self::{
    entry::Entry,
    misfits::{Judged, Misfit, Unfit},
    places::{aliased, links},
};
use crate::{
    block::{Cid, splice},
    catalogue::PEERS,
    contract::Contract,
    ledger::{Command, Ruling, Stopped, commit::node},
    router::{
        Change, Listed, Offer, Parts, Run, SourceStatus, Tool, aside,
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
    pub places: Places,
    /// The tools of which callers are told something else than their sources wrote, by name.
    retold: HashMap<String, Arc<Tool>>,
    /// Whether tools are found by name, so that lists hold only those that find them.
    pub finds: bool,
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

    /// Returns this board without a source, whose contracts are retired, and which lists differ.
    pub async fn without(&self, source: &str, parts: &Parts) -> Result<(Self, Vec<Change>), Stopped> {
        let retain = Command::Retain { source: source.to_owned(), names: Vec::new(), actor: node() };
        parts.ledger.submit(retain).await?;
        let mut sources = self.sources.clone();
        sources.retain(|_, other| other.name != source);
        let board = Self::of(sources, self.told.clone());
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
    pub fn standings(&self) -> BTreeMap<String, SourceStatus> {
        let standing = |source: &Arc<Source>| SourceStatus {
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
                let template = self.places.templates.iter().find(|placed| placed.listed.name == uri);
                let known = template.map(|placed| (placed.source.clone(), placed.inner.clone()));
                known.or_else(|| self.places.resource(uri))
            }
            _ => None,
        }
    }

    /// Returns the name nearest to one that is not known, of the tools that `sees` lets through.
    pub fn nearest_tool(&self, name: &str, sees: impl Fn(&Entry) -> bool) -> Option<&str> {
        let seen = self.entries.iter().filter(|entry| sees(entry));
        nearest(name, seen.map(|entry| entry.tool.name.as_str()))
    }

    /// Returns the source of this prompt, and the source's name for it.
    pub fn prompt(&self, name: &str) -> Option<(Arc<Source>, String)> {
        self.prompts.get(name).cloned()
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
                board.finds |= entry.finds;
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
            board.places.add(source, &mut board.told);
            offer.declared.join(&source.name, &source.declared);
        }
        board.retell();
        offer.tools.extend(board.entries.iter().map(|entry| board.told(entry)));
        let listed = |placed: &[Placed]| placed.iter().map(|placed| placed.listed.clone()).collect();
        offer.resources = listed(&board.places.resources);
        offer.templates = listed(&board.places.templates);
        board.offer = Arc::new(offer);
        board.sources = sources;
        board
    }

    /// Finds the tools whose pages are known here by other URIs than their own.
    fn retell(&mut self) {
        for entry in &self.entries {
            let retold = self.places.retold(&entry.source, &entry.tool, &mut self.told);
            self.retold.extend(retold.map(|tool| (tool.name.clone(), tool)));
        }
    }

    /// Returns a tool as callers are told it.
    fn told(&self, entry: &Entry) -> Arc<Tool> {
        self.retold.get(&entry.tool.name).unwrap_or(&entry.tool).clone()
    }

    /// Returns what a client with these capabilities sees of the tools and sources that it may see: the whole offer,
    /// unless some source shows it less.
    pub fn offer_to(
        &self,
        capabilities: &str,
        may_call: impl Fn(&Entry) -> bool,
        may_read: impl Fn(&Source) -> bool,
    ) -> Arc<Offer> {
        let views: HashMap<&str, (Option<&View>, bool)> = self
            .sources
            .values()
            .map(|source| (source.name.as_str(), (View::of(&source.views, capabilities), may_read(source))))
            .collect();
        let whole = views.values().all(|(view, readable)| view.is_none() && *readable);
        if whole && !self.finds && self.entries.iter().all(|entry| may_call(entry)) {
            return self.offer.clone();
        }
        let shown = |source: &str, list: fn(&View) -> &HashSet<String>, name: &str| {
            views.get(source).is_some_and(|(view, _)| view.is_none_or(|view| list(view).contains(name)))
        };
        let readable = |source: &str| views.get(source).is_some_and(|(_, readable)| *readable);
        let tools = self.entries.iter().filter(|entry| {
            shown(&entry.source, |view| &view.tools, &entry.tool.name)
                && may_call(entry)
                && (entry.finds || !self.finds)
        });
        let prompts = self.offer.prompts.iter().filter(|listed| {
            self.prompts.get(&listed.name).is_some_and(|(owner, _)| {
                readable(&owner.name) && shown(&owner.name, |view| &view.prompts, &listed.name)
            })
        });
        let placed = |places: &[Placed], list: fn(&View) -> &HashSet<String>| {
            let seen = places.iter().filter(|placed| {
                readable(&placed.source.name) && shown(&placed.source.name, list, &placed.inner)
            });
            seen.map(|placed| placed.listed.clone()).collect()
        };
        Arc::new(Offer {
            tools: tools.map(|entry| self.told(entry)).collect(),
            prompts: prompts.cloned().collect(),
            resources: placed(&self.places.resources, |view| &view.resources),
            templates: placed(&self.places.templates, |view| &view.templates),
            declared: self.offer.declared.clone(),
        })
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

impl Source {
    /// Returns its tools.
    pub fn tools(&self) -> &[Arc<Entry>] {
        &self.tools
    }

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
            let given = Given::of(&offered, lane.as_deref(), parts);
            if let Some(known) = before.and_then(|before| before.same_tool(&offered, cid, &given)) {
                entries.push(known);
                continue;
            }
            let (of, name) = (contract.clone(), source.clone());
            let schemas = aside::run(true, move || Schemas::of(&of, &name)).await;
            let from = Origin { source: &source, lane: lane.as_deref(), run: &run, parts, resolver };
            entries.push(Arc::new(Entry::new(offered, (cid, *contract), schemas, &from)));
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
    fn same_tool(&self, offered: &Offered, contract: Cid, given: &Given) -> Option<Arc<Entry>> {
        let same = |entry: &&Arc<Entry>| {
            entry.inner == offered.inner
                && entry.tool.contract == contract
                && entry.given == *given
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
