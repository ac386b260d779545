//! A watcher's view of a run: the tool's status, and the log's events after it.
//!
//! Invariant: an event that the view cannot apply makes the watcher call the tool again, so that no guess stays on the
//! screen.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    cli::{
        client::{self, moment, text},
        table,
    },
    workflow::graph::span,
};

/// The colour of each status, as the number of an ANSI colour.
const COLOURS: [(&str, u8); 6] =
    [("ready", 33), ("running", 34), ("succeeded", 32), ("failed", 31), ("timed_out", 31), ("cancelled", 35)];
/// The statuses whose steps are shown first if not all steps fit.
const FIRST: [&str; 5] = ["running", "failed", "timed_out", "ready", "cancelled"];

/// The width in characters of the bar that shows how many steps have ended.
const BAR: usize = 24;

/// What an event changed in the view.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// Nothing: the event is about another run, or about something that is not shown.
    None,
    /// A change, described in a line.
    Seen(String),
    /// More than the event says, so the tool must be called again.
    Unclear,
}

pub struct View {
    id: String,
    status: String,
    started_ms: Option<u64>,
    ended_ms: Option<u64>,
    steps: Vec<Step>,
    /// Why the run failed, if it did.
    why: Option<String>,
    places: HashMap<String, usize>,
}

struct Step {
    id: String,
    status: String,
    started_ms: Option<u64>,
    took_ms: Option<u64>,
}

impl View {
    /// Makes a view of a run from the answer of `workflow_status`.
    pub fn new(status: &Value) -> Self {
        let mut view = Self {
            id: text(status, "workflow_id").to_owned(),
            status: String::new(),
            started_ms: None,
            ended_ms: None,
            steps: Vec::new(),
            why: None,
            places: HashMap::new(),
        };
        view.renew(status);
        view
    }

    /// Replaces the view by the tool's status; returns a line for each change.
    pub fn renew(&mut self, status: &Value) -> Vec<String> {
        let mut lines = Vec::new();
        for step in status["steps"].as_array().into_iter().flatten() {
            let id = text(step, "step_id");
            let place = *self.places.entry(id.to_owned()).or_insert_with(|| {
                self.steps.push(Step {
                    id: id.to_owned(),
                    status: text(step, "status").to_owned(),
                    started_ms: None,
                    took_ms: None,
                });
                self.steps.len() - 1
            });
            let known = &mut self.steps[place];
            known.started_ms = moment(&step["start_time"]);
            known.took_ms = step["duration_ms"].as_u64();
            if known.status != text(step, "status") {
                text(step, "status").clone_into(&mut known.status);
                lines.push(known.line());
            }
        }
        text(status, "status").clone_into(&mut self.status);
        self.why = why(status);
        self.started_ms = moment(&status["start_time"]);
        self.ended_ms = moment(&status["end_time"]);
        lines
    }

    /// Applies one event, as the log's stream gives it.
    pub fn apply(&mut self, event: &Value) -> Change {
        let (kind, subject) = (text(event, "kind"), text(event, "subject"));
        if subject.strip_prefix("workflow/") == Some(&self.id) {
            return match kind.split_once('.') {
                Some(("step", what)) => {
                    let status = if what == "gathered" { "succeeded" } else { what };
                    self.step(text(&event["body"], "step"), status, event)
                }
                Some(("workflow", "started")) => {
                    self.started_ms = at_ms(event);
                    self.status = "running".to_owned();
                    Change::Seen(self.head())
                }
                Some(("workflow", "signalled" | "replayed")) => Change::None,
                Some(("workflow", "succeeded" | "failed" | "cancelled" | "timed_out")) => {
                    self.ended_ms = at_ms(event);
                    self.status = kind["workflow.".len()..].to_owned();
                    Change::None
                }
                _ => Change::Unclear,
            };
        }
        let task = subject.strip_prefix("task/").and_then(|task| task.strip_prefix(self.id.as_str()));
        let Some((step, part)) = task.and_then(|task| task.strip_prefix('#')).map(split) else {
            return Change::None;
        };
        if part == Some("undo") {
            return Change::None;
        }
        let body = &event["body"];
        let status = match kind {
            "task.submitted" => "ready",
            "task.claimed" => "running",
            // The end of one part does not end the step.
            "task.succeeded" if part.is_some() => return Change::None,
            "task.succeeded" => "succeeded",
            "task.failed" | "task.timed_out" if body["retry_at_ms"].is_number() => "ready",
            "task.failed" => "failed",
            "task.timed_out" => "timed_out",
            "task.lease_expired" | "task.retried" => "ready",
            "task.interrupted" if body["again"] == true => "ready",
            "task.interrupted" | "task.dead" => "failed",
            "task.cancelled" => "cancelled",
            _ => return Change::None,
        };
        self.step(step, status, event)
    }

    fn step(&mut self, id: &str, status: &str, event: &Value) -> Change {
        let Some(step) = self.places.get(id).map(|&place| &mut self.steps[place]) else {
            return Change::Unclear;
        };
        let at = at_ms(event);
        match status {
            "running" if step.status != "running" => (step.started_ms, step.took_ms) = (at, None),
            "ready" | "running" => {}
            _ => step.took_ms = at.zip(step.started_ms).map(|(at, started)| at.saturating_sub(started)),
        }
        // A step that runs stays so while another of its parts waits.
        if step.status == status
            || (status == "ready" && step.status == "running" && text(event, "kind") == "task.submitted")
        {
            return Change::None;
        }
        status.clone_into(&mut step.status);
        Change::Seen(step.line())
    }

