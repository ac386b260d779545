//! Runs that are recorded, spoilt and decided again.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use super::{
    diff::{Likeness, diff},
    *,
};
use crate::{
    block::Codec,
    event::{
        Actor, Fact, PayloadRef, Position,
        body::CallSucceeded,
        work::{
            RetryPolicy, StepFailed, StepGathered, StepSkipped, TaskClaimed, TaskFailed, TaskSubmitted,
            TaskSucceeded, WorkflowCancelled, WorkflowSignalled, WorkflowSubmitted,
        },
    },
    workflow::{
        fields::Fault,
        plan::{self, Definition, ToolFacts, Tools},
    },
};

struct AnyTool;

impl Tools for AnyTool {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        Some(ToolFacts { contract: Cid::of(Codec::Raw, name.as_bytes()), repeatable: true, read_only: true })
    }

    fn check(&self, _name: &str, _input: &Value) -> Vec<Fault> {
        Vec::new()
    }

    fn run_exists(&self, _id: &str) -> bool {
        true
    }
}

/// Payloads by name; the same content has another name each time.
#[derive(Clone, Default)]
struct Store(HashMap<Cid, Arc<Value>>, u64);

impl Store {
    fn put(&mut self, role: Role, value: Value) -> PayloadRef {
        self.1 += 1;
        let text = value.to_string();
        let cid = Cid::of(Codec::Raw, format!("{} {text}", self.1).as_bytes());
        self.0.insert(cid, Arc::new(value));
        PayloadRef { cid, len: text.len() as u64, role }
    }
}

impl Contents for Store {
    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        self.0.get(payload).cloned()
    }
}

/// A run as a node would record it.
#[derive(Clone)]
struct Record {
    begun: Run,
    run: Run,
    events: Vec<Event>,
    store: Store,
    seq: u64,
}

impl Record {
    fn begin(definition: &Value) -> Self {
        let definition = plan::plan(definition, &AnyTool).expect("the tests' definitions are whole");
        let Definition { plan, inputs, dependencies, max_parallel, .. } = definition;
        let body = Body::WorkflowSubmitted(WorkflowSubmitted {
            plan: plan.block().cid(),
            steps: plan.steps.len() as u64,
            priority: 50,
            tags: Vec::new(),
            dependencies,
            max_parallel,
            deadline_ms: None,
            origin: None,
            parent: None,
            peer: None,
        });
        let event = seal(1, "workflow/w".to_owned(), body, Vec::new(), None, Vec::new());
        let run = Run::begun(&event, Arc::new(plan), Arc::new(inputs)).expect("it submits a run");
        let store = Store::default();
        let mut record = Self { begun: run.clone(), run, events: Vec::new(), store, seq: 1 };
        record.settle();
        record
    }

    fn put(
        &mut self,
        subject: &str,
        body: Body,
        payloads: Vec<PayloadRef>,
        tool: Option<Cid>,
        refs: Vec<Cid>,
    ) -> Cid {
        self.seq += 1;
        let event = seal(self.seq, subject.to_owned(), body, payloads, tool, refs);
        self.run.apply(&event);
        self.events.push(event);
        self.events[self.events.len() - 1].cid()
    }

    /// Records all that the rules decide.
    fn settle(&mut self) {
        loop {
            let decisions = self.run.decide(&self.store, self.seq);
            if decisions.is_empty() {
                return;
            }
            decisions.into_iter().for_each(|decision| self.seal(decision));
        }
    }

