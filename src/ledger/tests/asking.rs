//! Questions in mid-call at the ledger's door: given a call, when it asks or is answered, then these events.
//!
//! Invariants:
//! - every test works on a real directory, and looks into the log for what was recorded.

use std::path::Path;

use serde_bytes::ByteArray;

use super::{closed, end, kinds, opened, sealed, start, work::again};
use crate::{
    call::{
        How,
        asking::{Answer, Inquiry, To, WAITING_MAX},
    },
    error::Code,
    event::{
        Event, QUESTIONS_MAX, Role,
        body::{Question, Reaction},
    },
    ledger::{Command, Ledger, Ruling, commit::payload_ref},
    log::{Reader, home::Home, sqlite::SqliteReader},
    verify::{Checks, Verdict, verify},
};

fn ask(id: &str, n: u64, text: &str) -> Command {
    let question = sealed(text);
    let pay = payload_ref(&question, Role::Output);
    let ask = Inquiry { id: id.into(), n, method: Question::Elicitation, state: None, question: pay };
    Command::Ask { ask, question }
}

fn answer(id: &str, n: u64, text: &str) -> Command {
    let content = sealed(text);
    let pay = payload_ref(&content, Role::Input);
    let to = To::Question { took_us: 7 };
    let answer = Answer { id: id.into(), n, how: Reaction::Accepted, answer: pay, to };
    Command::Answer { answer, content }
}

fn ruled(ledger: &Ledger, command: Command) -> Ruling {
    ledger.submit_blocking(command).expect("the ledger runs")
}

/// The question of a result that commits to a state.
fn ask_with(id: &str, n: u64, state: u8) -> Command {
    let Command::Ask { ask, question } = ask(id, n, "name?") else { panic!("it asks") };
    Command::Ask { ask: Inquiry { state: Some(ByteArray::new([state; 16])), ..ask }, question }
}

/// An answer that comes with the request.
fn given(id: &str, n: u64, state: Option<u8>) -> Command {
    let Command::Answer { answer, content } = answer(id, n, "ada") else { panic!("it answers") };
    let to = To::Earlier { state: state.map(|state| ByteArray::new([state; 16])) };
    Command::Answer { answer: Answer { to, ..answer }, content }
}

/// What a ruling says, in a word.
fn word(ruling: &Ruling) -> &'static str {
    match ruling {
        Ruling::Run(_) => "runs",
        Ruling::Done(_) => "recorded",
        Ruling::Denied(refusal) => refusal.code.as_str(),
        _ => "something else",
    }
}

/// Gives these commands one after another; each is ruled so.
fn check(ledger: &Ledger, commands: &[(Command, &str)]) {
    for (at, (command, expected)) in commands.iter().enumerate() {
        let ruling = ruled(ledger, command.clone());
        assert_eq!(word(&ruling), *expected, "command {at}: {command:?}");
    }
}

fn events(dir: &Path) -> Vec<Event> {
    let reader = SqliteReader::open(&dir.join("log.db")).expect("reads");
    let mut events = Vec::new();
    while let Some(event) = reader.event_at(events.len() as u64).expect("reads") {
        events.push(event);
    }
    events
}

fn verified(dir: &Path) {
    let home = Home::existing(dir).expect("it is there");
    let checks = Checks { derived: true, ..Checks::default() };
    let report = verify(&home, &checks, &mut |_| {});
    assert_eq!(report.verdict, Verdict::Verified, "{:?}", report.faults);
}

