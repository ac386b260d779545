//! Signed access tokens (JWT, RFC 7519) with claims as in RFC 9068, verified with a JWK set on disk or at a URL.
//!
//! Invariants:
//! - a key has one algorithm: RSA RS256, P-256 ES256, Ed25519 EdDSA. Other keys of the set are ignored;
//! - a set on disk without a usable key is unusable as a whole. At start this is an error; later no token is let in until
//!   there is one with a key. An empty set at a URL lets none in either;
//! - `iss`, `aud`, `exp` and `sub` are required, `nbf` is checked if present, and a token with a `crit` header is
//!   refused;
//! - a token whose header says another type than an access token's or plain `JWT` is refused.

use std::{io, path::PathBuf, sync::Arc, time::Instant};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Admitted, AuthError, Denied, actor, fetched::Fetched, is_actor_id, watched::Watched};
use crate::{
    caller::{Caller, Scope},
    clock::now_s,
};

/// The allowed difference between the issuer's clock and ours, in seconds.
const LEEWAY_S: u64 = 30;
/// The largest number of keys in a set.
const KEYS_MAX: usize = 100;
/// The shortest RSA modulus in bytes (RFC 7518, section 3.3: 2048 bits).
const RSA_BYTES_MIN: usize = 2048 / 8;

/// The types that a token's header may name: an access token (RFC 9068, section 2.1), or no special one. A token of
/// the same issuer that is for something else says so.
const TYPES: [&str; 3] = ["at+jwt", "application/at+jwt", "JWT"];

/// Verifies tokens of one issuer for one audience.
pub struct Verifier {
    issuer: String,
    audience: String,
    keys: Source,
}

/// Where the keys are.
enum Source {
    File(Watched<Vec<Key>>),
    Url(Arc<Fetched<Vec<Key>>>),
}

/// Why a token is not let in.
enum Failed {
    /// No key has the id it names.
    Key,
    Token,
    /// There are no keys at the moment.
    NoKeys,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// The claims that are read of a token whose signature is valid. A claim of the wrong type makes the token invalid.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: f64,
    scope: Option<String>,
    scp: Option<Scopes>,
}

/// The `scp` claim: some issuers give a list, others words separated by spaces.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    List(Vec<String>),
    Words(String),
}

impl Verifier {
    /// Opens a verifier with the keys of a JWK set file. `audience` is the value that `aud` must contain.
    pub fn open(jwks_file: PathBuf, issuer: &str, audience: &str) -> Result<Self, AuthError> {
        let keys = Source::File(Watched::open(jwks_file, parse_file)?);
        Ok(Self { issuer: issuer.to_owned(), audience: audience.to_owned(), keys })
    }

