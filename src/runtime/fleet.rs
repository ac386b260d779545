//! Fleet: the connections to one upstream server, by what the clients behind them declared.
//!
//! A server in a session hears the client's capabilities once, when the session opens, and may offer other tools for
//! them. So clients with equal capabilities share a connection, and others get one of their own. Revision 2026-07-28
//! has no session: there one connection serves all, and each request says whose it is.
//!
//! Invariants, once the first connection has been made (until then it serves all):
//! - in a session of the server, a client is served by a connection that declared exactly its capabilities;
//! - over lines, a client in a session that can be asked has a connection of its own, which ends with its session:
//!   nothing there says whom a server asks. Clients without a session share;
//! - at most `MEMBERS_MAX` connections are kept beside the first; one that made room ends with its last call;
//! - where each caller has a token of its own, a request goes over connections of its caller alone.

mod kept;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::kept::Kept;
use crate::{
    error::{Code, Refusal},
    router::audience::{Audience, Manner, can_be_asked},
    runtime::upstream::{Offered, Protocol, Settings, Sharing, State, Transport, Upstream},
};

/// Connections to one upstream beside the first: over lines each is a process.
const MEMBERS_MAX: usize = 64;
/// Callers whose own connections are kept, where each has a token of its own.
const CALLERS_MAX: usize = 64;
/// How long a shared connection is kept that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Connections that clients without a session and with equal capabilities share, where each call is on one of its own.
const LEASED_MAX: usize = 8;
/// How long calls that run on connections which are replaced or removed may take to end.
const RETIRE_MAX: Duration = Duration::from_secs(300);
/// How long a client waits for the lists of a connection that is opened for it.
const ADMIT_MAX: Duration = Duration::from_secs(10);

/// The connections to one upstream. The first is there from the start, for this node's own calls and for clients that
/// declare what `settings.capabilities` says.
pub struct Fleet {
    settings: Settings,
    pub first: Upstream,
    members: Mutex<Vec<Member>>,
    /// The connections of callers with tokens of their own, by principal.
    callers: Kept<Fleet>,
    /// Whether a session was tried and the upstream turned out to have none. It stays so until the node stops.
    sessionless: AtomicBool,
    /// Counts the changes of what members offer.
    changed: watch::Sender<u64>,
    /// Counts the calls that run on any of its connections.
    calls: watch::Sender<usize>,
    /// The capabilities whose lists have been put on the board, or could not be had.
    settled: watch::Sender<HashSet<Arc<str>>>,
}

/// A call that runs on a connection of a fleet.
pub struct Running(Arc<Fleet>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

/// What the members of a fleet offer at one moment.
#[derive(Default)]
pub struct Seen {
    /// What a connection offers, by the capabilities that it declared; those of the first are left out.
    pub views: BTreeMap<Arc<str>, Arc<Offered>>,
    /// The capabilities whose connection is ready or has failed.
    pub settled: HashSet<Arc<str>>,
}

/// A connection beside the first.
struct Member {
    capabilities: Arc<str>,
    /// Whether it tries a session before the stateless revision.
    sessions_first: bool,
    /// The session that it serves alone; `None` if it is shared.
    session: Option<Weak<str>>,
    upstream: Upstream,
    used: Instant,
    /// The calls that may be asked something on it, each with its actor.
    leases: Vec<(Weak<()>, String)>,
}

/// The time of one call on a connection.
pub struct Lease {
    _held: Arc<()>,
}

/// Returns whether a client is better served by a session of the upstream, because it can be asked by requests.
fn prefers_session(audience: &Audience) -> bool {
    audience.manner == Manner::Requests && audience.can_be_asked()
}

impl Member {
    fn serves(&self, audience: &Audience, alone: bool) -> bool {
        let session = self.session.as_ref().and_then(Weak::upgrade);
        self.capabilities == audience.capabilities
            && self.sessions_first == prefers_session(audience)
            && match &audience.session {
                Some(wanted) if alone => session.is_some_and(|session| session == *wanted),
                _ => self.session.is_none(),
            }
    }

    /// Returns whether the session that it served alone has ended.
    fn is_left(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.strong_count() == 0)
    }
}

