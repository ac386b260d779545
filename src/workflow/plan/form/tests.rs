//! Checks each bound of a plan block from both sides.

use std::collections::BTreeMap;

use super::*;
use crate::block::encode;

fn text(text: &str) -> Ipld {
    Ipld::String(text.to_owned())
}

fn map(entries: &[(&str, Ipld)]) -> Ipld {
    Ipld::Map(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
}

fn undo(entries: &[(&str, Ipld)]) -> Ipld {
    changed(&map(&[("action", text("a")), ("task_type", text("t"))]), entries)
}

fn changed(whole: &Ipld, entries: &[(&str, Ipld)]) -> Ipld {
    let Ipld::Map(whole) = whole else { panic!("it is a map") };
    let mut whole: BTreeMap<String, Ipld> = whole.clone();
    whole.extend(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Ipld::Map(whole)
}

/// Returns a plan with a step that was changed so.
fn plan(step: &[(&str, Ipld)]) -> Ipld {
    let good = map(&[("id", text("a")), ("action", text("x")), ("task_type", text("y"))]);
    let steps = Ipld::List(vec![changed(&good, step)]);
    map(&[("v", Ipld::Integer(1)), ("name", text("p")), ("steps", steps), ("limits", map(&[]))])
}

fn is_plan(plan: &Ipld) -> bool {
    Plan::is_block(&encode(plan))
}

#[test]
fn a_step_is_within_its_bounds() {
    let long = |len: usize| text(&"\u{e9}".repeat(len));
    let names = |name: Ipld| Ipld::List(vec![name]);
    let number = |number: u64| Ipld::Integer(number.into());
    let yes = Ipld::Bool(true);
    for good in [
        ("id", long(128)),
        ("depends_on", Ipld::List(Vec::new())),
        ("depends_on", names(long(128))),
        ("timeout_ms", number(u64::MAX)),
        ("each", number(1)),
        ("each", number(10_000)),
        ("when", yes.clone()),
        ("reuse", yes.clone()),
        ("repeatable", yes.clone()),
        ("compensate", undo(&[("repeatable", yes)])),
    ] {
        assert!(is_plan(&plan(std::slice::from_ref(&good))), "{good:?}");
    }
    let no = Ipld::Bool(false);
    for bad in [
        ("id", text("")),
        ("id", long(129)),
        ("action", text("")),
        ("task_type", text("")),
        ("depends_on", names(text(""))),
        ("depends_on", names(long(129))),
        ("timeout_ms", number(0)),
        ("each", number(0)),
        ("each", number(10_001)),
        ("when", no.clone()),
        ("reuse", no.clone()),
        ("repeatable", no.clone()),
        ("tool", Ipld::Null),
        ("more", number(1)),
        ("compensate", undo(&[("action", text(""))])),
        ("compensate", undo(&[("task_type", text(""))])),
        ("compensate", undo(&[("repeatable", no)])),
    ] {
        assert!(!is_plan(&plan(std::slice::from_ref(&bad))), "{bad:?}");
    }
}

#[test]
fn a_plan_has_a_name_some_steps_and_the_known_limits() {
    let good = plan(&[]);
    let step = map(&[("id", text("a")), ("action", text("x")), ("task_type", text("y"))]);
    let steps = |count: usize| Ipld::List(vec![step.clone(); count]);
    assert!(is_plan(&good));
    assert!(is_plan(&changed(&good, &[("steps", steps(10_000))])));
    assert!(is_plan(&changed(&good, &[("limits", map(&[("output_max", Ipld::Integer(0))]))])));
    for bad in [
        ("v", Ipld::Integer(2)),
        ("name", text("")),
        ("name", text(&"n".repeat(129))),
        ("steps", steps(0)),
        ("steps", steps(10_001)),
        ("limits", map(&[("output_max", Ipld::Null)])),
        ("limits", map(&[("more", Ipld::Integer(1))])),
    ] {
        assert!(!is_plan(&changed(&good, std::slice::from_ref(&bad))), "{}", bad.0);
    }
}