    fn seal(&mut self, decision: Decision) {
        let own = "workflow/w";
        match decision {
            Decision::Begin(facts) => {
                self.put(own, Body::WorkflowStarted(facts), Vec::new(), None, Vec::new())
            }
            Decision::End(body) => self.put(own, body, Vec::new(), None, Vec::new()),
            Decision::Skip { step, reason } => {
                let body = Body::StepSkipped(StepSkipped { step, reason: reason.to_owned() });
                self.put(own, body, Vec::new(), None, Vec::new())
            }
            Decision::Fail { step, code, .. } => {
                self.put(own, Body::StepFailed(StepFailed { step, code }), Vec::new(), None, Vec::new())
            }
            Decision::Gather { step, output, parts } => {
                let output = self.store.put(Role::Output, serde_json::from_str(&output).expect("it is json"));
                self.put(
                    own,
                    Body::StepGathered(StepGathered { step, parts }),
                    vec![output],
                    None,
                    Vec::new(),
                )
            }
            Decision::Settle { task_id, output, signal } => {
                let body = Body::TaskSucceeded(TaskSucceeded { fence: 0, attempt: 0, reused: false });
                let output = output.map(|output| PayloadRef { role: Role::Output, ..output });
                let payloads = output.into_iter().collect();
                self.put(&format!("task/{task_id}"), body, payloads, None, vec![signal])
            }
            Decision::Submit {
                task_id,
                step,
                part,
                task_type,
                tool,
                input,
                hold,
                retry,
                timeout_ms,
                repeatable,
                reuse,
            } => {
                let body = Body::TaskSubmitted(TaskSubmitted {
                    timeout_ms,
                    retry: retry.unwrap_or(RetryPolicy::NEVER),
                    run: Some("w".to_owned()),
                    step: Some(step),
                    part,
                    hold,
                    repeatable,
                    reuse,
                    ..TaskSubmitted::plain(&task_type)
                });
                let input = self.store.put(Role::Input, serde_json::from_str(&input).expect("it is json"));
                self.put(&format!("task/{task_id}"), body, vec![input], tool, Vec::new())
            }
            other => panic!("the tests' runs do not decide {other:?}"),
        };
    }

    fn claim(&mut self, task: &str) {
        let claimed = TaskClaimed {
            worker: "x".to_owned(),
            runner: None,
            attempt: 1,
            fence: 1,
            lease_until_ms: 1,
            effective: 50,
            rate_until_ms: None,
        };
        self.put(&format!("task/w#{task}"), Body::TaskClaimed(claimed), Vec::new(), None, Vec::new());
        self.settle();
    }

    fn give(&mut self, task: &str, output: Value) {
        self.claim(task);
        let output = self.store.put(Role::Output, output);
        let body = Body::TaskSucceeded(TaskSucceeded { fence: 1, attempt: 1, reused: false });
        self.put(&format!("task/w#{task}"), body, vec![output], None, Vec::new());
        self.settle();
    }

    fn fail(&mut self, task: &str) {
        self.claim(task);
        let failed =
            TaskFailed { fence: 1, attempt: 1, code: "bad".to_owned(), retryable: false, retry_at_ms: None };
        self.put(&format!("task/w#{task}"), Body::TaskFailed(failed), Vec::new(), None, Vec::new());
        self.settle();
    }

    fn verify(&self) -> Report {
        verify(self.begun.clone(), &self.events, &self.store)
    }

    /// The place of the first event of a kind about a subject.
    fn place(&self, kind: &str, subject: &str) -> usize {
        let found = self
            .events
            .iter()
            .position(|event| event.fields().kind == kind && event.fields().subject == subject);
        found.expect("the record has such an event")
    }

    /// Puts other payloads into an event.
    fn spoil(&mut self, kind: &str, subject: &str, payloads: Vec<PayloadRef>) {
        let place = self.place(kind, subject);
        let event = &self.events[place];
        let (fields, body) = (event.fields(), event.body().expect("the kind is known"));
        self.events[place] =
            seal(fields.seq, subject.to_owned(), body, payloads, fields.tool, fields.refs.clone());
    }
}

/// Every event is a millisecond after the one before.
fn seal(
    seq: u64,
    subject: String,
    body: Body,
    payloads: Vec<PayloadRef>,
    tool: Option<Cid>,
    refs: Vec<Cid>,
) -> Event {
    let cid = Cid::of(Codec::Raw, b"");
    let actor = Actor { id: "a".to_owned(), role: "client".to_owned(), proof: None };
    let fact = Fact { cause: None, refs, actor, subject, tool, payloads, body };
    Event::seal(fact, at(seq, cid)).expect("the tests' events are small")
}

fn at(seq: u64, log: Cid) -> Position {
    Position { log, seq, prev: Some(log), ts: seq * 1000 }
}

