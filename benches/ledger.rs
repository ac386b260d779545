//! The ledger alone: echo calls with payloads from many submitters, beside the machine's own fdatasync.
//!
//! `cargo bench --profile dist --bench ledger [-- SECONDS]`. Prints medians of five rounds; every commit is durable.

mod echo;
mod machine;

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use cairn::{
    ledger::{
        Ledger,
        opening::{self, Birth, Settings},
    },
    log::home::Home,
};

use machine::{Place, fdatasync_p50};

const ROUNDS: usize = 5;

fn main() {
    let seconds: f64 = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(2.0);
    let fdatasync = |place| fdatasync_p50(Path::new("."), place).as_secs_f64() * 1e3;
    println!(
        "fdatasync p50: {:.3} ms growing a file, {:.3} ms overwriting it",
        fdatasync(Place::End),
        fdatasync(Place::Over)
    );
    for submitters in [1, 64, 256, 1024] {
        let mut rates: Vec<f64> = (0..ROUNDS).map(|_| round(submitters, seconds)).collect();
        rates.sort_by(f64::total_cmp);
        println!(
            "{submitters:>5} submitters: median {:>7.0} events/s (of {:.0} .. {:.0})",
            rates[ROUNDS / 2],
            rates[0],
            rates[ROUNDS - 1]
        );
    }
}

/// Events per second with `submitters` calls in flight.
fn round(submitters: usize, seconds: f64) -> f64 {
    let dir = tempfile::tempdir_in(".").expect("a directory for the log");
    let home = Home::open(dir.path()).expect("a home for the log");
    let mut random = || [7; 32];
    let birth = Birth { owner: "bench", random: &mut random, now_us: 1, step: &mut |_| {} };
    let (ledger, running) = opening::open(&home, &Settings::default(), birth).expect("a new log opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let done = std::sync::Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    runtime.block_on(async {
        let tasks: Vec<_> =
            (0..submitters).map(|n| tokio::spawn(submit(ledger.clone(), n, until, done.clone()))).collect();
        for task in tasks {
            task.await.expect("a submitter ends");
        }
    });
    let rate = done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    drop(ledger);
    running.join();
    rate
}

async fn submit(ledger: Ledger, submitter: usize, until: Instant, done: std::sync::Arc<AtomicU64>) {
    for turn in 0_u64.. {
        if Instant::now() >= until {
            return;
        }
        let id = format!("{turn:016x}{submitter:016x}");
        echo::record(&ledger, id, &format!("{submitter} {turn}"), None).await;
        done.fetch_add(2, Ordering::Relaxed);
    }
}
