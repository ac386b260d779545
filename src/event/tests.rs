//! Checks the golden bytes of every kind of event, and what is refused.
//!
//! `schemas/golden.json` is one small log under a signed head: a genesis, a contract, payloads, a plan and, in order of
//! `seq`, at least one event of every kind. Kinds are only added at its end, because released bytes never change.

mod plain;
mod asking;
mod keeping;
mod peer;
mod work;

use std::collections::BTreeMap;

use ipld_core::{ipld, ipld::Ipld};
use serde::{Deserialize, Serialize};

use crate::{
    block::{
        Block, Cid, Codec, encode,
        payload::{JSON, Payload, SaltKey},
    },
    contract::dialect::Unchecked,
    event::{
        Actor, EVENT_MAX, Event, EventError, Fact, Fields, Genesis, Kind, PAYLOADS_MAX, PayloadRef, Position,
        REFS_MAX, Role,
        body::{
            AccessExported, Body, CallCancelled, CallFailed, CallInterrupted, CallRefused, CallStarted,
            CallSucceeded, ContractPublished, ContractRetired, Failure, LogOpened, LogRecovered,
            PayloadErased,
        },
    },
    identity::Signer,
    merkle::{Growing, leaf_hash},
};

const GOLDEN: &str = include_str!("../../schemas/golden.json");

/// 2026-01-01T00:00:00Z in microseconds. Each event of the golden log is one millisecond after the one before.
const START_US: u64 = 1_767_225_600_000_000;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    /// The key that checks `checkpoint`.
    vkey: String,
    /// The signed head over all events.
    checkpoint: String,
    blocks: Vec<Line>,
    events: Vec<Line>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    cid: String,
    hex: String,
}

/// Returns the identity that signs the golden log's heads until its key rotates.
fn signer() -> Signer {
    Signer::new("cairn.example/golden", [3; 32]).expect("a key name without spaces or pluses")
}

/// Returns the identity that signs them from the rotation on.
fn next_signer() -> Signer {
    Signer::new("cairn.example/golden", [4; 32]).expect("a key name without spaces or pluses")
}

fn line(name: &str, cid: Cid, bytes: &[u8]) -> Line {
    Line { name: name.to_owned(), cid: cid.to_string(), hex: data_encoding::HEXLOWER.encode(bytes) }
}

/// The golden log as this build writes it.
struct Story {
    log: Cid,
    contract: Cid,
    plan: Cid,
    input: PayloadRef,
    output: PayloadRef,
    blocks: Vec<Line>,
    events: Vec<Event>,
}