#[test]
fn what_is_asked_and_answered_stands_between_start_and_ending() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (start("c1", None), "runs"),
            (ask("c1", 0, "name?"), "recorded"),
            (ask("c1", 1, "colour?"), "recorded"),
            (answer("c1", 1, "blue"), "recorded"),
            (answer("c1", 0, "ada"), "recorded"),
            (ask("c1", 2, "sure?"), "recorded"),
            (answer("c1", 2, "yes"), "recorded"),
            (ask("c1", 3, "really?"), "recorded"),
            (end("c1"), "recorded"),
        ],
    );
    closed((ledger, running));
    let events = events(dir.path());
    let (asked, answered) = ("call.asked", "call.answered");
    let told = ["log.opened", "call.started", asked, asked, answered, answered, asked, answered, asked];
    assert_eq!(kinds(dir.path()), [&told[..], &["call.succeeded"]].concat());
    let parents = |at: usize| {
        let fields = events[at].fields();
        let place = |cid: &_| events.iter().position(|event| event.cid() == *cid).expect("it is here");
        let mut refs: Vec<usize> = fields.refs.iter().map(place).collect();
        refs.sort_unstable();
        (fields.cause.as_ref().map(place), refs)
    };
    let expected = [(2, 1, vec![]), (3, 1, vec![]), (4, 3, vec![]), (5, 2, vec![]), (6, 1, vec![4, 5])];
    for (at, cause, refs) in expected.into_iter().chain([(7, 6, vec![]), (8, 1, vec![7]), (9, 1, vec![])]) {
        assert_eq!(parents(at), (Some(cause), refs), "event {at}");
    }
    verified(dir.path());
}

#[test]
fn an_ending_follows_from_the_last_answers() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (start("c1", None), "runs"),
            (ask("c1", 0, "name?"), "recorded"),
            (answer("c1", 0, "ada"), "recorded"),
            (end("c1"), "recorded"),
        ],
    );
    closed((ledger, running));
    let events = events(dir.path());
    assert_eq!(events[4].fields().refs, [events[3].cid()]);
}

#[test]
fn only_an_open_call_asks_and_each_question_is_answered_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (ask("c1", 0, "too early"), "conflict"),
            (start("c1", None), "runs"),
            (ask("c1", 1, "out of turn"), "conflict"),
            (answer("c1", 0, "to nothing"), "conflict"),
            (ask("c1", 0, "name?"), "recorded"),
            (ask("c1", 0, "another"), "already_exists"),
            (answer("c1", 0, "ada"), "recorded"),
            (answer("c1", 0, "bob"), "conflict"),
            (ask("c1", 1, "left open"), "recorded"),
            (end("c1"), "recorded"),
            (answer("c1", 1, "too late"), "conflict"),
            (ask("c1", 2, "too late"), "conflict"),
            (end("c1"), "conflict"),
        ],
    );
    closed((ledger, running));
    let told = ["log.opened", "call.started", "call.asked", "call.answered", "call.asked", "call.succeeded"];
    assert_eq!(kinds(dir.path()), told);
    verified(dir.path());
}

#[test]
fn the_questions_of_a_call_and_those_that_wait_are_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let waiting = WAITING_MAX as u64;
    check(&ledger, &[(start("c1", None), "runs")]);
    for n in 0..waiting {
        check(&ledger, &[(ask("c1", n, "?"), "recorded")]);
    }
    check(&ledger, &[(ask("c1", waiting, "?"), "resource_exhausted")]);
    for n in 0..waiting {
        check(&ledger, &[(answer("c1", n, "!"), "recorded")]);
    }
    for n in waiting..QUESTIONS_MAX {
        check(&ledger, &[(ask("c1", n, "?"), "recorded"), (answer("c1", n, "!"), "recorded")]);
    }
    check(&ledger, &[(ask("c1", QUESTIONS_MAX, "?"), "resource_exhausted"), (end("c1"), "recorded")]);
    closed((ledger, running));
    let first_after = 2 + 2 * WAITING_MAX;
    assert_eq!(events(dir.path())[first_after].fields().refs.len(), WAITING_MAX);
    verified(dir.path());
}

#[test]
fn a_crash_leaves_a_question_without_an_answer_in_an_interrupted_call() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(&ledger, &[(start("c1", Some(7)), "runs"), (ask("c1", 0, "name?"), "recorded")]);
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    check(&ledger, &[(answer("c1", 0, "too late"), "conflict")]);
    // The question is not taken for the ending of its call.
    check(&ledger, &[(start("c2", Some(7)), "failed_precondition")]);
    closed((ledger, running));
    let told = ["log.opened", "call.started", "call.asked", "call.interrupted", "log.recovered"];
    assert_eq!(kinds(dir.path()), told);
    verified(dir.path());
}

