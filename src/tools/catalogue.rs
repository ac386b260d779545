//! The catalogue tools: find tools, read their contracts, call them by name.
//!
//! Invariants:
//! - a dispatched call is a call of its own in the log, caused by the dispatch, with the dispatched tool's answer.

use std::{collections::BTreeMap, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::{Cid, decode, json::dag, splice},
    contract::{Contract, dialect::Schema},
    error::{Code, Refusal},
    log::{Reader, sqlite::SqliteReader},
    router::{BoxFuture, Entry, Invocation, Meta, Method, Outcome, Request, Router, Run, lane},
    tools::{Builtin, CATEGORIES, Done, arguments, doing::definition, outcome},
    words::number,
};

/// Superseded contracts that are shown of one tool.
const SUPERSEDED_MAX: usize = 100;
const PAGE: usize = 100;

pub fn all(router: &Router) -> Vec<Builtin> {
    let tool = |definition, does| Builtin {
        definition,
        category: "catalogue",
        lane: lane::BUILTIN,
        run: Arc::new(Tool { router: router.clone(), does }),
    };
    vec![
        tool(definition!("tools_list_categories"), Does::ListCategories),
        tool(definition!("tools_list_tools"), Does::ListTools),
        tool(definition!("tools_get_schema"), Does::GetSchema),
        tool(definition!("tools_dispatch"), Does::Dispatch),
    ]
}

#[derive(Clone, Copy)]
enum Does {
    ListCategories,
    ListTools,
    GetSchema,
    Dispatch,
}

struct Tool {
    router: Router,
    does: Does,
}

impl Run for Tool {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.does {
                Does::ListCategories => outcome(self.list_categories(&invocation)),
                Does::ListTools => outcome(self.list_tools(&invocation)),
                Does::GetSchema => outcome(self.get_schema(&invocation).await),
                Does::Dispatch => self.dispatch(invocation).await,
            }
        })
    }
}

#[derive(Deserialize)]
struct ListCategories {
    #[serde(default)]
    include_count: bool,
}

#[derive(Deserialize)]
struct ListTools {
    category: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
    #[serde(default, deserialize_with = "number::optional")]
    offset: Option<u64>,
}

#[derive(Deserialize)]
struct GetSchema {
    tool: String,
}

#[derive(Deserialize)]
struct Dispatch {
    tool: String,
    contract: Option<String>,
}

impl Tool {
    fn list_categories(&self, invocation: &Invocation) -> Done {
        let ListCategories { include_count } = arguments(invocation)?;
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for entry in self.router.tools_for(&invocation.caller) {
            *counts.entry(entry.metadata.category.clone()).or_default() += 1;
        }
        let described = |name: &str| {
            let known = CATEGORIES.iter().find(|(known, _)| *known == name);
            known.map_or_else(|| format!("tools of {name}"), |(_, what)| (*what).to_owned())
        };
        let category = |(name, count): (&String, &u64)| {
            let mut category = json!({"name": name, "description": described(name)});
            if include_count {
                category["tool_count"] = json!(count);
            }
            category
        };
        Ok(json!({"categories": counts.iter().map(category).collect::<Vec<_>>()}))
    }

    fn list_tools(&self, invocation: &Invocation) -> Done {
        let asked: ListTools = arguments(invocation)?;
        let mut entries = self.router.tools_for(&invocation.caller);
        if let Some(category) = &asked.category {
            entries.retain(|entry| entry.metadata.category == *category);
            if entries.is_empty() {
                return Err(Refusal::new(Code::NotFound, format!("no category `{category}`"))
                    .hint("tools_list_categories names them"));
            }
        }
        // Pages follow names, so that they stay stable while sources come and go.
        entries.sort_by(|a, b| a.tool.name.cmp(&b.tool.name));
        let total = entries.len();
        let from = match &asked.cursor {
            Some(cursor) => {
                let last = cursor
                    .strip_prefix("after:")
                    .ok_or_else(|| Refusal::new(Code::InvalidArgument, "`cursor` is not one of this list"))?;
                entries.partition_point(|entry| entry.tool.name.as_str() <= last)
            }
            None => asked.offset.map_or(0, |offset| usize::try_from(offset).unwrap_or(usize::MAX)).min(total),
        };
        let limit = asked.limit.unwrap_or(PAGE);
        let page: Vec<_> = entries[from..].iter().take(limit).collect();
        let has_more = from + page.len() < total;
        let next = page.last().filter(|_| has_more).map(|entry| format!("after:{}", entry.tool.name));
        let listed = |entry: &&Arc<Entry>| {
            json!({
                "name": entry.tool.name,
                "category": entry.metadata.category,
                "description": entry.description,
                "contract": entry.tool.contract.to_string(),
                "runtime": entry.metadata.runtime,
            })
        };
        Ok(json!({
            "tools": page.iter().map(listed).collect::<Vec<_>>(),
            "total_count": total,
            "returned_count": page.len(),
            "has_more": has_more,
            "next_cursor": next,
        }))
    }

