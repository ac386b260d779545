//! The signed head at the door: what is forged without the key is not verified, not opened and not signed.

use std::{fs, path::Path};

use cairn::{
    block::Cid,
    event::{Actor, Body, Event, Fact, Position, body::PayloadErased},
    log::{Batch, Log, sqlite::SqliteLog},
};
use serde_json::json;

use crate::{
    harness::{Ran, cairn, run, temp},
    record,
};

/// A log with a few calls in it; its key, and a checkpoint of it.
struct Kept {
    dir: tempfile::TempDir,
    key: String,
    checkpoint: String,
}

impl Kept {
    fn new() -> Self {
        let dir = temp();
        let data = dir.path().to_str().expect("a path");
        for _ in 0..2 {
            run(cairn(&["call", "tools_list_categories", "--data", data])).succeeded();
        }
        let key = run(cairn(&["key", "--data", data])).succeeded();
        let key = key.split_whitespace().find(|word| word.contains('+')).expect("a key").to_owned();
        let heads =
            cairn::log::home::Home::existing(dir.path()).expect("a log").signed_heads().expect("heads");
        let checkpoint = heads.into_iter().max_by_key(|note| size(note)).expect("a head");
        Self { dir, key, checkpoint }
    }

    fn data(&self) -> &Path {
        self.dir.path()
    }

    /// `cairn log verify` with the key, and with this text as the checkpoint.
    fn verify(&self, checkpoint: Option<&str>) -> (Option<i32>, serde_json::Value) {
        let mut args = vec!["log", "verify", "--json", "--key", &self.key];
        let data = self.data().to_str().expect("a path");
        args.extend(["--data", data]);
        let aside = temp();
        let file = aside.path().join("checkpoint");
        if let Some(text) = checkpoint {
            fs::write(&file, text).expect("it can be written");
            args.extend(["--checkpoint", file.to_str().expect("a path")]);
        }
        let Ran { status, stdout, stderr } = run(cairn(&args));
        let report = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("no report: {stdout}{stderr}"));
        (status.code(), report)
    }

    /// Appends an event that nobody signs.
    fn forge(&self, body: Body) {
        let last = record::events(self.data()).pop().expect("an event");
        let fact = Fact {
            cause: None,
            refs: Vec::new(),
            actor: Actor { id: "cairn".to_owned(), role: "system".to_owned(), proof: None },
            subject: "log".to_owned(),
            tool: None,
            payloads: Vec::new(),
            body,
        };
        let fields = last.fields();
        let place = Position { log: fields.log, seq: fields.seq + 1, prev: Some(last.cid()), ts: fields.ts };
        let event = Event::seal(fact, place).expect("a small event");
        let mut log = SqliteLog::open(&self.data().join("log.db"), true).expect("the log opens");
        let batch = Batch { events: vec![event], ..Batch::default() };
        log.append(Some(last.cid()), &batch).expect("it is appended");
    }

    fn tamper(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.data().join("log.db")).expect("the log opens");
        connection
            .execute_batch("DROP TRIGGER block_update; DROP TRIGGER event_update")
            .expect("triggers go");
        connection.execute_batch(sql).expect("it is changed");
    }

    fn genesis(&self) -> Cid {
        record::events(self.data())[0].fields().log
    }
}

fn size(note: &str) -> u64 {
    note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
}

fn erases(payload: Cid) -> Body {
    Body::PayloadErased(PayloadErased { payload, basis: "forged".to_owned() })
}

fn faults(report: &serde_json::Value) -> String {
    report["faults"].to_string()
}

#[test]
fn a_verdict_names_the_head_it_is_under() {
    let kept = Kept::new();
    let (code, report) = kept.verify(Some(&kept.checkpoint));
    assert_eq!((code, &report["verdict"]), (Some(0), &"verified".into()), "{report}");
    assert_eq!(report["head"]["size"], size(&kept.checkpoint), "{report}");
    assert_eq!(report["head"]["key"], kept.key.as_str(), "{report}");
}

#[test]
fn an_erased_genesis_is_never_verified_whatever_is_given() {
    let kept = Kept::new();
    let genesis = kept.genesis();
    kept.forge(erases(genesis));
    kept.tamper("UPDATE block SET bytes = NULL WHERE id = 1");
    for checkpoint in [None, Some(kept.checkpoint.as_str()), Some("anything"), Some("")] {
        let (code, report) = kept.verify(checkpoint);
        assert!(matches!(code, Some(40 | 50)), "{code:?} {report}");
        assert!(faults(&report).contains("genesis"), "{report}");
        assert!(report["head"].is_null(), "{report}");
    }
    let served = run(cairn(&["stdio", "--data", kept.data().to_str().expect("a path")]));
    assert!(!served.status.success(), "{served:?}");
}

