//! Runs as data: a definition, what happens, and what the run asks for then.
//!
//! Invariant: every story is folded a second time from its events at the end, and must decide the same.

mod changes;
mod flow;
mod plans;
pub(crate) mod random;
mod sizes;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    plan::{Definition, ToolFacts, Tools, plan},
    replay,
    run::{
        Piece, Run, Slot,
        decision::{Contents, Decision},
        status::WorkStatus,
    },
};
use crate::{
    block::{Cid, Codec},
    event::{
        Actor, Body, Event, Fact, PayloadRef, Position, Role,
        work::{
            Hold, Origin, RetryPolicy, StepFailed, StepGathered, StepSkipped, TaskCancelRequested,
            TaskCancelled, TaskClaimed, TaskDead, TaskFailed, TaskInterrupted, TaskLeaseExpired, TaskRetried,
            TaskSubmitted, TaskSucceeded, TaskTimedOut, WorkflowSubmitted,
        },
    },
    workflow::{fields::Fault, run::decision::Given},
};

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

/// Three tools: `read` only reads, `put` may be repeated, `write` may not and wants `text`. One run: `earlier`.
struct Board;

impl Tools for Board {
    fn tool(&self, name: &str) -> Option<ToolFacts> {
        let (repeatable, read_only) = match name {
            "read" => (true, true),
            "put" => (true, false),
            "write" => (false, false),
            _ => return None,
        };
        Some(ToolFacts { contract: cid(name), repeatable, read_only })
    }

    fn check(&self, name: &str, input: &Value) -> Vec<Fault> {
        let text = input.get("text").is_some_and(Value::is_string);
        let fault = Fault { place: "/text".to_owned(), fault: "must be text".to_owned() };
        if name == "write" && !text { vec![fault] } else { Vec::new() }
    }

    fn run_exists(&self, id: &str) -> bool {
        id == "earlier"
    }

    /// One peer, which has what may be repeated.
    fn serves(&self, peer: &str, tool: &str) -> Option<bool> {
        (peer == "p").then_some(tool != "write")
    }

    fn nearest(&self, name: &str) -> Option<String> {
        (name == "wirte").then(|| "write".to_owned())
    }
}

/// Contents by name, as a store would keep them.
#[derive(Clone, Default)]
struct Memory {
    values: HashMap<Cid, Arc<Value>>,
    texts: BTreeSet<String>,
}

impl Memory {
    fn keep(&mut self, text: &str, role: Role) -> PayloadRef {
        let cid = cid(text);
        let value = || Arc::new(serde_json::from_str(text).expect("the text is json"));
        self.values.entry(cid).or_insert_with(value);
        self.texts.insert(text.to_owned());
        PayloadRef { cid, len: text.len() as u64, role }
    }
}

impl Contents for Memory {
    fn json(&self, payload: &Cid) -> Option<Arc<Value>> {
        self.values.get(payload).cloned()
    }
}

/// A step of a definition; `more` holds its other fields.
fn step(id: &str, action: &str, depends_on: &[&str], more: Value) -> Value {
    let mut step = json!({ "step_id": id, "action": action, "depends_on": depends_on });
    let fields = step.as_object_mut().expect("a step is an object");
    fields.extend(more.as_object().expect("fields are an object").clone());
    step
}

fn work(id: &str, depends_on: &[&str]) -> Value {
    step(id, "worker:do", depends_on, json!({}))
}

fn definition(steps: Vec<Value>, more: Value) -> Value {
    let mut definition = json!({ "workflow_id": "wf", "name": "test", "steps": steps });
    let fields = definition.as_object_mut().expect("a definition is an object");
    fields.extend(more.as_object().expect("fields are an object").clone());
    definition
}

/// What was decided after how many events, at which time, and which dependencies had ended by then.
struct Asked {
    events: usize,
    now_ms: u64,
    ended: Vec<(String, bool)>,
    decisions: Vec<Decision>,
}

/// A run and its writer.
struct Story {
    run: Run,
    definition: Definition,
    old: Option<Run>,
    events: Vec<Event>,
    asked: Vec<Asked>,
    ended: Vec<(String, bool)>,
    memory: Memory,
    now_ms: u64,
}

