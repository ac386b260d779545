//! One connection to an upstream, whatever it runs over.
//!
//! Invariants:
//! - a request that ends without an answer leaves nothing behind here, and the upstream is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use ::http::HeaderMap;
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::block::splice;
use crate::runtime::upstream::{
    Failure, Options, Protocol, Reply, Settings, Transport, WATCH_TIMEOUT, asking,
    child::{Child, Program},
    exchange::Post,
    headers::{self, Shown},
    http::Http,
    inbox::{Answer, Inbox, Said, Sink},
    stream::Stream,
    wire,
};

const SUBSCRIBE: &str = "resources/subscribe";
/// Requests of the upstream for one caller that nobody has taken up yet; more are refused.
const ASKED_MAX: usize = 16;

pub struct Link {
    pub inbox: Arc<Inbox>,
    transport: Open,
    protocol: OnceLock<Protocol>,
    /// The arguments that HTTP requests mirror in headers. Locked to read or replace, never across an await.
    shown: Mutex<Shown>,
    /// The resources that were subscribed to on this connection. Locked as `shown` is.
    subscribed: Mutex<BTreeSet<String>>,
}

enum Open {
    Child(Child),
    Http(Http),
    Stream(Stream),
}

impl Link {
    /// Starts the process, opens the stream, or prepares for HTTP. Errors: why that cannot be done.
    /// `beside` takes what the server says outside of requests, if that is for one client.
    pub async fn open(settings: &Settings, beside: Option<mpsc::Sender<Said>>) -> Result<Self, String> {
        let inbox = Arc::new(Inbox::new(&settings.name, settings.updates.clone(), beside));
        let shared = Arc::clone(&inbox);
        let transport = match &settings.transport {
            Transport::Child { command, args, env, directory, user } => {
                let (directory, user) = (directory.as_ref(), user.as_deref());
                let program = Program { command, args, env, directory, user };
                Open::Child(Child::open(program, shared, &settings.name)?)
            }
            Transport::Http { url, headers, credentials } => {
                Open::Http(Http::open(url, headers, credentials.clone(), shared)?)
            }
            Transport::Stream { open } => {
                let opened = timeout(settings.timeout, open.open()).await;
                let opened = opened.unwrap_or_else(|_| Err("the stream was not opened in time".to_owned()));
                Open::Stream(Stream::new(opened?, shared))
            }
        };
        Ok(Self {
            inbox,
            transport,
            protocol: OnceLock::new(),
            shown: Mutex::default(),
            subscribed: Mutex::default(),
        })
    }

    /// Fixes the protocol for all later messages.
    pub fn settle(&self, protocol: Protocol) {
        let _ = self.protocol.set(protocol);
        if let Open::Http(http) = &self.transport {
            http.settle(protocol);
        }
    }

