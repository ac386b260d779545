//! The handler: each method of MCP, by one table.
//!
//! Invariants:
//! - a method is answered in the eras that have it, and its params have the shape of the table;
//! - a list nobody declared is an unknown method, never an empty list;
//! - a result leaves as the bytes of its source, with what is spliced in.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;

use super::{
    answer::{LIST_TTL_MS, READ_TTL_MS, conclude, finish},
    client::{CallClient, Silent, relay},
    envelope::{Fault, Incoming, invalid_params},
    era::VERSIONS,
    list::page,
    logs::Logs,
    offering::{
        capabilities, contract_entry, declared, listed_entry, method_not_found, own_tools,
        session_tool_entry, tool_entry,
    },
    session::{Opened, notification},
    tasks::{self, Way},
    turn::{Turn, WATCHED_MAX},
};
use crate::{
    mcp::era::Era,
    router::{
        BoxFuture, Entry, Method, RpcError,
        codes::{
            INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, REQUEST_TIMEOUT, RESOURCE_NOT_FOUND,
            UNSUPPORTED_VERSION,
        },
        declared::Declared,
        skills::Asked,
        standing::Heard,
    },
};

/// The revision of a session whose client asks for one that we do not speak there.
const LATEST_IN_SESSION: &str = "2025-11-25";
/// The notification of how a task goes, in sessions.
const TASK_STATUS: &str = "notifications/tasks/status";

/// A message that answers a request.
pub struct Answered {
    pub text: String,
    /// The code, if it is an error.
    pub failed: Option<i64>,
}

/// Appends a request's result to the text of its answer.
type Answering = for<'a> fn(&'a Turn, &'a mut String) -> BoxFuture<'a, Result<(), RpcError>>;

/// A method, the eras that have it, and the shape of its params.
struct Known {
    name: &'static str,
    eras: &'static [Era],
    shape: &'static [(&'static str, Shape)],
    answer: Answering,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    TextOrAbsent,
    Object,
    ObjectOrAbsent,
}

const LISTEN: &str = "subscriptions/listen";
const BOTH: &[Era] = &[Era::Session, Era::Stateless];
const SESSION: &[Era] = &[Era::Session];
const STATELESS: &[Era] = &[Era::Stateless];
const CURSOR: &[(&str, Shape)] = &[("cursor", Shape::TextOrAbsent)];
const DIRECTORY: &[(&str, Shape)] = &[("uri", Shape::Text), ("cursor", Shape::TextOrAbsent)];
const TASK: &[(&str, Shape)] = &[("taskId", Shape::Text)];
const URI: &[(&str, Shape)] = &[("uri", Shape::Text)];
const NAMED: &[(&str, Shape)] = &[("name", Shape::Text), ("arguments", Shape::ObjectOrAbsent)];
const HANDSHAKE: &[(&str, Shape)] =
    &[("protocolVersion", Shape::Text), ("capabilities", Shape::Object), ("clientInfo", Shape::Object)];

