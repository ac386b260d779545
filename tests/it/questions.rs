//! Questions over logs that a real ledger wrote, and what verifying says of damaged ones.
//!
//! Invariant: a question sees everything recorded before it was asked, and damage is never answered as if it were whole.

use std::{fs, path::Path};

use cairn::{
    archive::{
        export::{Format, Scope},
        import::{ImportError, Imported, import},
    },
    block::{
        Block, Cid, Codec, decode_ipld,
        json::dag,
        payload::{INLINE_MAX, JSON, Payload, SaltKey, SealedPayload},
    },
    call::{End, EndOutcome, Fit, Start},
    contract::Contract,
    event::{Actor, Role, body::CallStarted},
    identity::Verifier,
    ledger::{
        Command, Ledger, Ruling, Sealed,
        commit::payload_ref,
        fitting,
        opening::{self, Birth, Running, Settings},
    },
    log::home::Home,
    query::{
        QueryError, View,
        beside::Logs,
        list::{Filter, moment},
        lookup::Found,
        proof::Head,
        shown::Payloads,
        walk::{Direction, What},
    },
    verify::{Checks, Report, Step, Verdict, verify},
};
use rusqlite::Connection;
use serde_json::{Value, json, value::RawValue};

use crate::harness;

/// A ledger at work in a directory of its own.
pub struct Kept {
    pub ledger: Ledger,
    running: Running,
    pub home: Home,
    dir: tempfile::TempDir,
    contract: Cid,
    calls: u64,
}

/// One recorded call.
pub struct Call {
    pub started: Sealed,
    pub ended: Sealed,
    pub input: Cid,
    pub output: Cid,
}

impl Kept {
    pub fn new() -> Self {
        let dir = harness::temp();
        let home = Home::open(dir.path()).expect("a data directory");
        let (ledger, running) = open(&home);
        let mut kept =
            Self { ledger, running, home, dir, contract: Cid::of(cairn::block::Codec::Raw, b""), calls: 0 };
        kept.contract = kept.publish("echo");
        kept
    }

    pub fn publish(&self, name: &str) -> Cid {
        let definition = json!({"name": name, "inputSchema": {"type": "object"}}).to_string();
        let definition = RawValue::from_string(definition).expect("json");
        let contract = Contract::of_definition("test", "1", &definition).expect("a contract");
        let command = Command::Publish { contract, actor: actor("operator") };
        match self.ledger.submit_blocking(command) {
            Ok(Ruling::Published { cid, .. }) => cid,
            other => panic!("{other:?}"),
        }
    }

    /// Records a call of `tool` for `actor`, made for the event `cause`.
    pub fn call(&mut self, who: &str, input: &str, cause: Option<Cid>) -> Call {
        self.call_sealed(who, input, cause, sealed)
    }

    fn call_sealed(
        &mut self,
        who: &str,
        input: &str,
        cause: Option<Cid>,
        seal: fn(&str) -> SealedPayload,
    ) -> Call {
        self.calls += 1;
        let id = format!("{:032x}", self.calls);
        let (input, output) = (seal(input), seal(&format!("{{\"echo\":{input}}}")));
        let (input_cid, output_cid) = (input.envelope.cid(), output.envelope.cid());
        let start = Start {
            id: id.clone(),
            actor: actor(who),
            tool: Some(self.contract),
            input: Some(payload_ref(&input, Role::Input)),
            facts: CallStarted {
                method: "tools/call".to_owned(),
                name: "echo".to_owned(),
                source: "test".to_owned(),
                runtime: "builtin".to_owned(),
                rule: "default".to_owned(),
                runner: "test".to_owned(),
                key: None,
                trace: None,
                input_unchecked: None,
            },
            former_key: None,
            cause,
            refs: Vec::new(),
            repeatable: false,
            refusal: None,
        };
        let start = Command::Start { start: Box::new(start), input: Some(input), refused: None };
        let Ok(Ruling::Run(started)) = self.ledger.submit_blocking(start) else {
            panic!("the call starts");
        };
        let end = End {
            id,
            outcome: EndOutcome::Succeeded { input_required: false, fit: Fit::Fits },
            output: Some(payload_ref(&output, Role::Output)),
            remote: Vec::new(),
            took_us: 5,
        };
        let end = Command::End { end, output: Some(output), attempt: None };
        let Ok(Ruling::Done(ended)) = self.ledger.submit_blocking(end) else {
            panic!("the call ends");
        };
        Call { started, ended, input: input_cid, output: output_cid }
    }