impl Story {
    fn tell() -> Self {
        let genesis = Block::encode(&Genesis {
            v: 1,
            origin: signer().origin().to_owned(),
            key: signer().public_key().to_vec(),
            created: START_US,
            nonce: vec![7; 16],
        });
        let contract = Block::encode(&ipld!({
            "v": 1,
            "name": "echo",
            "source": "everything",
            "version": "1.0.0",
            "description": "Echoes back the input",
            "input": Ipld::Bytes(br#"{"type":"object","properties":{"message":{"type":"string"}},"required":["message"]}"#.into()),
            "output": null,
            "annotations": Ipld::Bytes(br#"{"readOnlyHint":true}"#.into()),
            "effects": {"read_only": true, "idempotent": true, "destructive": false, "open_world": true},
            "prev": null,
        }));
        let plan = work::plan(contract.cid());
        let key = SaltKey::new([9; 32]);
        let payload = |role, data: &str| {
            let sealed = Payload::seal(&key, JSON, data.as_bytes()).expect("a few bytes");
            let (cid, len) = (sealed.envelope.cid(), sealed.len);
            (sealed.envelope, PayloadRef { cid, len, role })
        };
        let (input_block, input) = payload(Role::Input, r#"{"name":"echo","arguments":{"message":"hi"}}"#);
        let (output_block, output) = payload(Role::Output, r#"{"content":[{"type":"text","text":"hi"}]}"#);
        let blocks = [
            ("genesis", &genesis),
            ("contract", &contract),
            ("payload.input", &input_block),
            ("payload.output", &output_block),
            ("plan", &plan),
        ];
        let mut story = Self {
            log: genesis.cid(),
            contract: contract.cid(),
            plan: plan.cid(),
            input,
            output,
            blocks: blocks.map(|(name, block)| line(name, block.cid(), block.bytes())).into(),
            events: Vec::new(),
        };
        story.open();
        story.call();
        story.keep();
        story.work();
        story.peers();
        story.keeping();
        story.unjudged();
        story.asking();
        story
    }

    fn open(&mut self) {
        let (genesis, contract) = (self.log, self.contract);
        let software = "cairn 0.1.0".into();
        self.add("log", Body::LogOpened(LogOpened { genesis, software, salt: None }));
        let published =
            ContractPublished { contract, name: "echo".into(), source: "everything".into(), prev: None };
        self.add("contract/everything/echo", Body::ContractPublished(published));
    }

    /// Adds one call for each ending. The first carries everything that a call can.
    fn call(&mut self) {
        let first = CallStarted {
            method: "tools/call".into(),
            name: "echo".into(),
            source: "everything".into(),
            runtime: "upstream".into(),
            rule: "source".into(),
            runner: "019b76da-a800-7000-8000-000000000000".into(),
            key: Some(vec![1; 16]),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            input_unchecked: None,
        };
        let plain = CallStarted { key: None, trace: None, ..first.clone() };
        let took_us = 1_234;
        let endings = [
            Body::CallSucceeded(CallSucceeded { took_us, ..CallSucceeded::default() }),
            Body::CallFailed(CallFailed { failure: Failure::Protocol, took_us, code: Some(-32602) }),
            Body::CallRefused(CallRefused { code: "permission_denied".into() }),
            Body::CallCancelled(CallCancelled { took_us }),
            Body::CallInterrupted(CallInterrupted { runner: first.runner.clone() }),
        ];
        for (n, ending) in endings.into_iter().enumerate() {
            let started = if n == 0 { &first } else { &plain };
            let subject = format!("call/019b76da-a800-7000-8000-00000000000{}", n + 1);
            let cause = self.add(&subject, Body::CallStarted(started.clone()));
            let mut fact = self.fact(&subject, ending);
            fact.cause = Some(cause);
            self.seal(fact);
        }
    }

    /// Adds calls whose input or result was not judged by its schema, or whose result did not fit.
    fn unjudged(&mut self) {
        let started = CallStarted {
            method: "tools/call".into(),
            name: "echo".into(),
            source: "everything".into(),
            runtime: "upstream".into(),
            rule: "source".into(),
            runner: "019b76da-a800-7000-8000-000000000000".into(),
            key: None,
            trace: None,
            input_unchecked: Some(Unchecked::Reference),
        };
        let succeeded = CallSucceeded { took_us: 1_234, ..CallSucceeded::default() };
        let misfit = Some("#/properties/text/type".to_owned());
        let endings = [
            CallSucceeded { output_mismatch: misfit, ..succeeded.clone() },
            CallSucceeded { output_unchecked: Some(Unchecked::Dialect), ..succeeded },
        ];
        for (n, ending) in endings.into_iter().enumerate() {
            let subject = format!("call/019b76da-a800-7000-8000-00000000000{}", n + 6);
            let cause = self.add(&subject, Body::CallStarted(started.clone()));
            let mut fact = self.fact(&subject, Body::CallSucceeded(ending));
            fact.cause = Some(cause);
            self.seal(fact);
        }
    }

    fn keep(&mut self) {
        self.add("log", Body::LogRecovered(LogRecovered { interrupted: 1, attempts: 0 }));
        let erased = PayloadErased { payload: self.output.cid, basis: "gdpr-17".into() };
        let succeeded = self.events[3].cid();
        let mut fact = self.fact("log", Body::PayloadErased(erased));
        fact.refs = vec![succeeded];
        self.seal(fact);
        let exported = AccessExported { format: "car".into(), from_seq: 0, to_seq: 13 };
        self.add("log", Body::AccessExported(exported));
        let retired =
            ContractRetired { contract: self.contract, name: "echo".into(), source: "everything".into() };
        self.add("contract/everything/echo", Body::ContractRetired(retired));
    }

    /// Returns a fact with what its kind usually carries besides its body.
    fn fact(&self, subject: &str, body: Body) -> Fact {
        let payloads = match body.kind() {
            Kind::CallStarted
            | Kind::CallAnswered
            | Kind::TaskSubmitted
            | Kind::WorkflowSubmitted
            | Kind::WorkflowSignalled
            | Kind::ScheduleCreated => vec![self.input],
            Kind::CallSucceeded | Kind::CallAsked | Kind::TaskSucceeded | Kind::StepGathered => {
                vec![self.output]
            }
            _ => Vec::new(),
        };
        let call = subject.starts_with("call/");
        let (id, role) = if call { ("alice", "user") } else { ("cairn", "system") };
        Fact {
            cause: None,
            refs: Vec::new(),
            actor: Actor { id: id.into(), role: role.into(), proof: None },
            subject: subject.to_owned(),
            tool: call.then_some(self.contract),
            payloads,
            body,
        }
    }

    fn add(&mut self, subject: &str, body: Body) -> Cid {
        self.seal(self.fact(subject, body))
    }

    fn seal(&mut self, fact: Fact) -> Cid {
        let seq = self.events.len() as u64;
        let place = Position {
            log: self.log,
            seq,
            prev: self.events.last().map(Event::cid),
            ts: START_US + seq * 1_000,
        };
        let event = Event::seal(fact, place).expect("a golden fact keeps every rule");
        self.events.push(event);
        self.events[self.events.len() - 1].cid()
    }
}

#[test]
fn every_kind_seals_to_its_golden_bytes() {
    let story = Story::tell();
    let mut tree = Growing::new();
    for event in &story.events {
        tree.push(leaf_hash(&event.cid()));
    }
    let told = Golden {
        vkey: next_signer().vkey(),
        checkpoint: next_signer().sign_checkpoint(story.events.len() as u64, &tree.root()),
        events: story
            .events
            .iter()
            .map(|event| line(&event.fields().kind, event.cid(), event.bytes()))
            .collect(),
        blocks: story.blocks,
    };
    let text = serde_json::to_string_pretty(&told).expect("plain strings");
    let golden: Option<Golden> = serde_json::from_str(GOLDEN).ok();
    assert!(
        golden.as_ref() == Some(&told),
        "released bytes never change; a new kind goes to the end of the story. This build writes:\n{text}"
    );
}

#[test]
fn every_kind_has_a_golden_event() {
    let story = Story::tell();
    for kind in Kind::ALL {
        let told = story.events.iter().any(|e| e.fields().kind == kind.as_str());
        assert!(told, "the golden log has no event of {}", kind.as_str());
    }
}

#[test]
fn golden_events_open_to_what_was_sealed() {
    for event in Story::tell().events {
        let opened = Event::open(event.bytes().to_vec()).expect("golden bytes are an event");
        let body = opened.body().expect("this build knows its own kinds");
        assert_eq!(body.kind().as_str(), opened.fields().kind);
        assert_eq!(body.into_map(), opened.fields().body);
        assert_eq!(encode(opened.fields()), opened.bytes());
        assert_eq!(opened, event);
    }
}

#[test]
fn an_unknown_kind_or_version_stays_opaque_and_opens() {
    for alter in [
        |fields: &mut Fields| fields.kind = "comet.seen".into(),
        |fields: &mut Fields| {
            fields.v = 2;
            fields.body.insert("novel".into(), Ipld::Bool(true));
        },
        |fields: &mut Fields| {
            fields.body.insert("novel".into(), Ipld::Bool(true));
        },
    ] {
        let mut fields = started();
        alter(&mut fields);
        let bytes = encode(&fields);
        let event = Event::open(bytes.clone()).expect("common fields are all a reader needs");
        assert_eq!(event.body(), None);
        assert_eq!(event.bytes(), bytes);
        assert_eq!(event.cid(), Cid::of(Codec::DagCbor, &bytes));
    }
}

#[test]
fn what_breaks_a_rule_is_not_an_event() {
    check("body", |e| set(&mut e.body, Ipld::Float(0.5)));
    check("body", |e| set(&mut e.body, ipld!({"deep": [{"deeper": 0.5}]})));
    check("refs", |e| e.refs = [2, 1].map(link).into());
    check("refs", |e| e.refs = [1, 1].map(link).into());
    check("refs", |e| e.refs = links(REFS_MAX + 1));
    check("pay", |e| e.pay = vec![e.pay[0]; PAYLOADS_MAX + 1]);
    check("kind", |e| e.kind.clear());
    check("kind", |e| e.kind = "k".repeat(33));
    check("v", |e| e.v = 0);
    check("prev", |e| e.seq = 0);
    check("prev", |e| e.prev = None);
}

#[test]
fn bounds_are_allowed_and_one_more_is_not() {
    let mut fields = started();
    fields.refs = links(REFS_MAX);
    fields.pay = vec![fields.pay[0]; PAYLOADS_MAX];
    fields.subject.clear();
    let rest = encode(&fields).len();
    // The length of a text of over 255 bytes takes two bytes more than that of an empty one.
    fields.subject = "s".repeat(EVENT_MAX - rest - 2);
    assert!(Event::open(encode(&fields)).is_ok());
    fields.subject.push('s');
    let err = Event::open(encode(&fields)).expect_err("a byte over the bound");
    assert!(matches!(err, EventError::TooLarge { len } if len == EVENT_MAX + 1));
}

#[test]
fn sealing_sorts_refs_and_keeps_the_same_bounds() {
    let story = Story::tell();
    let place = Position { log: story.log, seq: 0, prev: None, ts: START_US };
    let fact = story.fact("log", Body::LogRecovered(LogRecovered { interrupted: 0, attempts: 0 }));
    let with = |refs: Vec<Cid>, place| Event::seal(Fact { refs, ..fact.clone() }, place);
    let mut sorted = links(2);
    sorted.sort();
    let sealed = with(vec![sorted[1], sorted[0], sorted[1]], place).expect("two refs");
    assert_eq!(sealed.fields().refs, sorted);
    assert_eq!(refusal(with(links(REFS_MAX + 1), place)), "refs");
    let first_with_prev = Position { prev: Some(link(0)), ..place };
    assert_eq!(refusal(with(Vec::new(), first_with_prev)), "prev");
    let long = Fact { subject: "s".repeat(EVENT_MAX), ..fact.clone() };
    let err = Event::seal(long, place).expect_err("over the bound");
    assert!(matches!(err, EventError::TooLarge { .. }));
}

#[test]
fn bytes_in_any_other_form_are_refused() {
    let bytes = encode(&started());
    let missing = |key: &str| {
        let mut map: BTreeMap<String, Ipld> =
            serde_ipld_dagcbor::from_slice(&bytes).expect("an event is a map");
        map.remove(key);
        encode(&map)
    };
    let extra = |key: &str| {
        let mut map: BTreeMap<String, Ipld> =
            serde_ipld_dagcbor::from_slice(&bytes).expect("an event is a map");
        map.insert(key.into(), Ipld::Null);
        encode(&map)
    };
    let actor_without = |key: &str| {
        let mut map: BTreeMap<String, Ipld> =
            serde_ipld_dagcbor::from_slice(&bytes).expect("an event is a map");
        if let Some(Ipld::Map(actor)) = map.get_mut("actor") {
            actor.remove(key);
        }
        encode(&map)
    };
    for bad in [
        missing("prev"),
        missing("cause"),
        missing("tool"),
        missing("ts"),
        extra("sig"),
        actor_without("proof"),
        [&bytes[..], &[0xf6]].concat(),
        bytes[..bytes.len() - 1].to_vec(),
        Vec::new(),
    ] {
        let err = Event::open(bad).expect_err("not an event's bytes");
        assert!(matches!(err, EventError::Decode(_)), "{err}");
    }
}

/// Alters a good event, and asserts that the error names `field`.
fn check(field: &str, alter: impl Fn(&mut Fields)) {
    let mut fields = started();
    alter(&mut fields);
    assert_eq!(refusal(Event::open(encode(&fields))), field);
}

fn refusal(made: Result<Event, EventError>) -> &'static str {
    match made {
        Err(EventError::Field { field }) => field,
        other => panic!("expected a broken rule, got {other:?}"),
    }
}

/// Returns the golden log's first `call.started`.
fn started() -> Fields {
    Story::tell().events[2].fields().clone()
}

fn set(body: &mut BTreeMap<String, Ipld>, value: Ipld) {
    body.insert("took".into(), value);
}

fn link(n: u8) -> Cid {
    Cid::from_digest(Codec::DagCbor, [n; 32])
}

fn links(count: usize) -> Vec<Cid> {
    (0..count).map(|n| link(n as u8)).collect()
}
