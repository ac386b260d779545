//! The published schemas: each is valid and closed, and each example is an event this build would write.
//!
//! Every reference is read from `schemas/`; nothing is fetched.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use cairn::{
    block::{decode, decode_ipld, encode, json},
    contract::Contract,
    event::{Event, Fields, Kind, rules},
    workflow::plan::Plan,
};
use ipld_core::ipld::Ipld;
use jsonschema::{Retrieve, Uri, Validator};
use serde_json::{Value, json};

use crate::{
    harness::{Server, temp},
    speech::ask,
};

/// Where the tests mount `schemas/`, so that relative references have something to resolve against.
const BASE: &str = "file:///schemas/";

/// The schema each kind of example outside `events/` is checked against.
const BLOCKS: [(&str, &str); 5] = [
    ("genesis", "genesis.json"),
    ("contract", "contract.json"),
    ("payload.input", "payload.json"),
    ("payload.output", "payload.json"),
    ("plan", "plan.json"),
];

struct Folder;

impl Retrieve for Folder {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let name = uri.as_str().strip_prefix(BASE).ok_or("outside schemas/")?;
        Ok(serde_json::from_slice(&fs::read(folder().join(name))?)?)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn read(name: &str) -> Value {
    let bytes = fs::read(folder().join(name)).unwrap_or_else(|err| panic!("schemas/{name}: {err}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|err| panic!("schemas/{name}: {err}"))
}

fn validator(name: &str) -> Validator {
    jsonschema::options()
        .with_base_uri(format!("{BASE}{name}"))
        .with_retriever(Folder)
        .build(&read(name))
        .unwrap_or_else(|err| panic!("schemas/{name}: {err}"))
}

/// Names of the JSON files in a folder under `schemas/`, without their ending.
fn names(under: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder().join(under))
        .unwrap_or_else(|err| panic!("schemas/{under}: {err}"))
        .map(|entry| entry.expect("a folder that was just opened").path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

fn kinds() -> Vec<String> {
    let mut kinds: Vec<String> = Kind::ALL.iter().map(|k| k.as_str().to_owned()).collect();
    kinds.sort();
    kinds
}

#[test]
fn every_schema_is_valid() {
    let events = names("events").into_iter().map(|name| format!("events/{name}.json"));
    let blocks = ["event", "genesis", "contract", "payload"].map(|name| format!("{name}.json"));
    for name in events.chain(blocks) {
        let schema = read(&name);
        let fault = jsonschema::draft202012::meta::validate(&schema).err();
        assert!(fault.is_none(), "schemas/{name}: {fault:?}");
        validator(&name);
    }
}

#[test]
fn every_kind_has_a_schema_and_an_example() {
    assert_eq!(names("events"), kinds());
    assert_eq!(names("events/examples"), kinds());
}

/// The rules that a verifier holds events to are no wider than the schemas: what a schema forbids, they refuse.
#[test]
fn what_a_schema_of_an_event_forbids_the_rules_refuse() {
    let golden = read("golden.json");
    let lines = golden["events"].as_array().expect("events");
    let mut forbidden = 0;
    for line in lines {
        let hex = line["hex"].as_str().expect("hex").as_bytes();
        let bytes = data_encoding::HEXLOWER.decode(hex).expect("golden bytes are hex");
        let fields: Fields = decode(&bytes).expect("an event");
        let schema = validator(&format!("events/{}.json", fields.kind));
        for changed in changed(&Ipld::Map(fields.body.clone())) {
            let Ipld::Map(body) = changed else { continue };
            let bytes = encode(&Fields { body, ..fields.clone() });
            let shown = json::dag(&decode_ipld(&bytes).expect("dag-cbor"));
            if schema.is_valid(&shown) {
                continue;
            }
            forbidden += 1;
            let kept = Event::open(bytes).is_ok_and(|event| rules::check_event(&event).is_ok());
            assert!(!kept, "the schema of {} forbids it: {shown}", fields.kind);
        }
    }
    assert!(forbidden > 500, "{forbidden}");
}

/// Says whether bytes are a block of a form.
type IsBlock = fn(&[u8]) -> bool;

/// What is a contract and what is a plan is said by their schemas, within all bounds and no others.
#[test]
fn the_forms_of_contracts_and_plans_are_their_schemas() {
    let golden = read("golden.json");
    let line = |name: &str| {
        let lines = golden["blocks"].as_array().expect("blocks");
        let line = lines.iter().find(|line| line["name"] == name).expect("a golden block");
        let hex = line["hex"].as_str().expect("hex").as_bytes();
        decode_ipld(&data_encoding::HEXLOWER.decode(hex).expect("golden bytes are hex")).expect("dag-cbor")
    };
    let mut forbidden = 0;
    let forms: [(&str, IsBlock); 2] = [("contract", Contract::is_block), ("plan", Plan::is_block)];
    for (name, is_block) in forms {
        let schema = validator(&format!("{name}.json"));
        for block in changed(&line(name)).into_iter().chain([line(name)]) {
            let shown = json::dag(&block);
            let fits = schema.is_valid(&shown);
            assert_eq!(is_block(&encode(&block)), fits, "{name}: {shown}");
            forbidden += usize::from(!fits);
        }
    }
    assert!(forbidden > 30, "{forbidden}");
}

/// A value with one part of it changed at a time, beyond what bounds and closed lists allow.
fn changed(value: &Ipld) -> Vec<Ipld> {
    let mut others = match value {
        Ipld::Integer(_) => [0, 1, 101, i128::from(u64::MAX)].map(Ipld::Integer).to_vec(),
        Ipld::String(text) => {
            let texts = [String::new(), format!("{text}?"), format!("?{text}"), "x".repeat(257)];
            texts.map(Ipld::String).to_vec()
        }
        Ipld::Bool(flag) => vec![Ipld::Bool(!flag)],
        Ipld::Bytes(bytes) => vec![Ipld::Bytes(bytes[1..].to_vec()), Ipld::Bytes([bytes, &[0][..]].concat())],
        Ipld::List(items) => {
            let many = items.iter().cycle().take(if items.is_empty() { 0 } else { 300 });
            vec![Ipld::List(Vec::new()), Ipld::List(many.cloned().collect())]
        }
        _ => Vec::new(),
    };
    match value {
        Ipld::List(items) => {
            for (at, item) in items.iter().enumerate() {
                others.extend(changed(item).into_iter().map(|item| {
                    let mut items = items.clone();
                    items[at] = item;
                    Ipld::List(items)
                }));
            }
        }
        Ipld::Map(map) => {
            for (key, item) in map {
                others.extend(changed(item).into_iter().map(|item| {
                    let mut map = map.clone();
                    map.insert(key.clone(), item);
                    Ipld::Map(map)
                }));
                let mut without = map.clone();
                without.remove(key);
                others.push(Ipld::Map(without));
            }
        }
        _ => {}
    }
    others
}

#[test]
fn every_example_is_valid_and_is_the_golden_block() {
    let golden = read("golden.json");
    let find = |list: &str, name: &str| {
        let line = golden[list].as_array().and_then(|lines| lines.iter().find(|l| l["name"] == name));
        let hex = line.and_then(|line| line["hex"].as_str());
        let hex = hex.unwrap_or_else(|| panic!("golden.json has no {name} under {list}"));
        let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("golden bytes are hex");
        json::dag(&decode_ipld(&bytes).expect("golden bytes are dag-cbor"))
    };
    let events = kinds().into_iter().map(|kind| {
        let files = [format!("events/{kind}.json"), format!("events/examples/{kind}.json")];
        (files, find("events", &kind))
    });
    let blocks = BLOCKS
        .into_iter()
        .map(|(name, schema)| ([schema.to_owned(), format!("examples/{name}.json")], find("blocks", name)));
    for ([schema, example], written) in events.chain(blocks) {
        let instance = read(&example);
        let fault = validator(&schema).validate(&instance).err();
        assert!(fault.is_none(), "schemas/{example}: {fault:?}");
        assert_eq!(instance, written, "schemas/{example} is not its golden block");
    }
}

#[test]
fn schemas_are_closed() {
    let link = json!({"/": "bafyreiaihsiltjz2fxfdqcckf3njfkgkkge52iakit3isbgwoevysqoria"});
    let changes: [(&str, Value); 8] = [
        ("/novel", json!(1)),
        ("/body/novel", json!(1)),
        ("/actor/novel", json!(1)),
        ("/kind", json!("call.stopped")),
        ("/prev", Value::Null),
        ("/refs", json!([link, link])),
        ("/log", json!({"/": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"})),
        ("/body/key", json!("AQEBAQ")),
    ];
    let validator = validator("events/call.started.json");
    for (pointer, value) in changes {
        let mut instance = read("events/examples/call.started.json");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer into the event");
        instance.pointer_mut(parent).expect("the example has this part")[key] = value;
        assert!(!validator.is_valid(&instance), "{pointer} was let through");
    }
}

#[test]
fn every_tool_is_whole_and_its_example_fits() {
    for name in names("tools") {
        let tool = read(&format!("tools/{name}.json"));
        assert_eq!(tool["name"], *name, "tools/{name}.json");
        for field in ["title", "description", "inputSchema", "annotations"] {
            assert!(!tool[field].is_null(), "tools/{name}.json has no {field}");
        }
        assert_eq!(tool["inputSchema"]["additionalProperties"], false, "{name} takes unknown fields");
        let example = read(&format!("tools/examples/{name}.json"));
        // What calls another tool answers as that one does, so it promises no shape of its own.
        for (side, schema) in [("input", &tool["inputSchema"]), ("output", &tool["outputSchema"])] {
            if schema.is_null() && ["tools_dispatch", "tool_call"].contains(&name.as_str()) {
                continue;
            }
            let schema = jsonschema::draft202012::new(schema)
                .unwrap_or_else(|err| panic!("{side} schema of {name}: {err}"));
            if let Some(fault) = schema.iter_errors(&example[side]).next() {
                panic!("{side} of tools/examples/{name}.json at {}: {fault}", fault.instance_path());
            }
        }
    }
}

#[test]
fn every_published_tool_is_offered_by_a_running_server_and_no_other() {
    let data = temp();
    let server = Server::start(data.path(), &[]);
    let listed = ask(&server, "tools/list", json!({}));
    let offered = listed["result"]["tools"].as_array().expect("a list of tools");
    let mut offered: Vec<&str> = offered.iter().map(|tool| tool["name"].as_str().expect("a name")).collect();
    offered.sort_unstable();
    let mut published = names("tools");
    // These stand in lists in the place of all others, where those are found by name.
    published.retain(|name| !["tool_call", "tool_search"].contains(&name.as_str()));
    published.sort_unstable();
    assert_eq!(offered, published);
    assert!(listed["result"]["nextCursor"].is_null(), "all on one page");
    for tool in listed["result"]["tools"].as_array().into_iter().flatten() {
        let name = tool["name"].as_str().expect("a name");
        let file = read(&format!("tools/{name}.json"));
        for part in ["description", "inputSchema", "outputSchema", "annotations"] {
            assert_eq!(tool[part], file[part], "{name}: {part}");
        }
    }
    assert!(server.stop().success());
}
