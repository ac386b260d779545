//! Another key for a log's heads: what is on record, what a crash leaves, and who may go on.
//!
//! Invariant: every log here is opened again after the change, as a start does.

use super::*;
use crate::{
    ledger::{
        fitting,
        rotating::{Rotated, rotate},
    },
    query::keeping::{keys, keys_of_events},
    verify::{Checks, Verdict, verify},
};

fn rotated(dir: &Path, seed: u8) -> Rotated {
    let home = Home::open(dir).expect("opens");
    let _lock = home.lock("a test").expect("nobody has it");
    rotate(&home, &[seed; 32], &mut |_| {}).expect("the key changes")
}

fn verified(dir: &Path, checks: &Checks) -> Verdict {
    let report = verify(&Home::open(dir).expect("opens"), checks, &mut |_| {});
    println!("{:?}", report.faults);
    report.verdict
}

fn with(key: &str) -> Checks {
    Checks { key: Some(key.to_owned()), ..Checks::default() }
}

/// A log of three events, whose key then changed twice, with two events in between.
fn turned() -> (tempfile::TempDir, [String; 3]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let first = ledger.about().vkey.clone();
    echo(&ledger, "c1", None);
    closed((ledger, running));
    let Rotated { seq, before, now: second } = rotated(dir.path(), 40);
    assert_eq!((seq, &before), (3, &first));
    let (ledger, running) = opened(dir.path());
    assert_eq!(ledger.about().vkey, second);
    echo(&ledger, "c2", None);
    closed((ledger, running));
    let Rotated { seq, before, now: third } = rotated(dir.path(), 41);
    assert_eq!((seq, &before), (6, &second));
    (dir, [first, second, third])
}

#[test]
fn a_log_goes_on_under_another_key_and_verifies_with_any_of_its_keys() {
    let (dir, vkeys) = turned();
    let (ledger, running) = opened(dir.path());
    assert_eq!(ledger.about().vkey, vkeys[2]);
    echo(&ledger, "c3", None);
    let checkpoint = ledger.reach().borrow().checkpoint.clone();
    closed((ledger, running));
    for vkey in &vkeys {
        assert_eq!(verified(dir.path(), &with(vkey)), Verdict::Verified);
    }
    let stranger = crate::identity::Signer::new("cairn/other", [42; 32]).expect("a key name");
    assert_eq!(verified(dir.path(), &with(&stranger.vkey())), Verdict::Invalid);
    let kept = Checks { checkpoint: Some(checkpoint), ..Checks::default() };
    assert_eq!(verified(dir.path(), &kept), Verdict::Verified);
    // Without its state the log is read for its keys.
    let home = Home::open(dir.path()).expect("opens");
    opening::remove_state(&home).expect("removes");
    assert_eq!(verified(dir.path(), &Checks::default()), Verdict::Verified);
    let reader = SqliteReader::open(&home.log_path()).expect("reads");
    let genesis = fitting::genesis(&reader).expect("reads");
    let scanned = keys_of_events(&reader, &genesis).expect("follows");
    closed(opened(dir.path()));
    assert_eq!(keys(&home, &reader, &genesis).expect("follows"), scanned);
    assert_eq!(scanned.all().count(), 3);
}

/// Whoever has a former key can sign with it, but not for a log of that size.
#[test]
fn a_former_key_signs_no_later_head_and_opens_no_log() {
    let (dir, vkeys) = turned();
    let home = Home::open(dir.path()).expect("opens");
    let origin = vkeys[0].split('+').next().expect("an origin").to_owned();
    let former = crate::identity::Signer::new(&origin, [40; 32]).expect("a key name");
    let reader = SqliteReader::open(&home.log_path()).expect("reads");
    let note = reader.head().expect("reads").expect("a head");
    let root: Vec<u8> =
        data_encoding::BASE64.decode(note.lines().nth(2).expect("a root").as_bytes()).expect("base64");
    let forged = former.sign_checkpoint(7, &root.try_into().expect("32 bytes"));
    let given = Checks { checkpoint: Some(forged), ..Checks::default() };
    assert_eq!(verified(dir.path(), &given), Verdict::Invalid);
    fs::write(dir.path().join("keys/log.key"), format!("{}\n", "28".repeat(32))).expect("writes");
    assert!(matches!(open(dir.path()), Err(OpenError::Key)));
}

#[test]
fn a_change_that_a_crash_broke_off_is_ended_by_the_next_start() {
    // Before the commit: nothing names the new key, and it is taken away.
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let first = ledger.about().vkey.clone();
    closed((ledger, running));
    let home = Home::open(dir.path()).expect("opens");
    home.keep_peer_key().and_then(|()| home.put_next_key(&[40; 32])).expect("writes");
    let (ledger, running) = opened(dir.path());
    assert_eq!(ledger.about().vkey, first);
    closed((ledger, running));
    assert_eq!(home.next_key().expect("reads"), None);
    // After the commit: it is put in its place.
    let old = fs::read(dir.path().join("keys/log.key")).expect("reads");
    let Rotated { now, .. } = rotated(dir.path(), 40);
    fs::write(dir.path().join("keys/log.key"), old).expect("writes");
    home.put_next_key(&[40; 32]).expect("writes");
    let (ledger, running) = opened(dir.path());
    assert_eq!(ledger.about().vkey, now);
    closed((ledger, running));
    assert_eq!(home.next_key().expect("reads"), None);
}

#[test]
fn the_node_stays_who_it_is_to_others_and_misses_that_key_too() {
    let dir = tempfile::tempdir().expect("a directory");
    closed(opened(dir.path()));
    let home = Home::open(dir.path()).expect("opens");
    let before = home.keys().expect("reads").peer;
    rotated(dir.path(), 40);
    rotated(dir.path(), 41);
    let keys = home.keys().expect("reads");
    assert_eq!((keys.peer, keys.seed), (before, [41; 32]));
    fs::remove_file(dir.path().join("keys/peer.key")).expect("removes");
    let refused = open(dir.path()).err().expect("it is not opened").to_string();
    assert!(refused.contains("peer.key") && refused.contains("missing"), "{refused}");
}
