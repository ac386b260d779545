//! A log of a million events: starting on it, serving it, asking it, checking it, deriving it again.

use std::{
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use crate::{
    history::{self, EVENTS, History, WALK},
    load::{self, Client},
    server::{CAIRN, Server},
    table::{Bound, absent, milliseconds, quantile, row},
};

const ROUNDS: usize = 5;
/// Look-ups in one round.
const LOOKUPS: u64 = 500;
/// Walks and pages in one round.
const WALKS: u64 = 20;

const READY_MAX_MS: f64 = 500.0;
const RESIDENT_MAX_MIB: f64 = 100.0;
const LOOKUP_MAX_MS: f64 = 1.0;
const WALK_MAX_MS: f64 = 10.0;
const LIST_MAX_MS: f64 = 20.0;
const STORAGE_MAX: f64 = 1.6;
const VERIFY_MIN: f64 = 400_000.0;
const REBUILD_MIN: f64 = 40_000.0;

/// The exit code of a command line that a program does not know.
const USAGE: i32 = 2;

pub fn section() {
    let history = history::history();
    let data = history.home.dir();
    // The first start has more to do: it publishes contracts, and may fold what was left.
    Server::cairn(data, &[]).stop();
    let mut ready = Vec::new();
    for _ in 0..ROUNDS {
        let server = Server::cairn(data, &[]);
        ready.push(milliseconds(server.started_in));
        server.stop();
    }
    row("start to ready", "ms", ready, Bound::AtMost(READY_MAX_MS));

    let server = Server::cairn(data, &[]);
    ask(&server, &history);
    let resident = server.resident() as f64 / (1024.0 * 1024.0);
    row("resident after serving", "MiB", vec![resident], Bound::AtMost(RESIDENT_MAX_MIB));
    server.stop();

    let (raw, stored) = history.sizes();
    let ratio = stored as f64 / raw as f64;
    row("storage over raw bytes", "times", vec![ratio], Bound::AtMost(STORAGE_MAX));
    let verify = Bound::AtLeast(VERIFY_MIN);
    command("log verify", &["log", "verify", "--no-payloads"], data, verify);
    command("log verify with payloads", &["log", "verify"], data, Bound::None);
    command("rebuild", &["rebuild"], data, Bound::AtLeast(REBUILD_MIN));
}

fn ask(server: &Server, history: &History) {
    let lookups: Vec<String> = history.some(LOOKUPS).iter().map(|cid| format!("/v1/events/{cid}")).collect();
    let most = Bound::AtMost(LOOKUP_MAX_MS);
    paths("look-up of an event, p50", server, &lookups, most);
    let walk = format!("/v1/provenance/{}?direction=descendants&depth=64&limit={WALK}", history.root);
    let walks = vec![walk; WALKS as usize];
    paths("walk of 1,000 nodes, p50", server, &walks, Bound::AtMost(WALK_MAX_MS));
    // Pages begin at different places, so that none is found warm.
    let pages: Vec<String> =
        (0..WALKS).map(|n| format!("/v1/events?limit=1000&from_seq={}", n * EVENTS / WALKS)).collect();
    paths("page of 1,000 events, p50", server, &pages, Bound::AtMost(LIST_MAX_MS));
}

/// Asks for each path once a round, one after another.
fn paths(name: &str, server: &Server, paths: &[String], bound: Bound) {
    let rounds = load::runtime().block_on(async {
        let mut client = Client::connect(server.address).await;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let mut times = Vec::new();
            for path in paths {
                let begun = Instant::now();
                let answer = client.ask(&load::get(path)).await;
                times.push(begun.elapsed());
                if answer.status != 200 {
                    return Err(format!("it is answered {}", answer.status));
                }
            }
            rounds.push(milliseconds(quantile(&mut times, 0.5)));
        }
        Ok(rounds)
    });
    match rounds {
        Ok(rounds) => drop(row(name, "ms", rounds, bound)),
        Err(why) => absent(name, &why),
    }
}

/// Runs a command over the whole log, and says how many events it gets through in a second: of time, which `bound`
/// is about, and of one processor, which neighbours disturb less.
fn command(name: &str, args: &[&str], data: &Path, bound: Bound) {
    let (mut rates, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (begun, before) = (Instant::now(), children_seconds());
        let status = run(args, data);
        match status.code() {
            Some(0) => {}
            Some(USAGE) => return absent(name, "the program does not know the command"),
            _ => return absent(name, &format!("it ended with {status}")),
        }
        rates.push(EVENTS as f64 / begun.elapsed().as_secs_f64());
        alone.push(EVENTS as f64 / (children_seconds() - before));
    }
    row(name, "events/s", rates, bound);
    let name = format!("{name}, by processor time");
    row(&name, "events/s", alone, Bound::None);
}

fn run(args: &[&str], data: &Path) -> ExitStatus {
    Command::new(CAIRN)
        .args(args)
        .arg("--data")
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the program starts")
}

/// Processor seconds of children that have ended: fields 16 and 17 of `proc_pid_stat(5)`, in hundredths.
fn children_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a process has a status");
    // The program's name may hold spaces; what follows its parenthesis does not.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let fields = rest.split_whitespace().skip(13).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