    /// What is recorded now, folded, with its signed head.
    pub fn view(&self) -> (View, Head) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let reach = runtime.block_on(self.ledger.settled()).expect("it runs");
        let head = Head { size: reach.applied, note: reach.checkpoint };
        (View::open(&self.home).expect("a view"), head)
    }

    /// Ends the ledger and keeps its files.
    pub fn close(self) -> (Home, tempfile::TempDir) {
        drop(self.ledger);
        self.running.join();
        (self.home, self.dir)
    }
}

pub fn open(home: &Home) -> (Ledger, Running) {
    let birth =
        Birth { owner: "test", random: &mut || [9; 32], now_us: 1_700_000_000_000_000, step: &mut |_| {} };
    opening::open(home, &Settings::default(), birth).expect("the ledger opens")
}

pub fn actor(id: &str) -> Actor {
    Actor { id: id.to_owned(), role: "client".to_owned(), proof: None }
}

fn seqs(view: &View, filter: &Filter) -> Vec<u64> {
    let page = view.list(filter, 1000, None).expect("a page");
    assert_eq!(view.count(filter).expect("a count"), page.events.len() as u64);
    page.events.iter().map(|event| event.fields().seq).collect()
}

#[test]
fn filters_find_what_fits_all_of_them() {
    let mut kept = Kept::new();
    // 0 log.opened, 1 contract.published, then 2 3, 4 5, 6 7.
    let first = kept.call("ada", "1", None);
    kept.call("ben", "1", None);
    let last = kept.call("ada", "2", Some(first.ended.cid));
    let contract = kept.contract;
    let (view, _) = kept.view();
    let ts = |cid: &Cid| view.event(cid).expect("a log").expect("known").fields().ts;
    let all = Filter::default();
    let some = |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        filter
    };
    let cases: Vec<(Filter, Vec<u64>)> = vec![
        (all.clone(), (0..8).collect()),
        (some(|f| f.kind = Some("call.started".into())), vec![2, 4, 6]),
        (some(|f| f.kind = Some("call.refused".into())), vec![]),
        (some(|f| f.actor = Some("ada".into())), vec![2, 3, 6, 7]),
        (some(|f| f.subject = Some(format!("call/{:032x}", 2))), vec![4, 5]),
        (some(|f| f.subject = Some("call/nobody".into())), vec![]),
        (some(|f| f.tool = Some("echo".into())), vec![1, 2, 3, 4, 5, 6, 7]),
        (some(|f| f.tool = Some("other".into())), vec![]),
        (
            Filter { contract: Some(contract), kind: Some("call.succeeded".into()), ..all.clone() },
            vec![3, 5, 7],
        ),
        (Filter { tool: Some(contract.to_string()), actor: Some("ben".into()), ..all.clone() }, vec![4, 5]),
        (Filter { payload: Some(first.input), ..all.clone() }, vec![2, 4]),
        (Filter { payload: Some(last.output), ..all.clone() }, vec![7]),
        (Filter { from_seq: Some(3), to_seq: Some(5), ..all.clone() }, vec![3, 4, 5]),
        (Filter { before: Some(ts(&first.started.cid)), ..all.clone() }, vec![0, 1]),
        (Filter { after: Some(ts(&last.started.cid)), ..all.clone() }, vec![7]),
    ];
    for (filter, expected) in cases {
        assert_eq!(seqs(&view, &filter), expected, "{filter:?}");
    }
    assert_eq!(moment("1970-01-01T00:00:01.5Z").expect("a moment"), 1_500_000);
    assert_eq!(moment("17").expect("a moment"), 17);
    assert!(matches!(moment("yesterday"), Err(QueryError::Invalid(_))));
}

#[test]
fn a_kind_is_one_that_is_known_or_stands_in_the_log() {
    let (home, _dir) = Kept::new().close();
    let state = Connection::open(home.state_path()).expect("a database");
    // As a log looks that a later build wrote.
    let later = "UPDATE word SET text = 'task.submitted' WHERE text = 'contract.published'";
    assert_eq!(state.execute(later, []).expect("it is written"), 1);
    let view = View::open(&home).expect("a state");
    let of = |kind: &str| Filter { kind: Some(kind.to_owned()), ..Filter::default() };
    for (kind, nearest) in [
        ("nosuch", "`"),
        ("call.suceeded", "`call.succeeded`"),
        ("Log.opened", "`log.opened`"),
        ("task.submited", "`task.submitted`"),
        ("echo", "`"),
        ("", "`"),
    ] {
        let Err(QueryError::Invalid(said)) = view.list(&of(kind), 1, None) else { panic!("{kind} is taken") };
        assert!(said.contains(nearest), "{kind}: {said}");
    }
    for (kind, expected) in [("log.opened", vec![0]), ("call.failed", vec![]), ("task.submitted", vec![1])] {
        assert_eq!(seqs(&view, &of(kind)), expected, "{kind}");
    }
}