/// Every method that is answered, those that are asked for most first.
const METHODS: &[Known] = &[
    known("tools/call", BOTH, NAMED, |turn, out| Box::pin(turn.call_tool(out))),
    known("tools/list", BOTH, CURSOR, |turn, out| Box::pin(turn.list_tools(out))),
    known("resources/read", BOTH, URI, |turn, out| Box::pin(turn.read_resource(out))),
    known("prompts/get", BOTH, NAMED, |turn, out| Box::pin(turn.get_prompt(out))),
    known("ping", SESSION, &[], |_, out| Box::pin(empty(out))),
    known("initialize", SESSION, HANDSHAKE, |turn, out| Box::pin(turn.initialize(out))),
    known("server/discover", BOTH, &[], |turn, out| Box::pin(turn.discover(out))),
    known("prompts/list", BOTH, CURSOR, |turn, out| Box::pin(turn.list_prompts(out))),
    known("resources/list", BOTH, CURSOR, |turn, out| Box::pin(turn.list_resources(out))),
    known("tasks/get", BOTH, TASK, |turn, out| Box::pin(turn.of_task(out))),
    known("tasks/result", SESSION, TASK, |turn, out| Box::pin(turn.of_task(out))),
    known("tasks/cancel", BOTH, TASK, |turn, out| Box::pin(turn.of_task(out))),
    known("tasks/list", SESSION, CURSOR, |turn, out| Box::pin(turn.of_task(out))),
    known(
        "tasks/update",
        STATELESS,
        &[("taskId", Shape::Text), ("inputResponses", Shape::Object)],
        |turn, out| Box::pin(turn.of_task(out)),
    ),
    known("resources/directory/read", BOTH, DIRECTORY, |turn, out| {
        Box::pin(turn.skills(out, Asked::Directory))
    }),
    known("skills/list", BOTH, CURSOR, |turn, out| Box::pin(turn.skills(out, Asked::List))),
    known("skills/get", BOTH, URI, |turn, out| Box::pin(turn.skills(out, Asked::Get))),
    known("resources/templates/list", BOTH, CURSOR, |turn, out| Box::pin(turn.list_resource_templates(out))),
    known(
        "completion/complete",
        BOTH,
        &[("ref", Shape::Object), ("argument", Shape::Object)],
        |turn, out| Box::pin(turn.complete(out)),
    ),
    known("logging/setLevel", SESSION, &[("level", Shape::Text)], |turn, out| Box::pin(turn.set_level(out))),
    known("resources/subscribe", SESSION, URI, |turn, out| Box::pin(turn.subscribe(out))),
    known("resources/unsubscribe", SESSION, URI, |turn, out| Box::pin(turn.unsubscribe(out))),
    known(LISTEN, STATELESS, &[("notifications", Shape::Object)], |turn, out| Box::pin(turn.listen(out))),
];

const fn known(
    name: &'static str,
    eras: &'static [Era],
    shape: &'static [(&'static str, Shape)],
    answer: Answering,
) -> Known {
    Known { name, eras, shape, answer }
}

fn find(asked: &Incoming) -> Option<&'static Known> {
    let era = asked.era();
    METHODS.iter().find(|known| known.name == asked.method && known.eras.contains(&era))
}

/// Checks that the params have the shape of the method's; those of an unknown method have any.
pub fn check_shape(asked: &Incoming) -> Result<(), RpcError> {
    for (field, shape) in find(asked).map_or(&[][..], |known| known.shape) {
        let first = asked.field(field).map(|value| value.as_bytes()[0]);
        let (fits, wanted) = match shape {
            Shape::Text => (first == Some(b'"'), "a string"),
            Shape::TextOrAbsent => (first.is_none_or(|byte| byte == b'"'), "a string"),
            Shape::Object => (first == Some(b'{'), "an object"),
            Shape::ObjectOrAbsent => (first.is_none_or(|byte| byte == b'{'), "an object"),
        };
        if !fits {
            return Err(invalid_params(format!("{}: {field} must be {wanted}", asked.method)));
        }
    }
    Ok(())
}

/// Returns whether something may be said before the answer to a request that stands alone.
pub fn is_heard(asked: &Incoming) -> bool {
    asked.meta.progress_token.is_some() || asked.log_level.is_some() || asked.method == LISTEN
}

async fn empty(out: &mut String) -> Result<(), RpcError> {
    out.push_str("{}");
    Ok(())
}

impl Turn {
    /// Answers the request. Dropping this midway cancels what it runs.
    pub async fn answer(&self) -> Answered {
        let id = self.asked.id();
        let mut text = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#);
        match self.dispatch(&mut text).await {
            Ok(()) => {
                text.push('}');
                Answered { text, failed: None }
            }
            Err(error) => {
                // Clients read codes of 32 bits.
                let code = i32::try_from(error.code).map_or(INTERNAL_ERROR, i64::from);
                let text = Fault::of(id, RpcError { code, ..error }).to_json();
                Answered { text, failed: Some(code) }
            }
        }
    }

