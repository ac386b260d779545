//! Tests of authentication: tokens and headers as data, with keys that are made here.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::pkcs8::EncodePrivateKey;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use p256::elliptic_curve::{rand_core::OsRng, sec1::ToEncodedPoint};
use rsa::{pkcs1::EncodeRsaPrivateKey, traits::PublicKeyParts};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Access, Denied, Tokens, Verifier, tokens};
use crate::{
    caller::{Caller, Scope},
    clock::now_s,
};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://cairn.example/mcp";

fn ask(access: &Access, token: &str) -> Result<Caller, Denied> {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is a header value");
    access.authenticate(Some(&value))
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

#[test]
fn an_open_door_lets_everyone_do_everything_as_local() {
    let caller = Access::Open.authenticate(None).expect("open is open");
    assert_eq!((caller.actor.id.as_str(), caller.actor.role.as_str()), ("local", "client"));
    assert!([Scope::Call, Scope::Audit, Scope::Admin].into_iter().all(|scope| caller.may(scope)));
}

#[test]
fn only_one_well_formed_bearer_header_is_read() {
    let directory = directory();
    let (_, token) = tokens::add(directory.path(), "ann", &[Scope::Call], None).expect("a token is made");
    let access = Access::Static(Tokens::open(directory.path()).expect("the file is readable"));
    assert_eq!(access.authenticate(None).err(), Some(Denied::Missing));
    let cases = [
        (format!("Bearer {token}"), None),
        (format!("bearer   {token}"), None),
        (token.clone(), Some(Denied::Invalid)),
        (format!("Basic {token}"), Some(Denied::Invalid)),
        ("Bearer ".to_owned(), Some(Denied::Invalid)),
        (format!("Bearer {}", "x".repeat(9000)), Some(Denied::Invalid)),
        (format!("Bearer {token}x"), Some(Denied::Invalid)),
        (format!("Bearer {}", token.to_uppercase()), Some(Denied::Invalid)),
    ];
    for (header, expected) in cases {
        let value = HeaderValue::from_str(&header).expect("a header value");
        assert_eq!(access.authenticate(Some(&value)).err(), expected, "{header}");
    }
}

#[test]
fn a_static_token_is_shown_once_and_kept_as_a_digest() {
    let directory = directory();
    let (entry, token) =
        tokens::add(directory.path(), "ann", &[Scope::Call, Scope::Audit], None).expect("a token is made");
    let path = directory.path().join("tokens.json");
    let text = fs::read_to_string(&path).expect("the file is there");
    assert!(token.starts_with("cairn_") && token.len() == 58 && !text.contains(&token));
    assert_eq!(fs::metadata(&path).expect("the file is there").permissions().mode() & 0o777, 0o600);
    assert_eq!(tokens::list(directory.path()).expect("the file is readable"), [entry]);

    let access = Access::Static(Tokens::open(directory.path()).expect("the file is readable"));
    let caller = ask(&access, &token).expect("the token is in force");
    assert_eq!(caller.actor.id, "ann");
    assert!(caller.may(Scope::Audit) && !caller.may(Scope::Admin));
}

#[test]
fn expired_and_revoked_tokens_are_refused() {
    let directory = directory();
    let add =
        |expires| tokens::add(directory.path(), "ann", &[Scope::Call], expires).expect("a token is made");
    let (_, expired) = add(Some(now_s()));
    let (_, fresh) = add(Some(now_s() + 3600));
    let (kept, revoked) = add(None);
    let access = Access::Static(Tokens::open(directory.path()).expect("the file is readable"));
    assert_eq!(ask(&access, &expired).err(), Some(Denied::Invalid));
    assert!(ask(&access, &fresh).is_ok() && ask(&access, &revoked).is_ok());

    tokens::revoke(directory.path(), &kept.id).expect("the token is known");
    assert!(tokens::revoke(directory.path(), &kept.id).is_err());
    let access = Access::Static(Tokens::open(directory.path()).expect("the file is readable"));
    assert_eq!(ask(&access, &revoked).err(), Some(Denied::Invalid));
    assert!(ask(&access, &fresh).is_ok());
}

#[test]
fn a_running_server_notices_a_changed_file() {
    let directory = directory();
    let tokens = Tokens::open(directory.path()).expect("no file is no tokens");
    let (entry, token) = tokens::add(directory.path(), "ann", &[Scope::Call], None).expect("a token is made");
    let at = |seconds| tokens.admit_at(&token, std::time::Instant::now() + Duration::from_secs(seconds));
    assert_eq!(at(0).err(), Some(Denied::Invalid));
    assert!(at(10).is_ok());
    let path = directory.path().join("tokens.json");
    let good = fs::read(&path).expect("the file is there");
    let version = tokens.version();
    fs::write(&path, "garbage").expect("the file can be written");
    assert_eq!(at(20).err(), Some(Denied::Unverifiable), "an unreadable file lets nobody in");
    assert!(tokens.trouble().is_some() && tokens.version() != version);
    assert_eq!(at(30).err(), Some(Denied::Unverifiable));
    fs::write(&path, &good).expect("the file can be written");
    assert!(at(40).is_ok(), "it is tried again");
    assert!(tokens.trouble().is_none());
    // Another file of the same length and time differs by what changed it.
    let written = fs::metadata(&path).and_then(|file| file.modified()).expect("the file is there");
    let other = String::from_utf8(good).expect("text").replace(&entry.sha256, &"0".repeat(64));
    fs::write(&path, other).expect("the file can be written");
    let file = fs::File::options().write(true).open(&path).expect("the file can be opened");
    file.set_modified(written).expect("its time can be set");
    assert_eq!(at(50).err(), Some(Denied::Invalid), "a revoked token is revoked");
    fs::remove_file(directory.path().join("tokens.json")).expect("the file can be removed");
    assert_eq!(at(60).err(), Some(Denied::Invalid), "{}", entry.id);
}

#[test]
fn names_and_scopes_are_checked_before_a_token_is_made() {
    let directory = directory();
    for name in ["", " ann", "a\nb", "\u{202e}ann", &"x".repeat(129)] {
        assert!(tokens::add(directory.path(), name, &[Scope::Call], None).is_err(), "{name:?}");
    }
    assert!(tokens::add(directory.path(), "ann", &[], None).is_err());
    assert!(tokens::list(directory.path()).expect("no file is no tokens").is_empty());
}

/// An issuer with an Ed25519, a P-256 and an RSA key, and a server that trusts it.
struct Issuer {
    ed: EncodingKey,
    es: EncodingKey,
    rs: EncodingKey,
    ed_public: Vec<u8>,
    access: Access,
    directory: TempDir,
}

fn issuer() -> Issuer {
    let ed = ed25519_dalek::SigningKey::generate(&mut OsRng);
    let es = p256::SecretKey::random(&mut OsRng);
    let rs = rsa::RsaPrivateKey::new(&mut OsRng, 2048).expect("a key can be made");
    let short = rsa::RsaPrivateKey::new(&mut OsRng, 512).expect("a key can be made");
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = |kid: &str, rest: Value| {
        let mut jwk = json!({"kid": kid, "use": "sig"});
        jwk.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        jwk
    };
    let rsa_jwk = |key: &rsa::RsaPrivateKey| json!({"kty": "RSA", "n": b64(&key.n().to_bytes_be()), "e": b64(&key.e().to_bytes_be())});
    let point = es.public_key().to_encoded_point(false);
    let [x, y] = [point.x(), point.y()].map(|part| b64(part.expect("an uncompressed point has both")));
    let es_jwk = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y});
    let keys = json!({"keys": [
        jwk("ed", json!({"kty": "OKP", "crv": "Ed25519", "x": b64(ed.verifying_key().as_bytes())})),
        jwk("es", es_jwk),
        jwk("rs", rsa_jwk(&rs)),
        jwk("short", rsa_jwk(&short)),
        jwk("hmac", json!({"kty": "oct", "k": b64(b"a shared secret of thirty-two by")})),
        jwk("else", json!({"kty": "OKP", "crv": "Ed25519", "alg": "RS256", "x": b64(ed.verifying_key().as_bytes())})),
        {"kty": "unheard-of"},
    ]});
    let directory = directory();
    let path = directory.path().join("keys.json");
    fs::write(&path, keys.to_string()).expect("the file can be written");
    let der = |document: &[u8]| document.to_vec();
    Issuer {
        ed: EncodingKey::from_ed_der(&der(ed.to_pkcs8_der().expect("a key has a form").as_bytes())),
        es: EncodingKey::from_ec_der(&der(es.to_pkcs8_der().expect("a key has a form").as_bytes())),
        rs: EncodingKey::from_rsa_der(&der(rs.to_pkcs1_der().expect("a key has a form").as_bytes())),
        ed_public: ed.verifying_key().as_bytes().to_vec(),
        access: Access::Jwt(Verifier::open(path, ISSUER, AUDIENCE).expect("the keys are readable")),
        directory,
    }
}