#[test]
fn pages_stay_as_they_are_while_others_write() {
    let mut kept = Kept::new();
    for n in 0..5 {
        kept.call("ada", &n.to_string(), None);
    }
    let filter = Filter { kind: Some("call.started".to_owned()), ..Filter::default() };
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let (view, _) = kept.view();
        let page = view.list(&filter, 2, cursor.as_deref()).expect("a page");
        seen.extend(page.events.iter().map(|event| event.fields().seq));
        if seen.len() >= 8 {
            break;
        }
        kept.call("ben", "0", None);
        cursor = page.next_cursor;
        assert!(cursor.is_some(), "more was written");
    }
    assert_eq!(seen, [2, 4, 6, 8, 10, 12, 14, 16]);
    let (view, _) = kept.view();
    let page = view.list(&filter, 2, None).expect("a page");
    let other = Filter::default();
    for cursor in [page.next_cursor.as_deref().expect("more"), "", "AAAA", "!"] {
        let answer = view.list(&other, 2, Some(cursor));
        assert!(matches!(answer, Err(QueryError::Invalid(_))), "{cursor}");
    }
}

#[test]
fn an_event_is_shown_with_its_payloads_until_they_are_erased() {
    let mut kept = Kept::new();
    let call = kept.call("ada", r#"{"a":1.50}"#, None);
    let show = |kept: &Kept, payloads: Payloads| -> Value {
        let (view, _) = kept.view();
        let event = view.event(&call.started.cid).expect("a log").expect("known");
        view.event_json(&event, &payloads).expect("json")
    };
    let shown = show(&kept, Payloads::named());
    assert_eq!(shown["cid"], call.started.cid.to_string());
    assert_eq!(shown["pay"][0]["media"], JSON);
    assert_eq!(shown["pay"][0]["cid"]["/"], call.input.to_string());
    assert_eq!(shown["pay"][0].get("content"), None);
    let shown = show(&kept, Payloads::inline());
    assert_eq!(shown["pay"][0]["content"], json!({"a": 1.5}));
    let erase = Command::Erase { payload: call.input, basis: "test".to_owned(), actor: actor("operator") };
    let erased = kept.ledger.submit_blocking(erase);
    assert!(matches!(erased, Ok(Ruling::Done(_))), "{erased:?}");
    let shown = show(&kept, Payloads::inline());
    let Ok(Ruling::Done(by)) = erased else { panic!("{erased:?}") };
    assert_eq!(shown["pay"][0]["erased"], true);
    assert_eq!(shown["pay"][0]["erased_by"]["/"], by.cid.to_string());
    assert_eq!(shown["pay"][0]["erased_seq"], by.seq);
    assert_eq!(shown["pay"][0].get("content"), None);
    let (view, _) = kept.view();
    let found = view.find(&call.input);
    assert!(
        matches!(found, Err(QueryError::Erased { by: event, seq, .. }) if (event, seq) == (by.cid, by.seq))
    );
    assert!(matches!(view.find(&call.output), Ok(Found::Block { .. })));
    let unknown = Cid::of(cairn::block::Codec::DagCbor, b"nothing");
    assert!(matches!(view.find(&unknown), Err(QueryError::NotFound(_))));
    let report = verify(&kept.home, &Checks::default(), &mut |_| {});
    assert_eq!(report.verdict, Verdict::Verified, "{report:?}");
}

#[test]
fn a_page_is_written_as_its_events_are() {
    let mut kept = Kept::new();
    let first = kept.call("ada", "1", None);
    for _ in 0..20 {
        kept.call("ben", "2", Some(first.ended.cid));
        kept.call("ben", "\"\\u0007é\"", Some(first.started.cid));
    }
    let erase = Command::Erase { payload: first.output, basis: "test".to_owned(), actor: actor("operator") };
    let Ok(Ruling::Done(by)) = kept.ledger.submit_blocking(erase) else { panic!("it is not erased") };
    let (view, _) = kept.view();
    let page = view.list(&Filter::default(), 1000, None).expect("a page");
    let shown = view.shown(&page.events, &Payloads::named()).expect("shown");
    assert_eq!(shown.len(), 85);
    for (event, shown) in page.events.iter().zip(&shown) {
        let mut fields = dag(&decode_ipld(event.bytes()).expect("an event"));
        for pay in fields["pay"].as_array_mut().expect("payloads") {
            let erased = pay["cid"]["/"] == first.output.to_string();
            let held = pay.as_object_mut().expect("a payload");
            if erased {
                held.insert("erased".to_owned(), true.into());
                held.insert("erased_by".to_owned(), json!({"/": by.cid.to_string()}));
                held.insert("erased_seq".to_owned(), by.seq.into());
            }
            held.insert("media".to_owned(), if erased { Value::Null } else { JSON.into() });
        }
        let mut of = |key: &str| fields[key].take();
        let mut actor = of("actor");
        let expected = json!({
            "cid": event.cid().to_string(),
            "v": of("v"),
            "kind": of("kind"),
            "log": of("log"),
            "seq": of("seq"),
            "prev": of("prev"),
            "cause": of("cause"),
            "refs": of("refs"),
            "actor": {"id": actor["id"].take(), "role": actor["role"].take(), "proof": actor["proof"].take()},
            "subject": of("subject"),
            "tool": of("tool"),
            "pay": of("pay"),
            "body": of("body"),
            "ts": of("ts"),
        });
        assert_eq!(shown.text(), expected.to_string());
        assert_eq!(shown.text(), view.event_json(event, &Payloads::named()).expect("json").to_string());
    }
}

#[test]
fn a_diamond_is_walked_once() {
    let mut kept = Kept::new();
    let top = kept.call("ada", "1", None);
    let left = kept.call("ada", "2", Some(top.ended.cid));
    let right = kept.call("ada", "3", Some(top.ended.cid));
    let (view, _) = kept.view();
    let logs = Logs::new(&view, Vec::new);
    let events = |start: &Cid, direction, depth, limit| -> (Vec<u64>, bool, usize) {
        let walk = logs.walk(start, direction, depth, limit).expect("a walk");
        let seqs = walk.nodes.iter().filter_map(|node| match node.what {
            What::Event { seq, .. } => Some(seq),
            _ => None,
        });
        (seqs.collect(), walk.truncated, walk.frontier.len())
    };
    use Direction::{Ancestors, Both, Descendants};
    assert_eq!(events(&left.ended.cid, Ancestors, 64, 1000), (vec![5, 4, 3, 2], false, 0));
    assert_eq!(events(&top.started.cid, Descendants, 64, 1000), (vec![2, 3, 4, 6, 5, 7], false, 0));
    assert_eq!(events(&right.started.cid, Both, 64, 1000), (vec![6, 3, 2, 7], false, 0));
    assert_eq!(events(&left.ended.cid, Ancestors, 1, 1000), (vec![5, 4], true, 1));
    assert_eq!(events(&left.ended.cid, Ancestors, 64, 4), (vec![5, 4], true, 1));
    assert_eq!(events(&left.input, Ancestors, 64, 1000), (vec![4, 3, 2], false, 0));
    assert_eq!(events(&kept.contract, Ancestors, 64, 1000).0, (1..8).collect::<Vec<_>>());
    let walk = logs.walk(&top.ended.cid, Ancestors, 64, 1000).expect("a walk");
    let kinds: Vec<&str> = walk.edges.iter().map(|edge| edge.kind).collect();
    for kind in ["cause", "used", "input", "output"] {
        assert!(kinds.contains(&kind), "{kind} of {kinds:?}");
    }
}

#[test]
fn proofs_and_receipts_hold_without_the_node() {
    let mut kept = Kept::new();
    for n in 0..300 {
        kept.call("ada", &n.to_string(), None);
    }
    let call = kept.call("ada", "last", None);
    let (view, head) = kept.view();
    let verifier = Verifier::from_vkey(&kept.ledger.about().vkey).expect("a key");
    let receipt = view.receipt(&call.started.cid, &head).expect("a receipt");
    let verified = receipt.verify(&verifier).expect("it holds");
    assert_eq!(verified.seq, call.started.seq);
    let proof = view.consistency(100, head.size, &head).expect("a proof");
    assert_eq!(proof["new"], head.size);
    assert!(matches!(view.consistency(5, head.size + 1, &head), Err(QueryError::Invalid(_))));
    let tile = |path: &str| {
        let path = cairn::merkle::parse_tile_path(path).expect("a path");
        view.tile(&path, &head).expect("tiles").map(|tile| tile.len())
    };
    // 604 events: two full tiles, and 92 hashes in a third.
    assert_eq!(head.size, 604);
    assert_eq!(tile("tile/0/000"), Some(256 * 32));
    assert_eq!(tile("tile/0/002.p/92"), Some(92 * 32));
    assert_eq!(tile("tile/0/002.p/93"), None);
    assert_eq!(tile("tile/0/002"), None);
    assert_eq!(tile("tile/1/000.p/2"), Some(2 * 32));
    assert_eq!(tile("tile/entries/001"), Some(256 * 38));
    assert_eq!(tile("tile/9/000"), None);
}

/// Makes a log of five calls, damages its files, and verifies it.
fn damaged(sql: &[&str], file: &str) -> Report {
    damaged_under(sql, file, &Checks { derived: true, ..Checks::default() })
}

fn damaged_under(sql: &[&str], file: &str, checks: &Checks) -> Report {
    let mut kept = Kept::new();
    for n in 0..5 {
        kept.call("ada", &n.to_string(), None);
    }
    let (home, _dir) = kept.close();
    let files = Connection::open(home.dir().join(file)).expect("the file");
    for trigger in ["event_update", "event_delete", "block_delete", "block_update"] {
        files.execute_batch(&format!("DROP TRIGGER IF EXISTS {trigger}")).expect("triggers fall");
    }
    for sql in sql {
        files.execute_batch(sql).unwrap_or_else(|err| panic!("{sql}: {err}"));
    }
    drop(files);
    verify(&home, checks, &mut |_| {})
}

/// One byte of a row, flipped.
fn flip(table: &str, row: &str, at: usize) -> String {
    format!(
        "UPDATE {table} SET bytes = CAST(substr(bytes, 1, {at}) || CASE substr(bytes, {at} + 1, 1) WHEN x'00' \
         THEN x'01' ELSE x'00' END || substr(bytes, {at} + 2) AS BLOB) WHERE {row}"
    )
}

#[test]
fn damage_is_found_and_called_by_its_name() {
    let cases: &[(&[&str], &str, Verdict, &str)] = &[
        (&[], "log.db", Verdict::Verified, ""),
        (
            &[&flip("event", "seq = 4", 60)],
            "log.db",
            Verdict::Invalid,
            "the event's bytes do not have its name",
        ),
        (
            &[&flip("block", "id = 3", 30)],
            "log.db",
            Verdict::Invalid,
            "the block's bytes do not have its name",
        ),
        (&["DELETE FROM event WHERE seq = 5"], "log.db", Verdict::Incomplete, "event 5 is missing"),
        (
            &["DELETE FROM event WHERE seq >= 10"],
            "log.db",
            Verdict::Incomplete,
            "the last events are missing",
        ),
        (&["DELETE FROM block WHERE id = 4"], "log.db", Verdict::Incomplete, "no event says it was erased"),
        (
            &["UPDATE block SET bytes = NULL WHERE id = 4"],
            "log.db",
            Verdict::Incomplete,
            "no event says it was erased",
        ),
        (&["UPDATE entry SET actor = 1 WHERE seq = 6"], "state.db", Verdict::Invalid, "table `entry`"),
        (&["DELETE FROM edge WHERE child = 7"], "state.db", Verdict::Invalid, "table `edge`"),
        (&["DROP TABLE event"], "log.db", Verdict::Unreadable, "cannot be read"),
    ];
    for (sql, file, verdict, fault) in cases {
        let report = damaged(sql, file);
        assert_eq!(report.verdict, *verdict, "{sql:?}: {report:?}");
        let said = report.faults.iter().any(|found| found.fault.contains(fault));
        assert!(said || fault.is_empty(), "{sql:?}: {report:?}");
    }
}

#[test]
fn verifying_without_payloads_sees_all_but_them() {
    let check = |sql: &str, verdict: Verdict| {
        let checks = Checks { payloads: false, ..Checks::default() };
        let report = damaged_under(&[sql], "log.db", &checks);
        assert_eq!(report.verdict, verdict, "{sql:?}: {report:?}");
        assert_eq!(report.payloads, Some("not checked"));
    };
    check("", Verdict::Verified);
    check(&flip("event", "seq = 4", 60), Verdict::Invalid);
    check("DELETE FROM event WHERE seq = 5", Verdict::Incomplete);
    check("DELETE FROM event WHERE seq >= 10", Verdict::Incomplete);
    // The genesis block, a contract, a payload.
    for (id, verdict) in [(1, Verdict::Invalid), (2, Verdict::Incomplete), (3, Verdict::Verified)] {
        check(&format!("UPDATE block SET bytes = NULL WHERE id = {id}"), verdict);
        check(&format!("DELETE FROM block WHERE id = {id}"), verdict);
    }
    check(&flip("block", "id = 2", 30), Verdict::Invalid);
    check(&flip("block", "id = 3", 30), Verdict::Verified);
}

fn sealed(text: &str) -> SealedPayload {
    Payload::seal(&SaltKey::new([7; 32]), JSON, text.as_bytes()).expect("a payload")
}

/// A large payload as it was sealed before parts had salts.
fn sealed_plain(text: &str) -> SealedPayload {
    let parts: Vec<Block> =
        text.as_bytes().chunks(INLINE_MAX).map(|part| Block::new(Codec::Raw, part.to_vec())).collect();
    let payload = Payload {
        v: 1,
        media: JSON.to_owned(),
        salt: SaltKey::new([7; 32]).commit(JSON, text.as_bytes()).to_vec(),
        data: None,
        parts: Some(parts.iter().map(Block::cid).collect()),
    };
    SealedPayload { envelope: Block::encode(&payload), parts, len: text.len() as u64 }
}

#[test]
fn a_part_is_gone_only_with_its_payloads() {
    part_gone_only_with_its_payloads(sealed);
    part_gone_only_with_its_payloads(sealed_plain);
}

#[test]
fn large_content_reads_the_same_whichever_form_its_parts_have() {
    let text = format!("\"{}\"", "x".repeat(2 * INLINE_MAX));
    let mut kept = Kept::new();
    let calls = [sealed, sealed_plain].map(|seal| kept.call_sealed("ada", &text, None, seal));
    let (home, _dir) = kept.close();
    let view = View::open(&home).expect("a view");
    for call in calls {
        let payload = view.payload(&call.input).expect("it is read").expect("a payload");
        assert_eq!(view.content(payload).expect("whole"), text.as_bytes());
        let (cid, block) = match view.find(&call.input).expect("it is found") {
            Found::Block { cid, bytes } => (cid, bytes),
            Found::Event(event) => panic!("{event:?}"),
        };
        assert_eq!(view.block_json(&cid, &block, false).expect("shown")["value"]["len"], text.len());
    }
    assert_eq!(verify(&home, &Checks::default(), &mut |_| {}).verdict, Verdict::Verified);
}

fn part_gone_only_with_its_payloads(seal: fn(&str) -> SealedPayload) {
    // All but the first part are the same.
    let large = |first: &str| format!("\"{}{}\"", first.repeat(INLINE_MAX - 1), "x".repeat(2 * INLINE_MAX));
    let mut kept = Kept::new();
    let erased = kept.call_sealed("ada", &large("a"), None, seal);
    let shares = kept.call_sealed("ada", &large("b"), None, seal);
    let erase = Command::Erase { payload: erased.input, basis: "test".to_owned(), actor: actor("operator") };
    kept.ledger.submit_blocking(erase).expect("it is erased");
    let (home, _dir) = kept.close();
    let verdict = || {
        let report = verify(&home, &Checks::default(), &mut |_| {});
        (report.verdict, report.faults_total)
    };
    assert_eq!(verdict(), (Verdict::Verified, 0));
    let log = Connection::open(home.log_path()).expect("the log");
    let gone = "UPDATE block SET bytes = NULL WHERE id = (SELECT max(id) FROM block WHERE codec = 85)";
    assert_eq!(log.execute(gone, []).expect("a part goes"), 1);
    assert_eq!(verdict(), (Verdict::Incomplete, 1));
    let view = View::open(&home).expect("a view");
    let head = Head { size: view.applied().expect("a size"), note: String::new() };
    let report = view.verify_one(&shares.output, &head).expect("it is checked");
    assert_eq!((report.verdict, report.faults_total), (Verdict::Incomplete, 1), "{report:?}");
}

#[test]
fn another_log_under_the_same_head_is_a_fork() {
    let mut kept = Kept::new();
    kept.call("ada", "1", None);
    let (home, _dir) = kept.close();
    let head = fs::read(home.dir().join("head")).expect("a head");
    let aside = harness::temp();
    copy(home.dir(), aside.path());
    // The same key goes on from the same place in two ways.
    let grow = |home: &Home, input: &str| {
        let (ledger, running) = open(home);
        let export =
            Command::Export { format: input.to_owned(), from_seq: 0, to_seq: 1, actor: actor("ada") };
        ledger.submit_blocking(export).expect("it is recorded");
        drop(ledger);
        running.join();
    };
    let other = Home::existing(aside.path()).expect("a copy");
    grow(&home, "car");
    grow(&other, "jsonl");
    let note = other.signed_heads().expect("a head");
    let note = note.into_iter().max_by_key(|note| note.len()).expect("one");
    let checks = Checks { checkpoint: Some(note), ..Checks::default() };
    assert_eq!(verify(&home, &Checks::default(), &mut |_| {}).verdict, Verdict::Verified);
    let report = verify(&home, &checks, &mut |_| {});
    assert_eq!(report.verdict, Verdict::Forked, "{report:?}");
    assert_eq!(report.verdict.exit_code(), 30);
    drop(head);
}

#[test]
fn a_checkpoint_that_is_not_this_logs_is_never_passed_over() {
    let (home, _dir) = Kept::new().close();
    let (other, _other_dir) = Kept::new().close();
    let newest = |home: &Home| home.signed_heads().expect("a head").pop().expect("one");
    let own = newest(&home);
    let head = own.lines().nth(1).expect("a size");
    for (note, verdict) in [
        // The two logs have one key: that both heads are signed with it is the proof.
        (newest(&other), Verdict::Forked),
        (own.clone(), Verdict::Verified),
        (own.replace(&format!("\n{head}\n"), "\n1\n"), Verdict::Invalid),
        ("not a note".to_owned(), Verdict::Unreadable),
        (String::new(), Verdict::Unreadable),
    ] {
        let checks = Checks { checkpoint: Some(note), ..Checks::default() };
        let report = verify(&home, &checks, &mut |_| {});
        assert_eq!(report.verdict, verdict, "{report:?}");
    }
}

#[test]
fn part_of_a_log_is_verified_alone() {
    let mut kept = Kept::new();
    for n in 0..5 {
        kept.call("ada", &n.to_string(), None);
    }
    let (home, _dir) = kept.close();
    let checks = Checks { from_seq: 4, to_seq: Some(7), ..Checks::default() };
    let mut steps = Vec::new();
    let report = verify(&home, &checks, &mut |step| steps.push(step));
    assert!(report.verified, "{report:?}");
    // Four events; a contract, four payloads, and the genesis block.
    assert_eq!((report.checked_events, report.checked_blocks), (4, 6));
    assert_eq!(steps.last(), Some(&Step::Events(4, 12)));
    // A state that is behind, or not there, is no fault of the log: the tree is made from its events.
    let state = rusqlite::Connection::open(home.state_path()).expect("the state is at rest");
    state.execute_batch("UPDATE progress SET applied = 6").expect("it is put back");
    drop(state);
    let to_the_end = Checks { from_seq: 4, ..Checks::default() };
    for what in ["behind", "not there"] {
        let report = verify(&home, &to_the_end, &mut |_| {});
        assert!(report.verified, "{what}: {report:?}");
        assert_eq!(report.head.map(|head| head.size), Some(12), "{what}");
        let _ = fs::remove_file(home.state_path());
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&to).expect("a directory");
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).expect("a copy");
        }
    }
}