/// `steps` as `id:action<parent,parent`; a step takes `/n` from its first parent.
fn definition(steps: &str) -> Value {
    let step = |word: &str| {
        let (name, parents) = word.split_once('<').unwrap_or((word, ""));
        let (id, action) = name.split_once(':').unwrap_or((name, "tool"));
        let parents: Vec<&str> = parents.split(',').filter(|parent| !parent.is_empty()).collect();
        let inputs = match (action, parents.first()) {
            ("wait:signal", _) => json!({"signal": "go"}),
            (_, Some(parent)) => json!({"n": {"$from": parent, "pointer": "/n", "default": 0}}),
            (_, None) => json!({"n": 1}),
        };
        json!({"step_id": id, "action": action, "inputs": inputs, "depends_on": parents})
    };
    json!({"workflow_id": "w", "name": "w", "steps": steps.split(' ').map(step).collect::<Vec<_>>()})
}

/// What a tool gives.
fn result(n: u64) -> Value {
    json!({"content": [], "structuredContent": {"n": n}})
}

/// A diamond that ran to its end.
fn diamond() -> Record {
    let mut record = Record::begin(&definition("a b<a c<a d<b,c"));
    for (number, task) in ["a", "c", "b", "d"].into_iter().enumerate() {
        record.give(task, result(number as u64));
    }
    record
}

/// Whether it matched, how many steps were compared, and the steps that differ.
fn check(record: &Record, compared: u64, differ: &[(&str, Verdict)]) -> Report {
    let report = record.verify();
    let found: Vec<(&str, Verdict)> = report
        .steps
        .iter()
        .filter(|step| step.verdict != Verdict::Match)
        .map(|step| (step.step_id.as_deref().unwrap_or("run"), step.verdict))
        .collect();
    assert_eq!(found, differ, "{report:#?}");
    assert_eq!(report.compared_steps(), compared);
    assert_eq!(report.matched(), !differ.iter().any(|(_, verdict)| verdict.diverges()));
    report
}

#[test]
fn a_run_that_was_recorded_as_decided_matches() {
    check(&diamond(), 4, &[]);
}

#[test]
fn conditions_failures_lists_and_signals_are_decided_again() {
    let mut wide = definition("list each<list go:wait:signal<each last<go no<list");
    wide["steps"][1]["for_each"] = json!({"$from": "list", "pointer": "/items"});
    wide["steps"][1]["inputs"] = json!({"n": {"$item": ""}});
    wide["steps"][4]["when"] = json!({"$from": "list", "pointer": "/n", "equals": 5});
    wide["steps"][3]["inputs"] = json!({"n": {"$from": "go", "pointer": "/word"}});
    let mut record = Record::begin(&wide);
    record.give("list", json!({"structuredContent": {"items": [1, 2], "n": 4}}));
    record.give("each#1", result(2));
    record.give("each#0", result(1));
    let payload = record.store.put(Role::Input, json!({"word": "yes"}));
    let body = Body::WorkflowSignalled(WorkflowSignalled { signal: "go".to_owned() });
    record.put("workflow/w", body, vec![payload], None, Vec::new());
    record.settle();
    record.give("last", result(9));
    assert_eq!(record.run.status().as_str(), "succeeded");
    check(&record, 5, &[]);

    let mut failing = Record::begin(&definition("a b<a c"));
    failing.fail("a");
    failing.give("c", result(1));
    assert_eq!(failing.run.status().as_str(), "failed");
    check(&failing, 3, &[]);
}

#[test]
fn a_run_that_goes_on_is_compared_as_far_as_it_is() {
    let mut record = Record::begin(&definition("a b<a"));
    record.claim("a");
    check(&record, 1, &[]);
}

#[test]
fn another_input_is_found_with_its_place() {
    let mut record = diamond();
    let other = record.store.put(Role::Input, json!({"n": 77}));
    record.spoil("task.submitted", "task/w#d", vec![other]);
    let report = check(&record, 4, &[("d", Verdict::InputDiffers)]);
    let first = report.first_divergence().expect("it differs");
    assert_eq!((first.actual, first.why.as_str()), (Some(other.cid), "the content differs at /n"));
}

#[test]
fn another_output_shows_where_it_was_read() {
    let mut record = diamond();
    let other = record.store.put(Role::Output, result(41));
    record.spoil("task.succeeded", "task/w#a", vec![other]);
    check(&record, 4, &[("b", Verdict::InputDiffers), ("c", Verdict::InputDiffers)]);
}

