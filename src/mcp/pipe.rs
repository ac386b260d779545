//! Pipes: MCP with one client over a pair of streams, however its messages are told apart there.
//!
//! Invariants:
//! - only messages are written, by one task;
//! - a message that asks for what cannot be is answered, and reading goes on after it;
//! - whoever is counted asks nothing beyond its quota;
//! - what is open when the client leaves is cancelled, and has a while to be answered.

use std::{future::pending, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::{
    Barred, Shared,
    envelope::{self, Answer, Fault, Incoming, Message},
    handler::check_shape,
    outlet::{Frame, Outlet},
    quota::{Counted, RequestPermit},
    reach::reach,
    session::{Opened, Session},
    turn::Turn,
};
use crate::{
    block::json,
    caller::Caller,
    problem::json_code,
    router::{Method, RpcError, codes::INVALID_REQUEST, standing::Heard},
};

/// Messages waiting to be written.
const WRITE_QUEUE_MAX: usize = 64;
/// How long requests that the client left may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// The recorded methods, which a barred caller may not use.
const RECORDED: [Method; 4] =
    [Method::ToolsCall, Method::ResourcesRead, Method::PromptsGet, Method::Complete];

/// How messages are told apart on a stream.
pub trait Framing: Send + 'static {
    /// Whether a client may go on after bytes that are not JSON.
    const LENIENT: bool;

    /// Returns the next message's bytes; `None` at the end of the readable input. Safe to drop midway.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes, Fault>>> + Send;

    /// Returns the function that frames a message for the writing task, in the client's own form.
    fn writer(&self) -> Frame;
}

/// One client's side of the pipe.
pub struct Pipe<F> {
    shared: Arc<Shared>,
    caller: Caller,
    framing: F,
    /// The client's quota; `None` if it has none.
    counted: Option<Counted>,
    /// What is known of the client; unset before its first message, which says how it is written to.
    session: Option<Arc<Session>>,
    out: mpsc::Sender<Bytes>,
}

/// What to do with a message.
enum Read {
    Run(Box<Incoming>, Option<RequestPermit>),
    Note(Box<Incoming>),
    Hear(Answer),
    Say(String),
}

impl<F: Framing> Pipe<F> {
    /// Returns the pipe, and the queue that a writing task must drain.
    pub fn new(
        shared: Arc<Shared>,
        caller: Caller,
        framing: F,
        counted: Option<Counted>,
    ) -> (Self, mpsc::Receiver<Bytes>) {
        let (out, written) = mpsc::channel(WRITE_QUEUE_MAX);
        (Self { shared, caller, framing, counted, session: None, out }, written)
    }

