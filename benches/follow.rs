//! Following a log over loopback: events that are checked and durable in a second, with and without their content.
//!
//! `cargo bench --profile dist --bench follow [-- CALLS]`. Both ends share this machine; every
//! batch the follower keeps is synced.

mod echo;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cairn::{
    follow::{
        driver::{Expected, follow},
        serve::{Last, May, Server, What},
    },
    ledger::{
        Ledger,
        opening::{self, Birth, Settings},
    },
    log::home::Home,
    query::proof::Head,
};
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 3;
const SUBMITTERS: usize = 256;

fn main() {
    let calls: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(50_000);
    let dir = tempfile::tempdir_in(".").expect("a directory for the log");
    let home = Home::open(dir.path()).expect("a home for the log");
    let mut random = || [7; 32];
    let birth = Birth { owner: "bench", random: &mut random, now_us: 1, step: &mut |_| {} };
    let settings = Settings { fsync: false, ..Settings::default() };
    let (ledger, running) = opening::open(&home, &settings, birth).expect("a new log opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..SUBMITTERS).map(|n| tokio::spawn(submit(ledger.clone(), n, calls / SUBMITTERS))).collect();
        for task in tasks {
            task.await.expect("a submitter ends");
        }
        ledger.settled().await.expect("the ledger runs");
    });
    for (what, content) in [("events alone", false), ("events and content", true)] {
        let mut rounds: Vec<_> =
            (0..ROUNDS).map(|_| runtime.block_on(round(&ledger, &home, content))).collect();
        rounds.sort_by_key(|(kept, _)| *kept);
        let (kept, folded) = rounds[ROUNDS / 2];
        let events = ledger.reach().borrow().applied as f64;
        println!(
            "{what}: {:.0} events/s checked and durable; {:.0} events/s with the fold after it ({events} events)",
            events / kept.as_secs_f64(),
            events / folded.as_secs_f64()
        );
    }
    drop(ledger);
    running.join();
}

/// How long it took until all was kept, and until it was folded too.
async fn round(ledger: &Ledger, home: &Home, content: bool) -> (Duration, Duration) {
    let dir = tempfile::tempdir_in(Path::new(".")).expect("a directory for the copy");
    let copy = Home::open(dir.path()).expect("a home for the copy");
    let reach = ledger.reach();
    let last: Last = Arc::new(move || {
        let reach = reach.borrow();
        Head { size: reach.applied, note: reach.checkpoint.clone() }
    });
    let may: May = Arc::new(move |_: &str, what| content || what == What::Events);
    let about = ledger.about();
    let server = Server::new(home, about.log, last, may);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a follower");
        stream.set_nodelay(true).expect("a socket option");
        server.serve(stream, "follower").await
    });
    let begun = Instant::now();
    let kept = Arc::new(Mutex::new(Duration::ZERO));
    let seen = Arc::clone(&kept);
    let told = move |_| *seen.lock().unwrap_or_else(PoisonError::into_inner) = begun.elapsed();
    let stream = TcpStream::connect(address).await.expect("the owner listens");
    // As between nodes: small requests do not wait for each other.
    stream.set_nodelay(true).expect("a socket option");
    follow(stream, &copy, Expected::default(), told).await.expect("followed");
    let folded = begun.elapsed();
    serving.await.expect("no panic").expect("served");
    let kept = *kept.lock().unwrap_or_else(PoisonError::into_inner);
    (kept, folded)
}

async fn submit(ledger: Ledger, submitter: usize, turns: usize) {
    for turn in 0..turns {
        let id = format!("{turn:016x}{submitter:016x}");
        echo::record(&ledger, id, &format!("{submitter} {turn}"), None).await;
    }
}