#[test]
fn a_key_gives_the_answer_of_a_call_that_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (start("c1", Some(7)), "runs"),
            (ask("c1", 0, "name?"), "recorded"),
            (start("c2", Some(7)), "conflict"),
            (answer("c1", 0, "ada"), "recorded"),
            (end("c1"), "recorded"),
        ],
    );
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    let ruling = ruled(&ledger, start("c3", Some(7)));
    closed((ledger, running));
    let Ruling::Answered(ending) = ruling else { panic!("{ruling:?}") };
    assert_eq!((ending.how, ending.seq), (How::Succeeded, 4));
}

/// A guest's call outlives its owner; what the guest says again is found.
#[test]
fn the_next_owner_knows_what_an_open_call_has_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = Home::open(dir.path()).and_then(|home| home.enrol("gone")).expect("enrols");
    let (ledger, running) = opened(dir.path());
    check(&ledger, &[(start("c1", None), "runs"), (ask("c1", 0, "name?"), "recorded")]);
    check(&ledger, &[(answer("c1", 0, "ada"), "recorded"), (ask("c1", 1, "colour?"), "recorded")]);
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    let seq = |ruling: Ruling| match ruling {
        Ruling::Done(sealed) => sealed.seq,
        other => panic!("{other:?}"),
    };
    assert_eq!(seq(again(&ledger, ask("c1", 1, "colour?"))), 4);
    assert_eq!(seq(again(&ledger, answer("c1", 0, "ada"))), 3);
    let other = again(&ledger, ask("c1", 1, "another under this number"));
    assert!(matches!(other, Ruling::Denied(refusal) if refusal.code == Code::AlreadyExists));
    assert_eq!(seq(again(&ledger, answer("c1", 1, "blue"))), 5);
    check(&ledger, &[(ask("c1", 2, "sure?"), "recorded"), (end("c1"), "recorded")]);
    closed((ledger, running));
    drop(mark);
    verified(dir.path());
}

#[test]
fn an_answer_names_the_latest_question_with_its_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (start("c1", None), "runs"),
            (ask_with("c1", 0, 1), "recorded"),
            (ask_with("c1", 1, 2), "recorded"),
            (end("c1"), "recorded"),
            (start("c2", None), "runs"),
            (given("c2", 1, Some(1)), "conflict"),
            (given("c2", 0, Some(2)), "recorded"),
            (given("c2", 1, Some(9)), "recorded"),
            (ask_with("c2", 0, 2), "recorded"),
            (given("c2", 2, None), "conflict"),
            (end("c2"), "recorded"),
        ],
    );
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    check(
        &ledger,
        &[
            (start("c3", None), "runs"),
            (given("c3", 0, Some(2)), "recorded"),
            (given("c3", 1, Some(1)), "recorded"),
            (given("c3", 2, None), "recorded"),
            (end("c3"), "recorded"),
        ],
    );
    closed((ledger, running));
    let events = events(dir.path());
    let place = |cid: &_| events.iter().position(|event| event.cid() == *cid).expect("it is here");
    let refs = |at: usize| events[at].fields().refs.iter().map(place).collect::<Vec<usize>>();
    // 1 starts c1, 2 and 3 are its questions; 5 starts c2, 8 is its question; 10 starts c3.
    assert_eq!([refs(6), refs(7)], [vec![3], vec![]]);
    assert_eq!([refs(11), refs(12), refs(13)], [vec![8], vec![2], vec![]]);
    let causes = [6, 7, 11, 12, 13].map(|at| events[at].fields().cause.as_ref().map(place));
    assert_eq!(causes, [5, 5, 10, 10, 10].map(Some));
    verified(dir.path());
}