/// A whole export of `kept` in one format.
fn exported(kept: &Kept, scope: &Scope, format: Format) -> Vec<u8> {
    let (view, head) = kept.view();
    let selected = view.select(scope, format, &head).expect("something is selected");
    let mut bytes = Vec::new();
    view.export(&selected, format, &mut bytes).expect("it is exported");
    bytes
}

const WHOLE: Scope = Scope::Range { from: None, to: None };

#[test]
fn a_whole_export_becomes_the_same_log_again() {
    let mut kept = Kept::new();
    let first = kept.call("ada", "1", None);
    let large = format!("\"{}\"", "x".repeat(600_000));
    for input in ["1", "2", &large, "2"] {
        kept.call("ben", input, Some(first.ended.cid));
    }
    let erase = Command::Erase { payload: first.output, basis: "test".to_owned(), actor: actor("operator") };
    kept.ledger.submit_blocking(erase).expect("it runs");
    let archive = exported(&kept, &WHOLE, Format::Car);
    let (home, _dir) = kept.close();
    let original = verify(&home, &Checks::default(), &mut |_| {});
    assert!(original.verified, "{original:?}");

    let aside = harness::temp();
    let imported = import(&archive[..], aside.path(), &mut |_| {}).expect("it is a whole log");
    assert!(matches!(imported, Imported::Log(report, _) if report.root == original.root));
    let copy = Home::existing(aside.path()).expect("a log");
    assert!(verify(&copy, &Checks::default(), &mut |_| {}).verified);
    assert!(matches!(import(&archive[..], aside.path(), &mut |_| {}), Err(ImportError::Occupied { .. })));
    // Without the key nobody goes on with it.
    let birth = Birth { owner: "other", random: &mut || [8; 32], now_us: 1, step: &mut |_| {} };
    let refused = opening::open(&copy, &Settings::default(), birth);
    assert!(matches!(refused, Err(fitting::OpenError::Home(_))));
}

