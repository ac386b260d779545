//! Random histories of schedules, peers and calls: what somebody wishes, as the rules answer.
//!
//! Each history is a log of its own, from its first event on: every event names the one before.

use std::collections::BTreeMap;

use serde_bytes::ByteArray;

use crate::{
    block::{Cid, Codec},
    call::{
        self, Call, End, EndOutcome, Fit, Ruling, Start,
        asking::{Answer, Inquiry, To},
    },
    error::{Code, Refusal},
    event::{
        Actor, Body, Event, Fact, PayloadRef, Position, Role,
        body::{CallStarted, Failure, Question, Reaction},
        peer::{
            Direction, Parting, PeerConnected, PeerDiscovered, PeerForked, PeerMeasured, PeerUnreachable,
            RemoteCalled, Source, Transport,
        },
        work::{
            Part, RetryPolicy, Rhythm, ScheduleCreated, ScheduleFired, TaskFailed, TaskRetried,
            TaskSubmitted, TaskSucceeded,
        },
    },
    peer::{self, News, Peer},
    schedule::{self, Created, Schedule},
    task::{self, Limits, Moment, chance::Chance},
};

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

fn actor() -> Actor {
    Actor { id: "ada".into(), role: "client".into(), proof: None }
}

fn pay(text: &str, role: Role) -> PayloadRef {
    PayloadRef { cid: cid(text), len: text.len() as u64, role }
}

/// Seals a fact behind the events so far; answers the event.
fn record(events: &mut Vec<Event>, fact: Fact, now_ms: u64) -> &Event {
    let (seq, prev) = (events.len() as u64, events.last().map(Event::cid));
    let place = Position { log: cid("genesis"), seq, prev, ts: now_ms * 1000 };
    events.push(Event::seal(fact, place).expect("a small fact"));
    &events[seq as usize]
}

pub(super) fn tell<'a>(events: &'a mut Vec<Event>, subject: &str, body: Body, now_ms: u64) -> &'a Event {
    let fact = Fact {
        cause: None,
        refs: Vec::new(),
        actor: actor(),
        subject: subject.to_owned(),
        tool: None,
        payloads: vec![pay("input", Role::Input)],
        body,
    };
    record(events, fact, now_ms)
}

/// A task that failed, was retried with the content of another payload, and succeeded.
pub(super) fn retried_with_another_input() -> Vec<Event> {
    let retry =
        RetryPolicy { max_retries: 0, backoff_ms: 0, factor_milli: 1000, max_backoff_ms: 0, jitter: false };
    let submitted = TaskSubmitted {
        task_type: "tool:pay".into(),
        priority: 50,
        order: 0,
        not_before_ms: None,
        timeout_ms: None,
        retry,
        tags: Vec::new(),
        requires: Vec::new(),
        unique_key: None,
        concurrency_key: None,
        rate_key: None,
        run: None,
        step: None,
        part: Part::Whole,
        hold: None,
        repeatable: false,
        reuse: true,
        handle: None,
    };
    let code = "unavailable".to_owned();
    let failed = TaskFailed { fence: 0, attempt: 0, code, retryable: false, retry_at_ms: None };
    let retried = TaskRetried { hold: None, order: 1, max_retries: None, timeout_ms: None };
    let succeeded = TaskSucceeded { fence: 0, attempt: 0, reused: false };
    let mut events = Vec::new();
    for (body, payload) in [
        (Body::TaskSubmitted(submitted), pay("input", Role::Input)),
        (Body::TaskFailed(failed), pay("output", Role::Error)),
        (Body::TaskRetried(retried), pay("contract", Role::Input)),
        (Body::TaskSucceeded(succeeded), pay("output", Role::Output)),
    ] {
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: actor(),
            subject: task::subject("t1"),
            tool: Some(cid("contract")),
            payloads: vec![payload],
            body,
        };
        record(&mut events, fact, 1000);
    }
    events
}

