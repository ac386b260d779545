//! Signed access tokens (JWT, RFC 7519) with claims as in RFC 9068, verified with a JWK set on disk.
//!
//! Invariants:
//! - a key has one algorithm: RSA RS256, P-256 ES256, Ed25519 EdDSA. Other keys of the set are ignored;
//! - a set without a usable key is refused as a whole. At start this is an error; later the keys read before stay in
//!   force;
//! - `iss`, `aud`, `exp` and `sub` are required, `nbf` is checked if present, and a token with a `crit` header is
//!   refused;
//! - a token whose header says another type than an access token's or plain `JWT` is refused;
//! - nothing is fetched over the network.

use std::{io, path::PathBuf, time::Instant};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::{AuthError, Denied, actor, is_actor_id, watched::Watched};
use crate::caller::{Caller, Scope};

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
    keys: Watched<Vec<Key>>,
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
        let keys = Watched::open(jwks_file, parse)?;
        Ok(Self { issuer: issuer.to_owned(), audience: audience.to_owned(), keys })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the caller that a token authenticates: its subject, with the scopes it names.
    pub(super) fn authenticate(&self, token: &str) -> Result<Caller, Denied> {
        self.authenticate_at(token, Instant::now())
    }

    /// Does the same; `now` only decides whether the file is checked again, and expiry goes by the wall clock.
    pub(super) fn authenticate_at(&self, token: &str, now: Instant) -> Result<Caller, Denied> {
        let claims = self.verify(token, now).ok_or(Denied::Invalid)?;
        if claims.iss != self.issuer || !is_actor_id(&claims.sub) {
            return Err(Denied::Invalid);
        }
        let scopes = scopes(&claims);
        Ok(Caller { actor: actor(claims.sub), scopes })
    }

    /// Returns the claims if the signature and the required claims are valid. A token without `kid` is accepted only if
    /// the set has one key.
    fn verify(&self, token: &str, now: Instant) -> Option<Claims> {
        let header = decode_header(token).ok()?;
        let fits = |said: &String| TYPES.iter().any(|known| known.eq_ignore_ascii_case(said));
        if header.crit.is_some() || !header.typ.as_ref().is_none_or(fits) {
            return None;
        }
        let keys = self.keys.current_at(now);
        let key = match (&header.kid, keys.as_slice()) {
            (Some(kid), keys) => keys.iter().find(|key| key.id.as_ref() == Some(kid)),
            (None, [only]) => Some(only),
            (None, _) => None,
        }?;
        let mut rules = Validation::new(key.algorithm);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.set_issuer(&[&self.issuer]);
        rules.set_audience(&[&self.audience]);
        rules.leeway = LEEWAY_S;
        rules.validate_nbf = true;
        decode::<Claims>(token, &key.key, &rules).ok().map(|token| token.claims)
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

/// Parses a JWK set. Returns the usable keys, at least one.
fn parse(bytes: Option<&[u8]>) -> io::Result<Vec<Key>> {
    let invalid = |message| io::Error::new(io::ErrorKind::InvalidData, message);
    let bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
    let set: KeySet = serde_json::from_slice(bytes)?;
    if set.keys.len() > KEYS_MAX {
        return Err(invalid("there are more than 100 keys"));
    }
    let keys: Vec<Key> = set.keys.into_iter().filter_map(key).collect();
    match keys.is_empty() {
        true => Err(invalid("there is no key for RS256, ES256 or EdDSA")),
        false => Ok(keys),
    }
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