    /// Opens a verifier with the keys of a JWK set at a URL, which is fetched when the first token comes. Errors: the URL
    /// cannot be asked.
    pub fn fetching(jwks_url: &str, issuer: &str, audience: &str) -> Result<Self, AuthError> {
        let keys = Fetched::new(jwks_url, parse_set).map_err(|reason| AuthError::Url { reason })?;
        Ok(Self {
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            keys: Source::Url(Arc::new(keys)),
        })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn version(&self) -> u64 {
        match &self.keys {
            Source::File(keys) => keys.version_at(Instant::now()),
            Source::Url(keys) => keys.version_at(Instant::now()),
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        match &self.keys {
            Source::File(keys) => keys.trouble(),
            Source::Url(keys) => keys.trouble(),
        }
    }

    pub(super) fn reload(&self) {
        match &self.keys {
            Source::File(keys) => keys.reload(),
            Source::Url(keys) => keys.expire(),
        }
    }

    /// Fetches the keys if there are none, or none with the id that this token names. Returns whether they were fetched.
    pub(super) async fn fetch_for(&self, token: &str) -> bool {
        let Source::Url(fetched) = &self.keys else { return false };
        match self.verify(token, Instant::now()) {
            Err(Failed::NoKeys) => fetched.fetch().await,
            Err(Failed::Key) => fetched.fetch_for_unknown().await,
            Ok(_) | Err(Failed::Token) => false,
        }
    }

    /// Returns the caller that a token authenticates, its subject with the scopes it names, and until when it does.
    ///
    /// `now` only decides whether the keys are checked again, and expiry goes by the wall clock.
    pub(super) fn admit_at(&self, token: &str, now: Instant) -> Result<Admitted, Denied> {
        let claims = self.verify(token, now).map_err(|failed| match failed {
            Failed::Key | Failed::Token => Denied::Invalid,
            Failed::NoKeys => Denied::Unverifiable,
        })?;
        if claims.iss != self.issuer || !is_actor_id(&claims.sub) {
            return Err(Denied::Invalid);
        }
        let scopes = scopes(&claims);
        // A number that is no time to speak of is saturated. What is let in by the leeway alone has all of it.
        let expires = claims.exp as u64;
        let until = if expires > now_s() { expires } else { expires.saturating_add(LEEWAY_S) };
        Ok(Admitted { caller: Caller { actor: actor(claims.sub), scopes }, until: Some(until) })
    }

    fn keys(&self, now: Instant) -> Option<Arc<Vec<Key>>> {
        match &self.keys {
            Source::File(keys) => keys.current_at(now),
            Source::Url(keys) => keys.current_at(now),
        }
    }

    /// Returns the claims if the signature and the required claims are valid. A token without `kid` is accepted only if
    /// the set has one key.
    fn verify(&self, token: &str, now: Instant) -> Result<Claims, Failed> {
        let header = decode_header(token).map_err(|_| Failed::Token)?;
        let fits = |said: &String| TYPES.iter().any(|known| known.eq_ignore_ascii_case(said));
        if header.crit.is_some() || !header.typ.as_ref().is_none_or(fits) {
            return Err(Failed::Token);
        }
        let keys = self.keys(now).ok_or(Failed::NoKeys)?;
        let key = match (&header.kid, keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|key| key.id.as_ref() == Some(kid)),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let key = key.ok_or(Failed::Key)?;
        let mut rules = Validation::new(key.algorithm);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[&self.audience]);
        rules.leeway = LEEWAY_S;
        rules.validate_nbf = true;
        decode::<Claims>(token, &key.key, &rules).map(|token| token.claims).map_err(|_| Failed::Token)
    }
}

fn scopes(claims: &Claims) -> Vec<Scope> {
    let words = claims.scope.as_deref().unwrap_or_default().split(' ');
    let listed: Vec<&str> = match &claims.scp {
        Some(Scopes::List(list)) => list.iter().map(String::as_str).collect(),
        Some(Scopes::Words(words)) => words.split(' ').collect(),
        None => Vec::new(),
    };
    words.chain(listed).filter_map(Scope::parse).collect()
}

/// Parses a JWK set on disk. Returns the usable keys, at least one.
fn parse_file(bytes: Option<&[u8]>) -> io::Result<Vec<Key>> {
    let keys = parse_set(bytes.ok_or(io::ErrorKind::NotFound)?)?;
    match keys.is_empty() {
        true => Err(invalid("there is no key for RS256, ES256 or EdDSA")),
        false => Ok(keys),
    }
}

/// Parses a JWK set. Returns the usable keys.
fn parse_set(bytes: &[u8]) -> io::Result<Vec<Key>> {
    // What the parser says may quote the set.
    let set: KeySet = serde_json::from_slice(bytes).map_err(|_| invalid("it is not a JWK set"))?;
    if set.keys.len() > KEYS_MAX {
        return Err(invalid("there are more than 100 keys"));
    }
    Ok(set.keys.into_iter().filter_map(key).collect())
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Returns a key if it can be used here: by its type, its strength, and its `use` and `alg` members.
fn key(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) if modulus_len(&rsa.n) >= RSA_BYTES_MIN => {
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        // The library's enum is open: an algorithm that is not named above is not used.
        _ => return None,
    };
    let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let agrees = jwk.common.key_algorithm.is_none_or(|said| said == named);
    if !signs || !agrees {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { id: jwk.common.key_id, algorithm, key })
}

/// Returns the bytes of an RSA modulus without leading zeros; 0 if it is not base64url.
fn modulus_len(n: &str) -> usize {
    URL_SAFE_NO_PAD.decode(n).map_or(0, |bytes| bytes.iter().skip_while(|byte| **byte == 0).count())
}