#[test]
fn an_output_that_its_call_did_not_give_differs() {
    let mut record = diamond();
    let given = record.store.put(Role::Output, result(3));
    let body = Body::CallSucceeded(CallSucceeded { took_us: 1, ..CallSucceeded::default() });
    let call = seal(0x1000, "call/1".to_owned(), body, vec![given], None, Vec::new());
    let place = record.place("task.succeeded", "task/w#d");
    let fields = record.events[place].fields().clone();
    let body = record.events[place].body().expect("the kind is known");
    let with =
        |output| seal(fields.seq, fields.subject.clone(), body.clone(), vec![output], None, vec![call.cid()]);
    let (same, other) =
        (record.store.put(Role::Output, result(3)), record.store.put(Role::Output, result(4)));
    record.events.push(call.clone());
    record.events[place] = with(same);
    check(&record, 4, &[]);
    record.events[place] = with(other);
    let report = check(&record, 4, &[("d", Verdict::OutputDiffers)]);
    let first = report.first_divergence().expect("it differs");
    assert_eq!((first.expected, first.actual), (Some(given.cid), Some(other.cid)));
}

#[test]
fn what_the_record_lacks_is_missing_and_what_it_has_beside_is_extra() {
    let mut lacking = Record::begin(&definition("a b<a c<a"));
    lacking.give("a", result(1));
    let place = lacking.place("task.submitted", "task/w#b");
    lacking.events.remove(place);
    check(&lacking, 3, &[("b", Verdict::Missing)]);

    let mut early = Record::begin(&definition("a b<a"));
    early.give("a", result(1));
    let place = early.place("task.submitted", "task/w#b");
    let submitted = early.events.remove(place);
    early.events.insert(0, submitted);
    check(&early, 2, &[("b", Verdict::Extra)]);
}

#[test]
fn a_step_that_was_skipped_without_a_condition_is_extra() {
    let mut record = Record::begin(&definition("a b<a"));
    let body = Body::StepSkipped(StepSkipped { step: "a".to_owned(), reason: "condition".to_owned() });
    record.events.clear();
    record.put("workflow/w", body, Vec::new(), None, Vec::new());
    let report = record.verify();
    let first = report.first_divergence().expect("it differs");
    assert_eq!(first.verdict, Verdict::Extra);
    assert_eq!(first.why, "the rules decide otherwise: task w#a is submitted");
}

#[test]
fn a_step_that_starts_after_a_cancel_is_extra() {
    let mut record = Record::begin(&definition("a b<a"));
    record.claim("a");
    let mut cancelled = record.clone();
    record.give("a", result(1));
    let started = record.events[record.place("task.submitted", "task/w#b")].clone();
    let body = Body::WorkflowCancelled(WorkflowCancelled { force: false });
    cancelled.put("workflow/w", body, Vec::new(), None, Vec::new());
    check(&cancelled, 1, &[]);
    cancelled.events.push(started);
    check(&cancelled, 2, &[("b", Verdict::Extra)]);
}

#[test]
fn what_was_erased_is_unverifiable_and_nothing_else() {
    let mut record = diamond();
    let output = record.events[record.place("task.succeeded", "task/w#b")].fields().pay[0].cid;
    record.store.0.remove(&output);
    check(&record, 3, &[("d", Verdict::Unverifiable)]);
    let input = record.events[record.place("task.submitted", "task/w#c")].fields().pay[0].cid;
    record.store.0.remove(&input);
    check(&record, 2, &[("c", Verdict::Unverifiable), ("d", Verdict::Unverifiable)]);
}

