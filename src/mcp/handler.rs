//! The handler: each MCP method, as the protocol library calls it.
//!
//! Invariants:
//! - a list nobody declared is an unknown method, never an empty list;
//! - results leave as parcels of raw bytes (see `raw`); only the handshake is typed.

#![expect(deprecated, reason = "the session era still sets log levels")]

mod parcels;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, CompleteRequestParams,
        CompleteResult, CustomRequest, CustomResult, DetailedTask, DiscoverResult, Extensions,
        GetPromptRequestParams, GetPromptResponse, GetPromptResult, GetTaskParams, GetTaskResult,
        Implementation, InitializeRequestParams, InitializeResult, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, MetaObject,
        PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse,
        ReadResourceResult, ResourceUpdatedNotificationParam, SetLevelRequestParams, SubscribeRequestParams,
        SubscriptionFilter, Task, TaskPayload, TaskStatus, Tool, UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use serde_json::{json, value::RawValue};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    answer::{LIST_TTL_MS, READ_TTL_MS, conclude, finish},
    client::{CallClient, Logs, relay, to_library},
    envelope::{FIRST_STATELESS, Incoming, UNTYPED, invalid_params, is_known},
    list::page,
    offering::{
        capabilities, contract_entry, declared, header_tool, listed_entry, method_not_found, own_tools,
        session_tool_entry, tool_entry,
    },
    quota::RequestPermit,
    raw::pack,
    session::{Session, changed, tell_change},
    tasks::{self, Way},
};
use crate::{
    mcp::era::Era,
    router::{
        Change, Method, Offer, RpcError,
        codes::{INTERNAL_ERROR, INVALID_REQUEST, REQUEST_TIMEOUT},
        declared::Declared,
    },
};

/// Revisions we speak. The first one has another transport than HTTP as it is now, so its clients come over lines.
const VERSIONS: &[ProtocolVersion] = &[
    ProtocolVersion::V_2024_11_05,
    ProtocolVersion::V_2025_03_26,
    ProtocolVersion::V_2025_06_18,
    ProtocolVersion::V_2025_11_25,
    ProtocolVersion::V_2026_07_28,
];

/// Resources that one session or stream may watch.
const WATCHED_MAX: usize = 1_000;

/// The handler of one session, or of one stateless request.
pub struct Handler {
    shared: Arc<Shared>,
    session: OnceLock<Session>,
}

impl Handler {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, session: OnceLock::new() }
    }

    /// Asks the router and returns its answer as a parcel.
    async fn recorded(
        &self,
        method: Method,
        ttl_ms: Option<u64>,
        handles: bool,
        context: RequestContext<RoleServer>,
    ) -> Result<MetaObject, ErrorData> {
        let asked = asked(&context.extensions)?;
        let era = era(&context);
        let audience = self.audience(asked, era);
        let (client, heard) = CallClient::new(self.logs(asked, era), audience.clone());
        let client = client.with_handles(handles);
        let request = asked.request(method, Arc::new(client), context.ct.clone());
        let call = self.shared.router.call(request);
        let answer = relay(call, heard, &context.peer, &context.ct);
        let answer = match self.shared.bounds {
            None => answer.await,
            // Dropped in time, the call is cancelled, and recorded so.
            Some(bounds) => timeout(bounds.request_timeout, answer).await.unwrap_or_else(|_| {
                Err(RpcError::new(REQUEST_TIMEOUT, "the request was not answered in time"))
            }),
        };
        // What a tool's server answers is recorded; this node's own refusal is not.
        if answer.as_ref().is_err_and(|err| err.code == INVALID_REQUEST && err.record.is_none())
            && let Some(place) = context.extensions.get::<Arc<RequestPermit>>()
        {
            place.refuse();
        }
        let answer = match handles {
            true => tasks::adopt(&self.shared, asked, &audience, answer).await,
            false => answer,
        };
        let mut out = String::new();
        conclude(&mut out, answer, era, ttl_ms).map_err(to_library)?;
        Ok(pack(out))
    }

    /// Returns one page of `items` as a parcel.
    fn listed<T>(
        &self,
        key: &str,
        items: &[T],
        entry: impl Fn(&T) -> (&str, Cow<'_, RawValue>),
        params: Option<PaginatedRequestParams>,
        context: &RequestContext<RoleServer>,
    ) -> Result<MetaObject, ErrorData> {
        let cursor = params.and_then(|params| params.cursor);
        let mut out = String::new();
        page(key, items, entry, cursor.as_deref())
            .and_then(|page| finish(&mut out, &page, era(context), Some(LIST_TTL_MS), None))
            .map_err(to_library)?;
        Ok(pack(out))
    }

    fn offer(&self) -> Arc<Offer> {
        self.shared.router.offer()
    }
}

