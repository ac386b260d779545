//! The owner of one upstream: connects, agrees on a protocol, follows the lists, and starts over when lost.
//!
//! Invariants:
//! - at most one connection at a time, closed before the next is opened;
//! - a connection is on offer once its tools are there; its other lists are waited for only briefly.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::block::splice::{self, member};
use crate::runtime::upstream::{
    Capabilities, Failure, Offered, Options, Protocol, REOPENING_MAX, Reply, Settings, State, Transport,
    beside::{BESIDE_MAX, Beside},
    inbox::Said,
    link::Link,
    lists::{Gathering, List, Lists},
    reopening::Reopening,
    watching::Watched,
    wire,
};

/// Bytes of an upstream's instructions; longer ones are left out.
const INSTRUCTIONS_MAX: usize = 64 * 1024;
/// The error of revision 2026-07-28 for a revision that a server does not speak.
const UNSUPPORTED_VERSION: i64 = -32022;
/// The first pause before connecting again; it doubles up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A connection that lasted this long was healthy: the next pause is the first again.
const HEALTHY: Duration = Duration::from_secs(30);
/// How long an upstream may take to answer `server/discover`, which servers of the session era do not know.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first pause before a subscription that ended is opened again.
const RELISTEN: Duration = Duration::from_secs(5);
/// A session that was opened anew this long ago may be again at once.
const REOPEN_EVERY: Duration = Duration::from_secs(10);

/// How a connection ended.
struct Ended {
    message: String,
    /// Whether the server has forgotten its session.
    forgotten: bool,
    /// Whether it was on offer.
    was_ready: bool,
}

pub struct Owner {
    settings: Arc<Settings>,
    offered: watch::Sender<Arc<Offered>>,
    link: watch::Sender<Option<Arc<Link>>>,
    stopping: CancellationToken,
    watched: Arc<Watched>,
    beside: Arc<Beside>,
    /// Whether the connection broke during the handshake. Then the next one does not begin with `server/discover`.
    shy: bool,
}

impl Owner {
    pub fn new(
        settings: Arc<Settings>,
        offered: watch::Sender<Arc<Offered>>,
        link: watch::Sender<Option<Arc<Link>>>,
        stopping: CancellationToken,
        (watched, beside): (Arc<Watched>, Arc<Beside>),
    ) -> Self {
        Self { settings, offered, link, stopping, watched, beside, shy: false }
    }

