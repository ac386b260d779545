//! The long log: a million events of echo calls, made once through the ledger and kept under the target directory.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cairn::{
    block::Cid,
    ledger::{
        Ledger,
        opening::{self, Birth, Settings},
    },
    log::{Reader, home::Home, sqlite::SqliteReader},
};
use rusqlite::Connection;

use crate::{data_dir, echo};

/// Events of the log, with its first.
pub const EVENTS: u64 = 1_000_000;
/// Events that stand below the root of the walk, with it.
pub const WALK: u64 = 1_000;
/// Calls that each call of the walk has caused.
const CHILDREN: u64 = 3;
/// Calls in flight while the log is made.
const SUBMITTERS: u64 = 1_024;
/// A log of another layout is made anew under another name.
const NAME: &str = "million-1";

pub struct History {
    pub home: Home,
    /// The event below which [`WALK`] events stand.
    pub root: Cid,
}

/// The log, made where it is not there yet.
pub fn history() -> History {
    let dir = data_dir().join(NAME);
    // Written last: a log without it was not finished.
    let mark = dir.join("root");
    if !mark.exists() {
        eprintln!("making a log of {EVENTS} events in {}", dir.display());
        match fs::remove_dir_all(&dir) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => panic!("old data: {err}"),
            _ => {}
        }
        let root = make(dir.clone());
        fs::write(&mark, root.to_string()).expect("the mark is written");
    }
    let root = fs::read_to_string(&mark).expect("the mark is read");
    History { home: Home::open(&dir).expect("a home"), root: root.parse().expect("a cid") }
}

impl History {
    /// Ids of `n` events, spread evenly over the log in an order without a pattern.
    pub fn some(&self, n: u64) -> Vec<Cid> {
        let log = SqliteReader::open(&self.home.log_path()).expect("the log opens");
        // A multiplier that shares no factor with the length meets every place once.
        const STRIDE: u64 = 382_647_301;
        (1..=n)
            .map(|turn| turn * STRIDE % EVENTS)
            .map(|seq| log.event_at(seq).expect("readable").expect("present").cid())
            .collect()
    }

    /// Bytes of events and blocks, and bytes of the files that hold them and what is derived from them.
    pub fn sizes(&self) -> (u64, u64) {
        let (log, state) = (self.home.log_path(), self.home.state_path());
        for file in [&log, &state] {
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            open(file).query_row(sql, [], |_| Ok(())).expect("a checkpoint");
        }
        let log_db = open(&log);
        let sum = |sql| log_db.query_row(sql, [], |row| row.get::<_, u64>(0)).expect("a sum");
        let raw = sum("SELECT sum(length(bytes)) FROM event") + sum("SELECT sum(length(bytes)) FROM block");
        let on_disk = |file| fs::metadata(file).expect("a file").len();
        (raw, on_disk(&log) + on_disk(&state))
    }
}

fn open(file: &PathBuf) -> Connection {
    Connection::open(file).expect("a database")
}

fn make(dir: PathBuf) -> Cid {
    let home = Home::open(&dir).expect("a home for the log");
    let mut random = || [7; 32];
    let birth = Birth { owner: "bench", random: &mut random, now_us: 1, step: &mut |_| {} };
    let settings = Settings { fsync: false, ..Settings::default() };
    let (ledger, running) = opening::open(&home, &settings, birth).expect("a new log opens");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let root = runtime.block_on(async {
        let root = walk(&ledger).await;
        // The first event opened the log, and every call is two.
        let calls = Arc::new(AtomicU64::new(WALK.div_ceil(2) + 1));
        let submitters: Vec<_> =
            (0..SUBMITTERS).map(|_| tokio::spawn(submit(ledger.clone(), calls.clone()))).collect();
        for submitter in submitters {
            submitter.await.expect("a submitter ends");
        }
        ledger.settled().await.expect("the fold runs");
        root
    });
    drop(ledger);
    running.join();
    root
}

/// Calls that cause calls: a tree whose events, starts and endings, are [`WALK`].
async fn walk(ledger: &Ledger) -> Cid {
    let mut starts: Vec<Cid> = Vec::new();
    for n in 0..WALK / 2 {
        let parent = n.checked_sub(1).map(|n| starts[(n / CHILDREN) as usize]);
        starts.push(call(ledger, n, parent).await);
    }
    starts[0]
}

async fn submit(ledger: Ledger, calls: Arc<AtomicU64>) {
    loop {
        let n = calls.fetch_add(1, Ordering::Relaxed);
        if n > EVENTS / 2 {
            return;
        }
        call(&ledger, n, None).await;
    }
}

async fn call(ledger: &Ledger, n: u64, cause: Option<Cid>) -> Cid {
    // Real ids begin with a time, so that neighbours in the log are neighbours in an index.
    let id = format!("{n:016x}{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    echo::record(ledger, id, &n.to_string(), cause).await
}