impl Fleet {
    /// Starts the first connection. Needs a tokio runtime.
    pub fn start(settings: Settings) -> Self {
        // A client in a session that is the only one can be told and asked everything.
        let first = match settings.sharing == Sharing::All && settings.sessions_first {
            true => Upstream::start_for_one(settings.clone()),
            false => Upstream::start(settings.clone()),
        };
        Self {
            settings,
            first,
            members: Mutex::default(),
            callers: Kept::new(CALLERS_MAX),
            sessionless: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            calls: watch::Sender::new(0),
            settled: watch::Sender::default(),
        }
    }

    /// Starts other connections to the same upstream.
    pub fn anew(&self) -> Self {
        Self::start(self.settings.clone())
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Returns the connections that requests of this principal go over: its own, where the upstream wants each caller's
    /// token, else these. Errors: it has no token.
    pub fn for_caller(self: &Arc<Self>, principal: &str) -> Result<Arc<Self>, Refusal> {
        let Transport::Http { url, headers, credentials: Some(credentials) } = &self.settings.transport
        else {
            return Ok(self.clone());
        };
        if !credentials.is_per_caller() {
            return Ok(self.clone());
        }
        self.callers.get_or(principal, || {
            let own = credentials.of_caller(principal);
            let known = own.standing().is_ok_and(|standing| standing.token.is_some());
            if !known {
                let message =
                    format!("upstream {} wants your own login: {}", self.name(), own.login_command());
                return Err(Refusal::new(Code::FailedPrecondition, message));
            }
            let transport = Transport::Http {
                url: url.clone(),
                headers: headers.clone(),
                credentials: Some(Arc::new(own)),
            };
            Ok(Self::start(Settings { transport, ..self.settings.clone() }))
        })
    }

    /// Returns whether each caller needs a token of its own here.
    pub fn is_per_caller(&self) -> bool {
        let Transport::Http { credentials: Some(credentials), .. } = &self.settings.transport else {
            return false;
        };
        credentials.is_per_caller()
    }

    /// Returns the connection for a client, and begins to open one if there is none. If there are too many, the shared one
    /// that was used least recently makes room. Errors: all belong to open sessions.
    pub fn of(self: &Arc<Self>, audience: &Audience) -> Result<Upstream, Refusal> {
        let upstream = self.find(audience)?;
        upstream.serve(audience);
        Ok(upstream)
    }

    fn find(self: &Arc<Self>, audience: &Audience) -> Result<Upstream, Refusal> {
        let first = self.first.offer().borrow().clone();
        if self.suits(&first, audience) {
            return Ok(self.first.clone());
        }
        let alone = self.alone(audience);
        let mut members = self.members();
        if let Some(member) = members.iter_mut().find(|member| member.serves(audience, alone)) {
            member.used = Instant::now();
            return Ok(member.upstream.clone());
        }
        if members.len() >= MEMBERS_MAX {
            // One client may declare ever other capabilities: it must not keep others out.
            let shared = members.iter().enumerate().filter(|(_, member)| member.session.is_none());
            let oldest = shared.min_by_key(|(_, member)| member.used).map(|(at, _)| at);
            let Some(at) = members.iter().position(Member::is_left).or(oldest) else {
                let message = format!("upstream {} serves too many sessions of their own", self.name());
                return Err(Refusal::new(Code::ResourceExhausted, message).retryable());
            };
            // It ends when the last running call on it has let go.
            members.swap_remove(at);
        }
        let (capabilities, sessions_first) = (audience.capabilities.clone(), prefers_session(audience));
        let settings = self.settings.clone();
        let settings = Settings { capabilities: capabilities.clone(), sessions_first, ..settings };
        let upstream = match alone {
            true => Upstream::start_for_one(settings),
            false => Upstream::start(settings),
        };
        let session = audience.session.as_ref().filter(|_| alone).map(Arc::downgrade);
        let used = Instant::now();
        let leases = Vec::new();
        members.push(Member {
            capabilities,
            sessions_first,
            session,
            upstream: upstream.clone(),
            used,
            leases,
        });
        self.watch(&upstream);
        Ok(upstream)
    }

    /// Returns the connection for a call that may be asked something, where the client would have `shared`, and holds it
    /// until the lease is dropped.
    ///
    /// Over lines a server does not say whom it asks. So once it has asked, or where calls of several actors meet, a
    /// call gets a connection on which no other may be asked; beyond `LEASED_MAX`, the one with the fewest.
    pub fn lease(
        self: &Arc<Self>,
        shared: Upstream,
        audience: &Audience,
        actor: &str,
    ) -> (Upstream, Option<Lease>) {
        let told = !matches!(self.settings.transport, Transport::Child { .. });
        if told || audience.session.is_some() || self.settings.sharing != Sharing::ByCapabilities {
            return (shared, None);
        }
        let asks = self.settings.updates.asks.load(Ordering::Relaxed);
        let mut members = self.members();
        let full = members.len() >= MEMBERS_MAX;
        let mut all: Vec<&mut Member> =
            members.iter_mut().filter(|member| member.serves(audience, false)).collect();
        for member in &mut all {
            member.leases.retain(|(lease, _)| lease.strong_count() > 0);
        }
        let is_free = |member: &Member| match asks {
            true => member.leases.is_empty(),
            false => member.leases.iter().all(|(_, other)| other == actor),
        };
        let at = all.iter().position(|member| is_free(member));
        let fewest = || (0..all.len()).min_by_key(|at| all[*at].leases.len());
        let crowded = full || all.len() >= LEASED_MAX;
        let lease = Arc::new(());
        let mark = (Arc::downgrade(&lease), actor.to_owned());
        if let Some(at) = at.or_else(|| fewest().filter(|_| crowded)) {
            let member = &mut all[at];
            member.used = Instant::now();
            member.leases.push(mark);
            return (member.upstream.clone(), Some(Lease { _held: lease }));
        }
        if full || all.is_empty() {
            return (shared, None);
        }
        let (capabilities, sessions_first) = (audience.capabilities.clone(), prefers_session(audience));
        let settings = Settings { capabilities: capabilities.clone(), ..self.settings.clone() };
        let upstream = Upstream::start(settings);
        let (used, leases) = (Instant::now(), vec![mark]);
        let session = None;
        members.push(Member {
            capabilities,
            sessions_first,
            session,
            upstream: upstream.clone(),
            used,
            leases,
        });
        drop(members);
        upstream.serve(audience);
        self.watch(&upstream);
        (upstream, Some(Lease { _held: lease }))
    }

    /// Waits until the lists that a client is to see are on the board, within a bound.
    pub async fn admit(self: &Arc<Self>, audience: &Audience) {
        let found = self.of(audience);
        let first = self.first.offer().borrow().clone();
        if found.is_err() || self.suits(&first, audience) {
            return;
        }
        let mut settled = self.settled.subscribe();
        let known = settled.wait_for(|settled| settled.contains(&audience.capabilities));
        // Without them the client sees the lists of the first connection, and hears of a change later.
        let _ = timeout(ADMIT_MAX, known).await;
    }

    /// Returns whether the first connection is one for this client.
    fn suits(&self, first: &Offered, audience: &Audience) -> bool {
        match (self.settings.sharing, first.protocol) {
            (Sharing::All, _) | (_, None) => true,
            (Sharing::BySession, _) if audience.session.is_some() => false,
            (_, Some(Protocol::Session(_))) => {
                audience.capabilities == self.settings.capabilities && !self.alone(audience)
            }
            // Each request says whose it is. But a server of both eras may ask in sessions alone, and not every such
            // server says that it has sessions: one is tried once.
            (_, Some(Protocol::Modern)) => {
                !prefers_session(audience) || self.sessionless.load(Ordering::Relaxed)
            }
        }
    }

    /// Returns what members offer, and whose lists are settled by that. Ends members whose server turned out to have no
    /// sessions.
    pub fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        let mut members = self.members();
        let shared = self.settings.sharing != Sharing::BySession;
        let sessionless = |member: &Member| {
            shared
                && member.sessions_first
                && member.upstream.offer().borrow().protocol == Some(Protocol::Modern)
        };
        if members.iter().any(sessionless) {
            self.sessionless.store(true, Ordering::Relaxed);
            seen.settled.extend(
                members.extract_if(.., |member| sessionless(member)).map(|member| member.capabilities),
            );
        }
        for member in members.iter() {
            let offered = member.upstream.offer().borrow().clone();
            if offered.state != State::Connecting {
                seen.settled.insert(member.capabilities.clone());
            }
            let own = member.capabilities == self.settings.capabilities;
            if offered.protocol.is_some() && !own {
                seen.views.entry(member.capabilities.clone()).or_insert(offered);
            }
        }
        seen
    }

