//! Calls that end in the commit of their change, at the ledger's door.
//!
//! Invariants:
//! - every test works on a real directory, and looks into the log for what was recorded.

use serde_json::json;

use super::{
    closed, end, kinds, opened, sealed, someone, start,
    work::{again, facts, register, submit},
};
use crate::{
    call::{EndOutcome, Fit, How},
    error::Code,
    event::body::Failure,
    ledger::{
        Command, Ledger, Ruling,
        concluding::{Conclude, Concluded},
        work::{Claim, Reprioritise, SubmitTask, Wish, Work, Worked},
    },
};

/// What ends a call as its change went, and says so.
fn concluding() -> Option<Conclude> {
    Some(Conclude::new(|ruled| {
        let (outcome, said) = match ruled {
            Ruling::Worked(_) => {
                (EndOutcome::Succeeded { input_required: false, fit: Fit::Fits }, json!({"done": true}))
            }
            Ruling::Denied(refusal) => {
                (EndOutcome::Failed { failure: Failure::Tool, code: None }, json!({"no": refusal.message}))
            }
            _ => return None,
        };
        Some(Concluded { outcome, output: sealed(&said.to_string()), took_us: 1 })
    }))
}

fn begin(id: &str, key: Option<u8>, wish: Wish, conclude: Option<Conclude>) -> Command {
    let work = Work { wish, actor: someone(), cause: None, note: None };
    Command::Begin { start: Box::new(start(id, key)), work: Box::new(work), conclude }
}

fn ruled(ledger: &Ledger, command: Command) -> Ruling {
    ledger.submit_blocking(command).expect("the ledger runs")
}

fn raise(task: &str) -> Wish {
    Wish::Reprioritise(Reprioritise { task: task.to_owned(), priority: 90 })
}

fn claim() -> Wish {
    Wish::Claim(Claim { worker: "w".to_owned(), max: 1, wait_ms: 0, hand: None })
}

#[test]
fn a_call_is_its_start_then_its_change_then_its_ending() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    submit(&ledger, "t", facts("a")).expect("submits");
    let before = *ledger.committed().borrow();
    let Ruling::Began { started, ruled: changed, ended: Some(ended) } =
        ruled(&ledger, begin("c", None, raise("t"), concluding()))
    else {
        panic!("it is concluded")
    };
    assert!(matches!(*changed, Ruling::Worked(_)), "{changed:?}");
    assert_eq!((started.seq, ended.seq), (before, before + 2));
    let late = ruled(&ledger, end("c"));
    assert!(matches!(late, Ruling::Denied(refusal) if refusal.code == Code::Conflict));
    closed((ledger, running));
    assert_eq!(
        kinds(dir.path())[before as usize..],
        ["call.started", "task.reprioritised", "call.succeeded"]
    );
    // Nothing is left open that a start would have to end.
    closed(opened(dir.path()));
    assert_eq!(kinds(dir.path()).len() as u64, before + 3);
}

#[test]
fn a_change_that_is_refused_ends_its_call_as_failed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let refused = ruled(&ledger, begin("c", None, raise("nobody's"), concluding()));
    let Ruling::Began { ruled, ended: Some(_), .. } = refused else { panic!("it is concluded") };
    assert!(matches!(*ruled, Ruling::Denied(refusal) if refusal.code == Code::NotFound));
    closed((ledger, running));
    assert_eq!(kinds(dir.path()), ["log.opened", "call.started", "call.failed"]);
}

#[test]
fn a_key_and_a_command_said_again_give_the_recorded_ending() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    submit(&ledger, "t", facts("a")).expect("submits");
    let first = begin("c1", Some(7), raise("t"), concluding());
    let Ruling::Began { ended: Some(ended), .. } = ruled(&ledger, first.clone()) else {
        panic!("it is concluded")
    };
    let known = |ruling: Ruling| match ruling {
        Ruling::Answered(ending) => {
            assert_eq!((ending.event, ending.seq, ending.how), (ended.cid, ended.seq, How::Succeeded));
            assert_eq!(ending.output, Some(sealed(r#"{"done":true}"#).envelope.cid()));
        }
        other => panic!("not the recorded ending: {other:?}"),
    };
    known(ruled(&ledger, begin("c2", Some(7), raise("t"), concluding())));
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    known(ruled(&ledger, begin("c3", Some(7), raise("t"), concluding())));
    known(again(&ledger, first));
    closed((ledger, running));
    let changes = kinds(dir.path()).iter().filter(|kind| *kind == "task.reprioritised").count();
    assert_eq!(changes, 1);
}

#[test]
fn a_call_stays_open_where_the_ruling_does_not_tell_its_answer_or_hands_out_much() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    register(&ledger, "w");
    let long = sealed(&json!({"of": "x".repeat(64 * 1024)}).to_string());
    for (id, input) in [("small", sealed("{}")), ("large", long)] {
        let facts = facts("a");
        let wish = Wish::SubmitTask(Box::new(SubmitTask {
            id: id.to_owned(),
            facts,
            tool: None,
            input,
            metadata: None,
        }));
        super::work::wish(&ledger, wish).expect("submits");
    }
    let silent = Some(Conclude::new(|_| None));
    for (id, conclude, open) in
        [("c1", concluding(), false), ("c2", concluding(), true), ("c3", silent, true)]
    {
        let Ruling::Began { ruled: claimed, ended, .. } = ruled(&ledger, begin(id, None, claim(), conclude))
        else {
            panic!("it begins")
        };
        let Ruling::Worked(worked) = *claimed else { panic!("it is ruled") };
        assert!(matches!(*worked, Worked::Claimed(_)), "{worked:?}");
        assert_eq!(ended.is_none(), open, "{id}");
        assert_eq!(matches!(ruled(&ledger, end(id)), Ruling::Done(_)), open, "{id}");
    }
    closed((ledger, running));
}
