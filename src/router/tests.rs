//! Claims about outcomes of calls that were tried more than once.

use super::Outcome;
use crate::error::{Code, Refusal};

fn untaken() -> Outcome {
    Outcome::Untaken(Refusal::new(Code::Unavailable, "nobody is there"))
}

fn died() -> Outcome {
    Outcome::Transport { message: "it died".to_owned() }
}

#[track_caller]
fn check(before: Option<Outcome>, now: Outcome, expected: &str) {
    let told = match now.after(before) {
        Outcome::Untaken(_) => "untaken",
        Outcome::Transport { .. } => "transport",
        Outcome::TimedOut => "timed out",
        Outcome::Refused(_) => "refused",
        Outcome::Result { .. } | Outcome::Rpc(_) | Outcome::Cancelled => "other",
    };
    assert_eq!(told, expected);
}

#[test]
fn a_call_that_may_have_begun_is_never_told_as_one_that_nobody_took() {
    let refused = || Outcome::Refused(Refusal::new(Code::Internal, "no"));
    check(None, untaken(), "untaken");
    check(Some(untaken()), untaken(), "untaken");
    check(Some(died()), untaken(), "transport");
    check(Some(Outcome::TimedOut), untaken(), "timed out");
    check(Some(Outcome::TimedOut), died(), "transport");
    check(Some(died()), Outcome::TimedOut, "timed out");
    check(Some(died()), refused(), "refused");
    check(Some(untaken()), died(), "transport");
}
