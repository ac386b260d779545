//! The gateway: what an upstream server offers, put on the router's board, and calls handed back to it.
//!
//! Invariants:
//! - names are public here and the upstream's own there. Of the rest of a request only metadata changes, and what
//!   belongs to rounds; every other byte passes unchanged.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::{Value, value::RawValue};
use tokio_util::sync::CancellationToken;

use crate::{
    block::splice,
    router::{
        BoxFuture, Held, Invocation, Method, Offered, Offering, Outcome, Passed, RpcError, Run, View,
        audience::{Audience, Manner},
        away::Absence,
        codes::INTERNAL_ERROR,
        declared::Declared,
        followed::given,
        handles::TaskSupport,
        lane,
        metadata::Hints,
        renamed,
        standing::Heard,
    },
    runtime::{
        fleet::Seen,
        passing::{ask, attend, begin, gather, outcome},
        rounds::{self, Exchange, Resumed},
        seat::Seat,
        upstream::{self, Options, Protocol, Reply, Upstream},
        upstream_tasks::{self, EXTENSION, as_task, knowing},
    },
};

/// The router bounds the time of a call; this bounds a request that the router has lost.
pub const REQUEST_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a request may take that is not recorded.
const PASS_MAX: Duration = Duration::from_secs(60);

/// How an upstream's offer appears here.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub name: String,
    /// Put before tool and prompt names; empty passes them as they are.
    pub prefix: String,
    /// Tools to offer, by their own names; empty offers all. A trailing `*` stands for any ending.
    pub enable: Vec<String>,
    /// Tools not to offer.
    pub disable: Vec<String>,
    pub rank: u32,
    pub lane: Option<String>,
    pub timeout_ms: Option<u64>,
}

impl Settings {
    /// Returns how its tools would be named, and why it is away.
    pub(super) fn absence(&self, why: &str) -> Absence {
        Absence { prefix: self.prefix.clone(), why: why.to_owned() }
    }

    pub(super) fn offering(&self, offered: &upstream::Offered, seen: &Seen, run: Gateway) -> Offering {
        let server = offered.server.as_ref();
        let server = server.and_then(|server| serde_json::from_str::<Value>(server.get()).ok());
        let version = server.as_ref().and_then(|server| server["version"].as_str()).unwrap_or_default();
        let mut all = self.lists(offered);
        let views: Vec<View> = seen
            .views
            .iter()
            .map(|(capabilities, offered)| {
                let lists = self.lists(offered);
                let view = lists.view(capabilities.clone());
                all.extend(lists);
                view
            })
            .collect();
        let first = self.lists(offered).view(Arc::default());
        let views = if views.is_empty() { views } else { [vec![first], views].concat() };
        let Lists { tools, prompts, resources, templates } = all;
        Offering {
            source: self.name.clone(),
            version: version.to_owned(),
            rank: self.rank,
            lane: Some(self.lane.clone().unwrap_or_else(|| lane::UPSTREAM.to_owned())),
            tools,
            prompts,
            resources,
            templates,
            views,
            declared: declared(offered),
            mirrors: run.mirrors,
            run: Arc::new(run),
        }
    }

    /// Returns the lists of one connection under their public names.
    fn lists(&self, offered: &upstream::Offered) -> Lists {
        let hints = Hints { timeout_ms: self.timeout_ms, ..Hints::default() };
        let named = |definitions: &[Box<RawValue>]| -> Vec<Offered> {
            definitions.iter().filter_map(|definition| self.named(definition, &hints)).collect()
        };
        let mut tools = named(&offered.tools);
        tools.retain(|tool| self.offers(&tool.inner));
        Lists {
            tools,
            prompts: named(&offered.prompts),
            resources: keyed(&offered.resources, "uri"),
            templates: keyed(&offered.templates, "uriTemplate"),
        }
    }

