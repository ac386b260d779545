//! Crashes: the server is killed under load, again and again, on one data directory.
//!
//! What holds afterwards: it starts; every started call has one ending; what was answered is in the log, and is
//! answered the same again; nothing ran twice; the state is what the log says.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cairn::{
    block::Cid,
    event::{Body, Event},
};
use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, temp},
    record::{self, until},
    speech::{Connection, ask, event, keyed, modern},
    upstream::{Upstream, configure},
};

/// Kills of one run, and of a long one.
const KILLS: (usize, usize) = (8, 40);
/// The seed of the usual run.
const SEED: usize = 7_243_581;
const CALLERS: usize = 12;
/// Answers after which a round is killed at the latest.
const ANSWERS_MAX: usize = 120;

/// The first number in the usual run of the tests, the second where `CAIRN_TEST_LONG` is set.
pub fn usual_or_long((usual, long): (usize, usize)) -> usize {
    if std::env::var_os("CAIRN_TEST_LONG").is_some() { long } else { usual }
}

/// A small generator. Its seed is always the same, so that a failure comes again; `CAIRN_TEST_SEED` gives another one, and
/// a long run takes one from the clock and prints it.
pub struct Random(u64);

impl Random {
    pub fn seeded() -> Self {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as usize);
        let unasked = usual_or_long((SEED, clock() | 1)) as u64;
        let seed =
            std::env::var("CAIRN_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(unasked);
        println!("CAIRN_TEST_SEED={seed}");
        Self(seed)
    }

    /// Another generator, for a thread of its own.
    pub fn fork(&mut self) -> Self {
        Self((self.below(usize::MAX) as u64) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

/// What the callers know: the event each key was answered with, and the keys that got no answer.
#[derive(Default)]
struct Known {
    answered: HashMap<String, String>,
    unknown: Vec<String>,
}

#[derive(Clone)]
struct Load {
    known: Arc<Mutex<Known>>,
    answers: Arc<AtomicUsize>,
}

impl Load {
    /// Calls until the connection breaks. Every key is used for one content only.
    fn run(&self, url: &str, round: usize, caller: usize) {
        let Some(mut connection) = Connection::open(url) else {
            return;
        };
        for n in 0.. {
            let tool = if n % 3 == 0 { "up_count" } else { "test_simple_text" };
            let key = format!("{tool}/{round}/{caller}/{n}");
            let params = keyed(tool, &json!({"key": key}), &key);
            let reply = connection.ask(&modern(n, "tools/call", params));
            let mut known = self.known.lock().expect("no caller panics");
            match reply {
                Some(reply) => {
                    let answer = reply.json();
                    known.answered.insert(key, event(&answer).to_owned());
                    self.answers.fetch_add(1, Ordering::SeqCst);
                }
                None => return known.unknown.push(key),
            }
        }
    }
}

fn again(server: &Server, key: &str) -> Value {
    let tool = key.split('/').next().expect("a key begins with its tool");
    ask(server, "tools/call", keyed(tool, &json!({"key": key}), key))
}

#[test]
fn kills_at_random_lose_and_double_nothing() {
    let mut random = Random::seeded();
    let data = temp();
    let upstream = Upstream::new(&["count", "wait"]);
    let config = configure(data.path(), &upstream.table("up", ""));
    let extra = ["--conformance-fixtures", "--config", &config];
    let load = Load { known: Arc::default(), answers: Arc::default() };

    let kills = usual_or_long(KILLS);
    for round in 0..kills {
        kill_while_starting(data.path(), &extra, &mut random);
        let server = Server::start(data.path(), &extra);
        ask_again(&server, &load, &mut random);
        load.answers.store(0, Ordering::SeqCst);
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (load, url) = (load.clone(), server.url.clone());
                thread::spawn(move || load.run(&url, round, caller))
            })
            .collect();
        let mut hung = Connection::open(&server.url).expect("the server listens");
        hung.send(&modern(1, "tools/call", keyed("up_wait", &json!({}), &format!("wait/{round}"))));
        let enough = 1 + random.below(ANSWERS_MAX);
        until("enough answers", || (load.answers.load(Ordering::SeqCst) >= enough).then_some(()));
        server.kill();
        for caller in callers {
            caller.join().expect("a caller only calls");
        }
    }

    let server = Server::start(data.path(), &extra);
    ask_again(&server, &load, &mut random);
    assert!(server.stop().success());
    let known = load.known.lock().expect("no caller panics");
    check(data.path(), &known.answered, &upstream);
    println!("{} answered, {} unknown", known.answered.len(), known.unknown.len());

    let before = record::digests(data.path());
    record::forget_state(data.path());
    assert!(Server::start(data.path(), &extra).stop().success());
    assert_eq!(before, record::digests(data.path()));
    let (code, report) = record::verify(data.path());
    assert_eq!(code, Some(0), "{report}");
}

/// A kill at any moment of a start: the next start must not mind.
pub fn kill_while_starting(data: &Path, extra: &[&str], random: &mut Random) {
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data).args(extra);
    let mut process = Process::start(command);
    thread::sleep(Duration::from_millis(random.below(150) as u64));
    process.kill();
}

