//! What the door read of a request, as the library hands it on, and what is watched for it.
//!
//! Invariant: a request that the door has not read is answered with an error.

use std::sync::Arc;

use rmcp::{
    ErrorData, RoleServer,
    model::Extensions,
    service::{RequestContext, SubscriptionContext},
};

use super::{Handler, WATCHED_MAX};
use crate::{
    mcp::{
        client::to_library,
        envelope::{FIRST_STATELESS, Incoming, invalid_params},
        era::Era,
    },
    router::{Held, RpcError, codes::INTERNAL_ERROR},
};

impl Handler {
    /// Watches resources as long as what is returned lives. One that no source tells of is never updated.
    pub(super) async fn watch_all(
        &self,
        uris: &[String],
        context: &SubscriptionContext,
    ) -> Result<Vec<Held>, ErrorData> {
        if uris.len() > WATCHED_MAX {
            return Err(to_library(invalid_params("resourceSubscriptions names too many resources")));
        }
        let asked = asked(&context.request_context().extensions)?;
        let audience = self.audience(asked, Era::Stateless);
        let watching = uris.iter().map(|uri| self.shared.router.watch_for(&asked.caller, uri, &audience));
        Ok(futures_util::future::join_all(watching).await.into_iter().flatten().collect())
    }
}

/// Returns the era that a request belongs to.
pub(super) fn era(context: &RequestContext<RoleServer>) -> Era {
    match context.protocol_version() {
        Some(version) if version.as_str() >= FIRST_STATELESS => Era::Stateless,
        _ => Era::Session,
    }
}

/// Returns what the door read of this request: from the extensions on stdio, from the request's parts over HTTP.
pub(super) fn asked(extensions: &Extensions) -> Result<&Arc<Incoming>, ErrorData> {
    extensions
        .get::<Arc<Incoming>>()
        .or_else(|| extensions.get::<http::request::Parts>()?.extensions.get())
        .ok_or_else(|| to_library(RpcError::new(INTERNAL_ERROR, "the request was not read")))
}