impl ServerHandler for Handler {
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(VERSIONS)
    }

    fn get_info(&self) -> InitializeResult {
        let declared = &self.offer().declared;
        // A server that has said nothing yet may have tools: the client hears of them when they come.
        let unknown = self.shared.settings.wraps && declared.server.is_none();
        let declared = &Declared { tools: declared.tools || unknown, ..declared.clone() };
        let mut info = InitializeResult::new(capabilities(declared));
        let wrapped = declared.server.as_ref().filter(|_| self.shared.settings.wraps);
        let wrapped = wrapped.and_then(|server| serde_json::from_str(server.get()).ok());
        info.server_info = wrapped.unwrap_or_else(|| Implementation::new("cairn", env!("CARGO_PKG_VERSION")));
        info.instructions = match (&self.shared.settings.instructions, self.shared.settings.wraps) {
            (Some(own), _) => Some(own.clone()),
            (None, true) => declared.sole_instructions.clone(),
            (None, false) => declared.instructions.clone(),
        };
        info
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let open = CancellationToken::new();
        let session = Session {
            capabilities: asked(&context.extensions)?.audience().capabilities,
            name: uuid::Uuid::now_v7().simple().to_string().into(),
            logs: Mutex::new(Logs::All),
            watched: Arc::default(),
            _close: open.clone().drop_guard(),
            open,
        };
        // A second `initialize` on one session changes nothing of the first.
        let _ = self.session.set(session);
        self.offer_to(&context).await?;
        let mut result = self.negotiate_initialize(&request)?;
        if let Ok(mut told) = serde_json::to_value(&result) {
            let version = result.protocol_version.as_str();
            tasks::declare_in_session(&mut told, version, tasks::offered(&self.shared));
            result.meta = Some(self.limited(told));
        }
        context.peer.set_peer_info(request);
        Ok(result)
    }

    /// Tells the session of changed lists until it ends.
    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let Some(session) = self.session.get() else {
            return;
        };
        let (open, peer) = (session.open.clone(), context.peer);
        let (mut changes, mut updates) = (self.shared.router.changes(), self.shared.router.updates());
        let watched = session.watched.clone();
        let watches =
            move |uri: &str| watched.lock().unwrap_or_else(PoisonError::into_inner).contains_key(uri);
        tokio::spawn(open.run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    received = changes.recv() => {
                        let Some(changed) = changed(received) else { return };
                        for change in changed {
                            if tell_change(&peer, change).await.is_err() {
                                return;
                            }
                        }
                    }
                    Ok(uri) = updates.recv() => if watches(&uri) {
                        let updated = ResourceUpdatedNotificationParam::new(&*uri);
                        if peer.notify_resource_updated(updated).await.is_err() {
                            return;
                        }
                    },
                }
            }
        }));
    }

    async fn discover(&self, context: RequestContext<RoleServer>) -> Result<DiscoverResult, ErrorData> {
        self.offer_to(&context).await?;
        let versions = self.supported_protocol_versions().into_owned();
        let mut result = DiscoverResult::from_server_info(versions, self.get_info()).with_ttl_ms(LIST_TTL_MS);
        if let Some(told) = self.with_limits(&result) {
            result.meta = Some(told);
        }
        Ok(result)
    }

    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut result = CallToolResult::success(Vec::new());
        let version =
            context.protocol_version().map(|version| version.as_str().to_owned()).unwrap_or_default();
        let way = tasks::way(&self.shared, asked(&context.extensions)?, era(&context), &version);
        result.meta = Some(match way.map_err(to_library)? {
            Way::Call { handles } => self.recorded(Method::ToolsCall, None, handles, context).await?,
            Way::Task { entry, ttl_ms } => self.made((&entry, ttl_ms), &context).await?,
        });
        Ok(CallToolResponse::Complete(result))
    }

    async fn get_prompt(
        &self,
        _: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        declared(self.offer().declared.prompts, "prompts/get")?;
        let mut result = GetPromptResult::new(Vec::new());
        result.meta = Some(self.recorded(Method::PromptsGet, None, false, context).await?);
        Ok(GetPromptResponse::Complete(result))
    }

    async fn read_resource(
        &self,
        _: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        declared(self.offer().declared.resources, "resources/read")?;
        let mut result = ReadResourceResult::new(Vec::new());
        result.meta = Some(self.recorded(Method::ResourcesRead, Some(READ_TTL_MS), false, context).await?);
        Ok(ReadResourceResponse::Complete(result))
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        // Some servers complete arguments and do not declare it: they are asked.
        let offered = &self.offer().declared;
        let any = offered.completions || offered.prompts || offered.resources;
        declared(any, "completion/complete")?;
        let mut result = CompleteResult::default();
        result.meta = Some(self.recorded(Method::Complete, None, false, context).await?);
        Ok(result)
    }

    async fn get_task(
        &self,
        _: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let parcel = self.of_task("tasks/get", &context).await?;
        let task = Task::new("", TaskStatus::Working, "", "");
        let mut result = GetTaskResult::new(DetailedTask::new(task, TaskPayload::Working));
        result.meta = Some(parcel);
        Ok(result)
    }

    async fn update_task(
        &self,
        _: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.of_task("tasks/update", &context).await.map(drop)
    }

    async fn cancel_task(
        &self,
        _: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.of_task("tasks/cancel", &context).await.map(drop)
    }

    async fn list_tools(
        &self,
        params: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let offer = self.offer_to(&context).await?;
        let unknown = self.shared.settings.wraps && offer.declared.server.is_none();
        declared(offer.declared.tools || unknown, "tools/list")?;
        let meta = if self.shared.settings.contracts {
            let mut own = own_tools(&self.shared.router.tools());
            own.retain(|tool| self.shared.shows(&tool.name));
            self.listed("tools", &own, contract_entry, params, &context)?
        } else if era(&context) == Era::Session {
            self.listed("tools", &offer.tools, session_tool_entry, params, &context)?
        } else {
            self.listed("tools", &offer.tools, tool_entry, params, &context)?
        };
        Ok(ListToolsResult { meta: Some(meta), ..ListToolsResult::default() })
    }

    async fn list_prompts(
        &self,
        params: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let offer = self.offer_to(&context).await?;
        declared(offer.declared.prompts, "prompts/list")?;
        let meta = self.listed("prompts", &offer.prompts, listed_entry, params, &context)?;
        Ok(ListPromptsResult { meta: Some(meta), ..ListPromptsResult::default() })
    }

    async fn list_resources(
        &self,
        params: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let offer = self.offer_to(&context).await?;
        declared(offer.declared.resources, "resources/list")?;
        let meta = self.listed("resources", &offer.resources, listed_entry, params, &context)?;
        Ok(ListResourcesResult { meta: Some(meta), ..ListResourcesResult::default() })
    }

    async fn list_resource_templates(
        &self,
        params: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let offer = self.offer_to(&context).await?;
        declared(offer.declared.resources, "resources/templates/list")?;
        let meta = self.listed("resourceTemplates", &offer.templates, listed_entry, params, &context)?;
        Ok(ListResourceTemplatesResult { meta: Some(meta), ..ListResourceTemplatesResult::default() })
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let session = self.session.get().ok_or_else(|| method_not_found("logging/setLevel"))?;
        let level = serde_json::to_value(request.level).unwrap_or_default();
        let logs = level.as_str().and_then(Logs::from_level);
        let logs = logs.ok_or_else(|| to_library(invalid_params("logging/setLevel: unknown level")))?;
        *session.logs.lock().unwrap_or_else(PoisonError::into_inner) = logs;
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        declared(self.offer().declared.subscriptions, "resources/subscribe")?;
        let session = self.session.get().ok_or_else(|| method_not_found("resources/subscribe"))?;
        if session.watched().len() >= WATCHED_MAX {
            return Err(to_library(RpcError::new(INTERNAL_ERROR, "this session watches too many resources")));
        }
        let audience = self.audience(asked(&context.extensions)?, Era::Session);
        let held = self.shared.router.watch(&request.uri, &audience).await.map_err(to_library)?;
        session.watched().insert(request.uri, held);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        declared(self.offer().declared.subscriptions, "resources/unsubscribe")?;
        if let Some(session) = self.session.get() {
            session.watched().remove(&request.uri);
        }
        Ok(())
    }

    /// Accepts the whole filter; the library reduces it to the declared capabilities.
    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let Ok(_permit) = self.shared.listeners.try_acquire() else {
            let message = "all listen streams are in use; try again later";
            return Err(to_library(RpcError::new(INTERNAL_ERROR, message)));
        };
        let (mut changes, mut updates) = (self.shared.router.changes(), self.shared.router.updates());
        let wanted = context.accepted().resource_subscriptions.clone().unwrap_or_default();
        let _watched = self.watch_all(&wanted, &context).await?;
        let sink = context.sink();
        loop {
            let received = tokio::select! {
                received = changes.recv() => received,
                Ok(uri) = updates.recv() => {
                    if wanted.iter().any(|wanted| **wanted == *uri) {
                        let _ = sink.notify_resource_updated(&*uri).await;
                    }
                    continue;
                }
                () = context.cancelled() => return Ok(()),
                () = self.shared.settings.shutdown.cancelled() => return Ok(()),
            };
            let Some(changed) = changed(received) else {
                return Ok(());
            };
            for change in changed {
                // An error here says that this change was not asked for, or that nobody listens any more.
                let _ = match change {
                    Change::Tools => sink.notify_tool_list_changed().await,
                    Change::Prompts => sink.notify_prompt_list_changed().await,
                    Change::Resources => sink.notify_resource_list_changed().await,
                };
            }
        }
    }

    /// Returns the tool for the library's check of mirrored headers; `None` for tools without such headers.
    fn get_tool(&self, name: &str) -> Option<Tool> {
        let offer = self.offer();
        let definition = header_tool(&offer, name)?;
        serde_json::from_str(definition).ok()
    }

    /// Answers what the library could not parse: an unknown method, or params it does not accept.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        if let Some(method) = request.method.strip_prefix(UNTYPED).filter(|_| era(&context) == Era::Session) {
            let parcel = self.of_task(method, &context).await?;
            return Ok(CustomResult::new(json!({"_meta": parcel})));
        }
        if is_known(&request.method, era(&context)) {
            let message = format!("{}: the params do not have the shape of this method", request.method);
            return Err(to_library(invalid_params(message)));
        }
        Err(method_not_found(&request.method))
    }
}

fn era(context: &RequestContext<RoleServer>) -> Era {
    match context.protocol_version() {
        Some(version) if version.as_str() >= FIRST_STATELESS => Era::Stateless,
        _ => Era::Session,
    }
}

/// Returns what the door read of this request: from the extensions on stdio, from the request's parts over HTTP.
fn asked(extensions: &Extensions) -> Result<&Arc<Incoming>, ErrorData> {
    extensions
        .get::<Arc<Incoming>>()
        .or_else(|| extensions.get::<http::request::Parts>()?.extensions.get())
        .ok_or_else(|| to_library(RpcError::new(INTERNAL_ERROR, "the request was not read")))
}