/// Returns valid claims with `changes` applied to them; `null` removes a claim.
fn claims(changes: Value) -> Value {
    let now = now_s();
    let mut claims =
        json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, "scope": "mcp:call openid"});
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
    claims
}

fn sign(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    encode(&header, claims, key).expect("claims can be signed")
}

#[test]
fn each_kind_of_key_verifies_its_own_algorithm() {
    let issuer = issuer();
    for (algorithm, kid, key) in [
        (Algorithm::EdDSA, "ed", &issuer.ed),
        (Algorithm::ES256, "es", &issuer.es),
        (Algorithm::RS256, "rs", &issuer.rs),
    ] {
        let caller = ask(&issuer.access, &sign(algorithm, Some(kid), key, &claims(json!({})))).expect(kid);
        assert_eq!(caller.actor.id, "ann");
        assert_eq!(caller.scopes, [Scope::Call]);
    }

    let ed = |changes| sign(Algorithm::EdDSA, Some("ed"), &issuer.ed, &claims(changes));
    let refused = [
        ("an unknown key", sign(Algorithm::EdDSA, Some("who"), &issuer.ed, &claims(json!({})))),
        ("no key named among several", sign(Algorithm::EdDSA, None, &issuer.ed, &claims(json!({})))),
        ("another key of the set", sign(Algorithm::EdDSA, Some("es"), &issuer.ed, &claims(json!({})))),
        ("a key whose alg is another", sign(Algorithm::EdDSA, Some("else"), &issuer.ed, &claims(json!({})))),
        (
            "another algorithm of the family",
            sign(Algorithm::RS512, Some("rs"), &issuer.rs, &claims(json!({}))),
        ),
        ("another padding", sign(Algorithm::PS256, Some("rs"), &issuer.rs, &claims(json!({})))),
        (
            "a public key taken for a secret",
            sign(
                Algorithm::HS256,
                Some("ed"),
                &EncodingKey::from_secret(&issuer.ed_public).expect("a secret"),
                &claims(json!({})),
            ),
        ),
        (
            "a shared secret",
            sign(
                Algorithm::HS256,
                Some("hmac"),
                &EncodingKey::from_secret(b"a shared secret of thirty-two by").expect("a secret"),
                &claims(json!({})),
            ),
        ),
        ("no algorithm", none(&claims(json!({})))),
        ("a changed payload", tampered(&ed(json!({})))),
        ("no signature", unsigned(&ed(json!({})))),
        ("a critical header", critical(&issuer.ed, &claims(json!({})))),
        ("words", "not.a.token".to_owned()),
    ];
    for (what, token) in refused {
        assert_eq!(ask(&issuer.access, &token).err(), Some(Denied::Invalid), "{what}");
    }

    let now = now_s();
    let by_claims = [
        (json!({"exp": now - 60}), false),
        (json!({"exp": now - 10}), true),
        (json!({"exp": null}), false),
        (json!({"exp": "soon"}), false),
        (json!({"nbf": now + 60}), false),
        (json!({"nbf": now + 10}), true),
        (json!({"aud": "https://other.example/mcp"}), false),
        (json!({"aud": [AUDIENCE, "https://other.example"]}), true),
        (json!({"aud": null}), false),
        (json!({"iss": "https://evil.example"}), false),
        (json!({"iss": [ISSUER]}), false),
        (json!({"iss": null}), false),
        (json!({"sub": null}), false),
        (json!({"sub": "a\u{7}"}), false),
        (json!({"sub": "x".repeat(129)}), false),
        (json!({"scope": null, "scp": ["mcp:call"]}), true),
        (json!({"scope": null, "scp": "mcp:call"}), true),
        (json!({"scope": 7}), false),
    ];
    for (changes, allowed) in by_claims {
        let answer = ask(&issuer.access, &ed(changes.clone()));
        assert_eq!(answer.as_ref().err(), (!allowed).then_some(&Denied::Invalid), "{changes}");
        assert!(answer.is_err() || answer.is_ok_and(|caller| caller.scopes == [Scope::Call]), "{changes}");
    }
    let nobody = ask(&issuer.access, &ed(json!({"scope": null}))).expect("a token without scopes is a token");
    assert!(!nobody.may(Scope::Call));
}

