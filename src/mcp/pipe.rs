//! Pipes: MCP with one client over a pair of streams, however its messages are told apart there.
//!
//! Invariants:
//! - only messages are written, by one task;
//! - a message that asks for what cannot be is answered, and reading goes on after it;
//! - whoever is counted asks nothing of the library beyond its quota.

use std::{future::pending, io, sync::Arc};

use bytes::Bytes;
use rmcp::{
    RoleServer,
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::Transport,
};
use tokio::sync::mpsc;

use super::{
    Barred, Shared,
    envelope::{self, Fault, Incoming, Message},
    offering::header_tool,
    quota::{Counted, RequestPermit},
    raw::unpack,
};
use crate::{
    block::json,
    caller::Caller,
    problem::json_code,
    router::{Method, RpcError, codes::INVALID_REQUEST},
};

/// Messages waiting to be written.
const WRITE_QUEUE_MAX: usize = 64;
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
    fn writer(&self) -> fn(Vec<u8>) -> Bytes;
}

/// The transport of one client.
pub struct Pipe<F> {
    shared: Arc<Shared>,
    caller: Caller,
    framing: F,
    /// The client's quota; `None` if it has none.
    counted: Option<Counted>,
    /// An answer of ours, not yet handed to the writer.
    answer: Option<Bytes>,
    /// Whether nothing is read after that answer.
    last: bool,
    out: mpsc::Sender<Bytes>,
}

/// What to do with a message: pass it to the library, or answer it.
enum Read {
    Pass(Box<ClientJsonRpcMessage>),
    Answer(Vec<u8>),
}

impl<F: Framing> Pipe<F> {
    /// Returns the transport, and the queue that a writing task must drain.
    pub fn new(
        shared: Arc<Shared>,
        caller: Caller,
        framing: F,
        counted: Option<Counted>,
    ) -> (Self, mpsc::Receiver<Bytes>) {
        let (out, written) = mpsc::channel(WRITE_QUEUE_MAX);
        (Self { shared, caller, framing, counted, answer: None, last: false, out }, written)
    }

    fn read(&self, bytes: &[u8]) -> Result<Read, Fault> {
        json::check(bytes).map_err(|found| Fault::malformed(json_code(&found), found.to_string()))?;
        let unread = |_| Fault::malformed(INVALID_REQUEST, "this is not a message of this protocol");
        let (mut asked, method, id, slim) = match envelope::read(bytes, &self.caller)? {
            Message::Answers => {
                return Ok(Read::Pass(Box::new(serde_json::from_slice(bytes).map_err(unread)?)));
            }
            Message::Asks { asked, method, id, slim } => (asked, method, id, slim),
        };
        let refused = |error| Fault::of(id.unwrap_or("null"), error);
        let place = match (&self.counted, id) {
            (None, _) => None,
            // A notification over the quota passes: it costs less than to say so.
            (Some(counted), None) => counted.count().ok().and(None),
            (Some(counted), Some(id)) => {
                let limited = |error| {
                    counted.told(&method, "limited");
                    refused(error)
                };
                counted.count().map_err(limited)?;
                if method == "ping" {
                    counted.told(&method, "taken");
                    let pong = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
                    return Ok(Read::Answer(pong.into()));
                }
                Some(counted.place(&method).map_err(limited)?)
            }
        };
        if let Err(error) = self.permit(&method, &mut asked) {
            place.iter().for_each(RequestPermit::refuse);
            return Err(refused(error));
        }
        let offer = self.shared.router.offer();
        let slim = slim.filter(|_| header_tool(&offer, &asked.name).is_none());
        let mut message: ClientJsonRpcMessage = match slim {
            Some(slim) => serde_json::from_slice(&slim.to_json()),
            None => serde_json::from_slice(bytes),
        }
        .map_err(unread)?;
        message.insert_extension(asked);
        if let Some(place) = place {
            // Held until the library has let go of the request.
            message.insert_extension(Arc::new(place));
        }
        Ok(Read::Pass(Box::new(message)))
    }

    /// Checks that the caller may use this method, after adding the scopes of its token.
    fn permit(&self, method: &str, asked: &mut Arc<Incoming>) -> Result<(), RpcError> {
        if RECORDED.iter().any(|recorded| recorded.as_str() == method) {
            self.bar(&asked.caller)?;
        }
        self.admit(asked)?;
        match method == Method::ToolsCall.as_str() {
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
    fn admit(&self, asked: &mut Arc<Incoming>) -> Result<(), RpcError> {
        let (Some(tokens), Some(asked)) = (&self.shared.settings.tokens, Arc::get_mut(asked)) else {
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

impl<F: Framing> Transport<RoleServer> for Pipe<F> {
    type Error = io::Error;

    fn send(
        &mut self,
        message: ServerJsonRpcMessage,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let (out, written) = (self.out.clone(), self.framing.writer());
        async move {
            let bytes = serde_json::to_vec(&message)?;
            let bytes = unpack(&bytes).unwrap_or(bytes);
            out.send(written(bytes)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
        }
    }

    async fn receive(&mut self) -> Option<ClientJsonRpcMessage> {
        loop {
            if self.answer.is_some() {
                let permit = self.out.reserve().await.ok()?;
                permit.send(self.answer.take()?);
            }
            let next = if self.last { None } else { self.next().await };
            let Some(bytes) = next else {
                self.shared.settings.shutdown.cancel();
                return None;
            };
            match bytes.and_then(|bytes| self.read(&bytes)) {
                Ok(Read::Pass(message)) => return Some(*message),
                Ok(Read::Answer(answer)) => self.answer = Some(self.framing.writer()(answer)),
                Err(fault) => {
                    self.last = !F::LENIENT && fault.malformed;
                    self.answer = Some(self.framing.writer()(fault.to_json()));
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        Ok(())
    }
}
