//! The lists of one connection: fetched, kept up to date, and each on its own.
//!
//! Invariants:
//! - a list that fails, is malformed or does not come costs only itself. Only the first list of tools is needed:
//!   without it the connection ends;
//! - the tools are asked for before all others;
//! - lists are bounded in pages and items, and end at a cursor that is empty or was seen before;
//! - changes are gathered before a list is fetched again, and one that failed is tried again ever more rarely.

use std::{collections::HashSet, future::pending, time::Duration};

use serde_json::value::RawValue;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::block::splice::{self, member};
use crate::runtime::upstream::{
    Capabilities, Failure, Offered, Reply, Settings, inbox::Changes, link::Link, wire,
};

/// Pages read of one list.
pub const PAGES_MAX: usize = 1_000;
/// Items kept of one list.
const ITEMS_MAX: usize = 10_000;
/// Changes within this time are followed by one fetch.
const GATHER: Duration = Duration::from_millis(100);
/// How long the other lists are waited for once the tools are there.
const SIDES_WAIT: Duration = Duration::from_secs(2);
/// The pause before a list that failed is fetched again; it doubles up to the longest.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// How often a list that failed is fetched again. After that only a change or a new connection has it fetched.
const AGAIN_TIMES: u32 = 10;

/// The lists that a server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Tools,
    Prompts,
    Resources,
    Templates,
}

/// What came of fetching a list. No items means that those known before stand.
pub struct Fetched {
    list: List,
    items: Option<Vec<Box<RawValue>>>,
}

/// What was read of a list, and why it ends early, if it does.
struct Pages {
    items: Vec<Box<RawValue>>,
    failure: Option<Failure>,
}

/// What a new connection offers, until its lists are there or are waited for no longer.
pub struct Gathering {
    pub offered: Offered,
    awaited: Vec<List>,
    until: Option<Instant>,
}

/// Fetches lists over one link.
pub struct Lists<'a> {
    pub link: &'a Link,
    pub settings: &'a Settings,
    pub can: Capabilities,
    /// Takes the lists, from the first fetch on.
    pub to: mpsc::Sender<Fetched>,
}

impl List {
    /// All lists: the channel for them needs as many places.
    pub const ALL: [Self; 4] = [Self::Tools, Self::Prompts, Self::Resources, Self::Templates];

    fn method(self) -> &'static str {
        match self {
            Self::Tools => "tools/list",
            Self::Prompts => "prompts/list",
            Self::Resources => "resources/list",
            Self::Templates => "resources/templates/list",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    fn is_had(self, can: Capabilities) -> bool {
        match self {
            Self::Tools => can.tools,
            Self::Prompts => can.prompts,
            Self::Resources | Self::Templates => can.resources,
        }
    }

    /// Returns how often it was said to have changed.
    fn count(self, changes: &Changes) -> u64 {
        match self {
            Self::Tools => changes.tools,
            Self::Prompts => changes.prompts,
            Self::Resources | Self::Templates => changes.resources,
        }
    }

    fn of(self, offered: &mut Offered) -> &mut Vec<Box<RawValue>> {
        match self {
            Self::Tools => &mut offered.tools,
            Self::Prompts => &mut offered.prompts,
            Self::Resources => &mut offered.resources,
            Self::Templates => &mut offered.templates,
        }
    }
}

impl Gathering {
    /// Begins with what a handshake said, and with the lists that the last connection had.
    pub fn new(greeted: Offered, before: &Offered) -> Self {
        let awaited: Vec<List> =
            List::ALL.into_iter().filter(|list| list.is_had(greeted.capabilities)).collect();
        let mut offered = greeted;
        let mut before = before.clone();
        for list in &awaited {
            *list.of(&mut offered) = std::mem::take(list.of(&mut before));
        }
        let until = (!awaited.contains(&List::Tools)).then(|| Instant::now() + SIDES_WAIT);
        Self { offered, awaited, until }
    }

    /// Takes what came of fetching one list.
    pub fn take(&mut self, fetched: Fetched) {
        let Fetched { list, items } = fetched;
        self.awaited.retain(|awaited| *awaited != list);
        if list == List::Tools && self.until.is_none() {
            self.until = Some(Instant::now() + SIDES_WAIT);
        }
        if let Some(items) = items {
            *list.of(&mut self.offered) = items;
        }
    }

