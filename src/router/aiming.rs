//! Aiming: what a request is for, before anything of it is recorded.
//!
//! Invariants:
//! - what the caller does not see is not found, under its name, its contract or a URI;
//! - a call of a tool that calls by name is the call of that other tool, with everything that came with it.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::{
    block::splice,
    router::{
        Method, Outcome, Remotes, Request, Response, Router, RpcError,
        board::{Source, links},
        calling::told_own,
        codes::INTERNAL_ERROR,
        lane,
        metadata::Rule,
        sight::Sight,
        target::Target,
        telling::{Form, not_found, shown},
    },
};

/// The tool that calls another by its name.
pub const CALL: &str = "tool_call";

impl Router {
    /// Returns the request that a call of [`CALL`] stands for; any other request as it is.
    pub(super) fn meant(&self, request: Request) -> Result<Request, RpcError> {
        let by_name = request.method == Method::ToolsCall && request.name == CALL;
        // What a peer may call stands by name in its entry, which is held against the name that it calls.
        if !by_name || request.caller.is_peer() || !self.board().finds || !self.offers_own(CALL) {
            return Ok(request);
        }
        let wanted = || {
            RpcError::invalid_params(
                "`arguments` must have the `name` of another tool and, as an object, its `arguments`",
            )
        };
        let given = splice::member(&request.params, "arguments").ok().flatten().ok_or_else(wanted)?;
        let member = |key| splice::member(given, key).ok().flatten();
        let name = member("name").and_then(|name| serde_json::from_str::<String>(name.get()).ok());
        let name = name.filter(|name| name != CALL).ok_or_else(wanted)?;
        let arguments = member("arguments").map_or("{}", RawValue::get);
        if !arguments.starts_with('{') {
            return Err(wanted());
        }
        let (quoted, arguments) = (splice::raw(splice::quoted(&name)), splice::raw(arguments.to_owned()));
        let set: [(&str, &RawValue); 2] = [("name", &quoted), ("arguments", &arguments)];
        let params = splice::edit(&request.params, &set, |_| false).map_err(|_| wanted())?;
        Ok(Request { name, params: params.into(), ..request })
    }

    /// Returns what a request names. Errors are answered and not recorded, so that strangers cannot fill the log.
    pub(super) fn target(&self, request: &Request) -> Result<Target, RpcError> {
        let sight = self.sight();
        let board = sight.board();
        let caller = &request.caller;
        let of_source = |source: Arc<Source>, inner: String, recorded_name: String| Target {
            method: request.method,
            run: source.run.clone(),
            inner,
            recorded_name,
            source: source.name.clone(),
            entry: None,
            lane: source.lane.clone().unwrap_or_else(|| lane::BUILTIN.to_owned()),
            rule: Rule::Source,
            remotes: Remotes::default(),
            sight: sight.clone(),
        };
        let readable = |found: &(Arc<Source>, String)| sight.reads(caller, &found.0);
        match request.method {
            Method::ToolsCall => tool_target(request, &sight, of_source),
            Method::PromptsGet => {
                let found = board.prompt(&request.name).filter(readable);
                let (source, inner) = found.ok_or_else(|| match self.inner.away.refusal(&request.name) {
                    Some(refusal) => RpcError::new(INTERNAL_ERROR, refusal.message),
                    None => RpcError::invalid_params(format!("unknown prompt: {}", shown(&request.name))),
                })?;
                Ok(of_source(source, inner, request.name.clone()))
            }
            Method::ResourcesRead => {
                let found = self.resource_for(&sight, caller, &request.name);
                let (source, inner) = found.ok_or_else(|| not_found(&request.name))?;
                Ok(of_source(source, inner, String::new()))
            }
            Method::Complete => {
                let found = board.completes(&request.params).filter(readable);
                let (source, inner) = found
                    .ok_or_else(|| RpcError::invalid_params("`ref` names no prompt or resource on offer"))?;
                Ok(of_source(source, inner, String::new()))
            }
        }
    }

    /// Returns the answer to the call of a tool that nothing offers now, if a source that is away might offer it.
    pub(super) fn unreached(&self, request: &Request) -> Option<Response> {
        let tools = request.method == Method::ToolsCall;
        let unknown = tools && self.tool_asked(&request.name, request.meta.contract.as_ref()).is_none();
        let refusal = self.inner.away.refusal(&request.name).filter(|_| unknown)?;
        told_own(refusal, Form::Meta, None).ok()
    }

    /// Returns an outcome as its caller is told it: links lead to the source that gave them, and are remembered; hints
    /// name only tools that the caller sees.
    pub(super) fn meant_for(&self, request: &Request, target: &Target, outcome: Outcome) -> Outcome {
        let (result, is_error) = match outcome {
            Outcome::Result { result, is_error } => (result, is_error),
            Outcome::Refused(refusal) => {
                return Outcome::Refused(target.sight.hinted(&request.caller, refusal));
            }
            other => return other,
        };
        let board = self.board();
        if target.entry.as_ref().is_none_or(|entry| entry.own()) || !board.places.are_shared() {
            return Outcome::Result { result, is_error };
        }
        let result = board.places.relinked(&target.source, &result).unwrap_or(result);
        for uri in links(&result) {
            if board.places.named(&uri).is_none() {
                self.inner.links.note(&request.caller.actor.id, &uri, &target.source);
            }
        }
        Outcome::Result { result, is_error }
    }
}

/// Returns what the call of a tool is for. `of_source` makes the target that is a source and its name for a thing.
fn tool_target(
    request: &Request,
    sight: &Sight,
    of_source: impl Fn(Arc<Source>, String, String) -> Target,
) -> Result<Target, RpcError> {
    let (board, caller) = (sight.board(), &request.caller);
    let found = board.tool_asked(&request.name, request.meta.contract.as_ref());
    let entry = found.filter(|entry| sight.reaches(caller, entry)).ok_or_else(|| {
        let near = board.nearest_tool(&request.name, |entry| sight.sees(caller, entry));
        let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        RpcError::invalid_params(format!("unknown tool: {}{near}", shown(&request.name)))
    })?;
    if request.meta.peer.is_some() {
        let nobody = || RpcError::invalid_params("this node asks no peers: p2p.enable is off");
        let (peers, inner) = board.at_peers(&entry).ok_or_else(nobody)?;
        let recorded_name = entry.tool.name.clone();
        return Ok(Target { entry: Some(entry), ..of_source(peers, inner, recorded_name) });
    }
    Ok(Target {
        method: request.method,
        run: entry.run.clone(),
        inner: entry.inner.clone(),
        recorded_name: entry.tool.name.clone(),
        source: entry.source.clone(),
        lane: entry.metadata.runtime.clone(),
        rule: entry.rule,
        remotes: Remotes::default(),
        entry: Some(entry),
        sight: sight.clone(),
    })
}