    pub fn status(&self) -> &str {
        &self.status
    }

    pub fn ended(&self) -> bool {
        matches!(self.status.as_str(), "succeeded" | "failed" | "cancelled" | "timed_out")
    }

    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Returns how many steps have ended.
    pub fn done(&self) -> usize {
        let open = |step: &&Step| !matches!(step.status.as_str(), "pending" | "ready" | "running");
        self.steps.iter().filter(open).count()
    }

    /// Returns why the run failed, if it did: which step, and its message.
    pub fn why(&self) -> Option<String> {
        self.why.clone()
    }

    fn name(&self) -> String {
        format!("{}  {}", self.id, self.status)
    }

    /// Describes the run in a line.
    pub fn head(&self) -> String {
        let took = self.ended_ms.map_or(String::new(), |ended| format!("  in {}", self.took(ended)));
        format!("{}  {}/{} steps{took}", self.name(), self.done(), self.steps())
    }

    /// Returns how long the run has taken.
    fn took(&self, now_ms: u64) -> String {
        let until = self.ended_ms.unwrap_or(now_ms);
        self.started_ms.map_or(String::new(), |started| span(until.saturating_sub(started)))
    }

    /// Returns the whole screen: the run with its bar, and its steps below.
    pub fn page(&self, now_ms: u64, max: usize, colours: bool) -> Vec<String> {
        let full = BAR * self.done() / self.steps().max(1);
        let bar = format!("{}{}", "=".repeat(full), " ".repeat(BAR - full));
        let (done, all, took) = (self.done(), self.steps(), self.took(now_ms));
        let name = table::printable(&self.name());
        let mut page = vec![format!("{name}  [{bar}] {done}/{all} steps  {took}").trim_end().to_owned()];
        page.extend(self.lines(now_ms, max, colours));
        page
    }

    /// Returns the steps in lines, at most `max`, and one that says how many are left out. All are in plan order if
    /// they fit; else those that need attention come first.
    fn lines(&self, now_ms: u64, max: usize, colours: bool) -> Vec<String> {
        let mut shown: Vec<&Step> = self.steps.iter().collect();
        if shown.len() > max {
            let rank =
                |step: &&Step| FIRST.iter().position(|status| *status == step.status).unwrap_or(FIRST.len());
            shown.sort_by_key(rank);
            shown.truncate(max);
        }
        let width = shown.iter().map(|step| step.id.chars().count()).max().unwrap_or(0);
        let mut lines: Vec<String> = shown.iter().map(|step| step.row(width, now_ms, colours)).collect();
        if lines.len() < self.steps.len() {
            lines.push(format!("  and {} more: {}", self.steps.len() - lines.len(), self.counts()));
        }
        lines
    }

    /// Describes how many steps have each status.
    fn counts(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for step in &self.steps {
            *counts.entry(&step.status).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
        counts.join(", ")
    }
}

impl Step {
    fn line(&self) -> String {
        let took = self.took_ms.map_or(String::new(), |took| format!("  {}", span(took)));
        format!("{}  {}{took}", self.id, self.status)
    }

    fn row(&self, width: usize, now_ms: u64, colours: bool) -> String {
        let running =
            || self.started_ms.filter(|_| self.status == "running").map(|at| now_ms.saturating_sub(at));
        let took = self.took_ms.or_else(running).map_or(String::new(), span);
        let status = format!("{:9}", table::printable(&self.status));
        let colour = COLOURS.iter().find(|(status, _)| *status == self.status).filter(|_| colours);
        let status = match colour {
            Some((_, colour)) => format!("\u{1b}[{colour}m{status}\u{1b}[0m"),
            None => status,
        };
        format!("  {:width$}  {status}  {took}", table::printable(&self.id))
    }
}

/// Returns why a run failed, from the answer of `workflow_status`.
fn why(status: &Value) -> Option<String> {
    let failure = status["failure"].as_object()?;
    let reason = failure.get("reason").and_then(Value::as_str).unwrap_or_default();
    let Some(failed) = failure.get("step_id").and_then(Value::as_str) else { return Some(reason.to_owned()) };
    let mut steps = status["steps"].as_array().into_iter().flatten();
    let said = steps.find(|step| step["step_id"] == failed).and_then(client::failure);
    Some(match said {
        None => format!("{reason}: {failed}"),
        // The whole message goes on one line.
        Some(said) => {
            format!("{reason}: {failed}: {}", said.split_whitespace().collect::<Vec<_>>().join(" "))
        }
    })
}

/// Splits a task's id into the step and the part of it.
fn split(task: &str) -> (&str, Option<&str>) {
    match task.split_once('#') {
        Some((step, part)) => (step, Some(part)),
        None => (task, None),
    }
}

fn at_ms(event: &Value) -> Option<u64> {
    event["ts"].as_u64().map(|micros| micros / 1000)
}

#[cfg(test)]
mod tests;
