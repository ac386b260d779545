//! Schemas of other servers at the door: each judges in its own dialect or not at all, and none stands in the way of a
//! call, of a result, or of an error.

use std::{fs, process::Command};

use cairn::event::{Body, Event};
use serde_json::{Value, json};

use crate::{
    harness::{Process, needs, temp},
    lines::Lines,
    record::{self, until},
    speech::{Connection, ask, call, result},
    upstream::{Upstream, serve},
};

const DRAFT_07: &str = "http://json-schema.org/draft-07/schema#";
const DRAFT_04: &str = "http://json-schema.org/draft-04/schema#";
const MARK: &str = "hunter2-4815162342";

/// Tools that work when called directly: a name, the schema, arguments that the tool takes, and why the schema judges
/// none; empty where it does judge them.
fn callable() -> Vec<(&'static str, Value, Value, &'static str)> {
    let x = |x: Value| json!({"type": "object", "properties": {"x": x}});
    let a = || json!({"x": "a"});
    let tuple = |of: &str| json!({"type": "array", "items": [{"type": of}, {"type": of}], "minItems": 2});
    vec![
        (
            "box",
            json!({"$schema": DRAFT_07, "properties": {"box": tuple("number")}}),
            json!({"box": [1, 2]}),
            "",
        ),
        ("pair", json!({"properties": {"pair": tuple("string")}}), json!({"pair": ["a", "b"]}), "malformed"),
        (
            "above",
            json!({"$schema": DRAFT_04, "properties": {"n": {"minimum": 0, "exclusiveMinimum": true}}}),
            json!({"n": 1}),
            "",
        ),
        (
            "sibling",
            json!({"$schema": DRAFT_07, "definitions": {"s": {"type": "string"}},
                   "properties": {"x": {"$ref": "#/definitions/s", "minLength": 5}}}),
            json!({"x": "ab"}),
            "",
        ),
        ("must", x(json!({"type": "string", "required": true})), a(), "malformed"),
        ("elsewhere", x(json!({"$ref": "https://schemas.invalid/x.json"})), a(), "reference"),
        ("dangling", x(json!({"$ref": "#/components/schemas/X"})), a(), "reference"),
        ("pattern", x(json!({"type": "string", "pattern": "[a-z"})), a(), "pattern"),
        ("any", x(json!({"type": "any"})), a(), "malformed"),
        (
            "nulls",
            json!({"properties": {"x": {"type": "string", "enum": null}}, "required": null}),
            a(),
            "malformed",
        ),
        ("unnamed", x(json!({"minimum": 0, "exclusiveMinimum": true})), json!({"x": 1}), "malformed"),
        (
            "third",
            json!({"$schema": "http://json-schema.org/draft-03/schema#", "properties": {}}),
            a(),
            "dialect",
        ),
        ("nullable", x(json!({"type": "string", "nullable": true})), json!({"x": null}), "ambiguous"),
        ("posix", x(json!({"pattern": "^[[:alpha:]]+$"})), a(), "pattern"),
        ("listed", json!({"type": "object", "properties": []}), json!({}), "malformed"),
        ("format", json!({"$schema": DRAFT_07, "properties": {"x": {"format": "email"}}}), a(), ""),
    ]
}

/// Tools whose schemas take too long for one that judges every input: a schema, arguments, and why it judges none.
fn hostile() -> Vec<(&'static str, Value, Value, &'static str)> {
    let step = |n: usize| {
        let next = json!({"$ref": format!("#/$defs/s{}", n + 1)});
        (format!("s{n}"), json!({"allOf": [next, next]}))
    };
    let mut steps: serde_json::Map<String, Value> = (0..40).map(step).collect();
    steps.insert("s40".to_owned(), json!({"type": "object"}));
    let branch = || json!({"properties": {"x": {"$ref": "#"}}});
    let nested = (0..50).fold(json!({}), |inner, _| json!({"x": inner}));
    let text = |pattern: &str| json!({"properties": {"x": {"items": {"pattern": pattern}}}});
    let texts = |n: usize| json!({"x": vec!["a".repeat(40); n]});
    vec![
        ("fan", json!({"$defs": steps, "$ref": "#/$defs/s0"}), json!({}), "large"),
        ("twice", json!({"anyOf": [branch(), branch()]}), nested, "large"),
        ("many", text("^(a+)+\\1b$"), texts(20_000), "large"),
        ("powers", text("((a{1000}){1000}){1000}"), texts(1), "large"),
        (
            "unique",
            json!({"properties": {"x": {"uniqueItems": true}}}),
            json!({"x": (0..100_000).collect::<Vec<u32>>()}),
            "",
        ),
    ]
}

