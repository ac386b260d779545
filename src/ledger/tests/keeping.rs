//! The log's own keeping: which key salts it, which tokens and settings are in force, who read and who was refused.
//!
//! Invariant: what is on record says nothing about a key, a token or a setting that is secret.

use super::*;
use crate::{
    block::Block,
    event::{
        Event, Genesis, Position,
        body::LogOpened,
        keeping::{Reason, TokenAdded, TokenRevoked},
    },
    identity::Signer,
    ledger::{commit::log_fact, keeping::Keeping},
    log::Batch,
    merkle::{Growing, leaf_hash},
};

fn keep(ledger: &Ledger, keeping: Keeping) -> Ruling {
    let command = Command::Keep { keeping, actor: someone() };
    ledger.submit_blocking(command).expect("the ledger runs")
}

fn token(id: &str) -> TokenAdded {
    TokenAdded { token: id.into(), name: "ann".into(), scopes: vec!["mcp:call".into()], expires: None }
}

fn events(dir: &Path) -> Vec<Event> {
    let reader = SqliteReader::open(&dir.join("log.db")).expect("reads");
    (0..kinds(dir).len() as u64).filter_map(|seq| reader.event_at(seq).expect("reads")).collect()
}

fn swap_salt(dir: &Path) {
    fs::write(dir.join("keys/salt.key"), format!("{}\n", "ab".repeat(32))).expect("the key can be written");
}

#[test]
fn a_log_is_not_continued_with_another_salt_key() {
    let dir = tempfile::tempdir().expect("a directory");
    closed(opened(dir.path()));
    assert_eq!(kinds(dir.path()), ["log.opened"]);
    let Some(Body::LogOpened(facts)) = events(dir.path())[0].body() else { panic!("no first event") };
    assert!(facts.salt.is_some());
    swap_salt(dir.path());
    assert!(matches!(open(dir.path()), Err(OpenError::Salt)));
    assert_eq!(kinds(dir.path()), ["log.opened"]);
}

/// A log from before says at its next start which key salts it, once, and is held to it from then on.
#[test]
fn a_log_that_does_not_name_its_salt_key_names_it_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = Home::open(dir.path()).expect("a directory");
    home.make_keys(|| [7; 32]).expect("keys are made");
    let mut log = SqliteLog::open(&home.log_path(), true).expect("a log");
    let signer = Signer::new("cairn/old", [7; 32]).expect("a key name");
    let key = signer.public_key().into();
    let genesis = Genesis { v: 1, origin: "cairn/old".into(), key, created: 1, nonce: vec![1] };
    let genesis = Block::encode(&genesis);
    let body = Body::LogOpened(LogOpened { genesis: genesis.cid(), software: "cairn 0".into(), salt: None });
    let place = Position { log: genesis.cid(), seq: 0, prev: None, ts: 1 };
    let first = Event::seal(log_fact(node(), body), place).expect("a small fact");
    let mut tree = Growing::new();
    tree.push(leaf_hash(&first.cid()));
    let head = Some(signer.sign_checkpoint(1, &tree.root()));
    let batch = Batch { blocks: vec![genesis], events: vec![first], head };
    log.append(None, &batch).expect("an empty log takes it");
    drop(log);
    for _ in 0..2 {
        closed(opened(dir.path()));
        assert_eq!(kinds(dir.path()), ["log.opened", "log.salted"]);
    }
    swap_salt(dir.path());
    assert!(matches!(open(dir.path()), Err(OpenError::Salt)));
}

#[test]
fn a_token_is_recorded_once_by_whoever_says_it_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    assert!(matches!(keep(&ledger, Keeping::TokenAdded(token("a"))), Ruling::Done(_)));
    let in_force = |ids: &[&str]| Keeping::Tokens(ids.iter().map(|id| token(id)).collect());
    assert_eq!(keep(&ledger, Keeping::TokenAdded(token("a"))), Ruling::Unchanged);
    assert_eq!(keep(&ledger, in_force(&["a"])), Ruling::Unchanged);
    assert!(matches!(keep(&ledger, in_force(&["b", "c"])), Ruling::Done(_)));
    assert_eq!(keep(&ledger, in_force(&["b", "c"])), Ruling::Unchanged);
    let gone = |id: &str| Keeping::TokenRevoked(TokenRevoked { token: id.into() });
    assert_eq!(keep(&ledger, gone("a")), Ruling::Unchanged);
    assert!(matches!(keep(&ledger, gone("b")), Ruling::Done(_)));
    closed((ledger, running));
    let (ledger, running) = opened(dir.path());
    assert_eq!(keep(&ledger, in_force(&["c"])), Ruling::Unchanged);
    closed((ledger, running));
    let told: Vec<(String, String)> = events(dir.path())
        .iter()
        .skip(1)
        .map(|event| (event.fields().kind.clone(), event.fields().subject.clone()))
        .collect();
    let expected = [
        ("token.added", "token/a"),
        ("token.revoked", "token/a"),
        ("token.added", "token/b"),
        ("token.added", "token/c"),
        ("token.revoked", "token/b"),
    ];
    assert_eq!(told, expected.map(|(kind, subject)| (kind.to_owned(), subject.to_owned())));
}

#[test]
fn settings_are_recorded_where_they_are_not_those_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    let under = |door: &str, mode: &str, usual| Keeping::Configured {
        door: door.into(),
        settings: [("auth.mode".to_owned(), mode.to_owned())].into(),
        usual,
    };
    assert_eq!(keep(&ledger, under("serve", "none", true)), Ruling::Unchanged);
    assert!(matches!(keep(&ledger, under("serve", "static", false)), Ruling::Done(_)));
    assert_eq!(keep(&ledger, under("serve", "static", false)), Ruling::Unchanged);
    assert_eq!(keep(&ledger, under("stdio", "none", true)), Ruling::Unchanged);
    assert!(matches!(keep(&ledger, under("serve", "none", true)), Ruling::Done(_)));
    let mut many: std::collections::BTreeMap<String, String> =
        (0..70).map(|n| (format!("capture.tools.t{n:02}"), "digest".to_owned())).collect();
    many.insert("a".to_owned(), "long".repeat(1000));
    let many = Keeping::Configured { door: "serve".into(), settings: many, usual: false };
    assert!(matches!(keep(&ledger, many), Ruling::Done(_)));
    closed((ledger, running));
    let Some(Body::ConfigApplied(last)) = events(dir.path()).pop().and_then(|event| event.body()) else {
        panic!("the last event tells of settings")
    };
    assert_eq!((last.settings.len(), last.omitted), (64, 7));
    assert!(!last.settings.contains_key("a"));
}

#[test]
fn reads_and_refusals_stand_under_who_made_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ledger, running) = opened(dir.path());
    keep(&ledger, Keeping::Read { reads: 3, minute: 9 });
    keep(&ledger, Keeping::Refused { refusals: 2, minute: 9, reason: Reason::Scope });
    closed((ledger, running));
    let told = events(dir.path());
    assert!(told[1..].iter().all(|event| event.fields().actor == someone()));
    assert_eq!(kinds(dir.path()), ["log.opened", "access.read", "access.refused"]);
}
