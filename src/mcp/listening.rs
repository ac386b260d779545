//! Listening: the stream of changes that a client of revision 2026-07-28 asks for.
//!
//! Invariants:
//! - the client is told first which changes it will hear of, and hears of no others;
//! - a stream ends with its request, or with the server.

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    envelope::invalid_params,
    session::{UPDATED, changed, list_changed, notification},
    turn::{Turn, WATCHED_MAX},
};
use crate::router::{Change, RpcError, codes::INTERNAL_ERROR, declared::Declared};

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// The changes that a client wants to hear of.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    tools_list_changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompts_list_changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resources_list_changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_subscriptions: Option<Vec<String>>,
}

impl Filter {
    /// Returns the part of it that the server declares to tell of.
    fn accepted(self, declared: &Declared) -> Self {
        let both = |wanted: Option<bool>, declared: bool| (wanted == Some(true) && declared).then_some(true);
        let uris = self.resource_subscriptions.filter(|uris| declared.subscriptions && !uris.is_empty());
        Self {
            tools_list_changed: both(self.tools_list_changed, declared.tools),
            prompts_list_changed: both(self.prompts_list_changed, declared.prompts),
            resources_list_changed: both(self.resources_list_changed, declared.resources),
            resource_subscriptions: uris,
        }
    }

    fn takes(&self, change: Change) -> bool {
        let wanted = match change {
            Change::Tools => self.tools_list_changed,
            Change::Prompts => self.prompts_list_changed,
            Change::Resources => self.resources_list_changed,
        };
        wanted == Some(true)
    }
}

impl Turn {
    /// Tells of changes until the request is cancelled or the server stops, and then answers it.
    pub async fn listen(&self, out: &mut String) -> Result<(), RpcError> {
        let message = "all listen streams are in use; try again later";
        let full = |_| RpcError::new(INTERNAL_ERROR, message);
        let _permit = self.shared.listeners.try_acquire().map_err(full)?;
        let unread =
            |_| invalid_params("subscriptions/listen: the params do not have the shape of this method");
        let wanted = self.asked.field("notifications").unwrap_or("{}");
        let wanted: Filter = serde_json::from_str(wanted).map_err(unread)?;
        let declared = self.declared();
        let filter = wanted.accepted(&declared);
        let mut uris = filter.resource_subscriptions.clone().unwrap_or_default();
        if uris.len() > WATCHED_MAX {
            return Err(invalid_params("resourceSubscriptions names too many resources"));
        }
        // What a caller may not read it is told nothing of, though others watch it.
        uris.retain(|uri| self.shared.router.reads(&self.asked.caller, uri));
        let id: Value = serde_json::from_str(self.asked.id()).unwrap_or_default();
        let meta = json!({SUBSCRIPTION: id});
        let (mut changes, mut updates) = (self.shared.router.changes(), self.shared.router.updates());
        let params = json!({"_meta": meta, "notifications": filter});
        self.say("notifications/subscriptions/acknowledged", &params).await;
        let audience = self.audience();
        // One that no source tells of is never updated.
        let _watched =
            join_all(uris.iter().map(|uri| self.shared.router.watch_for(&self.asked.caller, uri, &audience)))
                .await;
        loop {
            let received = tokio::select! {
                biased;
                received = changes.recv() => received,
                Ok(uri) = updates.recv() => {
                    if uris.iter().any(|wanted| **wanted == *uri) {
                        self.say(UPDATED, &json!({"_meta": meta, "uri": &*uri})).await;
                    }
                    continue;
                }
                () = self.cancel.cancelled() => break,
                () = self.shared.settings.shutdown.cancelled() => break,
            };
            let Some(changed) = changed(received) else { break };
            for change in changed.into_iter().filter(|change| filter.takes(*change)) {
                self.say(list_changed(change), &json!({"_meta": meta})).await;
            }
        }
        let server = self.server(&declared);
        let meta = json!({SUBSCRIPTION: id, "io.modelcontextprotocol/serverInfo": server});
        out.push_str(&json!({"resultType": "complete", "_meta": meta}).to_string());
        Ok(())
    }

    async fn say(&self, method: &str, params: &Value) {
        self.outlet.say(notification(method, Some(params))).await;
    }
}
