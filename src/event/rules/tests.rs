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
