//! What is kept of inputs and answers, in every mode.

use serde_json::json;

use super::*;
use crate::{block::payload::SaltKey, contract::secret::Side};

fn bound() -> Bound {
    let [actor, source, name] = ["ada", "up", "login"].map(str::to_owned);
    let key = SaltKey::new([1; 32]);
    Bound { key, actor, method: "tools/call", source, name, side: Side::Input }
}

fn secrets() -> Paths {
    Paths::of_schema(&json!({"properties": {"pin": {"x-secret": true}, "user": {"type": "string"}}}))
}

/// What is kept of an answer to a call whose pin was this.
fn answered(pin: Value, answer: &Value) -> String {
    let given = json!({"pin": pin});
    let kept = input(&given.to_string(), &given, &secrets(), Capture::Full, None, &bound());
    let bound = bound().answer();
    let sieve = Sieve { echoes: kept.taken, marked: Paths::default(), capture: Capture::Full, bound };
    output(&Answer::new(&answer.to_string()), &sieve, true)
}

#[test]
fn an_answer_keeps_no_echo_of_a_secret_whatever_spells_it() {
    let check = |pin: Value, answer: Value, never: &str| {
        let kept = answered(pin, &answer);
        assert!(!kept.contains(never), "{kept}");
        assert!(serde_json::from_str::<Value>(&kept).is_ok(), "{kept}");
    };
    let text = |text: &str| json!({"content": [{"type": "text", "text": text}]});
    for pin in [json!(4711), json!("4711")] {
        check(pin.clone(), json!({"structuredContent": {"pin": 4711}}), "4711");
        check(pin.clone(), json!({"structuredContent": {"pin": "4711"}}), "4711");
        check(pin.clone(), json!({"structuredContent": {"4711": true}}), "4711");
        check(pin.clone(), text("your pin is 4711."), "4711");
        check(pin.clone(), text(r#"{"pin":4711}"#), "4711");
        check(pin.clone(), text("user4711x"), "4711");
        check(pin, json!({"structuredContent": {"id": 9_471_100}}), "4711");
    }
    check(json!(0.5), json!({"a": 0.5}), "0.5");
    check(json!("hunter2-password"), text("you sent hunter2-password, no?"), "hunter2");
    check(json!("pa\"ss\nword"), text(&json!({"said": "pa\"ss\nword"}).to_string()), "ss");
    let nested = json!({"a": json!({"b": "pa\"ss\nword"}).to_string()}).to_string();
    check(json!("pa\"ss\nword"), text(&nested), "ss");
    check(json!({"deep": {"er": "hunter2-password"}}), text("hunter2-password"), "hunter2");
    check(json!(r#"{"inner":"hunter2-password"}"#), text("hunter2-password"), "hunter2");
    let many: Vec<String> = (0..1000).map(|at| format!("secret-{at}")).collect();
    check(json!(many), text("secret-999"), "secret-999");
}

#[test]
fn escapes_and_doubled_names_hide_nothing() {
    let given = json!({"pin": "hunter2-password"});
    let kept = input(&given.to_string(), &given, &secrets(), Capture::Full, None, &bound());
    let bound = bound().answer();
    let sieve = Sieve { echoes: kept.taken, marked: Paths::default(), capture: Capture::Full, bound };
    for text in [
        r#"{"a":"\u0068unter2-password"}"#,
        r#"{"a":"hunter2-password","a":1}"#,
        r#"{"a":"{\"b\":\"\\u0068unter2-password\"}"}"#,
    ] {
        let kept = output(&Answer::new(text), &sieve, true);
        assert!(!kept.contains("unter2"), "{kept}");
    }
    let other = r#"{ "a": 1.50, "b": "something else" }"#;
    assert_eq!(output(&Answer::new(other), &sieve, true), other, "what repeats nothing stays byte for byte");
}

#[test]
fn what_an_output_schema_marks_is_not_kept_in_any_form() {
    let marked = Paths::of_schema(&json!({"properties": {"token": {"x-secret": true}, "n": {}}}));
    let sieve = || Sieve {
        echoes: Echoes::default(),
        marked: marked.clone(),
        capture: Capture::Full,
        bound: bound(),
    };
    for answer in [
        json!({"structuredContent": {"token": "hunter2-password", "n": 1}}),
        json!({"structuredContent": {"token": 471_147}, "content": [{"type": "text", "text": "471147"}]}),
        json!({"structuredContent": {"tokens": "hunter2-password"}}),
        json!({"structuredContent": r#"{"token":"hunter2-password"}"#}),
        json!({"content": [{"type": "text", "text": r#"{"token":"hunter2-password"}"#}]}),
        json!({"code": -32000, "message": "hunter2-password", "data": null}),
    ] {
        let kept = output(&Answer::new(&answer.to_string()), &sieve(), true);
        assert!(!kept.contains("hunter2") && !kept.contains("471147"), "{kept}");
    }
    let own = json!({"structuredContent": {"success": false}}).to_string();
    assert_eq!(output(&Answer::new(&own), &sieve(), false), own, "what this node says itself is kept");
}

#[test]
fn a_refused_input_keeps_structure_and_known_names() {
    let known = HashSet::from(["pin".to_owned(), "user".to_owned()]);
    let given = json!({"user": ["ada", true, 7, null], "pni": "hunter2", "hunter3": {"pin": 1}});
    for secrets in [secrets(), Paths::default()] {
        let kept = input(&given.to_string(), &given, &secrets, Capture::Full, Some(&known), &bound());
        assert!(!["ada", "pni", "hunter"].iter().any(|word| kept.text.contains(word)), "{}", kept.text);
        let kept: Value = serde_json::from_str(&kept.text).expect("json");
        assert!(kept["user"][0]["$redacted"].is_string() && kept["user"][3].is_null(), "{kept}");
        assert_eq!(kept.as_object().map(serde_json::Map::len), Some(3), "{kept}");
    }
}

#[test]
fn what_looks_like_a_commitment_is_a_value() {
    let fake = json!({"$redacted": format!("v2:{}", "0".repeat(32))});
    let given = json!({"pin": fake, "user": fake});
    let shape = input(&given.to_string(), &given, &secrets(), Capture::Redacted, None, &bound()).text;
    assert!(!shape.contains("0000"), "{shape}");
}

#[test]
fn nothing_is_changed_where_nothing_is_secret() {
    let text = r#"{ "user": "ada", "n": 1.50 }"#;
    let value = serde_json::from_str(text).expect("json");
    let schema = json!({"properties": {"user": {}, "n": {}, "pin": {"x-secret": true}}});
    for secrets in [Paths::default(), Paths::of_schema(&schema)] {
        let kept = input(text, &value, &secrets, Capture::Full, None, &bound());
        assert_eq!(kept.text, text);
    }
}
