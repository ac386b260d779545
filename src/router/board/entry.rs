//! One tool on the board: its contract, its schemas, and where it runs.
//!
//! Invariant: an entry is made once for a definition and never changed.

use std::{collections::HashSet, sync::Arc};

use serde_json::Value;

use super::Offered;
use crate::{
    block::Cid,
    catalogue::BUILTIN,
    contract::{
        Contract,
        dialect::Schema,
        secret::{Paths, names_in},
    },
    router::{
        Parts, Run, Tool,
        handles::TaskSupport,
        metadata::{Hints, Metadata, PRIORITY, Resolver, Rule},
    },
};

/// The key in a tool's `_meta` that says that it calls another tool.
const DISPATCHES: &str = "io.cairn/dispatches";
/// The key in a tool's `_meta` that says that it takes plans which name tools.
const PLANS: &str = "io.cairn/plans";

/// A tool, ready to be called.
pub struct Entry {
    pub tool: Arc<Tool>,
    /// The name its source knows it by.
    pub inner: String,
    pub source: String,
    pub contract: Contract,
    pub description: String,
    pub metadata: Metadata,
    pub rule: Rule,
    pub secrets: Paths,
    pub output_secrets: Paths,
    pub run: Arc<dyn Run>,
    /// Whether it calls another tool, which its `tool` and `params` name. Then no more of its content is kept than of
    /// that tool's.
    pub dispatches: bool,
    /// Whether it takes plans that name tools and their inputs. Then no more of its content is kept than of those
    /// tools'.
    pub plans: bool,
    /// The input schema. An input is not judged by one that cannot be used.
    pub(super) schema: Schema,
    /// What a result of another server's tool should fit.
    pub output: Option<Schema>,
    /// What its definition says of running it as a task.
    pub support: TaskSupport,
    /// The properties of its input schema.
    pub(super) fields: Vec<String>,
    /// Every member name in its input schema.
    pub names: HashSet<String>,
}

/// What the tools of one source have in common.
pub(super) struct Origin<'a> {
    pub source: &'a str,
    pub lane: Option<&'a str>,
    pub run: &'a Arc<dyn Run>,
    pub parts: &'a Parts,
    pub resolver: &'a Resolver,
}

impl Entry {
    pub(super) fn new(offered: Offered, cid: Cid, contract: Contract, from: &Origin<'_>) -> Self {
        let Origin { source, lane, run, parts, resolver } = *from;
        let definition: Value = serde_json::from_str(offered.definition.get()).unwrap_or_default();
        let schema: Value = serde_json::from_slice(&contract.input).unwrap_or_default();
        let output = contract.output.as_deref();
        let output: Option<Value> = output.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let meta = Hints::of_meta(&definition);
        let registry = parts.hints.get(&offered.name).cloned().unwrap_or_default().or(offered.hints);
        let (runtime, rule) = resolver.lane(
            (&offered.name, cid),
            registry.runtime.as_deref(),
            meta.runtime.as_deref(),
            lane,
            |lane| parts.lanes.known(lane),
        );
        let hints = registry.or(meta);
        let metadata = Metadata {
            runtime,
            category: hints.category.unwrap_or_else(|| source.to_owned()),
            priority: hints.priority.unwrap_or(PRIORITY).min(100),
            timeout_ms: hints.timeout_ms,
            retry: hints.retry.unwrap_or_default(),
            cpu: hints.cpu.unwrap_or_default(),
            io: hints.io.unwrap_or_default(),
            memory: hints.memory.unwrap_or_default(),
        };
        let fields = schema.get("properties").and_then(Value::as_object);
        Self {
            inner: offered.inner,
            source: source.to_owned(),
            description: contract.description.clone(),
            metadata,
            rule,
            secrets: Paths::of_schema(&schema),
            output_secrets: output.as_ref().map(Paths::of_schema).unwrap_or_default(),
            run: run.clone(),
            dispatches: definition["_meta"][DISPATCHES] == true,
            plans: definition["_meta"][PLANS] == true,
            support: TaskSupport::of(&definition),
            fields: fields.map(|fields| fields.keys().cloned().collect()).unwrap_or_default(),
            names: names_in(&schema),
            schema: Schema::compile(&schema),
            // Tests hold this node's own tools to their schemas.
            output: output.filter(|_| source != BUILTIN).as_ref().map(Schema::compile),
            contract,
            tool: Arc::new(Tool { name: offered.name, definition: offered.definition, contract: cid }),
        }
    }
    /// Returns whether it is one of this node's own tools.
    pub fn own(&self) -> bool {
        self.source == BUILTIN
    }
}
