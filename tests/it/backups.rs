//! Backups taken under load, and what a restore makes of them.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

use crate::{
    harness::{Server, exits, temp, text, told},
    record::{self, until},
    speech::{Connection, ask, call, event, modern},
};

const CALLERS: usize = 8;
const TOOL: &str = "test_simple_text";

/// Callers that call until the server is gone.
struct Load {
    answers: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(server: &Server) -> Self {
        let (answers, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let callers = |caller| {
            let (url, answers, ends) = (server.url.clone(), answers.clone(), ends.clone());
            thread::spawn(move || {
                let Some(mut connection) = Connection::open(&url) else { return };
                for n in 0.. {
                    let said = json!({ "message": format!("{caller} {n}") });
                    let asked = modern(n, "tools/call", call(TOOL, &said));
                    if ends.load(Ordering::SeqCst) || connection.ask(&asked).is_none() {
                        return;
                    }
                    answers.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let callers = (0..CALLERS).map(callers).collect();
        Self { answers, ends, callers }
    }

    /// Waits for so many more answers.
    fn goes_on(&self, more: usize) {
        let wanted = self.answers.load(Ordering::SeqCst) + more;
        until("more answers", || (self.answers.load(Ordering::SeqCst) >= wanted).then_some(()));
    }

    fn end(self) {
        self.ends.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.join().expect("a caller only calls");
        }
    }
}

/// The names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The payload of an answer's input, and what it says.
fn input_of(data: &str, answer: &Value) -> (String, String) {
    let ended = told(&["log", "show", event(answer), "--json", "--data", data]);
    let started = ended["cause"]["/"].as_str().expect("an ending has its start");
    let started = told(&["log", "show", started, "--json", "--data", data]);
    let payload = started["pay"][0]["cid"]["/"].as_str().expect("an input").to_owned();
    let shown = exits(0, &["log", "show", &payload, "--payloads", "--data", data]).stdout;
    (payload, shown)
}

/// Whether a file in this directory, not below it, holds these bytes.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    names(dir).iter().map(|name| dir.join(name)).filter(|path| path.is_file()).any(|path| {
        let file = fs::read(path).expect("it can be read");
        file.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[test]
fn a_backup_under_load_is_restored_without_what_was_erased_since() {
    let temp = temp();
    let [data, copy] = ["data", "copy"].map(|name| temp.path().join(name));
    let server = Server::start(&data, &["--conformance-fixtures"]);
    let [data, copy] = [&data, &copy].map(|path| text(path));
    let secret = "Rumpelstiltskin is a name of some length";
    let answer = ask(&server, "tools/call", call(TOOL, &json!({ "message": secret })));
    let load = Load::on(&server);
    load.goes_on(100);
    let made = told(&["backup", copy, "--json", "--data", data]);
    assert_eq!((&made["report"]["verified"], &made["keys"]), (&json!(true), &json!(false)), "{made}");
    load.goes_on(10);
    assert_eq!(names(Path::new(copy)), ["head", "log.db"]);
    exits(0, &["log", "verify", "--data", copy]);
    assert_eq!(names(Path::new(copy)), ["head", "log.db"], "verifying leaves nothing behind");
    assert!(holds(Path::new(copy), secret.as_bytes()));
    exits(1, &["backup", copy, "--data", data]);

    let (payload, shown) = input_of(data, &answer);
    assert!(shown.contains(secret), "{shown}");
    exits(0, &["erase", &payload, "--basis", "gdpr-17", "--data", data]);
    load.goes_on(10);
    let owned = exits(1, &["restore", copy, "--replace", "--data", data]);
    assert!(owned.stderr.contains("`cairn serve`"), "{owned:?}");
    server.kill();
    load.end();

    let kept = exits(1, &["restore", copy, "--data", data]);
    assert!(kept.stderr.contains("--replace"), "{kept:?}");
    let restored = told(&["restore", copy, "--replace", "--json", "--data", data]);
    assert!(restored["lost_events"].as_u64().is_some_and(|lost| lost > 20), "{restored}");
    assert_eq!(restored["erased"][0]["payload"], json!(payload));
    assert_eq!(restored["erased"][0]["basis"], "gdpr-17");
    let erased = restored["erased"][0]["event"].as_str().expect("an event");
    let by = told(&["log", "show", erased, "--json", "--data", data]);
    assert_eq!(by["kind"], "payload.erased");
    assert!(!holds(Path::new(data), secret.as_bytes()));
    let aside = restored["aside"].as_str().expect("a directory");
    assert!(names(Path::new(aside)).contains(&"log.db".to_owned()));
    assert!(!names(Path::new(data)).iter().any(|name| name.starts_with("restore")));
    exits(0, &["log", "verify", "--data", data]);
    let server = Server::start(Path::new(data), &["--conformance-fixtures"]);
    assert_eq!(server.get(&format!("/v1/blocks/{payload}")).status, 410);
    ask(&server, "tools/call", call(TOOL, &json!({})));
    assert!(server.stop().success());
    let (code, report) = record::verify(Path::new(data));
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_backup_without_keys_is_restored_with_those_kept_apart_and_what_a_later_copy_knows() {
    let temp = temp();
    let paths = ["data", "copy", "new", "later", "later.car", "whole"].map(|name| temp.path().join(name));
    let [data, copy, new, later, car, whole] = paths.each_ref().map(|path| text(path));
    let called = exits(0, &["call", "tools_list_categories", "--data", data]);
    let ended = told(&["log", "show", called.stderr.trim(), "--json", "--data", data]);
    let payload = ended["pay"][0]["cid"]["/"].as_str().expect("an output");
    exits(0, &["backup", copy, "--data", data]);
    exits(0, &["backup", whole, "--keys", "--data", data]);
    let keys = format!("{data}/keys");

    // Nothing was erased since: it can be read without keys, and goes on once they are there.
    let shown = exits(0, &["restore", copy, "--data", new]).stdout;
    assert!(shown.contains("keys/log.key") && shown.contains("--erasures"), "{shown}");
    exits(0, &["log", "verify", "--data", new]);
    let refused = exits(1, &["call", "tools_list_categories", "--data", new]);
    assert!(refused.stderr.contains("keys/log.key"), "{refused:?}");
    exits(0, &["restore", copy, "--replace", "--keys", &keys, "--data", new]);
    exits(0, &["call", "tools_list_categories", "--data", new]);

    exits(0, &["erase", payload, "--basis", "secret", "--data", data]);
    exits(0, &["backup", later, "--data", data]);
    exits(0, &["log", "export", "-o", car, "--data", data]);
    let fresh = temp.path().join("fresh");
    let fresh = text(&fresh);
    for later in [later, car] {
        let needs = exits(1, &["restore", copy, "--erasures", later, "--data", fresh]);
        assert!(needs.stderr.contains("--keys"), "{needs:?}");
        assert!(!Path::new(fresh).exists(), "what was made for it goes again");
    }
    // What was restored went on from the backup in another way than the log did.
    let other = exits(30, &["restore", later, "--erasures", new, "--keys", &keys, "--data", fresh]);
    assert!(other.stderr.contains("another history"), "{other:?}");
    for (backup, more) in [(copy, &["--keys", &keys][..]), (whole, &[])] {
        let args = [&["restore", backup, "--erasures", car, "--data", fresh, "--replace", "--json"], more];
        let restored = told(&args.concat());
        assert_eq!(restored["erased"][0]["payload"], json!(payload), "{restored}");
        let gone = exits(1, &["log", "show", payload, "--data", fresh]);
        assert!(gone.stderr.contains("erased"), "{gone:?}");
        exits(0, &["log", "verify", "--data", fresh]);
        exits(0, &["call", "tools_list_categories", "--data", fresh]);
    }
    let stranger = temp.path().join("stranger");
    exits(0, &["call", "tools_list_categories", "--data", text(&stranger)]);
    let keys = format!("{}/keys", text(&stranger));
    let other = temp.path().join("other");
    let wrong = exits(1, &["restore", copy, "--keys", &keys, "--data", text(&other)]);
    assert!(wrong.stderr.contains("do not fit"), "{wrong:?}");
    assert!(!other.exists(), "what was made for it goes again");
    // A directory that was there stays, with what was in it.
    fs::create_dir(&other).expect("it can be made");
    exits(1, &["restore", copy, "--keys", &keys, "--data", text(&other)]);
    assert!(other.exists());
}

#[test]
fn what_does_not_verify_is_neither_a_backup_nor_restored() {
    let temp = temp();
    let paths = ["data", "copy", "more", "new"].map(|name| temp.path().join(name));
    let [data, copy, more, new] = paths.each_ref().map(|path| text(path));
    exits(0, &["call", "tools_list_categories", "--data", data]);
    exits(0, &["token", "add", "alice", "--scope", "mcp:call", "--data", data]);
    exits(0, &["backup", copy, "--keys", "--data", data]);
    assert_eq!(names(Path::new(copy)), ["head", "keys", "log.db", "tokens.json"]);
    let tokens = fs::read(Path::new(data).join("tokens.json")).expect("there are tokens");
    exits(0, &["token", "add", "bob", "--scope", "mcp:call", "--data", data]);
    let newer = fs::read(Path::new(data).join("tokens.json")).expect("there are tokens");
    exits(0, &["restore", copy, "--data", new]);
    assert_eq!(fs::read(Path::new(new).join("tokens.json")).expect("there are tokens"), tokens);
    // Tokens that are there are newer: what was revoked since does not come back.
    exits(0, &["restore", copy, "--replace", "--data", data]);
    assert_eq!(fs::read(Path::new(data).join("tokens.json")).expect("there are tokens"), newer);

    let forged = rusqlite::Connection::open(Path::new(copy).join("log.db")).expect("it opens");
    forged
        .execute_batch("DROP TRIGGER event_update; UPDATE event SET bytes = x'a0' WHERE seq = 1")
        .expect("whoever owns the file can");
    drop(forged);
    let before = names(Path::new(new));
    let refused = exits(40, &["restore", copy, "--replace", "--data", new]);
    assert!(refused.stdout.starts_with("invalid"), "{refused:?}");
    assert_eq!(names(Path::new(new)), before);
    exits(0, &["log", "verify", "--data", new]);
    exits(40, &["backup", more, "--data", copy]);
    assert!(!Path::new(more).exists() && Path::new(&format!("{more}.part")).exists());
}

#[test]
fn a_restore_that_broke_off_leaves_what_no_start_accepts() {
    let temp = temp();
    let paths = ["data", "copy", "half"].map(|name| temp.path().join(name));
    let [data, copy, half] = paths.each_ref().map(|path| text(path));
    exits(0, &["call", "tools_list_categories", "--data", data]);
    exits(0, &["backup", copy, "--keys", "--data", data]);
    exits(0, &["call", "tools_list_categories", "--data", data]);
    fs::create_dir_all(Path::new(half).join("keys")).expect("it can be made");
    let bring = |from: &str, name: &str| {
        fs::copy(Path::new(from).join(name), Path::new(half).join(name)).expect("it can be copied");
    };
    for name in ["head", "keys/log.key", "keys/salt.key"] {
        bring(data, name);
    }
    // What was there is moved aside, and nothing is moved in; then all but the head is.
    for moved in [&[][..], &["log.db"]] {
        moved.iter().for_each(|name| bring(copy, name));
        let refused = exits(1, &["call", "tools_list_categories", "--data", half]);
        assert!(refused.stderr.contains("but a head over"), "{refused:?}");
    }
    exits(0, &["restore", copy, "--replace", "--data", half]);
    exits(0, &["call", "tools_list_categories", "--data", half]);
}

#[test]
fn a_backup_and_a_restore_delete_nothing_that_they_did_not_make() {
    let temp = temp();
    let path = |name: &str| temp.path().join(name);
    let (data, copy, aside) = (path("data"), path("copy"), path("copy.part"));
    let data = text(&data);
    exits(0, &["call", "tools_list_categories", "--data", data]);
    // Somebody's own data directory has the name that a backup takes for its part.
    exits(0, &["call", "tools_list_categories", "--data", text(&aside)]);
    let before = fs::read(aside.join("log.db")).expect("it can be read");
    let refused = exits(1, &["backup", text(&copy), "--data", data]);
    assert!(refused.stderr.contains("no backup that broke off"), "{refused:?}");
    assert_eq!(fs::read(aside.join("log.db")).expect("it is there"), before);
    fs::rename(&aside, path("elsewhere")).expect("it can be moved");

    let slash = format!("{}/", text(&copy));
    exits(0, &["backup", &slash, "--keys", "--data", data]);
    fs::create_dir(path("empty")).expect("it can be made");
    exits(0, &["backup", &format!("{}/", text(&path("empty"))), "--data", data]);
    for inside in ["inside", "archives/inside"] {
        let within = Path::new(data).join(inside);
        let refused = exits(1, &["backup", text(&within), "--data", data]);
        assert!(refused.stderr.contains("lies within the data directory"), "{refused:?}");
        assert!(!within.exists());
    }

    // And somebody's own has the name under which later erasures are unpacked.
    let (back, unpacked) = (path("back"), path("back.erasures"));
    fs::rename(path("elsewhere"), &unpacked).expect("it can be moved");
    let archive = path("whole.car");
    exits(0, &["log", "export", "--format", "car", "-o", text(&archive), "--data", data]);
    let restore = ["restore", text(&copy), "--data", text(&back), "--erasures", text(&archive)];
    let refused = exits(1, &restore);
    assert!(refused.stderr.contains("move away what is there"), "{refused:?}");
    assert_eq!(fs::read(unpacked.join("log.db")).expect("it is there"), before);
    fs::remove_dir_all(&unpacked).expect("it can be removed");
    exits(0, &restore);
    assert!(!unpacked.exists(), "what was unpacked for this goes again");
    exits(0, &["log", "verify", "--data", text(&back)]);
}

#[test]
fn a_restore_that_is_repeated_still_knows_what_was_erased() {
    let temp = temp();
    let paths = ["data", "copy"].map(|name| temp.path().join(name));
    let [data, copy] = paths.each_ref().map(|path| text(path));
    let called = exits(0, &["call", "tools_list_categories", "--data", data]);
    let ended = told(&["log", "show", called.stderr.trim(), "--json", "--data", data]);
    let payload = ended["pay"][0]["cid"]["/"].as_str().expect("an output").to_owned();
    exits(0, &["backup", copy, "--data", data]);
    exits(0, &["erase", &payload, "--basis", "gdpr-17", "--data", data]);
    // What a restore leaves that was killed once the log was moved aside.
    let aside = Path::new(data).join("before-restore-20260101T000000Z");
    fs::create_dir(&aside).expect("it can be made");
    for name in ["log.db", "state.db", "keys"] {
        fs::rename(Path::new(data).join(name), aside.join(name)).expect("it is moved aside");
    }
    let restored = told(&["restore", copy, "--replace", "--json", "--data", data]);
    assert_eq!(restored["erased"][0]["payload"], json!(payload), "{restored}");
    assert_eq!(restored["keys"], true, "{restored}");
    exits(0, &["log", "verify", "--data", data]);
    let gone = exits(1, &["log", "show", &payload, "--data", data]);
    assert!(gone.stderr.contains("erased"), "{gone:?}");
}

#[test]
fn keys_that_are_not_the_logs_are_backed_up_by_nobody() {
    let temp = temp();
    let paths = ["data", "copy"].map(|name| temp.path().join(name));
    let [data, copy] = paths.each_ref().map(|path| text(path));
    exits(0, &["call", "tools_list_categories", "--data", data]);
    let salt = Path::new(data).join("keys/salt.key");
    let own = fs::read(&salt).expect("there is a key");
    fs::write(&salt, format!("{}\n", "cd".repeat(32))).expect("it can be written");
    let refused = exits(1, &["backup", copy, "--keys", "--data", data]);
    assert!(refused.stderr.contains("not those of the copy"), "{refused:?}");
    assert!(!Path::new(copy).exists());
    for command in [&["key", "rotate"][..], &["rebuild", "--sign"]] {
        let refused = exits(1, &[command, &["--data", data]].concat());
        assert!(refused.stderr.contains("the salt key does not fit the log"), "{command:?}: {refused:?}");
    }
    fs::write(&salt, own).expect("it can be written");
    exits(0, &["backup", copy, "--keys", "--data", data]);
}

#[test]
fn the_basis_of_an_erasure_is_a_code() {
    let temp = temp();
    let data = text(temp.path());
    let called = exits(0, &["call", "tools_list_categories", "--data", data]);
    let ended = told(&["log", "show", called.stderr.trim(), "--json", "--data", data]);
    let payload = ended["pay"][0]["cid"]["/"].as_str().expect("an output").to_owned();
    let long = "a".repeat(65);
    for basis in ["", "Jane Doe asked us", "caf\u{e9}", &long] {
        let refused = exits(1, &["erase", &payload, "--basis", basis, "--data", data]);
        assert!(refused.stderr.contains("a basis is a code"), "{refused:?}");
    }
    exits(0, &["log", "show", &payload, "--data", data]);
    exits(0, &["erase", &payload, "--basis", "gdpr-17", "--data", data]);
}