    /// Serves the client until it leaves, breaks the rules or is idle for too long, or the server shuts down.
    pub async fn serve(mut self) {
        let shutdown = self.shared.settings.shutdown.clone();
        let mut running = JoinSet::new();
        loop {
            let next = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                next = self.next() => next,
                Some(_) = running.join_next(), if !running.is_empty() => continue,
            };
            let Some(bytes) = next else { break };
            let (read, last) = match bytes.and_then(|bytes| self.read(&bytes)) {
                Ok(read) => (read, false),
                Err(fault) => (Read::Say(fault.to_json()), !F::LENIENT && fault.malformed),
            };
            let session = self.session().clone();
            match read {
                Read::Run(asked, place) => {
                    let opens = asked.method == "initialize";
                    let run = run(self.shared.clone(), session, *asked, place);
                    // What comes after a handshake is read in its session.
                    if opens { run.await } else { drop(running.spawn(run)) }
                }
                Read::Note(asked) => drop(notified(&self.shared, &session, &asked)),
                Read::Hear(answer) => session.answered(answer),
                Read::Say(message) => session.outlet.say(message).await,
            }
            if last {
                break;
            }
        }
        shutdown.cancel();
        let ended = async { while running.join_next().await.is_some() {} };
        if timeout(DRAIN_MAX, ended).await.is_err() {
            tracing::warn!("requests of a client that left did not end in time");
        }
    }

    fn session(&mut self) -> &Arc<Session> {
        let Self { shared, framing, session, out, .. } = self;
        session.get_or_insert_with(|| {
            let outlet = Outlet::Queue(out.clone(), framing.writer());
            Arc::new(Session::new(outlet, shared.settings.shutdown.child_token()))
        })
    }

    fn read(&self, bytes: &[u8]) -> Result<Read, Fault> {
        json::check(bytes).map_err(|found| Fault::malformed(json_code(&found), found.to_string()))?;
        let mut asked = match envelope::read(bytes, &self.caller)? {
            Message::Answers(answer) => return Ok(Read::Hear(answer)),
            Message::Asks(asked) => asked,
        };
        let Some(id) = asked.id.clone() else {
            // A notification over the quota passes: it costs less than to say so.
            let _ = self.counted.as_ref().map(Counted::count);
            return Ok(Read::Note(Box::new(asked)));
        };
        let refused = |error| Fault::of(&id, error);
        check_shape(&asked).map_err(refused)?;
        let mut place = None;
        if let Some(counted) = &self.counted {
            let limited = |error| {
                counted.told(&asked.method, "limited");
                refused(error)
            };
            counted.count().map_err(limited)?;
            if asked.method == "ping" {
                counted.told("ping", "taken");
                return Ok(Read::Say(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)));
            }
            place = Some(counted.place(&asked.method).map_err(limited)?);
        }
        if let Err(error) = self.permit(&mut asked) {
            place.iter().for_each(RequestPermit::refuse);
            return Err(refused(error));
        }
        Ok(Read::Run(Box::new(asked), place))
    }

    /// Checks that the caller may use this method, after adding the scopes of its token.
    fn permit(&self, asked: &mut Incoming) -> Result<(), RpcError> {
        if RECORDED.iter().any(|recorded| recorded.as_str() == asked.method) {
            self.bar(&asked.caller)?;
        }
        self.admit(asked)?;
        match asked.method == Method::ToolsCall.as_str() {
            true => self.check_tool(asked),
            false => Ok(()),
        }
    }

    /// Refuses a barred caller.
    fn bar(&self, caller: &Caller) -> Result<(), RpcError> {
        let barred = self.shared.settings.barred.as_ref();
        match barred.and_then(|Barred(why)| why(&caller.actor.id)) {
            Some(why) => Err(RpcError::new(INVALID_REQUEST, why)),
            None => Ok(()),
        }
    }

    /// Adds the scopes of the message's token to the caller's.
    fn admit(&self, asked: &mut Incoming) -> Result<(), RpcError> {
        let Some(tokens) = &self.shared.settings.tokens else {
            return Ok(());
        };
        let Some(token) = asked.token.take() else {
            return Ok(());
        };
        let refused = || RpcError::new(INVALID_REQUEST, "the token of this request is not valid");
        asked.caller.scopes.extend(tokens.scopes(&token).ok_or_else(refused)?);
        Ok(())
    }

    /// Refuses a tool that callers here may not call, whether the request gives its name or its contract.
    fn check_tool(&self, asked: &Incoming) -> Result<(), RpcError> {
        let tool = self.shared.router.tool_asked(&asked.name, asked.meta.contract.as_ref());
        match tool.is_none_or(|entry| self.shared.shows(&entry.tool.name)) {
            true => Ok(()),
            false => Err(RpcError::new(INVALID_REQUEST, "this caller may not call this tool")),
        }
    }

    /// Returns the next message's bytes; `None` at the end of input, or if the client has been idle for too long.
    async fn next(&mut self) -> Option<Result<Bytes, Fault>> {
        let idle = async {
            match &self.counted {
                None => pending().await,
                Some(counted) => counted.idle().await,
            }
        };
        let next = tokio::select! {
            biased;
            next = self.framing.next() => next,
            // Nobody reads what we write any more.
            () = self.out.closed() => None,
            () = idle => None,
        };
        if let Some(counted) = &self.counted {
            counted.heard();
        }
        next
    }
}

/// Runs a request and writes its answer, unless the client has cancelled it.
fn run(
    shared: Arc<Shared>,
    session: Arc<Session>,
    asked: Incoming,
    place: Option<RequestPermit>,
) -> impl Future<Output = ()> + Send + 'static {
    // A cancellation may be the next message, so the request is known before that is read.
    let (number, cancel) = session.begin(asked.id());
    async move {
        let outlet = session.outlet.clone();
        let turn = Turn { shared, asked, session: Some(session.clone()), outlet, cancel, place };
        let answered = turn.answer().await;
        drop(turn);
        if session.finish(number) {
            session.outlet.say(answered.text).await;
        }
    }
}

/// Acts on a notification of a client. Returns the numbers of the requests that it cancels.
pub fn notified(shared: &Shared, session: &Arc<Session>, asked: &Incoming) -> Vec<u64> {
    match asked.method.as_str() {
        "notifications/cancelled" => {
            return asked.field("requestId").map(|id| session.cancel(id)).unwrap_or_default();
        }
        "notifications/initialized" if session.watch(&shared.router) => reach(session),
        "notifications/roots/list_changed" => roots_changed(shared, session),
        _ => {}
    }
    Vec::new()
}

/// Hands on that the client's roots have changed.
fn roots_changed(shared: &Shared, session: &Session) {
    let Some(audience) = session.opened.get().map(Opened::audience) else { return };
    let router = shared.router.clone();
    tokio::spawn(session.end.clone().run_until_cancelled_owned(async move {
        router.hear(Heard::Roots, &audience).await;
    }));
}
