//! One step of a definition: its fields, what it runs, and which steps it reads.
//!
//! Invariant: what is wrong with one field keeps no other from being read.

use serde_json::{Map, Value, json};

use super::{EACH_DEFAULT, EACH_MAX, NAME_MAX, STEP_FIELDS, Standing, Tools};
use crate::{
    block::Cid,
    event::work::RetryPolicy,
    task::SPAN_MAX_MS,
    workflow::{
        fields::{self, Faults, Object, join},
        inputs::{self, Reference, Special, when},
        shape::{Step, Undo, WAIT_RUN, WAIT_SIGNAL, WAIT_TIME, WORKER, WORKFLOW_RUN},
    },
};

const RETRY_FIELDS: [&str; 5] = ["max_retries", "backoff_ms", "backoff_factor", "max_backoff_ms", "jitter"];
const RETRIES_MAX: u64 = 1_000;
const FACTOR_MAX: f64 = 100.0;
/// Dependencies of one step.
const DEPENDS_MAX: usize = super::STEPS_MAX;

/// A step that was read, before the graph is checked.
pub struct Draft {
    pub step: Step,
    pub inputs: Value,
    /// Its place in the definition.
    pub place: String,
    pub reads: Vec<Read>,
}

/// A reference of a step to another's output.
pub struct Read {
    pub step: String,
    pub place: String,
    /// Whether it is in the compensation, which may read the step itself.
    pub undo: bool,
}

/// A resolved action.
struct Action {
    task_type: String,
    tool: Option<Cid>,
    repeatable: bool,
    read_only: bool,
}

/// Reads a step; `None` if it has no usable id.
pub fn read(
    value: &Value,
    place: &str,
    reuse: bool,
    tools: &dyn Tools,
    faults: &mut Faults,
) -> Option<Draft> {
    let object = Object::open(value, place, &STEP_FIELDS, faults)?;
    let id = object.required("step_id", faults).and_then(|_| object.text("step_id", NAME_MAX, faults));
    if id.is_some_and(|id| !fields::is_name(id, "")) {
        faults.add(object.place("step_id"), fields::NOT_A_NAME);
    }
    let name = object.required("action", faults).and_then(|_| object.text("action", NAME_MAX + 16, faults));
    let action = name.and_then(|name| action(name, &object.place("action"), tools, faults));
    let waits = name.is_some_and(|name| [WAIT_SIGNAL, WAIT_TIME, WORKFLOW_RUN].contains(&name));
    for field in ["retry", "timeout_ms", "compensate"].into_iter().filter(|_| waits) {
        if object.get(field).is_some() {
            faults.add(
                object.place(field),
                "a step that waits has no attempts: its bounds stand in its inputs",
            );
        }
    }
    let wish = object.flag("reuse", faults);
    let read_only = action.as_ref().is_some_and(|action| action.read_only);
    if wish == Some(true) && action.is_some() && !read_only {
        faults.add(object.place("reuse"), "only the results of read-only tools can be used again");
    }
    let repeatable = object.flag("repeatable", faults);
    let timeout_ms = object.whole("timeout_ms", 1..=SPAN_MAX_MS, faults);
    let retry = retry(&object, faults);
    let depends_on = object.names("depends_on", DEPENDS_MAX, NAME_MAX, faults);

    let mut parts = Map::new();
    let mut reads = Vec::new();
    let each = for_each(&object, &mut parts, &mut reads, faults);
    let rule = Taking { action: name.unwrap_or_default(), items: each.is_some(), undo: false };
    take_inputs(&object, rule, tools, &mut parts, &mut reads, faults);
    let condition = object.get("when");
    if let Some(condition) = condition {
        when::check(condition, &object.place("when"), faults, &mut |reference, place| {
            reads.push(Read::new(reference, place, false));
        });
        parts.insert("when".into(), condition.clone());
    }
    let compensate = compensate(&object, tools, &mut parts, &mut reads, faults);
    let action = action.unwrap_or(Action {
        task_type: String::new(),
        tool: None,
        repeatable: false,
        read_only: false,
    });
    let step = Step {
        id: id?.to_owned(),
        action: name.unwrap_or_default().to_owned(),
        task_type: action.task_type,
        tool: action.tool,
        depends_on,
        retry,
        timeout_ms,
        when: condition.is_some(),
        each,
        compensate,
        reuse: wish.unwrap_or(reuse) && read_only,
        repeatable: repeatable.unwrap_or(action.repeatable),
    };
    Some(Draft { step, inputs: Value::Object(parts), place: place.to_owned(), reads })
}

impl Read {
    fn new(reference: Reference<'_>, place: String, undo: bool) -> Self {
        Self { step: reference.step.to_owned(), place, undo }
    }
}

fn action(name: &str, place: &str, tools: &dyn Tools, faults: &mut Faults) -> Option<Action> {
    let own = |task_type: &str| Action {
        task_type: task_type.to_owned(),
        tool: None,
        repeatable: false,
        read_only: false,
    };
    match name {
        WAIT_SIGNAL | WAIT_TIME => return Some(own(name)),
        WORKFLOW_RUN => return Some(own(WAIT_RUN)),
        _ => {}
    }
    if let Some(word) = name.strip_prefix(WORKER) {
        let free = !["tool:", "wait:"].iter().any(|taken| word.starts_with(taken));
        if !fields::is_name(word, "/") || word.len() > NAME_MAX || !free {
            let rule = format!("{}, and not start with `tool:` or `wait:`", fields::NOT_A_RUN_ID);
            faults.add(place, format!("the type of a task {rule}"));
        }
        return Some(own(word));
    }
    let Some(facts) = tools.tool(name) else {
        let own = fields::nearest(name, [WAIT_SIGNAL, WAIT_TIME, WORKFLOW_RUN].into_iter());
        let nearest = fields::suggestion(
            own.map(str::to_owned).or_else(|| if faults.few() { tools.nearest(name) } else { None }),
        );
        faults.add(place, format!("there is no action `{name}`{nearest}"));
        return None;
    };
    Some(Action {
        task_type: format!("tool:{name}"),
        tool: Some(facts.contract),
        repeatable: facts.repeatable,
        read_only: facts.read_only,
    })
}

