//! Checks the rules over every kind: each golden event keeps them, and each break is reported in its own words.

use std::sync::LazyLock;

use ipld_core::ipld::Ipld;

use super::*;
use crate::{
    block::{Codec, decode, encode},
    event::{Fields, Kind},
};

static GOLDEN: LazyLock<Vec<Fields>> = LazyLock::new(golden);

/// Returns the events of the golden log.
fn golden() -> Vec<Fields> {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../schemas/golden.json")).expect("json");
    let events = golden["events"].as_array().expect("events");
    let hex = events.iter().filter_map(|event| event["hex"].as_str());
    let bytes = hex.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex"));
    bytes.map(|bytes| decode(&bytes).expect("an event")).collect()
}

fn of_kind(kind: &str) -> Fields {
    GOLDEN.iter().find(|fields| fields.kind == kind).expect("the golden log has every kind").clone()
}

fn checked(fields: &Fields) -> Result<Option<Body>, &'static str> {
    let event = Event::open(encode(fields)).expect("the form of an event is kept");
    check_event(&event)
}

fn broken(kind: &str, change: impl FnOnce(&mut Fields), why: &str) {
    let mut fields = of_kind(kind);
    change(&mut fields);
    assert_eq!(checked(&fields), Err(why), "{fields:?}");
}

const BODY: &str = "the body is not what the schema of its kind says";
const SUBJECT: &str = "the subject is not of its kind";

#[test]
fn every_golden_event_keeps_the_rules() {
    for fields in GOLDEN.iter() {
        let facts = checked(fields);
        assert!(
            matches!(&facts, Ok(Some(body)) if body.kind().as_str() == fields.kind),
            "{facts:?}: {fields:?}"
        );
    }
}

#[test]
fn a_takeover_names_the_events_just_before_it() {
    for (key, by) in [("events", 1), ("from_seq", 1), ("events", i128::from(u64::MAX) - 2)] {
        let add = |fields: &mut Fields| {
            let Some(Ipld::Integer(number)) = fields.body.get_mut(key) else { panic!("{fields:?}") };
            *number += by;
        };
        broken("log.taken_over", add, "log.taken_over names other events than those up to it");
    }
}

#[test]
fn a_body_of_a_known_kind_has_its_facts_and_no_others() {
    for kind in Kind::ALL {
        let fields = of_kind(kind.as_str());
        broken(kind.as_str(), |fields| drop(fields.body.insert("more".to_owned(), Ipld::Bool(true))), BODY);
        for (key, value) in &fields.body {
            let other = match value {
                Ipld::String(_) => Ipld::Integer(1),
                _ => Ipld::String("other".to_owned()),
            };
            broken(kind.as_str(), |fields| drop(fields.body.insert(key.clone(), other)), BODY);
            let mut without = fields.clone();
            without.body.remove(key);
            // A key that may be left out stands for its default.
            let optional = checked(&without).is_ok();
            broken(
                kind.as_str(),
                |fields| {
                    if !optional {
                        fields.body.remove(key);
                    }
                    fields.body.insert(format!("{key}_"), value.clone());
                },
                BODY,
            );
        }
    }
    // A default must not be written out.
    broken("call.succeeded", |f| drop(f.body.insert("input_required".to_owned(), Ipld::Bool(false))), BODY);
}

#[test]
fn an_event_is_about_an_entity_of_its_kind() {
    for kind in Kind::ALL {
        for subject in ["", "call/", "nothing", "log/1", "queue/1"] {
            broken(kind.as_str(), |fields| fields.subject = subject.to_owned(), SUBJECT);
        }
    }
    broken("call.started", |fields| fields.subject = "task/1".to_owned(), SUBJECT);
}

#[test]
fn the_first_event_and_no_other_opens_the_log_it_is_of() {
    let other = Cid::of(Codec::DagCbor, b"other");
    let named = Ipld::Link(other.into());
    let why = "log.opened names another genesis than `log`";
    broken("log.opened", |fields| drop(fields.body.insert("genesis".to_owned(), named)), why);
    broken("log.opened", |fields| fields.log = other, why);
    let later = |fields: &mut Fields| (fields.seq, fields.prev) = (1, Some(other));
    broken("log.opened", later, "log.opened stands behind the first event");
    let first = |fields: &mut Fields| (fields.seq, fields.prev) = (0, None);
    broken("queue.paused", first, "the first event is not log.opened");
}

#[test]
fn what_is_not_known_may_hold_anything() {
    for (kind, v) in [("later.kind", 1), ("call.started", 2)] {
        let mut fields = of_kind("call.started");
        (fields.kind, fields.v, fields.subject) = (kind.to_owned(), v, "anything".to_owned());
        fields.body.clear();
        assert_eq!(checked(&fields), Ok(None));
    }
}

#[test]
fn a_change_of_keys_is_of_the_version_that_is_known() {
    for v in [2, u64::MAX] {
        let why = "log.key_rotated is of a version that is not known";
        broken("log.key_rotated", |fields| fields.v = v, why);
        broken("log.key_rotated", |fields| (fields.v, fields.body) = (v, [].into()), why);
    }
}

#[test]
fn an_ending_names_a_start_whatever_its_version() {
    for ending in ENDINGS {
        for v in [1, 2] {
            let why = "an ending of a call names no start of one";
            broken(ending, |fields| (fields.v, fields.cause) = (v, None), why);
        }
    }
}