    /// Returns a tool or prompt under its public name.
    fn named(&self, definition: &RawValue, hints: &Hints) -> Option<Offered> {
        let inner = text_member(definition, "name")?;
        let name = format!("{}{inner}", self.prefix);
        let definition = match self.prefix.is_empty() {
            true => definition.to_owned(),
            false => renamed(definition, &name)?,
        };
        Some(Offered { inner, name, definition, hints: hints.clone(), contract: None })
    }

    fn offers(&self, tool: &str) -> bool {
        let listed = |list: &[String]| list.iter().any(|pattern| fits(pattern, tool));
        (self.enable.is_empty() || listed(&self.enable)) && !listed(&self.disable)
    }
}

/// The lists of one connection.
struct Lists {
    tools: Vec<Offered>,
    prompts: Vec<Offered>,
    resources: Vec<Offered>,
    templates: Vec<Offered>,
}

impl Lists {
    fn view(&self, capabilities: Arc<str>) -> View {
        let names = |list: &[Offered]| list.iter().map(|offered| offered.name.clone()).collect();
        View {
            capabilities,
            tools: names(&self.tools),
            prompts: names(&self.prompts),
            resources: names(&self.resources),
            templates: names(&self.templates),
        }
    }

    /// Adds what is not there yet. Of two definitions of one name the first stands.
    fn extend(&mut self, other: Self) {
        let add = |list: &mut Vec<Offered>, more: Vec<Offered>| {
            let known: HashSet<String> = list.iter().map(|offered| offered.name.clone()).collect();
            list.extend(more.into_iter().filter(|offered| !known.contains(&offered.name)));
        };
        add(&mut self.tools, other.tools);
        add(&mut self.prompts, other.prompts);
        add(&mut self.resources, other.resources);
        add(&mut self.templates, other.templates);
    }
}

/// Waits until a connection has been made, or has failed, and its server logs what is wanted.
async fn ready(upstream: &Upstream) {
    upstream.begun().await;
    upstream.attuned().await;
}

fn unreachable(why: &str) -> RpcError {
    RpcError::new(INTERNAL_ERROR, why)
}

fn declared(offered: &upstream::Offered) -> Declared {
    let can = offered.capabilities;
    Declared {
        tools: can.tools,
        prompts: can.prompts,
        resources: can.resources,
        subscriptions: can.subscriptions,
        completions: can.completions,
        tasks: knows_tasks(offered),
        extensions: offered.extensions.clone(),
        server: offered.server.clone(),
        instructions: offered.instructions.clone(),
        sole_instructions: None,
    }
}

/// Returns whether an upstream runs calls as tasks.
fn knows_tasks(offered: &upstream::Offered) -> bool {
    match offered.protocol {
        Some(Protocol::Modern) => offered.extensions.contains_key(EXTENSION),
        Some(Protocol::Session(_)) | None => offered.capabilities.tasks,
    }
}

/// Passes invocations to an upstream.
pub(super) struct Gateway {
    pub seat: Arc<Seat>,
    /// Whether calls mirror arguments in headers.
    pub mirrors: bool,
}

