//! One tool on the board: its contract, its schemas, and where it runs.
//!
//! Invariant: an entry is made once for a definition and never changed.

use std::{collections::HashSet, sync::Arc};

use serde_json::Value;

use super::Offered;
use crate::{
    block::Cid,
    caller::{Scope, pattern::Named},
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

/// The key in the `_meta` of a tool of this node that names the scope that its calls need.
const SCOPE: &str = "io.cairn/scope";
/// The key in the `_meta` of a tool of this node that says that it stands in lists for tools that are found by name.
const FINDS: &str = "io.cairn/finds";

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
    /// The scope that calls of it need, if it is one of this node's own tools.
    pub needs: Option<Scope>,
    /// Whether it stands in lists for tools that are found by name.
    pub finds: bool,
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
    pub(super) given: Given,
}

/// What an entry was made of beside its definition.
#[derive(PartialEq)]
pub(super) struct Given {
    hints: Hints,
    lane: Option<String>,
}

impl Given {
    /// Returns what the configuration and the source say of a tool now.
    pub fn of(offered: &Offered, lane: Option<&str>, parts: &Parts) -> Self {
        let configured = parts.tuning.now().hints.get(&offered.name).cloned().unwrap_or_default();
        Self { hints: configured.or(offered.hints.clone()), lane: lane.map(str::to_owned) }
    }
}

/// The schemas of one tool, compiled.
pub(super) struct Schemas {
    input: Schema,
    output: Option<Schema>,
}

impl Schemas {
    /// Compiles the schemas of a contract of this source, which may take part of a second.
    pub fn of(contract: &Contract, source: &str) -> Self {
        let schema: Value = serde_json::from_slice(&contract.input).unwrap_or_default();
        // Tests hold this node's own tools to their schemas.
        let output = contract.output.as_deref().filter(|_| source != BUILTIN);
        let output: Option<Value> = output.and_then(|bytes| serde_json::from_slice(bytes).ok());
        Self { input: Schema::compile(&schema), output: output.as_ref().map(Schema::compile) }
    }
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
    pub(super) fn new(
        offered: Offered,
        (cid, contract): (Cid, Contract),
        schemas: Schemas,
        from: &Origin<'_>,
    ) -> Self {
        let Origin { source, lane, run, parts, resolver } = *from;
        let definition: Value = serde_json::from_str(offered.definition.get()).unwrap_or_default();
        let schema: Value = serde_json::from_slice(&contract.input).unwrap_or_default();
        let output = contract.output.as_deref();
        let output: Option<Value> = output.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let meta = Hints::of_meta(&definition);
        let given = Given::of(&offered, lane, parts);
        let registry = given.hints.clone();
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
        let own = source == BUILTIN;
        // One whose scope is not known needs them all.
        let needs = || definition["_meta"][SCOPE].as_str().and_then(Scope::parse).unwrap_or(Scope::Admin);
        Self {
            given,
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
            needs: own.then(needs),
            finds: own && definition["_meta"][FINDS] == true,
            support: TaskSupport::of(&definition),
            fields: fields.map(|fields| fields.keys().cloned().collect()).unwrap_or_default(),
            names: names_in(&schema),
            schema: schemas.input,
            output: schemas.output,
            contract,
            tool: Arc::new(Tool { name: offered.name, definition: offered.definition, contract: cid }),
        }
    }

    /// Returns whether an input of so many bytes is judged at once; else it may take part of a second.
    pub fn is_quick(&self, bytes: usize) -> bool {
        self.schema.is_quick(bytes)
    }

    /// Returns it as rules speak of it.
    pub fn named(&self) -> Named<'_> {
        Named { name: &self.tool.name, group: &self.metadata.category }
    }

    /// Returns whether it is one of this node's own tools.
    pub fn own(&self) -> bool {
        self.source == BUILTIN
    }
}