#[test]
fn the_id_in_a_subject_is_any_text() {
    for (kind, subject) in
        [("call.started", "call/\n"), ("call.started", "call/x"), ("task.dead", "task/\r\n")]
    {
        let mut fields = of_kind(kind);
        fields.subject = subject.to_owned();
        assert!(checked(&fields).is_ok(), "{subject:?}");
    }
}

#[test]
fn a_call_ends_once_as_what_it_began_as() {
    let said = |kind: &'static str, subject: &'static str, cause: Option<Cid>, tool: Option<Cid>| Said {
        v: 1,
        kind,
        log: Cid::of(Codec::DagCbor, b"log"),
        seq: 1,
        subject,
        cause,
        tool,
        body: &[],
    };
    let name = |n: u8| Cid::of(Codec::DagCbor, &[n]);
    let begun = || {
        let mut open = OpenCalls::default();
        assert_eq!(open.take(name(1), &said("call.started", "call/1", None, Some(name(9)))), Ended::Rightly);
        open
    };
    for ending in ["call.succeeded", "call.failed", "call.refused", "call.interrupted", "call.cancelled"] {
        let mut open = begun();
        let end = said(ending, "call/1", Some(name(1)), Some(name(9)));
        assert_eq!(open.take(name(2), &end), Ended::Rightly);
        assert_eq!(open.take(name(3), &end), Ended::NotOpen);
        for otherwise in [
            said(ending, "call/2", Some(name(1)), Some(name(9))),
            said(ending, "call/1", Some(name(1)), Some(name(8))),
            said(ending, "call/1", Some(name(1)), None),
        ] {
            assert_eq!(begun().take(name(2), &otherwise), Ended::Otherwise);
        }
        assert_eq!(begun().take(name(2), &said(ending, "call/1", None, None)), Ended::NotOpen);
    }
}

/// Events of one call, as the rule of open calls is told of them.
struct Turns {
    open: OpenCalls,
    next: u8,
}

impl Turns {
    fn begun() -> Self {
        let mut turns = Self { open: OpenCalls::default(), next: 0 };
        turns.take("call.started", "call/1", None, &[], Ended::Rightly);
        turns
    }

    /// Takes the next event, which gets the name of its number.
    fn take(&mut self, kind: &str, subject: &str, cause: Option<u8>, body: &[u8], expected: Ended) {
        let said = Said {
            v: 1,
            kind,
            log: Cid::of(Codec::DagCbor, b"log"),
            seq: 1,
            subject,
            cause: cause.map(Self::name),
            tool: None,
            body,
        };
        let taken = self.open.take(Self::name(self.next), &said);
        assert_eq!(taken, expected, "event {}: {kind} of {subject} by {cause:?}", self.next);
        self.next += 1;
    }

    fn name(n: u8) -> Cid {
        Cid::of(Codec::DagCbor, &[n])
    }

    fn asks(&mut self, n: i128, cause: Option<u8>, expected: Ended) {
        let method = Ipld::String("roots/list".to_owned());
        let body = [("n".to_owned(), Ipld::Integer(n)), ("method".to_owned(), method)];
        let body = encode(&std::collections::BTreeMap::from(body));
        self.take("call.asked", "call/1", cause, &body, expected);
    }

    fn answers(&mut self, n: i128, cause: Option<u8>, expected: Ended) {
        self.answers_as("call/1", n, cause, expected);
    }

    fn answers_as(&mut self, subject: &str, n: i128, cause: Option<u8>, expected: Ended) {
        let how = Ipld::String("given".to_owned());
        let body = [("n".to_owned(), Ipld::Integer(n)), ("how".to_owned(), how)];
        let body = encode(&std::collections::BTreeMap::from(body));
        self.take("call.answered", subject, cause, &body, expected);
    }

    fn ends(&mut self) {
        self.take("call.succeeded", "call/1", Some(0), &[], Ended::Rightly);
    }
}

#[test]
fn questions_and_answers_of_a_call_have_their_turn() {
    let (right, wrong) = (Ended::Rightly, Ended::OutOfTurn);
    let mut turns = Turns::begun();
    turns.answers(0, Some(0), right); // 1: it came with the request
    turns.asks(0, Some(0), right); // 2
    turns.asks(1, Some(0), right); // 3
    turns.answers(1, Some(3), right);
    turns.answers(0, Some(2), right);
    turns.answers(1, Some(0), right);
    turns.ends();

    let mut turns = Turns::begun();
    turns.asks(1, Some(0), wrong); // 1: the first is 0
    turns.asks(0, Some(9), wrong); // 2: of no call
    turns.asks(0, None, wrong);
    turns.asks(0, Some(0), right); // 4
    turns.asks(0, Some(0), wrong);
    turns.answers(1, Some(4), wrong); // 6: another number, and that was its turn
    turns.answers(0, Some(4), wrong);
    turns.answers(1, Some(0), wrong); // 8: the first that comes with a request is 0
    turns.answers(0, None, wrong);
    turns.asks(1, Some(0), right); // 10
    turns.answers_as("call/2", 1, Some(10), wrong);
    turns.asks(2, Some(0), right); // 12
    turns.ends();
    turns.answers(2, Some(12), wrong);
    turns.answers(0, Some(0), wrong);
    turns.asks(3, Some(0), wrong);
}