impl Run for Gateway {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let Some(params) = self.params(&invocation) else {
                return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
            };
            self.pass(&invocation, params).await
        })
    }

    fn watch<'a>(&'a self, uri: &'a str, audience: &'a Audience) -> BoxFuture<'a, Result<Held, RpcError>> {
        Box::pin(async move {
            let fleet = self.seat.fleet();
            if fleet.is_per_caller() {
                return Err(unreachable(
                    "what this upstream tells of is its callers' own, so nobody is subscribed",
                ));
            }
            let upstream = fleet.of(audience).map_err(|refusal| unreachable(&refusal.message))?;
            upstream.begun().await;
            match upstream.watch(uri).await {
                // The connection lasts as long as somebody watches on it.
                Ok(watching) => watching.map(|watching| Box::new((watching, upstream.clone())) as Held),
                Err(failure) => Err(unreachable(&format!("upstream {} {failure}", fleet.name()))),
            }
        })
    }

    fn hear<'a>(&'a self, heard: Heard, audience: &'a Audience) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // One that has no connection hears it when it has one.
            if let Ok(upstream) = self.seat.fleet().of(audience) {
                upstream.hear(heard).await;
            }
        })
    }

    fn pass<'a>(
        &'a self,
        method: &'a str,
        params: Box<RawValue>,
        audience: &'a Audience,
    ) -> BoxFuture<'a, Passed> {
        Box::pin(async move {
            let fleet = self.seat.fleet();
            if fleet.is_per_caller() {
                return Err(unreachable("what this upstream has is its callers' own"));
            }
            let upstream = fleet.of(audience).map_err(|refusal| unreachable(&refusal.message))?;
            upstream.begun().await;
            let options = Options {
                timeout: Some(PASS_MAX),
                cancel: CancellationToken::new(),
                notifications: None,
                questions: None,
                audience: audience.clone(),
            };
            match upstream.request(method, params, options).await {
                Ok(Reply::Result(result)) => Ok(result),
                Ok(Reply::Error { code, message, data }) => {
                    let data = data.and_then(|data| serde_json::from_str(data.get()).ok());
                    Err(RpcError { data, ..RpcError::new(code, message) })
                }
                Err(failure) => Err(unreachable(&format!("upstream {} {failure}", fleet.name()))),
            }
        })
    }

    fn gives_handles(&self, _tool: &str) -> bool {
        let offered = self.seat.fleet().first.offer().borrow().clone();
        offered.protocol == Some(Protocol::Modern) && knows_tasks(&offered)
    }

    fn admit<'a>(&'a self, audience: &'a Audience) -> BoxFuture<'a, ()> {
        let fleet = self.seat.fleet();
        Box::pin(async move { fleet.admit(audience).await })
    }
}

impl Gateway {
    /// Returns the request's params with the upstream's own name for the thing.
    fn params(&self, invocation: &Invocation) -> Option<Box<RawValue>> {
        let name = splice::raw(splice::quoted(&invocation.name));
        match invocation.method {
            Method::ResourcesRead => called(&invocation.params, "uri", &invocation.name),
            Method::ToolsCall | Method::PromptsGet => {
                splice::edit(&invocation.params, &[("name", &name)], |_| false).ok()
            }
            Method::Complete => {
                let reference = splice::member(&invocation.params, "ref").ok()??;
                let is_prompt = text_member(reference, "type")? == "ref/prompt";
                let reference = called(reference, if is_prompt { "name" } else { "uri" }, &invocation.name)?;
                splice::edit(&invocation.params, &[("ref", &reference)], |_| false).ok()
            }
        }
    }
}

impl Gateway {
    /// Passes an invocation on, in the way of the era that the upstream speaks.
    async fn pass(&self, invocation: &Invocation, params: Box<RawValue>) -> Outcome {
        let (fleet, _running) = self.seat.serve();
        let who = format!("upstream {}", fleet.name());
        let audience = invocation.client.audience();
        let fleet = match fleet.for_caller(&invocation.caller.actor.id) {
            Ok(fleet) => fleet,
            Err(refusal) => return Outcome::Untaken(refusal),
        };
        // Each request of such a task says whose it is, so it needs no session.
        let stands_alone = invocation.client.takes_handles() && self.gives_handles(&invocation.name);
        let upstream = match fleet.of(&audience) {
            _ if stands_alone => fleet.first.clone(),
            Ok(upstream) => upstream,
            Err(refusal) => return Outcome::Untaken(refusal),
        };
        // A connection that was opened for this client has the time of its call to come up.
        tokio::select! {
            () = ready(&upstream) => {}
            () = invocation.cancel.cancelled() => return Outcome::Cancelled,
        }
        let in_session = matches!(upstream.offer().borrow().protocol, Some(Protocol::Session(_)));
        if let Some(task) = &invocation.follows {
            return upstream_tasks::follow(&upstream, invocation, task).await;
        }
        if !(in_session && audience.manner == Manner::Rounds && audience.can_be_asked()) {
            return self.ask_once(&upstream, invocation, params, &audience).await;
        }
        let (exchange, ticket) = match self.seat.suspended.resume(invocation) {
            Ok(Resumed::Open { exchange, ticket }) => (exchange, Some(ticket)),
            Ok(Resumed::Before(answer)) => {
                return tokio::select! {
                    outcome = answer.outcome() => outcome,
                    () = invocation.cancel.cancelled() => Outcome::Cancelled,
                };
            }
            Ok(Resumed::Anew) => {
                let Some(params) = rounds::without_rounds(&params) else {
                    return Outcome::Rpc(Box::new(RpcError::invalid_params("params must be an object")));
                };
                let (upstream, lease) = fleet.lease(upstream, &audience, &invocation.caller.actor.id);
                tokio::select! {
                    () = ready(&upstream) => {}
                    () = invocation.cancel.cancelled() => return Outcome::Cancelled,
                }
                (begin(upstream, invocation, params, audience).holding(lease), None)
            }
            Err(error) => return Outcome::Rpc(Box::new(error)),
        };
        let outcome = self.go_on(invocation, exchange, &who).await;
        if let Some(ticket) = ticket {
            ticket.keep(&outcome);
        }
        outcome
    }

