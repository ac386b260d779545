//! One request on its way to an answer, and what its client may know.
//!
//! Invariant: a client sees what its own capabilities let it see.

use std::sync::Arc;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    envelope::Incoming,
    logs::Logs,
    offering::implementation,
    outlet::Outlet,
    quota::RequestPermit,
    session::{Opened, Session},
};
use crate::{
    mcp::era::Era,
    router::{Offer, audience::Audience, declared::Declared},
};

/// Resources that one session or stream may watch.
pub const WATCHED_MAX: usize = 1_000;

/// One request, and the conversation that it is part of.
pub struct Turn {
    pub shared: Arc<Shared>,
    pub asked: Incoming,
    /// The session or pipe that it came in; `None` if it stands alone.
    pub session: Option<Arc<Session>>,
    /// Where goes what is said before the answer.
    pub outlet: Outlet,
    pub cancel: CancellationToken,
    /// Held until nothing works on the request any more.
    pub place: Option<RequestPermit>,
}

impl Turn {
    /// Returns what the handshake of its session told.
    pub fn opened(&self) -> Option<&Opened> {
        self.session.as_ref()?.opened.get()
    }

    /// Returns everything on offer.
    pub fn offer(&self) -> Arc<Offer> {
        self.shared.router.offer()
    }

    /// Returns what the client sees, once the sources have prepared for it.
    pub async fn offer_to(&self) -> Arc<Offer> {
        let audience = self.audience();
        self.shared.router.admit(&audience).await;
        self.shared.router.offer_for(&audience, &self.asked.caller)
    }

    /// Returns the log lines that the client wants to hear.
    pub fn logs(&self) -> Logs {
        match (self.asked.era(), self.opened()) {
            (Era::Session, Some(opened)) => opened.logs(),
            (Era::Session, None) => Logs::All,
            (Era::Stateless, _) => {
                self.asked.log_level.as_deref().and_then(Logs::from_level).unwrap_or(Logs::None)
            }
        }
    }

    /// Returns who is behind the request, as other servers may know it.
    pub fn audience(&self) -> Audience {
        match (self.asked.era(), self.opened()) {
            (Era::Session, Some(opened)) => opened.audience(),
            (Era::Session, None) => Audience::default(),
            (Era::Stateless, _) => self.asked.audience(),
        }
    }

    /// Returns what the offer's sources declare. A wrapped server that has said nothing yet may have tools: the client
    /// hears of them when they come.
    pub fn declared(&self) -> Declared {
        let declared = self.offer().declared.clone();
        let unknown = self.shared.settings.wraps && declared.server.is_none();
        Declared { tools: declared.tools || unknown, ..declared }
    }

    /// Returns who the server is: the wrapped one, where this node stands for one.
    pub fn server(&self, declared: &Declared) -> Value {
        let wrapped = declared.server.as_ref().filter(|_| self.shared.settings.wraps);
        implementation(wrapped.map(|server| &**server))
    }
}
