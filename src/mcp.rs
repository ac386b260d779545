//! MCP: one server for both ways of speaking it, over HTTP, over lines and over frames.
//!
//! A message is read once by `envelope`; `handler` has the one table of methods; what a request says before its answer,
//! and its answer, leave by `outlet`. The doors differ in what they check before and in where an outlet leads.
//!
//! Invariants:
//! - the router sees a request's params byte for byte, and the client a result's bytes;
//! - the HTTP edge has checked host, origin, size, token and strict JSON before [`Endpoint::respond`];
//! - a request that stands alone is cancelled when its client goes away; one in a session, when its client says so.

mod era;
mod answer;
mod envelope;
mod list;
mod logs;
mod offering;
mod headers;
mod tasks;
pub mod quota;
mod outlet;
mod session;
mod client;
mod reach;
mod turn;
mod listening;
mod handler;
mod pipe;
mod framed;
mod lines;
mod sessions;
mod endpoint;

use std::{fmt, io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use self::{
    framed::Framed,
    lines::Lines,
    pipe::Pipe,
    quota::{Bounds, Quotas},
};
use crate::{
    caller::{Caller, Scope},
    frames,
    questions::Audit,
    router::{BoxFuture, Router},
    runtime::{gateway::fits, upstream::Duplex},
};

pub use self::{endpoint::Endpoint, envelope::Hello};

/// Listen streams open at once: each holds a connection and about 20 KB.
const LISTENERS_MAX: usize = 1_024;

/// The settings of the MCP server.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Text for the client's model about what this server is for.
    pub instructions: Option<String>,
    /// Whether this node stands for one server behind it: then it gives that server's name and instructions.
    pub wraps: bool,
    /// Ends listen streams and sessions when cancelled.
    pub shutdown: CancellationToken,
    /// Whether tools are listed with their contracts, and without those of our own peers. Set for callers that are
    /// peers.
    pub contracts: bool,
    /// The tools that callers over frames see and may call, by their public names; empty allows all. A trailing `*`
    /// stands for any ending.
    pub tools: Vec<String>,
    /// Resolves tokens in requests over frames; `None` if tokens are not accepted there.
    pub tokens: Option<Tokens>,
    /// Tells which callers over frames are barred; `None` if all are served.
    pub barred: Option<Barred>,
    /// The quotas of callers over frames. Doors that share this value count together.
    pub quotas: Quotas,
}

/// Returns the scopes that a token grants; `None` for an invalid one.
#[derive(Clone)]
pub struct Tokens(Arc<Granting>);

type Granting = dyn Fn(&str) -> Option<Vec<Scope>> + Send + Sync;

impl Tokens {
    pub fn new(grants: impl Fn(&str) -> Option<Vec<Scope>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(grants))
    }

    fn scopes(&self, token: &str) -> Option<Vec<Scope>> {
        (self.0)(token)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Tokens")
    }
}

/// Returns why the caller with this id is barred; `None` if it is served.
#[derive(Clone)]
pub struct Barred(Arc<Barring>);

type Barring = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Barred {
    pub fn new(why: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(why))
    }
}

impl fmt::Debug for Barred {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Barred")
    }
}

/// What all requests share.
struct Shared {
    router: Arc<Router>,
    settings: Settings,
    /// The bounds that each caller is held to and told of; `None` if the door enforces its own.
    bounds: Option<Bounds>,
    /// One permit for each listen stream.
    listeners: Semaphore,
    /// Where lists of tasks are asked for.
    audit: Audit,
}

impl Shared {
    /// Returns whether callers may call the tool with this public name.
    fn shows(&self, tool: &str) -> bool {
        let tools = &self.settings.tools;
        tools.is_empty() || tools.iter().any(|pattern| fits(pattern, tool))
    }

    fn new(router: Arc<Router>, settings: Settings) -> Self {
        let audit = Audit::new(router.ledger().clone());
        Self { router, settings, bounds: None, listeners: Semaphore::new(LISTENERS_MAX), audit }
    }
}

/// Serves one client that writes messages to `reader`'s other end, until it closes that or the server shuts down.
///
/// Only messages are written to `writer`.
pub async fn serve_stdio(
    router: Arc<Router>,
    settings: Settings,
    caller: Caller,
    reader: impl AsyncRead + Send + Unpin + 'static,
    writer: impl AsyncWrite + Send + Unpin + 'static,
) -> io::Result<()> {
    let shared = Arc::new(Shared::new(router, ended_alone(settings)));
    let (pipe, written) = Pipe::new(shared, caller, Lines::new(reader), None);
    // The queue ends with the pipe, and the writer with the queue.
    let ((), wrote) = tokio::join!(pipe.serve(), lines::write(written, writer));
    wrote
}

/// Serves one stream of a peer, until the peer closes it, breaks the rules or is idle for too long, or the server
/// shuts down.
///
/// The quota of a caller is shared by all its streams that have the same `settings.quotas`.
pub async fn serve_frames(
    router: Arc<Router>,
    settings: Settings,
    caller: Caller,
    stream: impl Duplex + 'static,
) -> io::Result<()> {
    let bounds = settings.quotas.bounds;
    let counted = settings.quotas.stream(&caller.actor.id);
    let shared = Shared { bounds: Some(bounds), ..Shared::new(router, ended_alone(settings)) };
    let (reader, writer) = tokio::io::split(stream);
    let (pipe, written) = Pipe::new(Arc::new(shared), caller, Framed::new(reader), Some(counted));
    // Boxed, the compiler can tell that both can be sent to another thread.
    let serving: BoxFuture<'static, ()> = Box::pin(pipe.serve());
    let writing: BoxFuture<'static, io::Result<()>> = Box::pin(frames::write(written, writer, bounds.idle));
    let ((), wrote) = tokio::join!(serving, writing);
    wrote
}

/// Gives a stream a shutdown of its own, so that its listeners end with it or with the server.
fn ended_alone(settings: Settings) -> Settings {
    Settings { shutdown: settings.shutdown.child_token(), ..settings }
}

#[cfg(test)]
mod tests;