    /// Follows an open request until it is answered or asks something that its client has not answered yet.
    async fn go_on(&self, invocation: &Invocation, mut exchange: Exchange, who: &str) -> Outcome {
        // A client may bring answers before it is asked: they count as soon as the upstream asks for them.
        let mut given = rounds::answers(&invocation.params);
        while !exchange.answer(&mut given) {
            match attend(&mut exchange, invocation).await {
                Some(reply) => return outcome(reply, who),
                None => gather(&mut exchange, invocation).await,
            }
        }
        match self.seat.suspended.keep(invocation, exchange) {
            Ok(result) => Outcome::of_result(result),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }
}

/// Returns an object with this name for what it names. One that has the name already keeps its bytes.
fn called(object: &RawValue, key: &str, name: &str) -> Option<Box<RawValue>> {
    if text_member(object, key)? == name {
        return Some(object.to_owned());
    }
    splice::edit(object, &[(key, &splice::raw(splice::quoted(name)))], |_| false).ok()
}

impl Gateway {
    /// Asks, and follows the task that the upstream makes of the call if the client does not follow it itself.
    async fn ask_once(
        &self,
        upstream: &Upstream,
        invocation: &Invocation,
        params: Box<RawValue>,
        audience: &Audience,
    ) -> Outcome {
        let who = format!("upstream {}", upstream.name());
        let offered = upstream.offer().borrow().clone();
        let takes = invocation.client.takes_handles();
        let tasks = invocation.method == Method::ToolsCall && knows_tasks(&offered);
        let (params, audience) = match offered.protocol {
            Some(Protocol::Session(_)) if tasks && invocation.support == TaskSupport::Required => {
                (as_task(&params).unwrap_or(params), audience.clone())
            }
            // What the client is not to see is followed here; a client that stands alone decides for itself.
            Some(Protocol::Modern) if tasks => {
                (params, knowing(audience, takes || audience.manner != Manner::Rounds))
            }
            _ => (params, audience.clone()),
        };
        let reply = ask(upstream, invocation, None, params, &audience).await;
        match &reply {
            Ok(Reply::Result(result)) if tasks && !takes => match given(result) {
                Some(task) => upstream_tasks::follow(upstream, invocation, &task).await,
                None => outcome(reply, &who),
            },
            _ => outcome(reply, &who),
        }
    }
}

fn keyed(definitions: &[Box<RawValue>], key: &str) -> Vec<Offered> {
    let offered = |definition: &RawValue| {
        let inner = text_member(definition, key)?;
        Some(Offered {
            name: inner.clone(),
            inner,
            definition: definition.to_owned(),
            hints: Hints::default(),
            contract: None,
        })
    };
    definitions.iter().filter_map(|definition| offered(definition)).collect()
}

pub(super) fn text_member(object: &RawValue, key: &str) -> Option<String> {
    serde_json::from_str(splice::member(object, key).ok()??.get()).ok()
}

/// Returns whether a name matches the pattern; a trailing `*` stands for any ending.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}