    async fn dispatch(&self, out: &mut String) -> Result<(), RpcError> {
        self.check_version()?;
        let known = find(&self.asked).ok_or_else(|| method_not_found(&self.asked.method))?;
        (known.answer)(self, out).await
    }

    /// Refuses a revision that is not spoken here, and a request that stands alone without its metadata.
    fn check_version(&self) -> Result<(), RpcError> {
        let (asked, method) = (&self.asked, self.asked.method.as_str());
        if method == "initialize" {
            return Ok(());
        }
        if let Some(version) = asked.version.as_deref().filter(|version| !VERSIONS.contains(version)) {
            let data = json!({"requested": version, "supported": VERSIONS});
            let error = RpcError::new(UNSUPPORTED_VERSION, "Unsupported protocol version");
            return Err(RpcError { data: Some(data), ..error });
        }
        let in_session = self.opened().is_some() || method == "ping";
        let alone = asked.era() == Era::Stateless || method == "server/discover" || !in_session;
        let missing = if alone { asked.missing() } else { Vec::new() };
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(", ");
        Err(invalid_params(format!("request _meta is missing or has malformed required fields: {missing}")))
    }

    /// Asks the router and appends its answer. `handles`: whether the client takes the handle of a task.
    async fn recorded(
        &self,
        out: &mut String,
        method: Method,
        ttl_ms: Option<u64>,
        handles: bool,
    ) -> Result<(), RpcError> {
        let era = self.asked.era();
        let answer = async {
            if era == Era::Stateless && !handles && !is_heard(&self.asked) {
                let client = Arc::new(Silent { audience: self.audience() });
                return self
                    .shared
                    .router
                    .call(self.asked.request(method, client, self.cancel.clone()))
                    .await;
            }
            let logs = self.logs();
            let (client, heard) = CallClient::new(move || logs, self.audience(), self.session.clone());
            let client = client.with_handles(handles);
            let request = self.asked.request(method, Arc::new(client), self.cancel.clone());
            relay(self.shared.router.call(request), heard, &self.outlet, &self.cancel).await
        };
        let answer = match self.shared.bounds {
            None => answer.await,
            // Dropped in time, the call is cancelled, and recorded so.
            Some(bounds) => timeout(bounds.request_timeout, answer).await.unwrap_or_else(|_| {
                Err(RpcError::new(REQUEST_TIMEOUT, "the request was not answered in time"))
            }),
        };
        // What a tool's server answers is recorded; this node's own refusal is not.
        if answer.as_ref().is_err_and(|err| err.code == INVALID_REQUEST && err.record.is_none())
            && let Some(place) = &self.place
        {
            place.refuse();
        }
        let answer = match handles {
            true => tasks::adopt(&self.shared, &self.asked, &self.audience(), answer).await,
            false => answer,
        };
        conclude(out, answer, era, ttl_ms).map_err(|error| match error.code {
            RESOURCE_NOT_FOUND if era == Era::Stateless && method != Method::ToolsCall => {
                RpcError { code: INVALID_PARAMS, ..error }
            }
            _ => error,
        })
    }