fn none(claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT", "kid": "ed"})), part(claims))
}

fn tampered(token: &str) -> String {
    let parts: Vec<_> = token.split('.').collect();
    let payload = URL_SAFE_NO_PAD.encode(claims(json!({"scope": "admin"})).to_string());
    format!("{}.{payload}.{}", parts[0], parts[2])
}

fn unsigned(token: &str) -> String {
    let (rest, _) = token.rsplit_once('.').expect("a token has three parts");
    format!("{rest}.")
}

fn typed(key: &EncodingKey, typ: Option<&str>) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some("ed".to_owned());
    header.typ = typ.map(str::to_owned);
    encode(&header, &claims(json!({})), key).expect("claims can be signed")
}

#[test]
fn a_token_of_another_type_than_an_access_tokens_is_refused() {
    let issuer = issuer();
    for (typ, allowed) in [
        (None, true),
        (Some("JWT"), true),
        (Some("jwt"), true),
        (Some("at+jwt"), true),
        (Some("application/at+jwt"), true),
        (Some("AT+JWT"), true),
        (Some("id_token+jwt"), false),
        (Some("logout+jwt"), false),
        (Some("dpop+jwt"), false),
        (Some("application/jwt"), false),
        (Some(""), false),
    ] {
        let answer = ask(&issuer.access, &typed(&issuer.ed, typ));
        assert_eq!(answer.err(), (!allowed).then_some(Denied::Invalid), "{typ:?}");
    }
}