#[test]
fn no_schema_takes_long_or_stands_in_the_way_of_its_call() {
    let data = temp();
    let cases = hostile();
    let tools: Vec<String> = cases
        .iter()
        .map(|(name, schema, ..)| define(name, schema, &json!({"outputSchema": schema})))
        .collect();
    let upstream = upstream(&tools);
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    for (name, _, arguments, why) in &cases {
        let begun = std::time::Instant::now();
        result(&server, name, arguments.clone());
        assert!(begun.elapsed().as_secs() < 20, "{name}: {:?}", begun.elapsed());
        let unchecked = unchecked(&record::events(data.path()), name);
        assert_eq!(unchecked, [*why], "{name}");
    }
    assert!(server.stop().success());
    record::check(data.path());
}

fn define(name: &str, input: &Value, more: &Value) -> String {
    let mut tool = json!({"name": name, "inputSchema": input});
    tool.as_object_mut().expect("a map").extend(more.as_object().cloned().unwrap_or_default());
    tool.to_string()
}

fn upstream(tools: &[String]) -> Upstream {
    Upstream::new(&tools.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the starts of the calls to a tool say of their inputs.
fn unchecked(events: &[Event], name: &str) -> Vec<String> {
    let of = |event: &Event| match event.body() {
        Some(Body::CallStarted(facts)) if facts.name == name => {
            Some(facts.input_unchecked.map_or("", |why| why.as_str()).to_owned())
        }
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// What the successes of a tool say of its results: the place that does not fit, and why they were not judged.
fn fits(events: &[Event], name: &str) -> Vec<(Option<String>, Option<&'static str>)> {
    let of = |event: Event| match event.body() {
        Some(Body::CallSucceeded(facts)) => {
            Some((facts.output_mismatch, facts.output_unchecked.map(|why| why.as_str())))
        }
        _ => None,
    };
    record::endings(events, name).into_iter().filter_map(of).collect()
}

fn error(result: &Value) -> &Value {
    assert_eq!(result["isError"], true, "{result}");
    assert!(result.get("structuredContent").is_none(), "it is the tool's: {result}");
    &result["_meta"]["io.cairn/error"]
}

#[test]
fn no_schema_stands_in_the_way_of_a_call_that_works_directly() {
    let data = temp();
    let cases = callable();
    let tools: Vec<String> =
        cases.iter().map(|(name, schema, ..)| define(name, schema, &json!({}))).collect();
    let upstream = upstream(&tools);
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let mut stateless = Connection::open(&server.url).expect("the server listens");
    for (at, (name, _, arguments, why)) in cases.iter().enumerate() {
        for connection in [&mut session, &mut stateless] {
            let answer = connection.request(at as u64 + 1, "tools/call", call(name, arguments));
            assert!(answer["result"]["content"].is_array(), "{name}: {answer}");
            assert!(answer["result"]["isError"].is_null(), "{name}: {answer}");
        }
        let dispatched = result(&server, "tools_dispatch", json!({"tool": name, "params": arguments}));
        assert!(dispatched["isError"].is_null(), "{name}: {dispatched}");
        let contract = &result(&server, "tools_get_schema", json!({"tool": name}))["structuredContent"];
        let told = &contract["input_unchecked"];
        match why.is_empty() {
            true => assert!(told.is_null(), "{name}: {contract}"),
            false => {
                assert_eq!(told["reason"], **why, "{name}: {contract}");
                assert!(told["text"].as_str().is_some_and(|text| !text.is_empty()), "{name}: {told}");
            }
        }
    }
    assert_eq!(upstream.calls().len(), 3 * cases.len());
    assert!(server.stop().success());
    let events = record::check(data.path());
    for (name, _, _, why) in &cases {
        assert_eq!(unchecked(&events, name), [*why; 3], "{name}");
    }
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_schema_that_can_be_used_judges_in_its_dialect() {
    let data = temp();
    let tools: Vec<String> = callable()
        .iter()
        .filter(|(.., why)| why.is_empty())
        .map(|(name, schema, ..)| define(name, schema, &json!({"outputSchema": {"type": "object"}})))
        .collect();
    let upstream = upstream(&tools);
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    for (name, arguments) in [
        ("box", json!({"box": [1, "b"]})),
        ("box", json!({"box": [1]})),
        ("above", json!({"n": 0})),
        ("sibling", json!({"x": 1})),
    ] {
        let refused = result(&server, name, arguments);
        let told = error(&refused);
        assert_eq!(told["code"], "invalid_argument", "{refused}");
        assert!(told["hint"].as_str().is_some_and(|hint| hint.contains("tools_get_schema")), "{refused}");
        let text = refused["content"][0]["text"].as_str().expect("a text");
        assert!(text.contains("invalid_argument") && text.contains("invalid input at"), "{text}");
        // A tool of this node's own says it as it always did.
        let inner = json!({"tool": name, "params": {"box": 1, "n": 0, "x": 1}});
        let dispatched = result(&server, "tools_dispatch", inner);
        assert_eq!(dispatched["structuredContent"]["error"]["code"], "invalid_argument", "{dispatched}");
    }
    assert!(upstream.calls().is_empty());
    assert!(server.stop().success());
    let refusals = record::kinds(data.path(), "box");
    assert!(refusals.iter().all(|kind| kind == "call.refused"), "{refusals:?}");
}

#[test]
fn a_result_that_does_not_fit_is_passed_on_and_noted() {
    let data = temp();
    let output = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let unusable = json!({"type": "object", "properties": {"n": {"$ref": "#/none"}}});
    let older = json!({"$schema": DRAFT_04, "properties": {"n": {"minimum": 0, "exclusiveMinimum": true}}});
    let secret = json!({"type": "object", "properties": {"n": {"type": "integer", "writeOnly": true}}});
    let at = |place: &str| (Some(place.to_owned()), None);
    let misfit = format!(r#"{{"content":[],"structuredContent":{{"n":"{MARK}"}}}}"#);
    let cases = [
        ("fitting", &output, r#"{"content":[],"structuredContent":{"n":1}}"#, vec![(None, None)]),
        ("other", &output, &*misfit, vec![at("#/properties/n/type")]),
        ("without", &output, r#"{"content":[],"structuredContent":{}}"#, vec![at("#/required")]),
        ("missing", &output, r#"{"content":[]}"#, vec![at("missing")]),
        (
            "unusable",
            &unusable,
            r#"{"content":[],"structuredContent":{"n":1}}"#,
            vec![(None, Some("reference"))],
        ),
        (
            "older",
            &older,
            r#"{"content":[],"structuredContent":{"n":0}}"#,
            vec![at("#/properties/n/exclusiveMinimum")],
        ),
        ("secret", &secret, &*misfit, vec![at("#/properties/n/type")]),
        ("failing", &output, r#"{"content":[],"isError":true,"structuredContent":{"n":"a"}}"#, vec![]),
        ("asking", &output, r#"{"resultType":"input_required","requestState":"a"}"#, vec![(None, None)]),
    ];
    let tools: Vec<String> = cases
        .iter()
        .map(|(name, output, ..)| define(name, &json!({"type": "object"}), &json!({"outputSchema": output})))
        .collect();
    let upstream = upstream(&tools);
    for (name, _, text, _) in &cases {
        upstream.write(&format!("{name}.result"), text);
    }
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    for (name, _, text, _) in &cases {
        let told = result(&server, name, json!({}));
        let given: Value = serde_json::from_str(text).expect("a result");
        for (key, value) in given.as_object().expect("a map") {
            assert_eq!(&told[key], value, "{name}: {told}");
        }
    }
    let contract = &result(&server, "tools_get_schema", json!({"tool": "unusable"}))["structuredContent"];
    assert_eq!(contract["output_unchecked"]["reason"], "reference", "{contract}");
    assert!(server.stop().success());
    let events = record::check(data.path());
    for (name, _, _, noted) in &cases {
        assert_eq!(&fits(&events, name), noted, "{name}");
    }
    assert!(events.iter().all(|event| !contains(event.bytes(), MARK)), "no content stands in an event");
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn what_no_schema_judges_keeps_its_secrets_out_of_the_log() {
    let data = temp();
    let secret = json!({"type": "string", "writeOnly": true});
    let with = |more: Value| {
        let mut schema = json!({"type": "object", "properties": {"p": secret, "u": {"type": "string"}}});
        schema.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        schema
    };
    let schemas = [
        with(json!({"required": null})),
        with(json!({"$schema": "https://schemas.invalid/own"})),
        with(json!({"patternProperties": {"[a-z": {}}})),
        with(json!({"allOf": [{"$ref": "#/none"}]})),
        with(json!({"allOf": [{"$ref": "https://schemas.invalid/x"}]})),
        with(json!({"allOf": [{"type": "array", "items": [{}]}]})),
    ];
    let name = |at: usize| format!("tool{at}");
    let tools: Vec<String> =
        schemas.iter().enumerate().map(|(at, schema)| define(&name(at), schema, &json!({}))).collect();
    let upstream = upstream(&tools);
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    for at in 0..schemas.len() {
        let name = name(at);
        // The last of them echoes what was said; the first is how the schema wants it.
        upstream.write(
            &format!("{name}.result"),
            &json!({"content": [{"type": "text", "text": MARK}]}).to_string(),
        );
        for arguments in [
            json!({"p": MARK}),
            json!({"u": MARK}),
            json!({"q": {"p": MARK}}),
            json!({"p": [MARK]}),
            json!({MARK: 1}),
        ] {
            assert_eq!(result(&server, &name, arguments.clone())["content"][0]["text"], MARK);
            result(&server, "tools_dispatch", json!({"tool": name, "params": arguments}));
            let kind = format!("tool:{name}");
            result(&server, "task_submit", json!({"task_type": kind, "payload": arguments}));
            let step = json!([{"step_id": "a", "action": name, "inputs": arguments}]);
            result(&server, "workflow_submit", json!({"name": "w", "steps": step}));
        }
    }
    assert_eq!(upstream.calls().len(), 2 * 5 * schemas.len(), "each reached its tool, whole");
    assert!(upstream.calls().iter().all(|call| call.contains(MARK)));
    assert!(server.stop().success());
    record::check(data.path());
    for file in fs::read_dir(data.path()).expect("the directory can be read").flatten() {
        let bytes = fs::read(file.path()).unwrap_or_default();
        assert!(!contains(&bytes, MARK), "{:?} holds the secret", file.path());
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_wrapped_server_is_told_of_without_tools_that_nobody_has() {
    let data = temp();
    let output = json!({"outputSchema": {"type": "object", "required": ["n"]}});
    let strict = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
    let upstream =
        upstream(&[define("strict", &strict, &output), define("dies", &json!({"type": "object"}), &output)]);
    let (python, script) = (needs("venv/bin/python"), needs("upstream.py"));
    let text = |path: &std::path::Path| path.to_str().expect("paths here are text").to_owned();
    let program = [text(&python), text(&script), text(upstream.dir())];
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    let mut lines = Lines::wrap(data.path(), &program);
    let refused = lines.call("strict", json!({"n": "a"}));
    assert_eq!(error(&refused["result"])["code"], "invalid_argument", "{refused}");
    upstream.write("die", "");
    let unknown = lines.call("dies", json!({}));
    let told = error(&unknown["result"]);
    assert_eq!(told["code"], "unavailable", "{unknown}");
    assert!(told["hint"].as_str().is_some_and(|hint| hint.contains("look where the tool acts")), "{unknown}");
    for answer in [refused, unknown] {
        for tool in ["tools_get_schema", "provenance_trace", "tools_list_tools"] {
            assert!(!answer.to_string().contains(tool), "{answer}");
        }
    }
    lines.finish();
}

#[test]
fn an_error_of_ours_about_a_prompt_or_a_resource_is_a_protocol_error() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    let server = serve(data.path(), &upstream.table("up", "prefix = \"\""));
    upstream.write("away", "");
    upstream.write("die", "");
    result(&server, "tool", json!({}));
    let failed = until("an upstream that is away", || {
        let answer = ask(&server, "prompts/get", json!({"name": "greet", "arguments": {"who": "ada"}}));
        answer.get("error").cloned()
    });
    assert_eq!(failed["code"], -32603, "{failed}");
    assert_eq!(failed["data"]["io.cairn/error"]["code"], "unavailable", "{failed}");
    assert!(failed["data"]["io.cairn/event"].is_string(), "{failed}");
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn tools_whose_marks_for_headers_are_unsound_are_left_out_over_http() {
    let data = temp();
    let marked = |marks: &[(&str, &str, &str)]| {
        let property = |(name, kind, mark): &(&str, &str, &str)| {
            ((*name).to_owned(), json!({"type": kind, "x-mcp-header": mark}))
        };
        json!({"type": "object", "properties": marks.iter().map(property).collect::<serde_json::Map<_, _>>()})
    };
    let tools = [
        define("sound", &marked(&[("a", "string", "Region")]), &json!({})),
        define("empty", &marked(&[("a", "string", "")]), &json!({})),
        define("spaced", &marked(&[("a", "string", "My Region")]), &json!({})),
        define("twice", &marked(&[("a", "string", "Region"), ("b", "string", "region")]), &json!({})),
        define("typed", &marked(&[("a", "number", "Region")]), &json!({})),
    ];
    let file = data.path().join("marked");
    fs::write(&file, tools.join("\n")).expect("the directory can be written");
    let mut command = Command::new(needs("venv/bin/python"));
    command.arg(needs("marked.py")).arg(&file);
    let mut other = Process::start(command);
    let url = other.line(record::PATIENCE).expect("it prints its url");
    let child = upstream(&tools);
    let config = format!("[[upstream]]\nname = \"web\"\nurl = {url:?}\n{}", child.table("child", ""));
    let server = serve(data.path(), &config);
    let listed = ask(&server, "tools/list", json!({}));
    let listed = listed["result"]["tools"].as_array().expect("tools");
    let names: Vec<&str> = listed.iter().filter_map(|tool| tool["name"].as_str()).collect();
    let of = |prefix: &str| -> Vec<&str> {
        names.iter().copied().filter_map(|name| name.strip_prefix(prefix)).collect()
    };
    assert_eq!(of("web_"), ["sound"]);
    assert_eq!(of("child_"), ["sound", "empty", "spaced", "twice", "typed"], "its calls have no headers");
    // Every header that the definition asks for is demanded of clients too, so a session calls it.
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let told = session.request(1, "tools/call", call("web_sound", &json!({"a": "here"})));
    assert_eq!(told["result"]["region"], "here", "{told}");
    let errors = server.process.errors();
    for name in ["empty", "spaced", "twice", "typed"] {
        assert_eq!(errors.matches(name).count(), 1, "{name}: {errors}");
    }
    assert!(server.stop().success());
    other.kill();
}

#[test]
fn a_name_that_is_long_or_taken_is_warned_of_once() {
    let data = temp();
    let long = "l".repeat(65);
    let first = Upstream::new(&["taken", &long]);
    let second = Upstream::new(&["taken"]);
    let transparent = |upstream: &Upstream, name: &str| upstream.table(name, "prefix = \"\"");
    let server =
        serve(data.path(), &format!("{}{}", transparent(&first, "one"), transparent(&second, "two")));
    for round in 0..3 {
        let name = format!("more{round}");
        first.offer(&["taken", &long, &name]);
        second.offer(&["taken", &format!("other{round}")]);
        for name in [name, format!("other{round}")] {
            until(&name, || ask(&server, "tools/list", json!({})).to_string().contains(&name).then_some(()));
        }
    }
    let errors = server.process.errors();
    assert_eq!(errors.matches("over 64 characters").count(), 1, "{errors}");
    assert_eq!(errors.matches("tool name is taken").count(), 1, "{errors}");
    assert!(server.stop().success());
}