    /// Learns from the tools which arguments their calls mirror in headers.
    pub fn learn(&self, tools: &[Box<RawValue>]) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Shown::of(tools);
    }

    /// Learns from the upstream's handshake how long a frame it takes.
    pub fn heed(&self, greeting: &RawValue) {
        if let (Open::Stream(stream), Some(max)) = (&self.transport, wire::frame_max(greeting)) {
            stream.learn(max);
        }
    }

    /// Asks in the protocol agreed on.
    pub async fn request(&self, method: &str, params: &RawValue, options: &Options) -> Answer {
        let protocol = self.protocol.get().copied().unwrap_or(Protocol::Modern);
        let answer = self.request_as(protocol, method, params, options).await;
        if matches!(answer, Ok(Reply::Result(_))) && method == SUBSCRIBE {
            let uri = splice::member(params, "uri").ok().flatten();
            let uri = uri.and_then(|uri| serde_json::from_str(uri.get()).ok());
            self.subscribed().extend(uri);
        }
        answer
    }

    /// Subscribes to what of `wanted` is not subscribed to, and lets go of the rest.
    pub async fn subscribe(&self, wanted: &BTreeMap<String, usize>) {
        let now = self.subscribed().clone();
        let missing = wanted.keys().filter(|uri| !now.contains(*uri)).map(|uri| (SUBSCRIBE, uri));
        let left =
            now.iter().filter(|uri| !wanted.contains_key(*uri)).map(|uri| ("resources/unsubscribe", uri));
        for (method, uri) in missing.chain(left) {
            let params = splice::raw(format!(r#"{{"uri":{}}}"#, splice::quoted(uri)));
            let options = Options::default();
            let asked = timeout(WATCH_TIMEOUT, self.request(method, &params, &options)).await;
            if !matches!(asked, Ok(Ok(Reply::Result(_)))) {
                tracing::debug!(method, "an upstream did not take a subscription");
            }
            if method != SUBSCRIBE {
                self.subscribed().remove(uri);
            }
        }
    }

    fn subscribed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.subscribed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks in a protocol that is not agreed on yet. Safe to drop midway: the upstream is told.
    pub async fn request_as(
        &self,
        protocol: Protocol,
        method: &str,
        params: &RawValue,
        options: &Options,
    ) -> Answer {
        let id = self.inbox.next_id();
        let peer = matches!(self.transport, Open::Stream(_));
        let (params, token) = wire::outgoing(params, id, protocol, peer, &options.audience)
            .map_err(|error| Failure::Unavailable { message: error.to_string() })?;
        let body = wire::request(id, method, &params);
        let (asked, questions) = mpsc::channel(ASKED_MAX);
        let sink = Sink {
            to: options.notifications.clone(),
            token,
            asked: options.questions.is_some().then_some(asked),
            session: options.audience.session.clone(),
        };
        let answer = self.inbox.expect(id, sink)?;
        let headers = match (&self.transport, protocol) {
            (Open::Http(_), Protocol::Modern) => {
                let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
                headers::of_request(method, &params, &shown)
            }
            _ => HeaderMap::new(),
        };
        let exchange = self.exchange((id, method), protocol, body, headers, answer);
        asking::answering(exchange, questions, options.questions.as_ref(), |answer| self.tell(answer)).await
    }

    /// Sends a request and waits for its answer.
    async fn exchange(
        &self,
        (id, method): (u64, &str),
        protocol: Protocol,
        body: String,
        headers: HeaderMap,
        answer: oneshot::Receiver<Answer>,
    ) -> Answer {
        let mut asked = Pending { link: self, id, tell: false };
        let outcome = match &self.transport {
            Open::Child(child) => {
                child.outbox.send(body).await.map_err(|_| Failure::Gone)?;
                asked.tell = true;
                answer.await.unwrap_or(Err(Failure::Died))
            }
            Open::Stream(stream) => {
                stream.send(body).await?;
                asked.tell = true;
                answer.await.unwrap_or(Err(Failure::Died))
            }
            Open::Http(http) => {
                // Without a session, closing the stream says it all.
                asked.tell = matches!(protocol, Protocol::Session(_));
                http.request(Post { id, method, body: body.into(), headers }, answer).await
            }
        };
        asked.tell = false;
        outcome
    }

    /// Sends a message as soon as there is room for it.
    pub async fn tell(&self, body: String) {
        // An upstream that has gone is noticed elsewhere.
        let _ = match &self.transport {
            Open::Child(child) => child.outbox.send(body).await.is_ok(),
            Open::Http(http) => http.outbox.send(body).await.is_ok(),
            Open::Stream(stream) => stream.outbox.send(body.into()).await.is_ok(),
        };
    }

    /// Turns to an older transport after a refusal, where the upstream has one. Returns whether it is to be asked
    /// again.
    pub async fn falls_back(&self) -> bool {
        match &self.transport {
            Open::Child(_) | Open::Stream(_) => false,
            Open::Http(http) => http.fall_back().await,
        }
    }

    /// Sends a notification; returns when it has been handed over.
    pub async fn notify(&self, method: &str, params: &RawValue) {
        let body = wire::notification(method, params);
        match &self.transport {
            // A child that has ended is noticed elsewhere.
            Open::Child(child) => drop(child.outbox.send(body).await),
            Open::Http(http) => http.notify(body).await,
            // Likewise a stream.
            Open::Stream(stream) => drop(stream.send(body).await),
        }
    }

    /// Follows list changes over HTTP in the session era, in which they have a stream of their own.
    pub async fn follow(&self) {
        if let Open::Http(http) = &self.transport {
            http.follow().await;
        }
    }

    /// Returns whether nothing can be asked over it any more.
    pub fn is_over(&self) -> bool {
        self.expired() || self.inbox.is_over()
    }

    /// True when the server has forgotten the session.
    pub fn expired(&self) -> bool {
        match &self.transport {
            Open::Child(_) | Open::Stream(_) => false,
            Open::Http(http) => http.expired(),
        }
    }

    /// Ends the connection and waits until it has ended.
    pub async fn close(&self) {
        match &self.transport {
            Open::Child(child) => child.close().await,
            Open::Http(http) => http.close().await,
            Open::Stream(stream) => stream.close().await,
        }
    }

    /// Sends a message if the outbox has room; an upstream too busy for it goes without.
    fn try_tell(&self, body: String) {
        let _ = match &self.transport {
            Open::Child(child) => child.outbox.try_send(body).is_ok(),
            Open::Http(http) => http.outbox.try_send(body).is_ok(),
            Open::Stream(stream) => stream.outbox.try_send(body.into()).is_ok(),
        };
    }
}

/// A request under way. Dropped before its answer, it is forgotten and, where it was sent, cancelled.
struct Pending<'a> {
    link: &'a Link,
    id: u64,
    tell: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.link.inbox.forget(self.id) && self.tell {
            let params = splice::raw(format!(r#"{{"requestId":{}}}"#, self.id));
            let body = wire::notification("notifications/cancelled", &params);
            // One that is not told finishes for nobody.
            self.link.try_tell(body);
        }
    }
}
