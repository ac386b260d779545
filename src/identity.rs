//! The log's signing identity: its origin, its Ed25519 key, and the heads that the key signs.
//!
//! Invariants:
//! - a head is a C2SP tlog-checkpoint in a C2SP signed-note, under a key that is named by the log's origin;
//! - [`open_checkpoint`] returns only what the given key signed; signatures of other keys prove nothing here;
//! - a verifier key has one text, and no `Debug` shows a seed.

pub mod rotation;

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use signed_note::{Note, is_key_name_valid, key_id, new_ed25519_verifier_key};

use crate::block::Sha256Digest;

/// An origin has at most this many bytes.
const ORIGIN_MAX: usize = 255;
/// A signed head has at most this many bytes.
pub const CHECKPOINT_MAX: usize = 16 * 1024;
/// A head has at most this many signatures. C2SP signed-note asks verifiers to accept at least 16.
const SIGNATURES_MAX: usize = 16;

/// The signature type of Ed25519 in a C2SP signed-note.
const ALGORITHM: u8 = 1;

/// What a log signs: its origin, its number of events and their Merkle root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Sha256Digest,
}

/// Says why an origin or a key cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("origin is not a key name: 1 to 255 bytes without spaces, pluses or control characters")]
    Origin,
    #[error("not an ed25519 public key")]
    Key,
    #[error("not a verifier key: expected origin+hash+base64 of an ed25519 key")]
    Malformed,
}

/// Says why a note is not a head of the given log.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CheckpointError {
    #[error("not a signed note of at most 16384 bytes and 16 signatures")]
    Note,
    #[error("note is signed but holds no checkpoint")]
    Malformed,
    #[error("note has no signature of the expected key")]
    Unsigned,
    #[error("signature of the expected key is wrong")]
    Signature,
    #[error("checkpoint is of another log: {origin}")]
    Origin { origin: String },
}

/// Signs a log's heads.
pub struct Signer {
    verifier: Verifier,
    key: SigningKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signer").field(&self.vkey()).finish()
    }
}

impl Signer {
    /// Returns the identity named `origin` with the Ed25519 key of `seed`.
    pub fn new(origin: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        let key = SigningKey::from_bytes(&seed);
        let verifier = Verifier::from_key(origin, key.verifying_key().to_bytes())?;
        Ok(Self { verifier, key })
    }

    pub fn origin(&self) -> &str {
        self.verifier.origin()
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.verifier.public_key()
    }

    /// Returns the verifier key as text: `origin+hash+base64`.
    pub fn vkey(&self) -> String {
        self.verifier.vkey()
    }

    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Returns the signed head over `size` events under `root`. It must not leave this process before those events are
    /// durable.
    pub fn sign_checkpoint(&self, size: u64, root: &Sha256Digest) -> String {
        let origin = self.origin();
        let text = format!("{origin}\n{size}\n{}\n", BASE64_STANDARD.encode(root));
        let id = self.verifier.id.to_be_bytes();
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let signed = BASE64_STANDARD.encode([&id[..], &signature].concat());
        format!("{text}\n\u{2014} {origin} {signed}\n")
    }
}

/// A log's origin and public key, which suffice to check its heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    origin: String,
    id: u32,
    key: VerifyingKey,
}

/// Returns whether the y coordinate of a public key is below the prime 2^255 - 19.
fn is_canonical(key: &[u8; 32]) -> bool {
    let highest = key[31] & 0x7f == 0x7f && key[1..31].iter().all(|byte| *byte == 0xff);
    !(highest && key[0] >= 0xed)
}

impl Verifier {
    pub fn from_key(origin: &str, key: [u8; 32]) -> Result<Self, KeyError> {
        let named =
            origin.len() <= ORIGIN_MAX && is_key_name_valid(origin) && !origin.contains(char::is_control);
        if !named {
            return Err(KeyError::Origin);
        }
        let id = key_id(origin, &[&[ALGORITHM], &key[..]].concat());
        let key = VerifyingKey::from_bytes(&key).map_err(|_| KeyError::Key)?;
        // Anyone can sign under a key of small order. A key must also have only one encoding (RFC 8032, section 5.1.3).
        if key.is_weak() || !is_canonical(key.as_bytes()) {
            return Err(KeyError::Key);
        }
        Ok(Self { origin: origin.to_owned(), id, key })
    }