#[test]
fn what_is_not_a_whole_log_is_not_imported() {
    let mut kept = Kept::new();
    let call = kept.call("ada", "1", None);
    kept.call("ada", "2", Some(call.ended.cid));
    let whole = exported(&kept, &WHOLE, Format::Car);
    let range = Scope::Range { from: Some(2), to: Some(4) };
    let part = exported(&kept, &range, Format::Car);
    let subject = exported(&kept, &Scope::Subject(format!("call/{:032x}", 1)), Format::Car);
    let ancestors = exported(&kept, &Scope::Ancestors(call.ended.cid), Format::Car);
    let flipped: Vec<u8> = {
        let mut bytes = whole.clone();
        let at = bytes.len() - 10;
        bytes[at] ^= 1;
        bytes
    };
    let cases: [(&[u8], &str); 6] = [
        (&part, "not a whole log"),
        (&subject, "not a whole log"),
        (&ancestors, "not a whole log"),
        (&whole[..whole.len() - 3], "refused"),
        (&flipped, "refused"),
        (b"hello", "no archive"),
    ];
    for (archive, why) in cases {
        let dir = harness::temp();
        let refused = import(archive, dir.path(), &mut |_| {}).expect_err("it is refused");
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(!dir.path().join("log.db").exists());
        assert!(!dir.path().join("import").exists());
    }
}