pub(super) fn schedules(chance: &mut Chance, turns: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut known = BTreeMap::<String, Schedule>::new();
    let mut now_ms = 1_000_000;
    for _ in 0..turns {
        now_ms += chance.below(400);
        let limits = Limits { lease_ms: 100, ageing_ms: 10, queue_max: 5, attempts_max: 3 };
        let moment = Moment { now_ms, limits };
        let id = format!("s{}", chance.below(3));
        let schedule = known.get(&id);
        let body = match chance.below(6) {
            0 => schedule.and_then(Schedule::delete),
            1..=2 => {
                let rhythm = match chance.one_in(3) {
                    true => Rhythm::Cron { line: "*/5 * * * *".to_owned() },
                    false => Rhythm::Every { ms: 100 + chance.below(200) },
                };
                let makes = ["task", "workflow"][chance.below(2) as usize].to_owned();
                let facts = ScheduleCreated { rhythm, makes, catch_up: chance.one_in(2), next_ms: 0 };
                match schedule::create(schedule, &id, facts, &pay("input", Role::Input), &moment) {
                    Ok(Created::New(facts)) => Some(Body::ScheduleCreated(facts)),
                    Ok(Created::Known) | Err(_) => None,
                }
            }
            _ => schedule
                .and_then(|schedule| schedule.fire(&moment))
                .map(|fired| Body::ScheduleFired(ScheduleFired { skipped: chance.one_in(4), ..fired })),
        };
        let Some(body) = body else { continue };
        let event = tell(&mut events, &schedule::subject(&id), body, now_ms);
        match known.get_mut(&id) {
            Some(schedule) => schedule.apply(event),
            None => known.extend(Schedule::begun(event).map(|schedule| (id, schedule))),
        }
    }
    events
}

pub(super) fn peers(chance: &mut Chance, turns: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut known = BTreeMap::<String, Peer>::new();
    let mut now_ms = 1_000_000;
    for _ in 0..turns {
        now_ms += chance.below(600_000);
        let id = format!("p{}", chance.below(4));
        let body = match chance.one_in(6) {
            true => Some(Body::RemoteCalled(RemoteCalled {
                peer: id.clone(),
                contract: cid("contract"),
                ok: !chance.one_in(3),
                code: None,
                took_us: chance.below(9000),
                rule: "score".into(),
                attempt: 1,
            })),
            false => peer::told(known.get(&id), &id, news(chance), now_ms),
        };
        let Some(body) = body else { continue };
        let event = tell(&mut events, &peer::subject(&id), body, now_ms);
        match known.get_mut(&id) {
            Some(peer) => peer.apply(event),
            None => known.extend(Peer::begun(event).map(|peer| (id, peer))),
        }
    }
    events
}

fn news(chance: &mut Chance) -> News {
    let address = format!("/ip4/10.0.0.{}/tcp/1", chance.below(3));
    match chance.below(8) {
        0 => {
            let words = ["mail", "sms", "gpu"].into_iter().filter(|_| chance.one_in(2)).map(str::to_owned);
            let words: Vec<String> = words.collect();
            let capabilities = chance.one_in(2).then_some(words);
            let facts = PeerDiscovered { source: Source::Dht, addrs: vec![address], capabilities };
            News::Discovered { facts, ttl_ms: 60_000 }
        }
        1..=2 => News::Connected(PeerConnected {
            address,
            transport: [Transport::Tcp, Transport::Quic][chance.below(2) as usize],
            direction: [Direction::In, Direction::Out][chance.below(2) as usize],
            runner: "r1".into(),
            took_us: Some(chance.below(9000)),
            agent: Some("other".into()),
            protocols: Vec::new(),
        }),
        3 => News::Disconnected([Parting::Closed, Parting::Error][chance.below(2) as usize]),
        4 => News::Unreachable(PeerUnreachable { address, cause: "timeout".into(), attempts: 3 }),
        5 => News::Measured(PeerMeasured {
            window_ms: 1000,
            latency_p50_us: chance.one_in(2).then(|| chance.below(u64::MAX)),
            latency_p99_us: None,
            samples: 1,
            bytes_in: chance.below(9000),
            bytes_out: chance.below(9000),
            served: 1,
            sent: 2,
            failures: 0,
            connected_ms: chance.below(1000),
        }),
        6 if chance.one_in(2) => News::Released,
        6 => {
            let size_b = 10 + chance.below(9);
            News::Forked(PeerForked { log: cid("log"), origin: "other".into(), size_a: 9, size_b })
        }
        _ => News::Followed { log: cid("log"), origin: "other".into(), size: chance.below(1000) },
    }
}