    /// Says whose lists are on the board now, or could not be had.
    pub fn settle(&self, settled: HashSet<Arc<str>>) {
        self.settled.send_replace(settled);
    }

    /// Returns the URIs of watched resources as they change.
    pub fn updates(&self) -> broadcast::Receiver<Arc<str>> {
        self.settings.updates.changed.subscribe()
    }

    /// Watches for what changes at the members.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Ends the connections of sessions that have ended, and lets go of shared ones that nobody uses.
    pub async fn sweep(&self) {
        // One with a running call, or a watched resource, ends when that lets go.
        self.members().retain(|member| member.session.is_some() || member.used.elapsed() < IDLE_MAX);
        let left: Vec<Upstream> =
            self.members().extract_if(.., |member| member.is_left()).map(|member| member.upstream).collect();
        for upstream in left {
            upstream.stop().await;
        }
        for own in self.callers.sweep(IDLE_MAX) {
            Box::pin(own.sweep()).await;
        }
    }

    /// Counts a call until what is returned is dropped.
    pub fn running(self: &Arc<Self>) -> Running {
        self.calls.send_modify(|calls| *calls += 1);
        Running(self.clone())
    }

    /// Lets the calls that run end, for at most `RETIRE_MAX` or until `hurry`, and ends all connections.
    pub async fn retire(&self, hurry: &CancellationToken) {
        let mut calls = self.calls.subscribe();
        let ended = async { drop(calls.wait_for(|calls| *calls == 0).await) };
        tokio::select! {
            ended = timeout(RETIRE_MAX, ended) => if ended.is_err() {
                tracing::warn!(upstream = %self.name(), "calls of a connection that was replaced are cut off");
            },
            () = hurry.cancelled() => {}
        }
        self.stop().await;
    }

    /// Ends all connections.
    pub async fn stop(&self) {
        let members: Vec<Upstream> = self.members().drain(..).map(|member| member.upstream).collect();
        let members = members.iter().map(Upstream::stop);
        tokio::join!(self.first.stop(), futures_util::future::join_all(members));
        for own in self.callers.take() {
            Box::pin(own.stop()).await;
        }
    }

    /// Returns whether the client needs a connection that no other session uses.
    fn alone(&self, audience: &Audience) -> bool {
        // Over HTTP a server asks on the stream of the call it asks for; over lines nothing says whom it asks.
        let untold = matches!(self.settings.transport, Transport::Child { .. });
        let isolated = self.settings.sharing == Sharing::BySession;
        audience.session.is_some() && (isolated || untold && can_be_asked(&audience.capabilities))
    }

    fn watch(&self, upstream: &Upstream) {
        let (mut offer, changed) = (upstream.offer(), self.changed.clone());
        // Ends with the connection, whose channel it watches.
        tokio::spawn(async move {
            while offer.changed().await.is_ok() {
                changed.send_modify(|count| *count += 1);
            }
        });
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