fn retry(step: &Object<'_>, faults: &mut Faults) -> Option<RetryPolicy> {
    let object = Object::open(step.get("retry")?, &step.place("retry"), &RETRY_FIELDS, faults)?;
    let factor = object.number("backoff_factor", 1.0..=FACTOR_MAX, faults).unwrap_or(2.0);
    Some(RetryPolicy {
        max_retries: object.whole("max_retries", 0..=RETRIES_MAX, faults).unwrap_or(0),
        backoff_ms: object.whole("backoff_ms", 0..=SPAN_MAX_MS, faults).unwrap_or(1_000),
        factor_milli: (factor * 1_000.0).round() as u64,
        max_backoff_ms: object.whole("max_backoff_ms", 0..=SPAN_MAX_MS, faults).unwrap_or(60_000),
        jitter: object.flag("jitter", faults).unwrap_or(true),
    })
}

fn for_each(
    step: &Object<'_>,
    parts: &mut Map<String, Value>,
    reads: &mut Vec<Read>,
    faults: &mut Faults,
) -> Option<u64> {
    let value = step.get("for_each")?;
    let place = step.place("for_each");
    let object = Object::open(value, &place, &["$from", "pointer", "default", "max"], faults)?;
    object.required("$from", faults)?;
    let max = object.whole("max", 1..=EACH_MAX, faults).unwrap_or(EACH_DEFAULT);
    let mut list = value.as_object()?.clone();
    list.remove("max");
    match Special::read(&list) {
        Some(Special::From(reference)) => reads.push(Read::new(reference, place, false)),
        Some(Special::Malformed(fault)) => faults.add(place, fault),
        Some(Special::Item(_)) | None => {}
    }
    parts.insert("for_each".into(), Value::Object(list));
    Some(max)
}

/// Which special objects the inputs may contain.
#[derive(Clone, Copy)]
struct Taking<'a> {
    action: &'a str,
    items: bool,
    undo: bool,
}

fn take_inputs(
    object: &Object<'_>,
    rule: Taking<'_>,
    tools: &dyn Tools,
    parts: &mut Map<String, Value>,
    reads: &mut Vec<Read>,
    faults: &mut Faults,
) {
    let empty = json!({});
    let inputs = object.get("inputs").unwrap_or(&empty);
    let place = object.place("inputs");
    if !inputs.is_object() {
        return faults.add(place, "must be an object");
    }
    let mut literal = true;
    let walked = inputs::replace(inputs, rule.action, &place, &mut |special, place| {
        literal = false;
        match special {
            Special::From(reference) => reads.push(Read::new(reference, place.to_owned(), rule.undo)),
            Special::Item(_) if rule.items => {}
            Special::Item(_) => {
                faults.add(place, "`$item` stands only in the inputs of a step with `for_each`")
            }
            Special::Malformed(fault) => faults.add(place, fault),
        }
        Ok(Value::Null)
    });
    walked.expect("noting specials does not fail");
    if rule.action == WORKFLOW_RUN {
        if !inputs.as_object().is_some_and(|fields| fields.contains_key("$from")) {
            super::check(inputs, &place, Standing::Child, tools, faults);
        }
    } else if literal {
        check_literal(rule.action, inputs, &place, tools, faults);
    }
    parts.insert("inputs".into(), inputs.clone());
}

fn check_literal(action: &str, inputs: &Value, place: &str, tools: &dyn Tools, faults: &mut Faults) {
    match action {
        WAIT_SIGNAL | WAIT_TIME => {
            super::read_hold(action, inputs, place, 0, faults);
        }
        action if action.starts_with(WORKER) || tools.tool(action).is_none() => {}
        tool => {
            for fault in tools.check(tool, inputs) {
                faults.add(format!("{place}{}", fault.place), fault.fault);
            }
        }
    }
}

fn compensate(
    step: &Object<'_>,
    tools: &dyn Tools,
    parts: &mut Map<String, Value>,
    reads: &mut Vec<Read>,
    faults: &mut Faults,
) -> Option<Undo> {
    let place = step.place("compensate");
    let object = Object::open(step.get("compensate")?, &place, &["action", "inputs"], faults)?;
    object.required("action", faults)?;
    let name = object.text("action", NAME_MAX + 16, faults)?;
    if [WAIT_SIGNAL, WAIT_TIME, WORKFLOW_RUN].contains(&name) {
        faults.add(join(&place, "action"), "what takes a step back is a tool or a worker's task");
        return None;
    }
    let found = action(name, &join(&place, "action"), tools, faults)?;
    let rule = Taking { action: name, items: false, undo: true };
    let mut undo = Map::new();
    take_inputs(&object, rule, tools, &mut undo, reads, faults);
    parts.insert("compensate".into(), Value::Object(undo));
    Some(Undo {
        action: name.to_owned(),
        task_type: found.task_type,
        tool: found.tool,
        repeatable: found.repeatable,
    })
}