impl Story {
    fn of(definition: &Value) -> Self {
        Self::with(definition, None, None, Memory::default())
    }

    fn with(definition: &Value, origin: Option<Origin>, old: Option<Run>, mut memory: Memory) -> Self {
        let definition = plan(definition, &Board).expect("the definition is sound");
        let now_ms = 1_000;
        let submitted = WorkflowSubmitted {
            plan: definition.plan.block().cid(),
            steps: definition.plan.steps.len() as u64,
            priority: definition.priority,
            tags: definition.tags.clone(),
            dependencies: definition.dependencies.clone(),
            max_parallel: definition.max_parallel,
            deadline_ms: definition.deadline_ms.map(|ms| now_ms + ms),
            origin,
            parent: None,
            peer: None,
        };
        let input = memory.keep(&definition.inputs.to_string(), Role::Input);
        let id = definition.id.clone().expect("the definition names its run");
        let body = Body::WorkflowSubmitted(submitted);
        let event = seal(&super::subject(&id), None, vec![input], body, &[], now_ms);
        let run = begin(&event, &definition, old.as_ref());
        let mut story =
            Self { run, definition, old, events: vec![event], asked: vec![], ended: vec![], memory, now_ms };
        story.now_ms = now_ms;
        story
    }

    fn record(&mut self, subject: &str, tool: Option<Cid>, payloads: Vec<PayloadRef>, body: Body) {
        let event = seal(subject, tool, payloads, body, &self.events, self.now_ms);
        self.run.apply(&event);
        self.events.push(event);
    }

    fn own(&mut self, payloads: Vec<PayloadRef>, body: Body) {
        self.record(&super::subject(&self.run.id.clone()), None, payloads, body);
    }

    fn task(&mut self, task_id: &str, payloads: Vec<PayloadRef>, body: Body) {
        self.record(&format!("task/{task_id}"), None, payloads, body);
    }

    /// Carries out all that the run asks for, and says what it was.
    fn settle(&mut self) -> Vec<Decision> {
        let mut all = Vec::new();
        loop {
            let decisions = self.run.decide(&self.memory, self.now_ms);
            self.asked.push(Asked {
                events: self.events.len(),
                now_ms: self.now_ms,
                ended: self.ended.clone(),
                decisions: decisions.clone(),
            });
            if decisions.is_empty() {
                return all;
            }
            for decision in &decisions {
                self.carry_out(decision.clone());
            }
            all.extend(decisions);
        }
    }

    /// Nothing starts before what it depends on, or after the run has ended.
    fn may_start(&self, task_id: &str) {
        let slot = self.run.slot(task_id).expect("the task is the run's");
        assert!(!self.run.status().ended(), "{task_id} starts in a run that has ended");
        for parent in &self.run.plan.steps[slot.step].depends_on {
            let parent = self.run.step(parent).expect("the plan is sound");
            assert!(self.run.steps[parent].done(), "{task_id} starts before what it depends on");
        }
    }