pub(super) fn calls(chance: &mut Chance, turns: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut known = BTreeMap::<String, Call>::new();
    let mut by_key = BTreeMap::<(String, Vec<u8>), String>::new();
    for turn in 0..turns {
        let now_ms = 1_000_000 + turn;
        if chance.one_in(2) {
            let wish = start(chance, turn);
            let key = wish.facts.key.clone().map(|key| (wish.facts.name.clone(), key));
            let earlier = key.as_ref().and_then(|key| known.get(by_key.get(key)?));
            let (fact, refused) = match call::start(earlier, &wish) {
                Ruling::Run(fact) => (*fact, None),
                Ruling::Refuse(fact, facts) => (*fact, Some(facts)),
                Ruling::Answered(_) | Ruling::Denied(_) => continue,
            };
            let mut call = Call::begun(record(&mut events, fact, now_ms)).expect("it begins a call");
            if let Some(facts) = refused {
                call.apply(record(&mut events, call::refuse(&call, facts, None), now_ms));
            }
            by_key.extend(key.map(|key| (key, call.id.clone())));
            known.insert(call.id.clone(), call);
            continue;
        }
        let open: Vec<String> =
            known.values().filter(|call| call.ending.is_none()).map(|call| call.id.clone()).collect();
        let Some(call) = chance.pick(&open).and_then(|id| known.get_mut(id)) else { continue };
        if chance.one_in(3) {
            ask(&mut events, call, chance.below(4), now_ms);
            continue;
        }
        let failure = [Failure::Tool, Failure::Untaken, Failure::Timeout][chance.below(3) as usize];
        let outcome = match chance.below(4) {
            0 => EndOutcome::Succeeded { input_required: false, fit: Fit::Fits },
            1 => EndOutcome::Failed { failure, code: None },
            2 => EndOutcome::Cancelled,
            _ => EndOutcome::Interrupted,
        };
        let end = End {
            id: call.id.clone(),
            output: Some(pay("output", outcome.role())),
            outcome,
            took_us: 5,
            remote: Vec::new(),
        };
        let fact = call::end(Some(call), &end).expect("it runs");
        call.apply(record(&mut events, fact, now_ms));
    }
    events
}

/// Asks the next question of a call, or answers the one before.
fn ask(events: &mut Vec<Event>, call: &mut Call, state: u64, now_ms: u64) {
    let id = call.id.clone();
    let n =
        (0..).take_while(|n| call.questions.get(*n).is_some_and(|asked| asked.answered.is_some())).count();
    let (n, to) = (n as u64, To::Question { took_us: 5 });
    let fact = match call.questions.get(n) {
        Some(_) => {
            let answer = Answer { id, n, how: Reaction::Given, answer: pay("input", Role::Input), to };
            call::answer(Some(call), &answer, None)
        }
        None => {
            let question = pay("output", Role::Output);
            let state = (state > 0).then(|| ByteArray::new([state as u8; 16]));
            call::ask(Some(call), &Inquiry { id, n, method: Question::Roots, state, question })
        }
    };
    call.apply(record(events, fact.expect("it is the next"), now_ms));
}

fn start(chance: &mut Chance, turn: u64) -> Start {
    Start {
        id: format!("{turn:032x}"),
        actor: actor(),
        tool: Some(cid("contract")),
        input: Some(pay("input", Role::Input)),
        facts: CallStarted {
            method: "tools/call".into(),
            name: ["pay", "look"][chance.below(2) as usize].to_owned(),
            source: "bank".into(),
            runtime: "upstream".into(),
            rule: "source".into(),
            runner: format!("r{}", chance.below(2)),
            key: chance.one_in(2).then(|| vec![chance.below(3) as u8; 16]),
            trace: None,
            input_unchecked: None,
        },
        former_key: None,
        cause: None,
        refs: Vec::new(),
        repeatable: chance.one_in(2),
        refusal: chance.one_in(5).then(|| Refusal::new(Code::PermissionDenied, "no")),
    }
}