    async fn get_schema(&self, invocation: &Invocation) -> Done {
        let GetSchema { tool } = arguments(invocation)?;
        let entry = self.router.tool_for(&invocation.caller, &tool);
        // The contract of a tool on offer is for those who see the tool; one of before is for all.
        let hidden = entry.is_none() && self.router.tool(&tool).is_some();
        let named = || tool.parse().ok().filter(|_| !hidden);
        let cid = entry.as_ref().map(|entry| entry.tool.contract).or_else(named);
        let not_found = || {
            Refusal::new(Code::NotFound, format!("no tool or contract `{tool}`"))
                .hint("tools_list_tools names the tools on offer")
        };
        let cid = cid.ok_or_else(not_found)?;
        let path = self.router.ledger().home().log_path();
        let read = tokio::task::spawn_blocking(move || lineage(&SqliteReader::open(&path)?, cid)).await;
        let lineage = read.ok().and_then(Result::ok);
        let (contract, superseded) = lineage
            .ok_or_else(|| Refusal::new(Code::Internal, "the contract cannot be read"))?
            .ok_or_else(not_found)?;
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let effects: BTreeMap<&String, Value> =
            contract.effects.iter().map(|(name, value)| (name, dag(value))).collect();
        Ok(json!({
            "name": entry.as_ref().map_or(&contract.name, |entry| &entry.tool.name),
            "source": contract.source,
            "version": contract.version,
            "description": contract.description,
            "contract": cid.to_string(),
            "superseded": superseded.iter().map(Cid::to_string).collect::<Vec<_>>(),
            "current": entry.is_some(),
            "input_schema": parsed(&contract.input),
            "output_schema": contract.output.as_deref().map(parsed),
            "input_unchecked": unusable(Some(&contract.input)),
            "output_unchecked": unusable(contract.output.as_deref()),
            "annotations": contract.annotations.as_deref().map(parsed),
            "effects": effects,
            "metadata": entry.as_ref().map(|entry| json!(entry.metadata)),
            "runtime_rule": entry.as_ref().map(|entry| entry.rule.as_str()),
        }))
    }

    /// Calls another tool, as a recorded call of its own, and returns that call's outcome.
    async fn dispatch(&self, invocation: Invocation) -> Outcome {
        let asked: Dispatch = match arguments(&invocation) {
            Ok(asked) => asked,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        // A pin that cannot be read is not taken for none: the caller meant to be refused by any other contract.
        let Ok(contract) = asked.contract.map(|cid| cid.parse()).transpose() else {
            let refusal = Refusal::new(Code::InvalidArgument, "`contract` is not the CID of a contract");
            return Outcome::Refused(refusal.hint("tools_get_schema gives a tool's contract"));
        };
        let found = self.router.tool_asked(&asked.tool, contract.as_ref());
        let found = found.filter(|entry| self.router.reaches(&invocation.caller, entry));
        let Some(entry) = found else {
            let refusal = Refusal::new(Code::NotFound, format!("no tool `{}`", asked.tool));
            return Outcome::Refused(refusal.hint("tools_list_tools names the tools on offer"));
        };
        let arguments = splice::member(&invocation.params, "arguments").ok().flatten();
        let params = arguments.and_then(|arguments| splice::member(arguments, "params").ok().flatten());
        let name = splice::quoted(&entry.tool.name);
        let params = format!(r#"{{"name":{name},"arguments":{}}}"#, params.map_or("{}", RawValue::get));
        let request = Request {
            method: Method::ToolsCall,
            name: entry.tool.name.clone(),
            params: splice::raw(params).into(),
            meta: Meta { contract, progress_token: invocation.progress_token.clone(), ..Meta::default() },
            caller: invocation.caller,
            client: invocation.client,
            cancel: invocation.cancel,
            cause: invocation.started,
            attempt: None,
            begun: None,
        };
        match self.router.call(request).await {
            // What this node itself says of the call stands where its own tools say it.
            Ok(answer) => match answer.own {
                Some(refusal) => Outcome::Refused(*refusal),
                None => Outcome::of_result(answer.result),
            },
            Err(error) => Outcome::Rpc(Box::new(error)),
        }
    }
}

/// Returns why a contract's schema judges nothing, as JSON; null if it can be used, or if there is none.
fn unusable(schema: Option<&[u8]>) -> Value {
    let schema = schema.and_then(|bytes| serde_json::from_slice(bytes).ok());
    let compiled = schema.as_ref().map(Schema::compile);
    let unusable = compiled.as_ref().and_then(Schema::unusable);
    unusable.map_or(Value::Null, |unusable| json!({"reason": unusable.why.as_str(), "text": unusable.text}))
}

/// Returns a contract and those it replaced, newest first; `None` if there is no such contract.
fn lineage(log: &SqliteReader, cid: Cid) -> Result<Option<(Contract, Vec<Cid>)>, crate::log::LogError> {
    let read = |cid: &Cid| -> Result<Option<Contract>, crate::log::LogError> {
        Ok(log.bytes(cid)?.and_then(|bytes| decode(&bytes).ok()))
    };
    let Some(contract) = read(&cid)? else {
        return Ok(None);
    };
    let mut superseded = Vec::new();
    let mut next = contract.prev;
    while let Some(prev) = next.filter(|_| superseded.len() < SUPERSEDED_MAX) {
        superseded.push(prev);
        next = read(&prev)?.and_then(|contract| contract.prev);
    }
    Ok(Some((contract, superseded)))
}