    fn carry_out(&mut self, decision: Decision) {
        if let Decision::Submit { task_id, .. }
        | Decision::Child { task_id, .. }
        | Decision::Retry { task_id, .. }
        | Decision::Take { task_id, .. } = &decision
        {
            self.may_start(task_id);
        }
        match decision {
            Decision::Begin(facts) => self.own(vec![], Body::WorkflowStarted(facts)),
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
                let input = self.memory.keep(&input, Role::Input);
                let facts = submitted(&self.run.id, &step, part, &task_type, hold, retry);
                let facts = TaskSubmitted { timeout_ms, repeatable, reuse, ..facts };
                self.record(&format!("task/{task_id}"), tool, vec![input], Body::TaskSubmitted(facts));
            }
            Decision::Child { task_id, step, part, run, definition } => {
                let input = self.memory.keep(&definition.to_string(), Role::Input);
                let facts = submitted(&self.run.id, &step, part, "wait:run", Some(Hold::Run { run }), None);
                self.task(&task_id, vec![input], Body::TaskSubmitted(facts));
            }
            Decision::Retry { task_id, input, hold, .. } => {
                let input = self.memory.keep(&input, Role::Input);
                let facts = TaskRetried { hold, order: 0, max_retries: None, timeout_ms: None };
                self.task(&task_id, vec![input], Body::TaskRetried(facts));
            }
            Decision::Take { task_id, step, task_type, tool, input, output, .. } => {
                let facts = submitted(&self.run.id, &step, Default::default(), &task_type, None, None);
                let input = match input {
                    Given::Recorded(input) => input,
                    Given::Resolved(text) => Some(self.memory.keep(&text, Role::Input)),
                };
                let (subject, input) = (format!("task/{task_id}"), input.into_iter().collect());
                self.record(&subject, tool, input, Body::TaskSubmitted(facts));
                let facts = TaskSucceeded { fence: 0, attempt: 0, reused: true };
                self.task(&task_id, output.into_iter().collect(), Body::TaskSucceeded(facts));
            }
            Decision::TakeGathered { step, input, parts, output, .. } => {
                let input = input.map(|text| self.memory.keep(&text, Role::Input));
                self.own(
                    output.into_iter().chain(input).collect(),
                    Body::StepGathered(StepGathered { step, parts }),
                );
            }
            Decision::Skip { step, reason } => {
                self.own(vec![], Body::StepSkipped(StepSkipped { step, reason: reason.into() }));
            }
            Decision::Fail { step, code, message, input } => {
                let error = self.memory.keep(&json!({ "message": message }).to_string(), Role::Error);
                let input = input.map(|text| self.memory.keep(&text, Role::Input));
                self.own(
                    [Some(error), input].into_iter().flatten().collect(),
                    Body::StepFailed(StepFailed { step, code }),
                );
            }
            Decision::Gather { step, output, parts } => {
                let output = self.memory.keep(&output, Role::Output);
                self.own(vec![output], Body::StepGathered(StepGathered { step, parts }));
            }
            Decision::Settle { task_id, output, .. } => {
                let output = output.map(|output| PayloadRef { role: Role::Output, ..output });
                let facts = TaskSucceeded { fence: 0, attempt: 0, reused: false };
                self.task(&task_id, output.into_iter().collect(), Body::TaskSucceeded(facts));
            }
            Decision::Cancel { task_id, force, .. } => {
                let slot = self.run.slot(&task_id).expect("the task is the run's");
                let running = self.run.work(slot).is_some_and(|work| work.status == WorkStatus::Running);
                if running {
                    self.task(&task_id, vec![], Body::TaskCancelRequested(TaskCancelRequested { force }));
                }
                self.task(&task_id, vec![], Body::TaskCancelled(TaskCancelled { running }));
            }
            Decision::End(body) => self.own(vec![], body),
        }
    }

    fn claim(&mut self, task_id: &str) {
        let claimed = TaskClaimed {
            worker: "w".into(),
            runner: None,
            attempt: 1,
            fence: 1,
            lease_until_ms: self.now_ms + 30_000,
            effective: 50,
            rate_until_ms: None,
        };
        self.task(task_id, vec![], Body::TaskClaimed(claimed));
    }

    fn status_of(&self, task_id: &str) -> WorkStatus {
        let slot = self.run.slot(task_id).expect("the task is the run's");
        self.run.work(slot).map_or(WorkStatus::None, |work| work.status)
    }

    /// Does what a line says: `succeed a {"n": 1}`, `fail a`, `signal go 7`, `cancel force`, `at 5000`, ...
    fn does(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (name, content) = rest.split_once(' ').unwrap_or((rest, "null"));
        let task_id = task_id(&self.run.id, name);
        match verb {
            "start" => {}
            "claim" => self.claim(&task_id),
            "succeed" | "fail" | "time-out" | "interrupt" | "fail-again" if self.queued(&task_id) => {
                self.claim(&task_id);
                self.does(line);
            }
            "succeed" => {
                let slot = self.run.slot(&task_id).expect("the task is the run's");
                let tool = self.run.plan.steps[slot.step].tool.is_some();
                let content: Value = serde_json::from_str(content).expect("the line ends in json");
                let content = if tool { json!({ "structuredContent": content }) } else { content };
                let output = self.memory.keep(&content.to_string(), Role::Output);
                let facts = TaskSucceeded { fence: 1, attempt: 1, reused: false };
                self.task(&task_id, vec![output], Body::TaskSucceeded(facts));
            }
            "fail" | "fail-again" => {
                let retry_at_ms = (verb == "fail-again").then_some(self.now_ms + 1_000);
                let facts =
                    TaskFailed { fence: 1, attempt: 1, code: "broke".into(), retryable: true, retry_at_ms };
                self.task(&task_id, vec![], Body::TaskFailed(facts));
            }
            "time-out" => {
                let facts = TaskTimedOut { fence: 1, attempt: 1, retry_at_ms: None };
                self.task(&task_id, vec![], Body::TaskTimedOut(facts));
            }
            "interrupt" => {
                let facts =
                    TaskInterrupted { runner: "r".into(), fence: 1, attempt: 1, again: content == "again" };
                self.task(&task_id, vec![], Body::TaskInterrupted(facts));
            }
            "lapse" => {
                let facts = TaskLeaseExpired { worker: "w".into(), fence: 1, attempt: 1, unheard: false };
                self.task(&task_id, vec![], Body::TaskLeaseExpired(facts));
            }
            "die" => self.task(&task_id, vec![], Body::TaskDead(TaskDead { reason: "poison".into() })),
            "ask" => {
                self.task(&task_id, vec![], Body::TaskCancelRequested(TaskCancelRequested { force: false }))
            }
            "lose" => self.task(&task_id, vec![], Body::TaskCancelled(TaskCancelled { running: false })),
            "signal" => {
                let payload = self.memory.keep(content, Role::Input);
                let body = self.run.signal(name).expect("the run takes signals");
                self.own(vec![payload], body);
            }
            "cancel" => {
                if let Some(body) = self.run.cancel(name == "force").expect("the run can be cancelled") {
                    self.own(vec![], body);
                }
            }
            "reschedule" => {
                let from = Some(name).filter(|name| !name.is_empty());
                let priority = content.parse().ok();
                let body = self.run.reschedule(from, priority).expect("the run can go on");
                self.own(vec![], body);
            }
            "dependency" => {
                self.ended.push((name.to_owned(), content == "true"));
                self.run.dependency_ended(name, content == "true");
            }
            "at" => self.now_ms = name.parse().expect("a time in milliseconds"),
            other => panic!("nobody knows how to `{other}`"),
        }
    }

    fn queued(&self, task_id: &str) -> bool {
        self.status_of(task_id) == WorkStatus::Queued
    }

    /// Does line after line and compares what the run asks for.
    fn check(mut self, lines: &[(&str, &str)]) -> Self {
        for (line, expected) in lines {
            self.does(line);
            let decisions: Vec<String> = self.settle().iter().map(word).collect();
            assert_eq!(decisions.join(", "), *expected, "after `{line}`");
        }
        self.verify();
        self
    }

    /// Folds the story again from its events: the same decisions on the way, and the same run.
    fn verify(&self) {
        let mut run = begin(&self.events[0], &self.definition, self.old.as_ref());
        let mut folded = 1;
        for Asked { events, now_ms, ended, decisions } in &self.asked {
            self.events[folded..*events].iter().for_each(|event| run.apply(event));
            folded = *events;
            ended.iter().for_each(|(id, succeeded)| run.dependency_ended(id, *succeeded));
            assert_eq!(run.decide(&self.memory, *now_ms), *decisions, "after {events} events");
        }
        self.events[folded..].iter().for_each(|event| run.apply(event));
        let begun = begin(&self.events[0], &self.definition, self.old.as_ref());
        let report = replay::verify(begun, &self.events[1..], &self.memory);
        assert!(report.matched(), "decided again, the story differs: {report:#?}");
        assert!(run == self.run, "the run that was folded again is not the run that was lived");
    }

    fn steps_are(&self) -> String {
        let steps = self.run.plan.steps.iter().zip(&self.run.steps);
        let words: Vec<String> =
            steps.map(|(step, state)| format!("{} {}", step.id, state.status.as_str())).collect();
        words.join(", ")
    }

    /// The input a task was last given.
    fn input_of(&self, name: &str) -> Value {
        let slot = self.run.slot(&task_id(&self.run.id, name)).expect("the task is the run's");
        let input = self.run.work(slot).and_then(|work| work.input).expect("the task has an input");
        Value::clone(&self.memory.json(&input.cid).expect("the input is kept"))
    }

    fn ends(&self, status: &str) {
        assert_eq!(self.run.status().as_str(), status);
    }
}

