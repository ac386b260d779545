//! Assertions: how this node proves with a private key who it is at an authorization server (RFC 7523, `private_key_jwt`).
//!
//! Invariants:
//! - the key is read when it is used, stays in this room, and is in no error;
//! - an assertion is for one authorization server, for a minute, and is used once.

use std::{fs::File, io::Read, path::Path, time::Duration};

use http::header::{ACCEPT, CONTENT_TYPE};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Client, Url, redirect::Policy};
use serde::Serialize;
use serde_json::Value;

use crate::clock::now_s;

/// How long an assertion is good for.
const LIFE_S: u64 = 60;
/// The largest number of bytes of a key's file, and of an authorization server's answer.
const KEY_MAX: u64 = 64 * 1024;
const ANSWER_MAX: usize = 1024 * 1024;
/// How long an authorization server may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// What a token is asked for with.
pub struct Asking<'a> {
    /// Where tokens are given.
    pub endpoint: &'a str,
    /// The authorization server's name.
    pub issuer: &'a str,
    pub client_id: &'a str,
    /// The resource that the token is for.
    pub resource: &'a str,
    pub scopes: &'a [String],
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    jti: String,
    iat: u64,
    exp: u64,
}

/// Reads a private key in PEM. Returns it with the algorithm that it signs with: ES256, RS256 or EdDSA.
pub fn key(path: &Path) -> Result<(EncodingKey, Algorithm), String> {
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(KEY_MAX).read_to_end(&mut pem));
    read.map_err(|err| format!("its private key cannot be read: {}", err.kind()))?;
    let ec = EncodingKey::from_ec_pem(&pem).map(|key| (key, Algorithm::ES256));
    let ed = ec.or_else(|_| EncodingKey::from_ed_pem(&pem).map(|key| (key, Algorithm::EdDSA)));
    let rsa = ed.or_else(|_| EncodingKey::from_rsa_pem(&pem).map(|key| (key, Algorithm::RS256)));
    rsa.map_err(|_| "its private key is none in PEM: EC P-256 (PKCS#8), Ed25519 or RSA".to_owned())
}

/// Asks for a token in this node's own name. Returns the authorization server's answer, as it is kept.
///
/// Errors: what went wrong, with no more of the answer than one of `codes`.
pub async fn token(asking: &Asking<'_>, key: &Path, codes: &[&str]) -> Result<Value, String> {
    let endpoint = Url::parse(asking.endpoint).map_err(|_| "the token endpoint is no url".to_owned())?;
    let near = endpoint.host_str().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host));
    if endpoint.scheme() != "https" && !near {
        return Err("the token endpoint is not reached by https".to_owned());
    }
    if asking.issuer.is_empty() {
        return Err(
            "the authorization server does not give its name, so nothing can be asserted to it".to_owned()
        );
    }
    let assertion = assertion(asking, key)?;
    let scope = asking.scopes.join(" ");
    let mut form = vec![
        ("grant_type", "client_credentials"),
        ("client_assertion_type", TYPE),
        ("client_assertion", &assertion),
        ("resource", asking.resource),
    ];
    if !scope.is_empty() {
        form.push(("scope", &scope));
    }
    // Only the encoding of its query is of use here.
    let mut body = Url::parse("http://form").map_err(|_| "the request cannot be encoded".to_owned())?;
    body.query_pairs_mut().extend_pairs(form);
    let mut client = Client::builder().timeout(ANSWER_TIMEOUT).redirect(Policy::none());
    if endpoint.scheme() == "http" {
        // Without TLS, a machine without certificate authorities is good enough.
        client = client.tls_certs_only([]);
    }
    let client = client.build().map_err(|_| "http cannot be prepared".to_owned())?;
    let request = client
        .post(endpoint)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(body.query().unwrap_or_default().to_owned());
    let lost = |_| "the authorization server cannot be reached".to_owned();
    let mut response = request.send().await.map_err(lost)?;
    let status = response.status();
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(lost)? {
        if text.len() + chunk.len() > ANSWER_MAX {
            return Err("the authorization server's answer is too long".to_owned());
        }
        text.extend_from_slice(&chunk);
    }
    let answer: Value = serde_json::from_slice(&text).unwrap_or_default();
    if status.is_success() {
        return Ok(answer);
    }
    let code = codes.iter().find(|code| answer["error"].as_str() == Some(code));
    Err(match code {
        Some(code) => format!("the authorization server gave this client no token ({code})"),
        None => format!("the authorization server gave this client no token (status {})", status.as_u16()),
    })
}

fn assertion(asking: &Asking<'_>, path: &Path) -> Result<String, String> {
    let (key, algorithm) = key(path)?;
    let now = now_s();
    let claims = Claims {
        iss: asking.client_id,
        sub: asking.client_id,
        aud: asking.issuer,
        jti: uuid::Uuid::now_v7().to_string(),
        iat: now,
        exp: now + LIFE_S,
    };
    let header = Header { typ: Some("client-authentication+jwt".to_owned()), ..Header::new(algorithm) };
    let signed = jsonwebtoken::encode(&header, &claims, &key);
    signed.map_err(|_| "its private key cannot sign".to_owned())
}