    /// Waits until all lists are there, or until those that are missing are waited for no longer. Safe to drop.
    pub async fn wait(&self) {
        match self.until {
            _ if self.awaited.is_empty() => {}
            Some(until) => sleep_until(until).await,
            None => pending().await,
        }
    }
}

impl Lists<'_> {
    /// Keeps all lists up to date for as long as the connection lasts. Returns why there are no tools, if the first
    /// fetch of them fails; else never.
    pub async fn keep(&self) -> Failure {
        let listed = CancellationToken::new();
        let side = async |list| {
            listed.cancelled().await;
            self.keep_one(list, &CancellationToken::new()).await
        };
        tokio::select! {
            failure = self.keep_one(List::Tools, &listed) => failure,
            failure = side(List::Prompts) => failure,
            failure = side(List::Resources) => failure,
            failure = side(List::Templates) => failure,
        }
    }

    /// Keeps one list up to date; `done` is cancelled after the first fetch.
    async fn keep_one(&self, list: List, done: &CancellationToken) -> Failure {
        if !list.is_had(self.can) {
            done.cancel();
            return pending().await;
        }
        let mut changes = self.link.inbox.changes();
        let (mut known, mut failed) = (false, 0);
        loop {
            let seen = list.count(&changes.borrow_and_update());
            let Pages { items, failure } = self.fetch(list).await;
            match failure {
                None => {
                    (known, failed) = (true, 0);
                    self.tell(list, Some(items)).await;
                }
                Some(_) if self.link.inbox.is_lost() => return pending().await,
                Some(failure) if list == List::Tools && !known && items.is_empty() => return failure,
                Some(failure) => {
                    let (upstream, method) = (&self.settings.name, list.method());
                    tracing::warn!(%upstream, method, %failure, "a list is kept as it was for now");
                    failed += 1;
                    // Some pages are better than none, and none are better than another connection's.
                    let better = !known && !items.is_empty();
                    self.tell(list, better.then_some(items)).await;
                    known |= better;
                }
            }
            done.cancel();
            let pause = AGAIN_MAX.min(AGAIN_FIRST * 2_u32.pow(failed.clamp(1, AGAIN_TIMES) - 1));
            let changed = async {
                let _ = changes.wait_for(|now| list.count(now) != seen).await;
            };
            tokio::select! {
                () = changed => sleep(GATHER).await,
                () = sleep(pause), if (1..=AGAIN_TIMES).contains(&failed) => {}
            }
        }
    }

    async fn tell(&self, list: List, items: Option<Vec<Box<RawValue>>>) {
        // An owner that has gone away needs no lists.
        let _ = self.to.send(Fetched { list, items }).await;
    }

    /// Fetches all pages of a list; an upstream without such a list has an empty one.
    async fn fetch(&self, list: List) -> Pages {
        let mut items = Vec::new();
        let mut cursors = HashSet::new();
        let mut params = wire::empty();
        for _ in 0..PAGES_MAX {
            let (page, cursor) = match self.page(list, &params).await {
                Ok(page) => page,
                Err(failure) => return Pages { items, failure: Some(failure) },
            };
            items.extend(page);
            if items.len() > ITEMS_MAX {
                items.truncate(ITEMS_MAX);
                break;
            }
            let next = cursor.filter(|cursor| !cursor.is_empty() && cursors.insert(cursor.clone()));
            let Some(cursor) = next else {
                return Pages { items, failure: None };
            };
            params = splice::raw(format!(r#"{{"cursor":{}}}"#, splice::quoted(&cursor)));
        }
        tracing::warn!(upstream = %self.settings.name, method = list.method(), "list cut off at its bound");
        Pages { items, failure: None }
    }

    /// Returns the items of one page that are objects, and the cursor of the next page.
    async fn page(
        &self,
        list: List,
        params: &RawValue,
    ) -> Result<(Vec<Box<RawValue>>, Option<String>), Failure> {
        let own = self.settings.own();
        let answer = timeout(self.settings.timeout, self.link.request(list.method(), params, &own)).await;
        let page = match answer.unwrap_or(Err(Failure::TimedOut))? {
            Reply::Error { code: -32601, .. } => return Ok((Vec::new(), None)),
            Reply::Error { code, message, .. } => {
                let message = format!("it answered error {code}: {message}");
                return Err(Failure::Unavailable { message });
            }
            Reply::Result(page) => page,
        };
        let listed = member(&page, list.key()).ok().flatten();
        let listed = listed.and_then(|listed| serde_json::from_str(listed.get()).ok());
        let mut listed: Vec<Box<RawValue>> =
            listed.ok_or_else(|| Failure::Broken(format!("{} gave no list", list.method())))?;
        let came = listed.len();
        listed.retain(|item| item.get().starts_with('{'));
        if listed.len() < came {
            let (upstream, method, skipped) = (&self.settings.name, list.method(), came - listed.len());
            tracing::warn!(%upstream, method, skipped, "what is no object is left out of a list");
        }
        let cursor = member(&page, "nextCursor").ok().flatten();
        Ok((listed, cursor.and_then(|cursor| serde_json::from_str(cursor.get()).ok())))
    }
}