    /// Connects again and again until it is told to stop.
    pub async fn run(mut self) {
        let mut backoff = BACKOFF_FIRST;
        let mut reopened: Option<Instant> = None;
        while !self.stopping.is_cancelled() {
            let began = Instant::now();
            self.publish(|offered| offered.state = State::Connecting);
            let Ended { message, forgotten, was_ready } = self.live().await;
            if began.elapsed() >= HEALTHY {
                backoff = BACKOFF_FIRST;
            }
            let stopping = self.stopping.is_cancelled();
            if !(stopping || forgotten) {
                tracing::warn!(upstream = %self.settings.name, reason = %message, "upstream lost");
            }
            // A process that was there is soon there again, and calls wait for it; not if it keeps on ending.
            let is_process = matches!(self.settings.transport, Transport::Child { .. });
            let returns = is_process && was_ready && backoff < REOPENING_MAX;
            if stopping || !(forgotten || returns) {
                self.publish(|offered| offered.state = State::Failed { message });
            } else {
                self.publish(|offered| offered.state = State::Connecting);
            }
            if forgotten && !stopping {
                // It is there, and whoever was refused waits for the next session.
                tracing::info!(upstream = %self.settings.name, "the session is opened anew");
                if reopened.is_none_or(|at| at.elapsed() >= REOPEN_EVERY) {
                    reopened = Some(Instant::now());
                    continue;
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = sleep(jittered(backoff)) => backoff = BACKOFF_MAX.min(backoff * 2),
                () = self.settings.transport.renewed() => backoff = BACKOFF_FIRST,
            }
        }
    }

    /// One connection, from opening to closing.
    async fn live(&mut self) -> Ended {
        let unmade = |message| Ended { message, forgotten: false, was_ready: false };
        let stopping = self.stopping.clone();
        let (says, said) = mpsc::channel(BESIDE_MAX);
        let says = Some(says).filter(|_| self.beside.own);
        let link = match stopping.run_until_cancelled(Link::open(&self.settings, says)).await {
            Some(Ok(link)) => Arc::new(link),
            Some(Err(message)) => return unmade(message),
            None => return unmade("stopped".to_owned()),
        };
        let message = tokio::select! {
            biased;
            () = stopping.cancelled() => "stopped".to_owned(),
            message = self.attend(&link, said) => message,
        };
        let was_ready = self.link.send_replace(None).is_some();
        link.close().await;
        Ended { message, forgotten: was_ready && link.expired(), was_ready }
    }

    async fn attend(&mut self, link: &Arc<Link>, said: mpsc::Receiver<Said>) -> String {
        let offered = match self.greet(link).await {
            Ok(offered) => offered,
            Err(Failure::Died | Failure::Gone) => {
                // Some servers end at a question they do not know: the next one hears the other first.
                self.shy = !self.shy;
                return link.inbox.lost().await;
            }
            Err(_) if link.inbox.is_lost() => return link.inbox.lost().await,
            Err(failure) => return failure.to_string(),
        };
        let (protocol, can) = (offered.protocol, offered.capabilities);
        let mut gathering = Gathering::new(offered, &self.offered.borrow());
        let (to, mut fetched) = mpsc::channel(List::ALL.len());
        let settings = Arc::clone(&self.settings);
        let lists = Lists { link, settings: &settings, can, to };
        let (keeping, following) = (lists.keep(), follow(link, protocol, can, &self.watched));
        let mut wanted = self.watched.0.subscribe();
        wanted.mark_changed();
        let session = protocol != Some(Protocol::Modern);
        let by_request = can.subscriptions && session;
        let beside = Arc::clone(&self.beside);
        let carrying = beside.carry(link, said, session, can.logging);
        tokio::pin!(keeping, following, carrying);
        let (mut ready, mut follows, mut carries) = (false, true, true);
        loop {
            tokio::select! {
                biased;
                reason = link.inbox.lost() => return reason,
                Some(one) = fetched.recv() => {
                    gathering.take(one);
                    if ready {
                        self.show(link, &gathering.offered);
                    }
                }
                () = gathering.wait(), if !ready => {
                    ready = true;
                    link.learn(&gathering.offered.tools);
                    // First the way, then the word that it is there: whoever hears that asks at once.
                    self.link.send_replace(Some(Arc::clone(link)));
                    self.show(link, &gathering.offered);
                    self.publish(|offered| offered.state = State::Ready);
                }
                failure = &mut keeping => return failure.to_string(),
                () = &mut following, if ready && follows => follows = false,
                () = &mut carrying, if carries => carries = false,
                Ok(()) = wanted.changed(), if ready && by_request => {
                    let wanted = wanted.borrow_and_update().clone();
                    link.subscribe(&wanted).await;
                }
            }
        }
    }

    /// Shows what a connection offers, as it is now.
    fn show(&self, link: &Link, offered: &Offered) {
        link.learn(&offered.tools);
        let announced = *link.inbox.changes().borrow();
        self.publish(|current| {
            let state = std::mem::take(&mut current.state);
            *current = Offered { state, announced, ..offered.clone() };
        });
    }

    /// Agrees on a protocol: the stateless revision where it is known, else a session; or the other way round, if a
    /// session is preferred.
    async fn greet(&mut self, link: &Link) -> Result<Offered, Failure> {
        if self.settings.sessions_first {
            return match self.initialize(link).await {
                Err(failure @ (Failure::Unavailable { .. } | Failure::Broken(_))) => {
                    self.discover(link).await?.ok_or(failure)
                }
                greeted => greeted,
            };
        }
        if !self.shy
            && let Some(offered) = self.discover(link).await?
        {
            return Ok(offered);
        }
        self.initialize(link).await
    }

    /// Asks whether the stateless revision is known. Errors: the connection ended at the question.
    async fn discover(&self, link: &Link) -> Result<Option<Offered>, Failure> {
        let limit = PROBE_TIMEOUT.min(self.settings.timeout);
        let (nothing, own) = (wire::empty(), self.settings.own());
        let ask = async || {
            timeout(limit, link.request_as(Protocol::Modern, "server/discover", &nothing, &own)).await
        };
        let mut answer = ask().await;
        if matches!(&answer, Ok(Ok(reply)) if names_ours(reply)) {
            answer = ask().await;
        }
        if let Ok(Ok(reply)) = &answer
            && names_ours(reply)
        {
            return Err(Failure::Unavailable { message: "it refuses the revision that it names".to_owned() });
        }
        if let Ok(Ok(Reply::Result(result))) = &answer
            && let Some(offered) = discovered(result)
        {
            link.settle(Protocol::Modern);
            link.heed(result);
            return Ok(Some(offered));
        }
        match link.inbox.is_lost() {
            true => Err(match answer {
                // It was not asked, so it is not known to dislike the question.
                Ok(Err(failure @ Failure::Unavailable { .. })) => failure,
                Ok(_) | Err(_) => Failure::Died,
            }),
            false => Ok(None),
        }
    }

    /// Opens a session.
    async fn initialize(&self, link: &Link) -> Result<Offered, Failure> {
        let (asked, own) = (initialize(&self.settings.capabilities), Options::default());
        let newest = Protocol::Session(wire::SESSIONS[0]);
        let ask = async || {
            let answer = timeout(self.settings.timeout, link.request_as(newest, "initialize", &asked, &own));
            result_of(answer.await.unwrap_or(Err(Failure::TimedOut))?)
        };
        let result = match ask().await {
            Err(Failure::Unavailable { .. }) if link.falls_back().await => ask().await?,
            answer => answer?,
        };
        link.heed(&result);
        let mut offered = greeted(&result);
        let version = text(&result, "protocolVersion").unwrap_or_default();
        let known = wire::SESSIONS.into_iter().find(|known| *known == version);
        let Some(known) = known else {
            return Err(Failure::Broken("it speaks none of our revisions".to_owned()));
        };
        link.settle(Protocol::Session(known));
        link.notify("notifications/initialized", &wire::empty()).await;
        offered.protocol = Some(Protocol::Session(known));
        Ok(offered)
    }

    fn publish(&self, change: impl FnOnce(&mut Offered)) {
        self.offered.send_modify(|offered| change(Arc::make_mut(offered)));
    }
}

/// Subscribes to list changes and watched resources, and follows them until the stream ends. A child in a session tells
/// of its lists without a subscription.
async fn follow(link: &Link, protocol: Option<Protocol>, can: Capabilities, watched: &Watched) {
    let changes = can.tools_change || can.prompts_change || can.resources_change;
    if protocol != Some(Protocol::Modern) {
        // Whatever it declared, it may ask there.
        return link.follow().await;
    }
    let mut wanted = watched.0.subscribe();
    loop {
        let uris: Vec<String> = match can.subscriptions {
            true => wanted.borrow_and_update().keys().cloned().collect(),
            false => Vec::new(),
        };
        let listening = async {
            match changes || !uris.is_empty() {
                true => listen(link, can, &uris).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = wanted.changed() => if changed.is_err() { return },
            () = listening => {
                // Refused: only another question may be answered otherwise.
                if wanted.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Listens again and again until the upstream refuses to tell.
async fn listen(link: &Link, can: Capabilities, uris: &[String]) {
    let own = Options::default();
    let mut filter = serde_json::json!({
        "toolsListChanged": can.tools_change,
        "promptsListChanged": can.prompts_change,
        "resourcesListChanged": can.resources_change,
    });
    if !uris.is_empty() {
        filter["resourceSubscriptions"] = uris.into();
    }
    let params = splice::raw(format!(r#"{{"notifications":{filter}}}"#));
    let mut reopening = Reopening::new(Instant::now());
    loop {
        reopening.open(Instant::now());
        tokio::select! {
            biased;
            never = reopening.catch_up(&link.inbox) => match never {},
            answer = link.request("subscriptions/listen", &params, &own) => {
                // An error is a refusal; anything else may be otherwise next time.
                if let Ok(Reply::Error { .. }) = answer {
                    return;
                }
            }
        }
        reopening.wait(RELISTEN).await;
    }
}

fn initialize(capabilities: &str) -> Box<RawValue> {
    let (version, client) = (wire::SESSIONS[0], wire::client_info());
    let params =
        format!(r#"{{"protocolVersion":"{version}","capabilities":{capabilities},"clientInfo":{client}}}"#);
    splice::raw(params)
}

/// Reads a `server/discover` result; returns `None` if it does not offer the stateless revision.
fn discovered(result: &RawValue) -> Option<Offered> {
    let versions = member(result, "supportedVersions").ok()??;
    let versions: Vec<String> = serde_json::from_str(versions.get()).ok()?;
    if !versions.iter().any(|version| version == wire::MODERN) {
        return None;
    }
    let mut offered = greeted(result);
    offered.protocol = Some(Protocol::Modern);
    let meta = member(result, "_meta").ok().flatten();
    let key = format!("{}serverInfo", wire::PROTOCOL_KEYS);
    let server = meta.and_then(|meta| member(meta, &key).ok()?);
    offered.server = server.map(shared).or(offered.server);
    Some(offered)
}

/// Reads the fields that a handshake has in both eras.
fn greeted(result: &RawValue) -> Offered {
    let capabilities = member(result, "capabilities").ok().flatten();
    let server = member(result, "serverInfo").ok().flatten();
    let extensions = capabilities.and_then(|all| member(all, "extensions").ok()?);
    Offered {
        server: server.map(shared),
        instructions: text(result, "instructions").filter(|text| text.len() <= INSTRUCTIONS_MAX),
        extensions: extensions.and_then(|all| serde_json::from_str(all.get()).ok()).unwrap_or_default(),
        capabilities: capabilities.map(capabilities_of).unwrap_or_default(),
        ..Offered::default()
    }
}

/// Returns whether a refusal of the revision names that revision as one that is spoken: such a server is no old one.
fn names_ours(reply: &Reply) -> bool {
    let Reply::Error { code: UNSUPPORTED_VERSION, data: Some(data), .. } = reply else { return false };
    let supported = member(data, "supported").ok().flatten();
    let supported: Vec<String> =
        supported.and_then(|list| serde_json::from_str(list.get()).ok()).unwrap_or_default();
    supported.iter().any(|version| version == wire::MODERN)
}

fn shared(raw: &RawValue) -> Arc<RawValue> {
    raw.to_owned().into()
}

fn capabilities_of(raw: &RawValue) -> Capabilities {
    let has = |key| member(raw, key).ok().flatten();
    let flag = |key, name| {
        let flag = has(key).and_then(|one| member(one, name).ok()?);
        flag.is_some_and(|flag| flag.get() == "true")
    };
    let changes = |key| flag(key, "listChanged");
    Capabilities {
        tools: has("tools").is_some(),
        prompts: has("prompts").is_some(),
        resources: has("resources").is_some(),
        completions: has("completions").is_some(),
        logging: has("logging").is_some(),
        tasks: has("tasks")
            .and_then(|tasks| {
                member(member(member(tasks, "requests").ok()??, "tools").ok()??, "call").ok()?
            })
            .is_some(),
        subscriptions: flag("resources", "subscribe"),
        tools_change: changes("tools"),
        prompts_change: changes("prompts"),
        resources_change: changes("resources"),
    }
}

fn text(object: &RawValue, key: &str) -> Option<String> {
    serde_json::from_str(member(object, key).ok()??.get()).ok()
}

fn result_of(reply: Reply) -> Result<Box<RawValue>, Failure> {
    match reply {
        Reply::Result(result) => Ok(result),
        Reply::Error { code, message, .. } => {
            let message = format!("it answered error {code}: {message}");
            Err(Failure::Unavailable { message })
        }
    }
}

/// Returns a time between half of `pause` and all of it, so that many clients do not return at once.
fn jittered(pause: Duration) -> Duration {
    let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + share / 2.0)
}
