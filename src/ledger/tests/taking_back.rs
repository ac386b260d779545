//! Commands that fail midway, at the ledger's door: they leave nothing, and what was ruled beside them stands.
//!
//! Invariants:
//! - every test works on a real directory, and looks into the log for what was recorded.

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    closed, end, kinds, opened, sealed, someone, start,
    work::{NoTools, facts, register, submit, wish},
};
use crate::{
    error::Code,
    event::EVENT_MAX,
    ledger::{
        Ask, Command, Ledger, Ruling,
        work::{Claim, Look, NewRun, SubmitTask, Wish, Work, Worked},
    },
    workflow::plan,
};

/// A run whose submission can be sealed, and whose first step's task cannot: its type is over the bound of an event.
fn run_with_a_long_step(id: &str) -> Wish {
    let step = json!({"step_id": "s", "action": "wait:signal", "inputs": {"signal": "go"}});
    let definition = json!({"workflow_id": id, "name": "n", "steps": [step]});
    let mut planned = plan::plan(&definition, &NoTools).expect("sound");
    planned.plan.steps[0].task_type = "x".repeat(EVENT_MAX);
    Wish::SubmitRun(Box::new(NewRun {
        id: id.to_owned(),
        inputs: sealed(&planned.inputs.to_string()),
        plan: planned.plan,
        priority: 50,
        tags: Vec::new(),
        dependencies: Vec::new(),
        max_parallel: None,
        deadline_ms: None,
        peer: None,
    }))
}

fn work(wish: Wish) -> Work {
    Work { wish, actor: someone(), cause: None, note: None }
}

fn task(id: &str) -> Wish {
    let (facts, input) = (facts("a"), sealed("{}"));
    Wish::SubmitTask(Box::new(SubmitTask { id: id.to_owned(), facts, tool: None, input, metadata: None }))
}

/// Puts commands in line one after another, without waiting for an answer between them.
fn in_line(ledger: &Ledger, wishes: Vec<Wish>) -> Vec<oneshot::Receiver<Ruling>> {
    let ask = |wish| {
        let (reply, ruling) = oneshot::channel();
        let command = Command::Work(Box::new(work(wish)));
        ledger.inbox.blocking_send(Ask::Rule { command, reply, again: false }).expect("the ledger runs");
        ruling
    };
    wishes.into_iter().map(ask).collect()
}

fn is_denied(ruling: &Ruling) -> bool {
    matches!(ruling, Ruling::Denied(refusal) if refusal.code == Code::InvalidArgument)
}

#[test]
fn a_command_whose_second_event_cannot_be_sealed_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let rulings =
        in_line(&ledger, vec![task("before"), run_with_a_long_step("r"), task("after"), task("before")]);
    let rulings: Vec<Ruling> =
        rulings.into_iter().map(|ruling| ruling.blocking_recv().expect("the ledger runs")).collect();
    assert!(is_denied(&rulings[1]), "{:?}", rulings[1]);
    for (at, known) in [(0, false), (2, false), (3, true)] {
        let Ruling::Worked(worked) = &rulings[at] else { panic!("{:?}", rulings[at]) };
        assert!(matches!(&**worked, Worked::Task { replayed, .. } if *replayed == known), "{worked:?}");
    }
    let claim = Wish::Claim(Claim { worker: "w".to_owned(), max: 10, wait_ms: 0, hand: None });
    let Ok(Worked::Claimed(handed)) = wish(&ledger, claim) else { panic!("a claim is answered") };
    assert_eq!(handed.iter().map(|handed| handed.task.as_str()).collect::<Vec<_>>(), ["before", "after"]);
    // The id is free: a run of it can be submitted.
    super::work::submit_run(&ledger, "r");
    closed((ledger, running));
    let recorded = kinds(dir.path());
    assert_eq!(recorded.iter().filter(|kind| *kind == "workflow.submitted").count(), 1, "{recorded:?}");
    closed(opened(dir.path()));
}

#[test]
fn a_claim_that_waits_goes_on_waiting_while_a_command_is_taken_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let claim = Wish::Claim(Claim { worker: "w".to_owned(), max: 1, wait_ms: 60_000, hand: None });
    let mut rulings = in_line(&ledger, vec![claim, run_with_a_long_step("r"), task("t")]);
    let claimed = rulings.remove(0).blocking_recv().expect("the ledger runs");
    assert!(is_denied(&rulings.remove(0).blocking_recv().expect("the ledger runs")));
    let Ruling::Worked(worked) = claimed else { panic!("{claimed:?}") };
    assert!(matches!(&*worked, Worked::Claimed(handed) if handed[0].task == "t"), "{worked:?}");
    closed((ledger, running));
}

#[test]
fn a_call_whose_change_is_taken_back_has_its_start_and_its_ending() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    submit(&ledger, "t", facts("a")).expect("submits");
    let begin = Command::Begin {
        start: Box::new(start("c", None)),
        work: Box::new(work(run_with_a_long_step("r"))),
        conclude: None,
    };
    let Ok(Ruling::Began { ruled, ended: None, .. }) = ledger.submit_blocking(begin) else {
        panic!("the call begins");
    };
    assert!(is_denied(&ruled), "{ruled:?}");
    let looked = wish(&ledger, Wish::Look(Look { task: "t".to_owned() }));
    assert!(matches!(looked, Ok(Worked::Task { .. })), "{looked:?}");
    assert!(matches!(ledger.submit_blocking(end("c")), Ok(Ruling::Done(_))));
    closed((ledger, running));
    let recorded = kinds(dir.path());
    assert!(!recorded.iter().any(|kind| kind.starts_with("workflow.")), "{recorded:?}");
    assert!(recorded.ends_with(&["call.started".to_owned(), "call.succeeded".to_owned()]), "{recorded:?}");
    closed(opened(dir.path()));
}
