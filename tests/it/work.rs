//! Durable work as a test meets it: callers, workers that take tasks over HTTP, and what the log says of both.
//!
//! Invariants:
//! - nothing waits for luck: what must happen is waited for, with a bound;
//! - a worker does what its test says and nothing by itself.

#![allow(dead_code, reason = "each file of tests uses its own part")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use cairn::event::{Body, Event};
use serde_json::{Value, json};

use crate::{
    harness::Server,
    record::{self, until},
    speech::{Connection, call, modern},
};

/// How long a claim waits for work that must come.
const CLAIM_WAIT_MS: u64 = 20_000;

/// Whoever calls the tools of a server, over a connection that stays open.
pub struct Caller {
    connection: Connection,
    asked: u64,
}

impl Caller {
    pub fn new(server: &Server) -> Self {
        Self::at(&server.url).expect("the server listens")
    }

    /// None where nobody listens.
    pub fn at(url: &str) -> Option<Self> {
        Some(Self { connection: Connection::open(url)?, asked: 0 })
    }

    /// What a tool answers; none where the connection broke before its answer was whole, or the server stops.
    pub fn try_call(&mut self, tool: &str, arguments: &Value) -> Option<Value> {
        self.asked += 1;
        let answer = self.connection.ask(&modern(self.asked, "tools/call", call(tool, arguments)))?.json();
        if answer["error"]["message"].as_str().is_some_and(|message| message.contains("is stopping")) {
            return None;
        }
        let told = &answer["result"]["structuredContent"];
        assert!(told.is_object(), "{tool} {arguments}: {answer}");
        Some(told.clone())
    }

    /// What a tool answers, which must be a success.
    pub fn tell(&mut self, tool: &str, arguments: Value) -> Value {
        let told = self.try_call(tool, &arguments).expect("the server answers");
        assert_eq!(told["success"], true, "{tool} {arguments}: {told}");
        told
    }

    /// The error of a call that must be refused with this code.
    pub fn refused(&mut self, tool: &str, arguments: Value, code: &str) -> Value {
        let told = self.try_call(tool, &arguments).expect("the server answers");
        assert_eq!(told["success"], false, "{tool} {arguments}: {told}");
        assert_eq!(told["error"]["code"], code, "{tool} {arguments}: {told}");
        told["error"].clone()
    }

    /// Submits a task of this type; `more` are further fields.
    pub fn submit(&mut self, id: &str, task_type: &str, more: Value) -> Value {
        let mut task = json!({"task_id": id, "task_type": task_type, "payload": {"of": id}});
        put(&mut task, more);
        self.tell("task_submit", task)
    }

    pub fn task(&mut self, id: &str) -> Value {
        self.tell("task_status", json!({"task_id": id, "include_metrics": true}))
    }

    pub fn task_stands(&mut self, id: &str) -> String {
        self.task(id)["status"].as_str().expect("a status is text").to_owned()
    }

    /// Waits until a task stands so.
    pub fn task_until(&mut self, id: &str, status: &str) -> Value {
        until(&format!("{id} is {status}"), || Some(self.task(id)).filter(|task| task["status"] == status))
    }

    /// What a task gave that has succeeded.
    pub fn output(&mut self, id: &str) -> Value {
        self.tell("task_result", json!({"task_id": id}))["output"].clone()
    }

    /// Submits a run of these steps; `more` are further fields.
    pub fn run(&mut self, id: &str, steps: Value, more: Value) -> Value {
        let mut run = json!({"workflow_id": id, "name": id, "steps": steps});
        put(&mut run, more);
        self.tell("workflow_submit", run)
    }

    pub fn run_status(&mut self, id: &str) -> Value {
        self.tell("workflow_status", json!({"workflow_id": id}))
    }

