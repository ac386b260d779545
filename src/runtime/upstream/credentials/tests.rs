//! Challenges as servers write them, and the file of credentials as a thief or an accident leaves it.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use http::StatusCode;
use reqwest::Url;

use crate::runtime::upstream::credentials::{
    challenge::Challenge,
    redirect::is_answer,
    session::Registered,
    union,
    vault::{Record, Vault, VaultError, Wanted},
};

fn read(status: u16, values: &[&str]) -> Option<(Option<String>, Vec<String>)> {
    let url = Url::parse("https://up.example/mcp").expect("it is a url");
    let status = StatusCode::from_u16(status).expect("it is a status");
    let challenge = Challenge::read(status, &url, values.iter().copied())?;
    Some((challenge.value, challenge.scopes))
}

#[test]
fn only_a_401_and_a_403_for_scopes_want_another_token() {
    let wants = |value: &str, scopes: &[&str]| {
        Some((Some(value.to_owned()), scopes.iter().map(|scope| (*scope).to_owned()).collect()))
    };
    assert_eq!(read(401, &[]), Some((None, vec![])));
    assert_eq!(read(401, &["Bearer"]), wants("Bearer", &[]));
    let two = r#"Bearer realm="x", scope="a b""#;
    assert_eq!(read(401, &["Basic realm=\"y\"", two]), wants(two, &["a", "b"]));
    assert_eq!(read(403, &[]), None);
    assert_eq!(read(403, &[r#"Bearer error="invalid_token""#]), None);
    let short = r#"bearer error="insufficient_scope", scope="c""#;
    assert_eq!(read(403, &[short]), wants(short, &["c"]));
    assert_eq!(read(200, &[short]), None);
    assert_eq!(read(500, &[short]), None);
    for odd in ["Bearer scope=\"", "Bearer error=", "\"", "Bearer resource_metadata=\"::\"", ""] {
        assert!(read(401, &[odd]).is_some());
    }
}

#[test]
fn scopes_are_joined_without_doubles() {
    let owned = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>();
    assert_eq!(union(owned(&["a", "b"]), &owned(&["b", "c", "c"])), owned(&["a", "b", "c"]));
}

#[test]
fn only_the_answer_to_the_login_under_way_is_one() {
    let at = "http://127.0.0.1:7/callback";
    assert!(is_answer(&format!("{at}?code=c&state=s%20t"), "s t"));
    for strange in ["", "?state=", "?state=s", "?code=s%20t", "#state=s%20t"] {
        assert!(!is_answer(&format!("{at}{strange}"), "s t"), "{strange}");
    }
    assert!(!is_answer("s t", "s t"));
}

/// A record with a secret in it.
fn record(secret: &str) -> Record {
    let client =
        Registered { id: "id".to_owned(), secret: Some(secret.to_owned()), redirect: "r".to_owned() };
    Record {
        url: "https://up.example/mcp".to_owned(),
        clients: BTreeMap::from([("https://issuer.example".to_owned(), client)]),
        wanted: Some(Wanted { challenge: Some("Bearer".to_owned()), scopes: vec!["a".to_owned()] }),
        ..Record::default()
    }
}

async fn put(vault: &Vault, name: &str, record: Option<Record>) {
    vault.hold().await.expect("nobody else has it").put(name, record).expect("it can be written");
}

fn secret(vault: &Vault, name: &str) -> Option<String> {
    let read = vault.read().expect("it can be read");
    read.get(name)?.clients.values().next()?.secret.clone()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[tokio::test]
async fn credentials_are_kept_sealed_and_by_name() {
    let dir = tempfile::tempdir().expect("there is room");
    let vault = Vault::of(dir.path());
    assert!(vault.read().expect("no file is no record").is_empty());
    put(&vault, "a", Some(record("hush-1"))).await;
    put(&vault, "b", Some(record("hush-2"))).await;
    put(&vault, "a", Some(record("hush-3"))).await;
    assert_eq!(
        (secret(&vault, "a").as_deref(), secret(&vault, "b").as_deref()),
        (Some("hush-3"), Some("hush-2"))
    );
    let files = ["credentials", "keys/credentials.key", "credentials.lock"].map(|file| dir.path().join(file));
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    let sealed = fs::read(&files[0]).expect("it is there");
    for open in [&b"hush"[..], b"issuer", b"Bearer"] {
        assert!(!sealed.windows(open.len()).any(|part| part == open));
    }
    put(&vault, "a", None).await;
    assert_eq!(secret(&vault, "a"), None);
    assert_eq!(secret(&vault, "b").as_deref(), Some("hush-2"));
}

#[tokio::test]
async fn a_changed_byte_or_another_key_opens_nothing_and_panics_nowhere() {
    let dir = tempfile::tempdir().expect("there is room");
    let vault = Vault::of(dir.path());
    put(&vault, "a", Some(record("hush-1"))).await;
    let (file, key) = (dir.path().join("credentials"), dir.path().join("keys/credentials.key"));
    let good = fs::read(&file).expect("it is there");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, bad).expect("it can be written");
        assert!(matches!(vault.read(), Err(VaultError::Sealed)), "byte {at}");
    }
    for len in 0..good.len() {
        fs::write(&file, &good[..len]).expect("it can be written");
        assert!(matches!(vault.read(), Err(VaultError::Sealed)), "{len} bytes");
    }
    fs::write(&file, &good).expect("it can be written");
    assert_eq!(secret(&vault, "a").as_deref(), Some("hush-1"));
    fs::write(&key, "00".repeat(32)).expect("it can be written");
    assert!(matches!(vault.read(), Err(VaultError::Sealed)));
    fs::write(&key, "short").expect("it can be written");
    assert!(matches!(vault.read(), Err(VaultError::Key)));
    fs::remove_file(&key).expect("it is there");
    assert!(matches!(vault.read(), Err(VaultError::Sealed)));
}