    /// Appends one page of `items`.
    fn listed<T>(
        &self,
        out: &mut String,
        key: &str,
        items: &[T],
        entry: impl Fn(&T) -> (&str, Cow<'_, RawValue>),
    ) -> Result<(), RpcError> {
        let page = page(key, items, entry, self.asked.text("cursor").as_deref())?;
        finish(out, &page, self.asked.era(), Some(LIST_TTL_MS), None)
    }

    /// Returns the members that both handshakes have, and the caller's limits where there are some.
    fn introduce(&self, result: &mut Value, declared: &Declared) {
        let settings = &self.shared.settings;
        result["capabilities"] = capabilities(declared);
        let instructions = match (&settings.instructions, settings.wraps) {
            (Some(own), _) => Some(own),
            (None, true) => declared.sole_instructions.as_ref(),
            (None, false) => declared.instructions.as_ref(),
        };
        if let Some(instructions) = instructions {
            result["instructions"] = json!(instructions);
        }
        if let Some(bounds) = self.shared.bounds {
            result["limits"] = bounds.told();
            result["_meta"]["io.cairn/limits"] = bounds.told();
        }
    }

    async fn initialize(&self, out: &mut String) -> Result<(), RpcError> {
        let session = self.session.as_ref().ok_or_else(|| method_not_found("initialize"))?;
        // A second `initialize` in one session changes nothing of the first.
        let asked = self.asked.text("protocolVersion").unwrap_or_default();
        let spoken = VERSIONS.into_iter().find(|version| *version == asked && *version <= LATEST_IN_SESSION);
        let version = spoken.unwrap_or(LATEST_IN_SESSION);
        let _ = session.opened.set(Opened::new(self.asked.audience().capabilities, version));
        self.offer_to().await;
        let declared = self.declared();
        let mut result = json!({
            "protocolVersion": version,
            "serverInfo": self.server(&declared),
        });
        self.introduce(&mut result, &declared);
        tasks::declare_in_session(&mut result, version, tasks::offered(&self.shared));
        out.push_str(&result.to_string());
        Ok(())
    }

    async fn discover(&self, out: &mut String) -> Result<(), RpcError> {
        self.offer_to().await;
        let declared = self.declared();
        let mut result = json!({
            "resultType": "complete",
            "supportedVersions": VERSIONS,
            "ttlMs": LIST_TTL_MS,
            "cacheScope": "private",
            "_meta": {"io.modelcontextprotocol/serverInfo": self.server(&declared)},
        });
        self.introduce(&mut result, &declared);
        out.push_str(&result.to_string());
        Ok(())
    }

    async fn call_tool(&self, out: &mut String) -> Result<(), RpcError> {
        let version = self.opened().map_or("", |opened| opened.version);
        match tasks::way(&self.shared, &self.asked, self.asked.era(), version)? {
            Way::Call { handles } => self.recorded(out, Method::ToolsCall, None, handles).await,
            Way::Task { entry, ttl_ms } => self.make_task(out, (&entry, ttl_ms)).await,
        }
    }

    /// Makes a task of a tool call. A session then hears how it goes.
    async fn make_task(&self, out: &mut String, made: (&Entry, u64)) -> Result<(), RpcError> {
        let era = self.asked.era();
        let (id, told) = tasks::create(&self.shared, &self.asked, made, &self.audience(), era).await?;
        if let Some(session) = self.session.clone().filter(|_| era == Era::Session) {
            let end = session.end.clone();
            let caller = self.asked.caller.clone();
            let telling = tasks::tell(self.shared.clone(), caller, id, move |params| {
                let session = session.clone();
                Box::pin(async move { session.outlet.tell(notification(TASK_STATUS, Some(&params))).await })
            });
            tokio::spawn(end.run_until_cancelled_owned(telling));
        }
        out.push_str(&told);
        Ok(())
    }

    /// Answers a method of tasks.
    async fn of_task(&self, out: &mut String) -> Result<(), RpcError> {
        let logs = self.logs();
        let (client, heard) = CallClient::new(move || logs, self.audience(), self.session.clone());
        let (asked, era) = (&self.asked, self.asked.era());
        let answer = tasks::answer(&self.shared, &asked.method, asked, era, &client);
        let answer = relay(self.cancel.run_until_cancelled(answer), heard, &self.outlet, &self.cancel).await;
        let cancelled = || RpcError::new(INVALID_REQUEST, "the request was cancelled");
        out.push_str(&answer.unwrap_or_else(|| Err(cancelled()))?);
        Ok(())
    }

    async fn get_prompt(&self, out: &mut String) -> Result<(), RpcError> {
        declared(self.offer().declared.prompts, "prompts/get")?;
        self.recorded(out, Method::PromptsGet, None, false).await
    }

    async fn read_resource(&self, out: &mut String) -> Result<(), RpcError> {
        declared(self.offer().declared.resources, "resources/read")?;
        self.recorded(out, Method::ResourcesRead, Some(READ_TTL_MS), false).await
    }

    async fn complete(&self, out: &mut String) -> Result<(), RpcError> {
        // Some servers complete arguments and do not declare it: they are asked.
        let offered = &self.offer().declared;
        let any = offered.completions || offered.prompts || offered.resources;
        declared(any, "completion/complete")?;
        self.recorded(out, Method::Complete, None, false).await
    }

    async fn list_tools(&self, out: &mut String) -> Result<(), RpcError> {
        let offer = self.offer_to().await;
        let unknown = self.shared.settings.wraps && offer.declared.server.is_none();
        declared(offer.declared.tools || unknown, "tools/list")?;
        if self.shared.settings.contracts {
            let mut own = own_tools(&self.shared.router.tools_for_peer(&self.asked.caller));
            own.retain(|tool| self.shared.shows(&tool.name));
            self.listed(out, "tools", &own, contract_entry)
        } else if self.asked.era() == Era::Session {
            self.listed(out, "tools", &offer.tools, session_tool_entry)
        } else {
            self.listed(out, "tools", &offer.tools, tool_entry)
        }
    }

    async fn list_prompts(&self, out: &mut String) -> Result<(), RpcError> {
        let offer = self.offer_to().await;
        declared(offer.declared.prompts, "prompts/list")?;
        self.listed(out, "prompts", &offer.prompts, listed_entry)
    }

    async fn list_resources(&self, out: &mut String) -> Result<(), RpcError> {
        let offer = self.offer_to().await;
        declared(offer.declared.resources, "resources/list")?;
        self.listed(out, "resources", &offer.resources, listed_entry)
    }

    async fn list_resource_templates(&self, out: &mut String) -> Result<(), RpcError> {
        let offer = self.offer_to().await;
        declared(offer.declared.resources, "resources/templates/list")?;
        self.listed(out, "resourceTemplates", &offer.templates, listed_entry)
    }

    /// Passes a request about skills to the servers that have them.
    async fn skills(&self, out: &mut String, what: Asked) -> Result<(), RpcError> {
        let Incoming { params, caller, .. } = &self.asked;
        let result = self.shared.router.skills(what, params, caller, &self.audience()).await?;
        finish(out, &result, self.asked.era(), Some(LIST_TTL_MS), None)
    }

    async fn set_level(&self, out: &mut String) -> Result<(), RpcError> {
        let opened = self.opened().ok_or_else(|| method_not_found("logging/setLevel"))?;
        let logs = self.asked.text("level").as_deref().and_then(Logs::from_level);
        opened.set_logs(logs.ok_or_else(|| invalid_params("logging/setLevel: unknown level"))?);
        self.shared.router.hear(Heard::Level, &opened.audience()).await;
        empty(out).await
    }

    async fn subscribe(&self, out: &mut String) -> Result<(), RpcError> {
        declared(self.offer().declared.subscriptions, "resources/subscribe")?;
        let session = self.session.as_ref().filter(|session| session.opened.get().is_some());
        let session = session.ok_or_else(|| method_not_found("resources/subscribe"))?;
        if session.watched().len() >= WATCHED_MAX {
            return Err(RpcError::new(INTERNAL_ERROR, "this session watches too many resources"));
        }
        let held =
            self.shared.router.watch_for(&self.asked.caller, &self.asked.name, &self.audience()).await?;
        session.watched().insert(self.asked.name.clone(), held);
        empty(out).await
    }

    async fn unsubscribe(&self, out: &mut String) -> Result<(), RpcError> {
        declared(self.offer().declared.subscriptions, "resources/unsubscribe")?;
        if let Some(session) = &self.session {
            session.watched().remove(&self.asked.name);
        }
        empty(out).await
    }
}