fn begin(event: &Event, definition: &Definition, old: Option<&Run>) -> Run {
    let (plan, inputs) = (definition.plan.clone(), definition.inputs.clone());
    let mut run = Run::begun(event, Arc::new(plan), Arc::new(inputs)).expect("the event submits a run");
    old.iter().for_each(|old| run.take_over(old));
    run
}

fn seal(
    subject: &str,
    tool: Option<Cid>,
    payloads: Vec<PayloadRef>,
    body: Body,
    earlier: &[Event],
    now_ms: u64,
) -> Event {
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: Actor { id: "ada".into(), role: "client".into(), proof: None },
        subject: subject.to_owned(),
        tool,
        payloads,
        body,
    };
    let (seq, prev) = (earlier.len() as u64, earlier.last().map(Event::cid));
    let place = Position { log: cid("genesis"), seq, prev, ts: now_ms * 1_000 };
    Event::seal(fact, place).expect("the story's facts are small")
}

fn submitted(
    run: &str,
    step: &str,
    part: crate::event::work::Part,
    task_type: &str,
    hold: Option<Hold>,
    retry: Option<RetryPolicy>,
) -> TaskSubmitted {
    TaskSubmitted {
        retry: retry.unwrap_or(RetryPolicy::NEVER),
        run: Some(run.to_owned()),
        step: Some(step.to_owned()),
        part,
        hold,
        ..TaskSubmitted::plain(task_type)
    }
}