    /// Waits until a run stands so.
    pub fn run_until(&mut self, id: &str, status: &str) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + record::PATIENCE;
        while Instant::now() < deadline {
            last = self.run_status(id);
            if last["status"] == status {
                return last;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{id} is not {status}: {last}");
    }

    /// Waits until a step of a run stands so.
    pub fn step_until(&mut self, run: &str, step: &str, status: &str) -> Value {
        until(&format!("{step} of {run} is {status}"), || {
            Some(stand(&self.run_status(run), step)).filter(|step| step["status"] == status)
        })
    }

    /// What a run that has ended gave.
    pub fn result(&mut self, id: &str) -> Value {
        self.tell("workflow_result", json!({"workflow_id": id}))
    }
}

/// Adds fields to an object.
pub fn put(object: &mut Value, more: Value) {
    let Value::Object(more) = more else { return };
    object.as_object_mut().expect("an object").extend(more);
}

/// How one step stands in what `workflow_status` told.
pub fn stand(run: &Value, step: &str) -> Value {
    let steps = run["steps"].as_array().unwrap_or_else(|| panic!("no steps in {run}"));
    let found = steps.iter().find(|told| told["step_id"] == step);
    found.unwrap_or_else(|| panic!("no step {step} in {run}")).clone()
}

/// The ids in a list of tasks, in its order.
pub fn ids(tasks: &Value) -> Vec<String> {
    let tasks = tasks.as_array().unwrap_or_else(|| panic!("no list: {tasks}"));
    tasks.iter().map(|task| task["task_id"].as_str().expect("an id is text").to_owned()).collect()
}

/// A worker with a connection of its own.
pub struct Worker {
    pub id: String,
    pub caller: Caller,
}

impl Worker {
    /// Registers one that takes these types, `most` at a time.
    pub fn register(server: &Server, id: &str, types: &[&str], most: u64) -> Self {
        let mut caller = Caller::new(server);
        let facts = json!({"worker_id": id, "capabilities": types, "max_concurrent_tasks": most});
        caller.tell("worker_register", facts);
        Self { id: id.to_owned(), caller }
    }

    /// The same worker at a server that has started again.
    pub fn back(self, server: &Server) -> Self {
        Self { id: self.id, caller: Caller::new(server) }
    }

    /// What there is now, at most so many.
    pub fn claim(&mut self, most: u64) -> Vec<Value> {
        let asked = json!({"worker_id": self.id, "max_tasks": most});
        list(&self.caller.tell("task_claim", asked)["tasks"])
    }

    /// The next task, which must come.
    pub fn take(&mut self) -> Value {
        let asked = json!({"worker_id": self.id, "max_tasks": 1, "wait_ms": CLAIM_WAIT_MS});
        let tasks = list(&self.caller.tell("task_claim", asked)["tasks"]);
        tasks.into_iter().next().expect("there is work within the wait")
    }

    pub fn complete(&mut self, task: &Value, output: Value) -> Value {
        self.caller.tell("task_complete", self.said(task, json!({"output": output})))
    }

    pub fn fail(&mut self, task: &Value, code: &str, retryable: bool) -> Value {
        let error = json!({"code": code, "message": "as the test says", "retryable": retryable});
        self.caller.tell("task_fail", self.said(task, json!({"error": error})))
    }

    pub fn beat(&mut self, task: &Value) -> Value {
        self.caller.tell("task_heartbeat", self.said(task, json!({})))
    }

    /// Says these of an attempt, which must be refused with this code.
    pub fn refused(&mut self, tool: &str, task: &Value, more: Value, code: &str) -> Value {
        self.caller.refused(tool, self.said(task, more), code)
    }

    /// Takes the next task, which must be this one, and completes it.
    pub fn does(&mut self, id: &str, output: Value) -> Value {
        let task = self.take();
        assert_eq!(task["task_id"], id, "{task}");
        self.complete(&task, output);
        task
    }

    /// What a worker says of an attempt, with further fields.
    pub fn said(&self, task: &Value, more: Value) -> Value {
        let mut said = json!({"worker_id": self.id, "task_id": task["task_id"], "fence": task["fence"]});
        put(&mut said, more);
        said
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).clone()
}

/// What happened to one task, in order.
pub fn history(data: &Path, task: &str) -> Vec<Event> {
    let subject = format!("task/{task}");
    record::events(data).into_iter().filter(|event| event.fields().subject == subject).collect()
}

/// The same by kind.
pub fn kinds(data: &Path, task: &str) -> Vec<String> {
    history(data, task).iter().map(|event| record::kind(event).to_owned()).collect()
}

/// The milliseconds of each claim of these tasks, in order.
pub fn claims_ms(events: &[Event], of: impl Fn(&str) -> bool) -> Vec<u64> {
    let claimed = |event: &&Event| {
        let task = event.fields().subject.strip_prefix("task/");
        matches!(event.body(), Some(Body::TaskClaimed(_))) && task.is_some_and(&of)
    };
    events.iter().filter(claimed).map(|event| event.fields().at_ms()).collect()
}
