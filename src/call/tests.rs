//! The rules of calls as data: given events, when a wish, then a ruling.

use super::*;
use crate::{
    block::Codec,
    block::payload::SALT_LEN,
    error::{Code, Refusal},
    event::{Position, body::LogOpened},
};

/// A story so far: the call's events, sealed one after the other.
struct Story(Vec<Event>);

fn actor() -> Actor {
    Actor { id: "ada".into(), role: "client".into(), proof: None }
}

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

fn pay(text: &str, role: Role) -> PayloadRef {
    PayloadRef { cid: cid(text), len: text.len() as u64, role }
}

fn wish(id: &str, input: &str) -> Start {
    Start {
        id: id.into(),
        actor: actor(),
        tool: Some(cid("contract")),
        input: Some(pay(input, Role::Input)),
        facts: CallStarted {
            method: "tools/call".into(),
            name: "pay".into(),
            source: "bank".into(),
            runtime: "upstream".into(),
            rule: "source".into(),
            runner: "r1".into(),
            key: Some(vec![7; SALT_LEN]),
            trace: None,
            input_unchecked: None,
        },
        former_key: None,
        cause: None,
        refs: Vec::new(),
        repeatable: false,
        refusal: None,
    }
}

fn ended(outcome: EndOutcome) -> End {
    End {
        id: "c1".into(),
        outcome,
        output: Some(pay("answer", Role::Output)),
        took_us: 5,
        remote: Vec::new(),
    }
}

impl Story {
    fn begun() -> Self {
        let Ruling::Run(fact) = start(None, &wish("c1", "100 euros")) else { panic!("a first call runs") };
        Self(Vec::new()).then(*fact)
    }

    fn then(mut self, fact: Fact) -> Self {
        // One event before the story, so that each has a predecessor.
        let prev = self.0.last().map_or_else(|| cid("before"), Event::cid);
        let seq = self.0.len() as u64 + 1;
        let place = Position { log: cid("genesis"), seq, prev: Some(prev), ts: seq };
        self.0.push(Event::seal(fact, place).expect("the story's facts are small"));
        self
    }

    fn ends(self, outcome: EndOutcome) -> Self {
        let call = self.call();
        self.then(end(Some(&call), &ended(outcome)).expect("a running call ends"))
    }

    fn call(&self) -> Call {
        let (first, rest) = self.0.split_first().expect("a story begins");
        let mut call = Call::begun(first).expect("it begins with call.started");
        rest.iter().for_each(|event| call.apply(event));
        call
    }
}

const SUCCEEDED: EndOutcome = EndOutcome::Succeeded { input_required: false, fit: Fit::Fits };

fn failed(failure: Failure) -> EndOutcome {
    EndOutcome::Failed { failure, code: None }
}

/// What asking again with the same key comes to, in a word.
fn again_is(story: &Story, wish: &Start) -> String {
    match start(Some(&story.call()), wish) {
        Ruling::Run(fact) if fact.refs.is_empty() => "runs".into(),
        Ruling::Run(_) => "runs after the first".into(),
        Ruling::Refuse(..) => "refused".into(),
        Ruling::Answered(_) => "answered".into(),
        Ruling::Denied(refusal) => format!("denied: {}", refusal.code.as_str()),
    }
}

#[test]
fn a_key_gives_the_first_answer_or_says_why_it_cannot() {
    let same = wish("c2", "100 euros");
    let other = wish("c2", "900 euros");
    let repeatable = Start { repeatable: true, ..same.clone() };
    let table: &[(Option<EndOutcome>, &Start, &str)] = &[
        (None, &same, "denied: conflict"),
        (None, &other, "denied: already_exists"),
        (Some(SUCCEEDED), &same, "answered"),
        (Some(SUCCEEDED), &other, "denied: already_exists"),
        (Some(failed(Failure::Tool)), &same, "answered"),
        (Some(failed(Failure::Protocol)), &same, "answered"),
        (Some(failed(Failure::Transport)), &same, "denied: failed_precondition"),
        (Some(failed(Failure::Timeout)), &same, "denied: failed_precondition"),
        (Some(failed(Failure::Untaken)), &same, "runs"),
        (Some(failed(Failure::Untaken)), &other, "runs"),
        (Some(failed(Failure::Timeout)), &repeatable, "runs after the first"),
        (Some(EndOutcome::Interrupted), &same, "denied: failed_precondition"),
        (Some(EndOutcome::Interrupted), &repeatable, "runs after the first"),
        (Some(EndOutcome::Cancelled), &repeatable, "runs after the first"),
        (Some(EndOutcome::Cancelled), &other, "denied: already_exists"),
    ];
    for (ending, wish, expected) in table {
        let story = match ending {
            Some(outcome) => Story::begun().ends(outcome.clone()),
            None => Story::begun(),
        };
        assert_eq!(again_is(&story, wish), *expected, "after {ending:?}");
    }
}

#[test]
fn a_refused_call_leaves_its_key_free() {
    let story = Story::begun();
    let refused = refuse(&story.call(), CallRefused { code: "invalid_argument".into() }, None);
    assert_eq!(again_is(&story.then(refused), &wish("c2", "anything")), "runs");
}

#[test]
fn what_is_known_to_be_forbidden_is_recorded_and_does_not_run() {
    let forbidden =
        Start { refusal: Some(Refusal::new(Code::InvalidArgument, "no")), ..wish("c1", "100 euros") };
    let Ruling::Refuse(fact, facts) = start(None, &forbidden) else { panic!("it is refused") };
    assert!(matches!(fact.body, Body::CallStarted(_)));
    assert_eq!(facts.code, "invalid_argument");
}

#[test]
fn a_call_ends_once() {
    let outcomes = [SUCCEEDED, failed(Failure::Tool), EndOutcome::Cancelled, EndOutcome::Interrupted];
    for first in &outcomes {
        for second in &outcomes {
            let call = Story::begun().ends(first.clone()).call();
            let refusal = end(Some(&call), &ended(second.clone())).expect_err("it has ended");
            assert_eq!(refusal.code, Code::Conflict, "{first:?} then {second:?}");
        }
    }
    assert_eq!(end(None, &ended(SUCCEEDED)).expect_err("it never started").code, Code::Conflict);
}

#[test]
fn an_ending_names_its_start_and_its_payload() {
    let story = Story::begun().ends(SUCCEEDED);
    let call = story.call();
    assert_eq!(story.0[1].fields().cause, Some(story.0[0].cid()));
    assert_eq!(story.0[1].fields().subject, "call/c1");
    assert_eq!(story.0[1].fields().tool, story.0[0].fields().tool);
    let ending = call.ending.expect("it has ended");
    assert_eq!((ending.how, ending.output), (How::Succeeded, Some(cid("answer"))));
}

#[test]
fn events_of_other_entities_change_nothing() {
    let mut call = Story::begun().call();
    let before = call.clone();
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor(),
        subject: "log".into(),
        tool: None,
        payloads: Vec::new(),
        body: Body::LogOpened(LogOpened { genesis: cid("genesis"), software: "x".into(), salt: None }),
    };
    let place = Position { log: cid("genesis"), seq: 1, prev: Some(cid("before")), ts: 1 };
    call.apply(&Event::seal(fact, place).expect("a small fact"));
    assert_eq!(call, before);
}