    /// Parses `origin+hash+base64`.
    pub fn from_vkey(vkey: &str) -> Result<Self, KeyError> {
        let mut parts = vkey.splitn(3, '+');
        let (Some(origin), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Malformed);
        };
        let key = BASE64_STANDARD.decode(key).ok();
        let Some([ALGORITHM, key @ ..]) = key.as_deref() else {
            return Err(KeyError::Malformed);
        };
        let key = key.try_into().map_err(|_| KeyError::Malformed)?;
        let verifier = Self::from_key(origin, key)?;
        // Formatting the key again checks the hash, and that the text is the only one of this key.
        match verifier.vkey() == vkey {
            true => Ok(verifier),
            false => Err(KeyError::Malformed),
        }
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// Returns the verifier key as text: `origin+hash+base64`.
    pub fn vkey(&self) -> String {
        new_ed25519_verifier_key(&self.origin, &self.key)
    }
}

/// Returns the head in a note that `verifier` signed.
///
/// Signatures of other keys are ignored. A wrong signature of this key refuses the note, even beside a valid one.
pub fn open_checkpoint(note: &str, verifier: &Verifier) -> Result<Checkpoint, CheckpointError> {
    let (text, signatures) = read_note(note)?;
    let ours = |signature: &&signed_note::Signature| {
        (signature.name(), signature.id()) == (verifier.origin(), verifier.id)
    };
    let mut signed = false;
    for signature in signatures.iter().filter(ours) {
        Signature::from_slice(signature.signature())
            .and_then(|signature| verifier.key.verify_strict(text.as_bytes(), &signature))
            .map_err(|_| CheckpointError::Signature)?;
        signed = true;
    }
    if !signed {
        return Err(CheckpointError::Unsigned);
    }
    let checkpoint = parse(text).ok_or(CheckpointError::Malformed)?;
    match checkpoint.origin == verifier.origin {
        true => Ok(checkpoint),
        false => Err(CheckpointError::Origin { origin: checkpoint.origin }),
    }
}

/// Checks that a text has the form of a signed head, whoever signed it.
pub fn check_form(note: &str) -> Result<(), CheckpointError> {
    let (text, _) = read_note(note)?;
    parse(text).map(|_| ()).ok_or(CheckpointError::Malformed)
}

/// Returns the text of a signed note, and its signatures, none of which was checked. Errors: `Note`.
fn read_note(note: &str) -> Result<(&str, Vec<signed_note::Signature>), CheckpointError> {
    if note.len() > CHECKPOINT_MAX {
        return Err(CheckpointError::Note);
    }
    let parsed = Note::from_bytes(note.as_bytes()).map_err(|_| CheckpointError::Note)?;
    // A blank line separates the text from the signatures.
    let (text, lines) = note.split_at(parsed.text().len());
    let lines = lines.lines().skip(1).take(SIGNATURES_MAX + 1);
    let signatures: Result<Vec<_>, _> =
        lines.map(|line| signed_note::Signature::from_bytes(line.as_bytes())).collect();
    match signatures {
        Ok(signatures) if signatures.len() <= SIGNATURES_MAX => Ok((text, signatures)),
        Ok(_) | Err(_) => Err(CheckpointError::Note),
    }
}

/// Returns the size that a head states, without checking a signature; returns 0 if the text is no head.
pub fn claimed_size(note: &str) -> u64 {
    note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Parses the text of a checkpoint. Extension lines are ignored, but must not be empty.
fn parse(text: &str) -> Option<Checkpoint> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    let number: u64 = size.parse().ok()?;
    let canonical = number.to_string() == size && !origin.is_empty() && lines.all(|l| !l.is_empty());
    let root = BASE64_STANDARD.decode(root).ok()?.try_into().ok()?;
    canonical.then(|| Checkpoint { origin: origin.to_owned(), size: number, root })
}

#[cfg(test)]
mod tests;