/// Keys that were answered give the same answer; keys that were not, one that is not doubled.
fn ask_again(server: &Server, load: &Load, random: &mut Random) {
    let mut known = load.known.lock().expect("no caller panics");
    let mut sample: Vec<String> = known.answered.keys().cloned().collect();
    sample.sort();
    for _ in 0..sample.len().min(10) {
        let key = &sample[random.below(sample.len())];
        let answer = again(server, key);
        assert_eq!(event(&answer), known.answered[key], "{key}: {answer}");
        assert_eq!(answer["result"]["_meta"]["io.cairn/replayed"], true, "{answer}");
    }
    for key in std::mem::take(&mut known.unknown) {
        let answer = again(server, &key);
        let code = &answer["result"]["_meta"]["io.cairn/error"]["code"];
        if code.is_null() {
            known.answered.insert(key, event(&answer).to_owned());
        } else {
            assert_eq!(code, "failed_precondition", "{key}: {answer}");
        }
    }
}

fn check(data: &Path, answered: &HashMap<String, String>, upstream: &Upstream) {
    let events = record::check(data);
    let stored: HashSet<String> = events.iter().map(|event| event.cid().to_string()).collect();
    for (key, event) in answered {
        assert!(stored.contains(event), "{key} was answered with {event}, which is gone");
    }
    let interrupted = once(&events);
    assert!(
        interrupted >= usual_or_long(KILLS),
        "only {interrupted} interrupted calls: the kills missed the load"
    );
    let calls = upstream.calls();
    let counted: Vec<&String> = calls.iter().filter(|call| call.starts_with("count")).collect();
    let once: HashSet<&&String> = counted.iter().collect();
    assert_eq!(once.len(), counted.len(), "an effect happened twice");
}

/// Checks that no idempotency key succeeded twice; gives the number of interrupted calls.
pub fn once(events: &[Event]) -> usize {
    let mut keys: HashMap<Cid, Vec<u8>> = HashMap::new();
    let mut succeeded = HashSet::new();
    let mut interrupted = 0;
    for event in events {
        match event.body() {
            Some(Body::CallStarted(facts)) => {
                keys.extend(facts.key.map(|key| (event.cid(), key)));
            }
            Some(Body::CallSucceeded(_)) => {
                let key = event.fields().cause.and_then(|cause| keys.get(&cause));
                let new = key.is_none_or(|key| succeeded.insert(key.clone()));
                assert!(new, "a key succeeded twice: {}", event.cid());
            }
            Some(Body::CallInterrupted(_)) => interrupted += 1,
            _ => {}
        }
    }
    interrupted
}

/// Killed between the durable start and the ending: the upstream has the call, and nobody has an answer.
#[test]
fn a_call_killed_midway_is_interrupted_and_runs_once() {
    let data = temp();
    let upstream = Upstream::new(&["wait"]);
    let config = configure(data.path(), &upstream.table("up", ""));
    let extra = ["--config", config.as_str()];
    let server = Server::start(data.path(), &extra);
    let mut connection = Connection::open(&server.url).expect("the server listens");
    connection.send(&modern(1, "tools/call", keyed("up_wait", &json!({}), "once")));
    upstream.reached("wait", 1);
    server.kill();
    assert!(connection.reply().is_none());

    upstream.write("go", "");
    let server = Server::start(data.path(), &extra);
    let answer = ask(&server, "tools/call", keyed("up_wait", &json!({}), "once"));
    let error = &answer["result"]["_meta"]["io.cairn/error"];
    assert_eq!(error["code"], "failed_precondition", "{answer}");
    assert!(server.stop().success());
    let events = record::check(data.path());
    let endings = record::endings(&events, "up_wait");
    assert_eq!(endings.iter().map(record::kind).collect::<Vec<_>>(), ["call.interrupted"]);
    assert!(events.iter().any(|event| record::kind(event) == "log.recovered"));
    assert_eq!(upstream.calls().len(), 1);
}

/// Killed after the answer: the ending was durable before it left.
#[test]
fn an_answer_outlives_a_kill_right_after_it() {
    let data = temp();
    let mut answers = Vec::new();
    for n in 0..5 {
        let server = Server::start(data.path(), &["--conformance-fixtures"]);
        let params = keyed("test_simple_text", &json!({}), &format!("{n}"));
        answers.push(event(&ask(&server, "tools/call", params)).to_owned());
        server.kill();
    }
    let server = Server::start(data.path(), &["--conformance-fixtures"]);
    for (n, first) in answers.iter().enumerate() {
        let params = keyed("test_simple_text", &json!({}), &format!("{n}"));
        assert_eq!(event(&ask(&server, "tools/call", params)), first);
    }
    assert!(server.stop().success());
    assert_eq!(record::endings(&record::check(data.path()), "test_simple_text").len(), answers.len());
}
