//! Questions over a long log: look-ups, pages, walks and verifying, on one core.
//!
//! `cargo bench --profile dist --bench questions [-- EVENTS]`, a million by default. Times are those on a core, medians
//! of 21.

use std::{path::Path, time::Duration};

use cairn::{
    block::{Block, Cid},
    event::{
        Actor, Body, Event, Fact, Genesis, Position,
        body::{CallStarted, CallSucceeded, LogOpened},
    },
    identity::Signer,
    ledger::opening,
    log::{Batch, Log, home::Home, sqlite::SqliteLog},
    query::{View, beside::Logs, list::Filter, shown::Payloads, walk::Direction},
    verify::{Checks, verify},
};

const ROUNDS: usize = 21;
/// Calls that follow from one another, so that there is something to walk.
const CHAIN: u64 = 500;

fn main() {
    let events: u64 = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000_000);
    let dir = tempfile::tempdir_in(".").expect("a directory for the log");
    let home = Home::open(dir.path()).expect("a home for the log");
    let names = fill(&home, events);
    let begun = on_core();
    let folder = opening::rebuild(&home, &mut |_| {}).expect("the state is derived");
    rate("rebuild", events, on_core() - begun);
    let signer = Signer::new("bench", [1; 32]).expect("a signer");
    let note = signer.sign_checkpoint(folder.applied(), &folder.root());
    home.head().expect("a head").write(&note, true).expect("a head");
    drop(folder);

    let view = View::open(&home).expect("a view");
    let mut nth = 0;
    median("event by cid, as json", || {
        nth = (nth + names.len() / ROUNDS) % names.len();
        let event = view.event(&names[nth]).expect("a log").expect("known");
        view.event_json(&event, &Payloads::named()).expect("json").to_string().len()
    });
    for (what, filter) in [
        ("page of 1000", Filter { from_seq: Some(events / 2), ..Filter::default() }),
        ("page of 1000 of a kind", Filter { kind: Some("call.succeeded".into()), ..Filter::default() }),
        (
            "page of 1000 of a kind and an actor",
            Filter { kind: Some("call.started".into()), actor: Some("a3".into()), ..Filter::default() },
        ),
    ] {
        median(what, || {
            let page = view.list(&filter, 1000, None).expect("a page");
            let shown = view.shown(&page.events, &Payloads::named()).expect("shown");
            serde_json::to_string(&shown).expect("json").len()
        });
        median("  its count", || view.count(&filter).expect("a count"));
    }
    let end = names[names.len() / 2];
    let logs = Logs::new(&view, Vec::new);
    median("walk of 1000 nodes", || {
        let walk = logs.walk(&end, Direction::Ancestors, 1024, 1000).expect("a walk");
        serde_json::to_string(&walk).expect("json").len()
    });
    println!("  nodes: {}", logs.walk(&end, Direction::Ancestors, 1024, 1000).expect("a walk").nodes.len());
    println!("memory before verifying: {} KiB", resident());
    for (what, payloads) in [("verify without payloads", false), ("verify", true)] {
        let begun = on_core();
        let report = verify(&home, &Checks { payloads, ..Checks::default() }, &mut |_| {});
        rate(what, events, on_core() - begun);
        assert!(report.verified, "{report:?}");
    }
    println!("memory: {} KiB", resident());
}

/// Writes a log of calls without payloads; gives the names of its events.
fn fill(home: &Home, events: u64) -> Vec<Cid> {
    let signer = Signer::new("bench", [1; 32]).expect("a signer");
    let genesis = Block::encode(&Genesis {
        v: 1,
        origin: "bench".to_owned(),
        key: signer.public_key().to_vec(),
        created: 1,
        nonce: vec![0; 16],
    });
    let log_name = genesis.cid();
    let mut log = SqliteLog::open(&home.log_path(), false).expect("a log");
    let mut names: Vec<Cid> = Vec::new();
    let mut batch = Batch { blocks: vec![genesis], ..Batch::default() };
    let mut tip = None;
    for seq in 0..events {
        let call = seq.saturating_sub(1) / 2;
        let cause = match seq {
            0 => None,
            _ if seq % 2 == 0 => names.last().copied(),
            _ if call % CHAIN == 0 => None,
            _ => names.last().copied(),
        };
        let body = match seq {
            0 => Body::LogOpened(LogOpened { genesis: log_name, software: "bench".to_owned(), salt: None }),
            _ if seq % 2 == 0 => {
                Body::CallSucceeded(CallSucceeded { took_us: seq, ..CallSucceeded::default() })
            }
            _ => Body::CallStarted(CallStarted {
                method: "tools/call".to_owned(),
                name: "echo".to_owned(),
                source: "bench".to_owned(),
                runtime: "builtin".to_owned(),
                rule: "default".to_owned(),
                runner: "bench".to_owned(),
                key: None,
                trace: None,
                input_unchecked: None,
            }),
        };
        let fact = Fact {
            cause,
            refs: Vec::new(),
            actor: Actor { id: format!("a{}", call % 10), role: "client".to_owned(), proof: None },
            subject: if seq == 0 { "log".to_owned() } else { format!("call/{call:032x}") },
            tool: None,
            payloads: Vec::new(),
            body,
        };
        let place =
            Position { log: log_name, seq, prev: names.last().copied(), ts: 1_700_000_000_000_000 + seq };
        let event = Event::seal(fact, place).expect("an event");
        names.push(event.cid());
        batch.events.push(event);
        if batch.events.len() == 8192 || seq + 1 == events {
            log.append(tip, &batch).expect("it is appended");
            tip = names.last().copied();
            batch = Batch::default();
        }
    }
    names
}

fn median<T>(what: &str, mut question: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = on_core();
            std::hint::black_box(question());
            on_core() - begun
        })
        .collect();
    times.sort();
    println!("{what}: {:.3} ms", times[ROUNDS / 2].as_secs_f64() * 1e3);
}

/// Time this thread has had a core for: what else the machine does is not in it.
fn on_core() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn rate(what: &str, events: u64, took: Duration) {
    println!("{what}: {:.0} events/s", events as f64 / took.as_secs_f64());
}

fn resident() -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}