fn critical(key: &EncodingKey, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some("ed".to_owned());
    header.crit = Some(vec!["unheard-of".to_owned()]);
    encode(&header, claims, key).expect("claims can be signed")
}

#[test]
fn a_set_without_a_usable_key_is_refused_at_start() {
    let directory = directory();
    let path = directory.path().join("keys.json");
    for text in [r#"{"keys": []}"#, r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#, "{}", "["] {
        fs::write(&path, text).expect("the file can be written");
        assert!(Verifier::open(path.clone(), ISSUER, AUDIENCE).is_err(), "{text}");
    }
    assert!(Verifier::open(directory.path().join("none"), ISSUER, AUDIENCE).is_err());
}

#[test]
fn keys_are_those_of_the_file_and_without_any_nobody_comes_in() {
    let issuer = issuer();
    let Access::Jwt(verifier) = &issuer.access else { panic!("an issuer is trusted") };
    let token = sign(Algorithm::EdDSA, Some("ed"), &issuer.ed, &claims(json!({})));
    let path = issuer.directory.path().join("keys.json");
    let started = std::time::Instant::now();
    let other = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "ed",
                              "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let good = fs::read_to_string(&path).expect("the file is there");
    let replaced = [
        (r#"{"keys": []}"#, Some(Denied::Unverifiable)),
        (r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#, Some(Denied::Unverifiable)),
        (&good, None),
        ("{}", Some(Denied::Unverifiable)),
        ("", Some(Denied::Unverifiable)),
        (other, Some(Denied::Invalid)),
        (&good, None),
    ];
    for (nth, (text, denied)) in (1..).zip(replaced) {
        fs::write(&path, text).expect("the file can be written");
        let looked = started + Duration::from_secs(10 * nth);
        assert_eq!(verifier.admit_at(&token, looked).err(), denied, "{text}");
    }
    fs::remove_file(&path).expect("the file can be removed");
    let looked = started + Duration::from_secs(100);
    assert_eq!(verifier.admit_at(&token, looked).err(), Some(Denied::Unverifiable), "a file that is gone");
}

#[test]
fn a_challenge_says_what_to_ask_for_and_where() {
    let url = "https://cairn.example/.well-known/oauth-protected-resource/mcp";
    let rest = format!("scope=\"mcp:call\", resource_metadata=\"{url}\"");
    for (denied, error) in [
        (Denied::Missing, ""),
        (Denied::Invalid, "error=\"invalid_token\", "),
        (Denied::Insufficient { scope: Scope::Call }, "error=\"insufficient_scope\", "),
    ] {
        assert_eq!(denied.challenge(url, &Scope::Call), format!("Bearer {error}{rest}"));
    }
}

mod fetched;
