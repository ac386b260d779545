//! Tests of what the view makes of events.

use serde_json::json;

use super::*;

const WORK: &str = "a b:ready";

fn view(steps: &str) -> View {
    let step = |word: &str| {
        let (id, status) = word.split_once(':').unwrap_or((word, "pending"));
        json!({"step_id": id, "status": status})
    };
    View::new(&json!({
        "workflow_id": "w",
        "status": "running",
        "start_time": "1970-01-01T00:00:01.000Z",
        "steps": steps.split(' ').map(step).collect::<Vec<_>>(),
    }))
}

/// Applies events given as `kind subject body`, one second apart from second two on. Returns the lines of the changes.
fn check(steps: &str, events: &[(&str, &str, Value)], expected: &[&str]) -> View {
    let mut view = view(steps);
    let mut seen = Vec::new();
    for (second, (kind, subject, body)) in (2_u64..).zip(events) {
        match view.apply(&json!({"kind": kind, "subject": subject, "body": body, "ts": second * 1_000_000})) {
            Change::None => {}
            Change::Seen(line) => seen.push(line),
            Change::Unclear => seen.push("unclear".to_owned()),
        }
    }
    assert_eq!(seen, expected);
    view
}

#[test]
fn a_step_goes_its_way() {
    let view = check(
        WORK,
        &[
            ("task.submitted", "task/w#a", json!({})),
            ("task.claimed", "task/w#a", json!({"attempt": 1})),
            ("task.renewed", "task/w#a", json!({})),
            ("task.failed", "task/w#a", json!({"retry_at_ms": 7})),
            ("task.claimed", "task/w#a", json!({"attempt": 2})),
            ("task.succeeded", "task/w#a", json!({})),
            ("step.skipped", "workflow/w", json!({"step": "b", "reason": "condition"})),
            ("workflow.succeeded", "workflow/w", json!({})),
        ],
        &["a  ready", "a  running", "a  ready", "a  running", "a  succeeded  1.0 s", "b  skipped"],
    );
    assert!(view.ended());
    assert_eq!(view.head(), "w  succeeded  2/2 steps  in 8.0 s");
}

#[test]
fn what_is_not_of_the_run_changes_nothing() {
    check(
        WORK,
        &[
            ("task.claimed", "task/w2#a", json!({})),
            ("task.claimed", "task/w", json!({})),
            ("task.claimed", "task/w/child#a", json!({})),
            ("workflow.failed", "workflow/w/child", json!({})),
            ("call.started", "call/1", json!({})),
            ("task.claimed", "task/w#a#undo", json!({})),
        ],
        &[],
    );
}

#[test]
fn a_list_of_parts_is_one_step() {
    check(
        WORK,
        &[
            ("task.submitted", "task/w#a#0", json!({})),
            ("task.claimed", "task/w#a#0", json!({})),
            ("task.submitted", "task/w#a#1", json!({})),
            ("task.succeeded", "task/w#a#0", json!({})),
            ("task.claimed", "task/w#a#1", json!({})),
            ("task.succeeded", "task/w#a#1", json!({})),
            ("step.gathered", "workflow/w", json!({"step": "a", "parts": 2})),
        ],
        &["a  ready", "a  running", "a  succeeded  5.0 s"],
    );
}

#[test]
fn what_cannot_be_placed_is_asked_about() {
    check(
        WORK,
        &[("workflow.rescheduled", "workflow/w", json!({})), ("task.claimed", "task/w#new", json!({}))],
        &["unclear", "unclear"],
    );
}

#[test]
fn what_needs_eyes_is_shown_first() {
    let view = view("a:succeeded b c:running d:failed e");
    let lines = view.lines(0, 2, false);
    assert_eq!(
        lines,
        ["  c  running    ", "  d  failed     ", "  and 3 more: 1 failed, 2 pending, 1 running, 1 succeeded"]
    );
    assert!(view.lines(0, 5, true)[0].contains("\u{1b}[32msucceeded\u{1b}[0m"));
    let ids: Vec<String> = view.lines(0, 5, false).iter().map(|line| line[2..3].to_owned()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e"]);
}