#[test]
fn events_past_the_head_are_named_and_neither_verified_nor_signed() {
    let kept = Kept::new();
    let signed = size(&kept.checkpoint);
    let data = kept.data().to_str().expect("a path");
    kept.forge(erases(kept.genesis()));
    let claim = format!("events {signed} to {signed} stand under no signed head");
    let (code, report) = kept.verify(None);
    assert_eq!((code, &report["verdict"]), (Some(40), &"invalid".into()), "{report}");
    assert!(faults(&report).contains(&claim), "{report}");
    // A start refuses, twice: the first has signed nothing.
    for _ in 0..2 {
        let refused = run(cairn(&["call", "tools_list_categories", "--data", data]));
        assert!(!refused.status.success(), "{refused:?}");
        assert!(
            refused.stderr.contains(&format!("event {signed} stands under no signed head")),
            "{refused:?}"
        );
        assert!(refused.stderr.contains("cairn rebuild --sign"), "{refused:?}");
    }
    let taken = run(cairn(&["rebuild", "--sign", "--data", data]));
    assert!(taken.status.success(), "{taken:?}");
    assert!(taken.stderr.contains(&format!("1 events from seq {signed}")), "{taken:?}");
    run(cairn(&["call", "tools_list_categories", "--data", data])).succeeded();
    let events = record::events(kept.data());
    assert_eq!(events[signed as usize + 1].fields().kind, "log.taken_over");
    // Whoever verifies the log is told that an operator's word stands in it.
    let (_, report) = kept.verify(None);
    let taken = json!({"seq": signed + 1, "from_seq": signed, "events": 1});
    assert_eq!(report["takeovers"], json!({"count": 1, "events": [taken]}), "{report}");
    let told = run(cairn(&["log", "verify", "--data", data])).stdout;
    assert!(
        told.contains(&format!("taken over by event {}: no head covered 1 events", signed + 1)),
        "{told}"
    );
}

#[test]
fn a_checkpoint_is_matched_or_refused() {
    let (kept, other) = (Kept::new(), Kept::new());
    let foreign = other.checkpoint.as_str();
    // Another log's head under this log's origin is signed by a key that is not this log's.
    let origin = |note: &str| note.lines().next().expect("an origin").to_owned();
    let renamed = foreign.replace(&origin(foreign), &origin(&kept.checkpoint));
    let cut = kept.checkpoint.lines().take(3).collect::<Vec<_>>().join("\n");
    for (text, code) in [
        (foreign, 40),
        (&renamed, 40),
        (&kept.checkpoint.replace(&format!("\n{}\n", size(&kept.checkpoint)), "\n1\n"), 40),
        (&cut, 50),
        ("not a checkpoint", 50),
        ("", 50),
    ] {
        let (found, report) = kept.verify(Some(text));
        assert_eq!(found, Some(code), "{text}: {report}");
    }
}

#[test]
fn a_key_of_another_log_verifies_nothing() {
    let (kept, other) = (Kept::new(), Kept::new());
    let data = kept.data().to_str().expect("a path");
    let refused = run(cairn(&["log", "verify", "--data", data, "--key", &other.key]));
    assert_eq!(refused.status.code(), Some(40), "{refused:?}");
    assert!(refused.stdout.contains("the key given is not this log's"), "{refused:?}");
}

/// A key that was given up and goes on signing makes a second history, though each key signs only one of them.
#[test]
fn a_history_that_a_former_key_goes_on_with_is_a_fork() {
    let kept = Kept::new();
    let other = temp();
    let (data, copy) = (kept.data().to_str().expect("a path"), other.path().to_str().expect("a path"));
    run(cairn(&["backup", &format!("{copy}/backup"), "--keys", "--data", data])).succeeded();
    run(cairn(&["key", "rotate", "--data", data])).succeeded();
    let copy = format!("{copy}/backup");
    for longer in [false, true] {
        let calls = if longer { 3 } else { 1 };
        for _ in 0..calls {
            run(cairn(&["call", "tools_list_categories", "--data", &copy])).succeeded();
        }
        let heads = cairn::log::home::Home::existing(Path::new(&copy)).expect("a log").signed_heads();
        let theirs = heads.expect("heads").into_iter().max_by_key(|note| size(note)).expect("a head");
        let (code, report) = kept.verify(Some(&theirs));
        assert_eq!(code, Some(30), "{longer} {report}");
        assert!(faults(&report).contains("not in force at its size"), "{report}");
        if !longer {
            run(cairn(&["call", "tools_list_categories", "--data", data])).succeeded();
        }
    }
    // A head from before the change of keys is the log's own still.
    assert_eq!(kept.verify(Some(&kept.checkpoint)).0, Some(0));
}