#[test]
fn a_run_whose_own_input_was_erased_is_unverifiable_wherever_it_asks() {
    let mut wide = definition("list each<list go:wait:signal<each last<go no<list yes<list");
    wide["steps"][1]["for_each"] = json!({"$from": "list", "pointer": "/items"});
    wide["steps"][1]["inputs"] = json!({"n": {"$item": ""}});
    wide["steps"][4]["when"] = json!({"$from": "list", "pointer": "/n", "equals": 5});
    wide["steps"][5]["when"] = json!({"$from": "list", "pointer": "/n", "equals": 4});
    let mut record = Record::begin(&wide);
    record.give("list", json!({"structuredContent": {"items": [1, 2], "n": 4}}));
    record.give("each#1", result(2));
    record.give("yes", result(7));
    record.give("each#0", result(1));
    let signal = record.store.put(Role::Input, json!({"word": "yes"}));
    let body = Body::WorkflowSignalled(WorkflowSignalled { signal: "go".to_owned() });
    record.put("workflow/w", body, vec![signal], None, Vec::new());
    record.settle();
    record.give("last", result(9));
    assert_eq!(record.run.status().as_str(), "succeeded");
    check(&record, 6, &[]);
    assert_eq!(record.verify().outcome(), Outcome::Matched);

    let input = record.store.put(Role::Input, json!({}));
    record.store.0.remove(&input.cid);
    (record.begun.input, record.begun.inputs) = (Some(input), Arc::new(Value::Null));
    let report = record.verify();
    assert_eq!(report.outcome(), Outcome::Incomplete, "{report:#?}");
    assert_eq!(report.compared_steps(), 0, "{report:#?}");
    assert_eq!(report.erased(), BTreeSet::from([input.cid]));
}

#[test]
fn a_failure_for_want_of_erased_content_stands_for_no_other_ending() {
    let mut wide = definition("list each<list");
    wide["steps"][1]["for_each"] = json!({"$from": "list", "pointer": "/items"});
    wide["steps"][1]["inputs"] = json!({"n": {"$item": ""}});
    let mut record = Record::begin(&wide);
    record.give("list", json!({"structuredContent": {"items": [1]}}));
    record.give("each#0", result(1));
    let part = record.events[record.place("task.succeeded", "task/w#each#0")].fields().pay[0].cid;
    record.store.0.remove(&part);
    let report = check(&record, 1, &[("each", Verdict::Unverifiable)]);
    assert_eq!(report.erased(), BTreeSet::from([part]));
}

#[test]
fn runs_are_compared_by_content_step_by_step() {
    let left = diamond();
    let mut right = Record::begin(&definition("a b<a c<a d<b,c e"));
    right.store.1 = 1000;
    for (number, task) in ["a", "c", "b"].into_iter().enumerate() {
        right.give(task, result(number as u64));
    }
    right.fail("d");
    right.give("e", result(5));
    let mut store = left.store.clone();
    store.0.extend(right.store.0.clone());
    let same = diff(&left.run, &left.run, &store);
    assert!(same.matched());
    assert_eq!(same.compared_steps(), 4);
    let diff = diff(&left.run, &right.run, &store);
    let differ: Vec<_> =
        diff.steps.iter().filter_map(|pair| Some((pair.step_id.as_str(), pair.differs()?.0))).collect();
    assert_eq!(differ, [("d", "output"), ("e", "the left run lacks the step")]);
    let gave = left.run.steps[3].output.map(|output| output.cid);
    assert_eq!(diff.first_divergence(), Some(("d", "output", gave, None)));
    let verdicts: Vec<Verdict> = diff.report().steps.iter().map(|step| step.verdict).collect();
    let same = Verdict::Match;
    assert_eq!(verdicts, [same, same, same, Verdict::OutputDiffers, Verdict::Extra]);
    let erased: Vec<Cid> = left.run.steps[1].output.iter().map(|output| output.cid).collect();
    erased.iter().for_each(|cid| drop(store.0.remove(cid)));
    let diff = super::diff::diff(&left.run, &right.run, &store);
    assert_eq!(diff.steps[1].output, Likeness::Unknown);
    assert_eq!(diff.report().steps[1].verdict, Verdict::Unverifiable);
}

#[test]
fn runs_of_many_steps_are_decided_again_deep_and_wide() {
    let name = |number: usize| format!("s{number}");
    let chain = (1..10_000).map(|number| format!("{}<{}", name(number), name(number - 1)));
    let star = (1..2_000).map(|number| format!("{}<s0", name(number)));
    for steps in [Vec::from_iter(chain), Vec::from_iter(star)] {
        let mut record = Record::begin(&definition(&format!("s0 {}", steps.join(" "))));
        (0..=steps.len()).for_each(|number| record.give(&name(number), result(number as u64)));
        assert_eq!(record.run.status().as_str(), "succeeded");
        check(&record, steps.len() as u64 + 1, &[]);
    }
}
