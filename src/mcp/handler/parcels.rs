//! Parcels of the handler: answers that the library has no types for, and what is prepared before one is given.
//!
//! Invariant: what stands here answers one request; which request, the handler says.

use std::sync::{Arc, PoisonError};

use rmcp::{
    ErrorData, RoleServer,
    model::{CustomNotification, MetaObject, ServerNotification},
    service::{RequestContext, SubscriptionContext},
};
use serde::Serialize;
use serde_json::Value;

use super::{Handler, WATCHED_MAX, asked, era};
use crate::{
    mcp::{
        client::{CallClient, Logs, relay, to_library},
        envelope::{Incoming, invalid_params},
        era::Era,
        raw::pack,
        tasks,
    },
    router::{
        Entry, Held, Offer, RpcError,
        audience::{Audience, Manner},
        codes::INVALID_REQUEST,
    },
};

impl Handler {
    /// Answers a method of tasks as a parcel.
    pub(super) async fn of_task(
        &self,
        method: &str,
        context: &RequestContext<RoleServer>,
    ) -> Result<MetaObject, ErrorData> {
        let asked = asked(&context.extensions)?;
        let era = era(context);
        let (client, heard) = CallClient::new(self.logs(asked, era), self.audience(asked, era));
        let answer = context.ct.run_until_cancelled(tasks::answer(&self.shared, method, asked, era, &client));
        let answer = relay(answer, heard, &context.peer, &context.ct).await;
        let cancelled = || RpcError::new(INVALID_REQUEST, "the request was cancelled");
        Ok(pack(answer.unwrap_or_else(|| Err(cancelled())).map_err(to_library)?))
    }

    /// Makes a task of a tool call. A session then hears how it goes.
    pub(super) async fn made(
        &self,
        made: (&Entry, u64),
        context: &RequestContext<RoleServer>,
    ) -> Result<MetaObject, ErrorData> {
        let asked = asked(&context.extensions)?;
        let era = era(context);
        let (id, told) = tasks::create(&self.shared, asked, made, &self.audience(asked, era), era)
            .await
            .map_err(to_library)?;
        if let Some(session) = self.session.get().filter(|_| era == Era::Session) {
            let (peer, open) = (context.peer.clone(), session.open.clone());
            let telling = tasks::tell(self.shared.clone(), asked.caller.clone(), id, async move |params| {
                let note = CustomNotification::new("notifications/tasks/status", Some(params));
                // A session that does not listen is told of nothing.
                let _ = peer.send_notification(ServerNotification::CustomNotification(note)).await;
            });
            tokio::spawn(async move { open.run_until_cancelled(telling).await });
        }
        Ok(pack(told))
    }

    /// Returns a handshake's result with the caller's limits as a parcel; `None` if there are no limits.
    pub(super) fn with_limits(&self, result: &impl Serialize) -> Option<MetaObject> {
        self.shared.bounds.and(serde_json::to_value(result).ok()).map(|result| self.limited(result))
    }

    /// Returns a handshake's result as a parcel, with the caller's limits if there are any.
    pub(super) fn limited(&self, mut result: Value) -> MetaObject {
        if let Some(limits) = self.shared.bounds.map(|bounds| bounds.told()) {
            result["limits"] = limits.clone();
            result["_meta"]["io.cairn/limits"] = limits;
        }
        pack(result.to_string())
    }

    /// Returns what the client of a request sees, once the sources have prepared for it.
    pub(super) async fn offer_to(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<Arc<Offer>, ErrorData> {
        let audience = self.audience(asked(&context.extensions)?, era(context));
        self.shared.router.admit(&audience).await;
        Ok(self.shared.router.offer_to(&audience))
    }

    /// Watches resources as long as what is returned lives. One that no source tells of is never updated.
    pub(super) async fn watch_all(
        &self,
        uris: &[String],
        context: &SubscriptionContext,
    ) -> Result<Vec<Held>, ErrorData> {
        if uris.len() > WATCHED_MAX {
            return Err(to_library(invalid_params("resourceSubscriptions names too many resources")));
        }
        let audience = self.audience(asked(&context.request_context().extensions)?, Era::Stateless);
        let watching = uris.iter().map(|uri| self.shared.router.watch(uri, &audience));
        Ok(futures_util::future::join_all(watching).await.into_iter().flatten().collect())
    }

    pub(super) fn logs(&self, asked: &Incoming, era: Era) -> Logs {
        match era {
            Era::Stateless => asked.log_level.as_deref().and_then(Logs::from_level).unwrap_or(Logs::None),
            Era::Session => self
                .session
                .get()
                .map_or(Logs::All, |session| *session.logs.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    pub(super) fn audience(&self, asked: &Incoming, era: Era) -> Audience {
        match (era, self.session.get()) {
            (Era::Session, Some(session)) => Audience {
                capabilities: session.capabilities.clone(),
                log_level: self.logs(asked, era).level().map(str::to_owned),
                session: Some(session.name.clone()),
                manner: Manner::Requests,
            },
            (Era::Session, None) => Audience::default(),
            (Era::Stateless, _) => asked.audience(),
        }
    }
}