#[test]
fn exports_say_what_happened_in_other_peoples_words() {
    let mut kept = Kept::new();
    let first = kept.call("ada", "1", None);
    let second = kept.call("ben", r#"{"of":2}"#, Some(first.ended.cid));
    let lines = exported(&kept, &WHOLE, Format::JsonLines);
    let lines = String::from_utf8(lines).expect("text");
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a line of json")).collect();
    let seqs: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(seqs, [0, 1, 2, 3, 4, 5]);
    for event in events {
        let cid = event["cid"].as_str().expect("a name").to_owned();
        let mut fields = event;
        fields.as_object_mut().expect("an object").remove("cid");
        assert_eq!(crate::dag::block(&fields).cid().to_string(), cid);
    }
    let prov = exported(&kept, &Scope::Ancestors(second.ended.cid), Format::ProvJson);
    let prov: Value = serde_json::from_slice(&prov).expect("json");
    let id = |cid: &Cid| format!("ipld:{cid}");
    let activity = &prov["activity"][id(&second.started.cid)];
    assert!(activity["prov:endTime"].is_string(), "{prov:#}");
    let says = |part: &str, statement: Value| {
        let statements = prov[part].as_object().expect("a part");
        let fits = |said: &&Value| {
            let wanted = statement.as_object().expect("an object");
            wanted.iter().all(|(key, value)| said[key] == *value)
        };
        assert!(statements.values().any(|said| fits(&said)), "{part} {statement}: {prov:#}");
    };
    let (a, b) = (id(&first.started.cid), id(&second.started.cid));
    says("used", json!({"prov:activity": b, "prov:entity": id(&second.input)}));
    says("wasGeneratedBy", json!({"prov:activity": a, "prov:entity": id(&first.output)}));
    says("wasInformedBy", json!({"prov:informed": b, "prov:informant": a}));
    says("wasAssociatedWith", json!({"prov:activity": b}));
    assert_eq!(prov["agent"].as_object().expect("agents").len(), 2);
    assert_eq!(prov["activity"].as_object().expect("activities").len(), 2);
}