/// `a` is the task of step a, `a.3` that of its element 3, `a.undo` what takes it back.
fn task_id(run: &str, name: &str) -> String {
    format!("{run}#{}", name.replace('.', "#"))
}

/// A decision in a few words.
fn word(decision: &Decision) -> String {
    let short = |task_id: &str| task_id.split_once('#').map_or("", |(_, rest)| rest).replace('#', ".");
    match decision {
        Decision::Begin(_) => "begin".into(),
        Decision::Submit { task_id, .. } => format!("submit {}", short(task_id)),
        Decision::Retry { task_id, .. } => format!("retry {}", short(task_id)),
        Decision::Child { task_id, run, .. } => format!("child {} {run}", short(task_id)),
        Decision::Take { task_id, .. } => format!("take {}", short(task_id)),
        Decision::TakeGathered { step, parts, .. } => format!("take {step} of {parts}"),
        Decision::Skip { step, reason } => format!("skip {step} {reason}"),
        Decision::Fail { step, code, .. } => format!("fail {step} {code}"),
        Decision::Gather { step, parts, .. } => format!("gather {step} of {parts}"),
        Decision::Settle { task_id, .. } => format!("settle {}", short(task_id)),
        Decision::Cancel { task_id, run, force } => {
            let run = run.as_ref().map_or(String::new(), |run| format!(" with {run}"));
            format!("{} {}{run}", if *force { "cancel!" } else { "cancel" }, short(task_id))
        }
        Decision::End(Body::WorkflowSucceeded(_)) => "end succeeded".into(),
        Decision::End(Body::WorkflowFailed(facts)) => {
            format!("end failed {} {}", facts.reason, facts.step.as_deref().unwrap_or("-"))
        }
        Decision::End(_) => "end timed_out".into(),
    }
}

/// The slot of a step's own task.
fn whole(step: usize) -> Slot {
    Slot { step, piece: Piece::Whole }
}
