//! Evidence of a fork: two heads that one key signed, and the proof that no log has both.
//!
//! Invariant: [`Evidence::check`] needs nothing but the evidence; whoever is shown it believes nobody.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    block::Cid,
    identity::{
        Checkpoint, Verifier,
        rotation::{Keys, Rotation},
    },
    merkle::{Hash, verify_consistency},
};

/// Two signed heads of one log that disagree.
///
/// The tree of the larger head begins, by `proof`, with a tree of the smaller one's size under `root`; the smaller
/// head was signed over the same number of events under another root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The genesis block's CID.
    pub log: String,
    pub vkey: String,
    /// The head that was accepted first.
    pub held: String,
    /// The head that was told later.
    pub told: String,
    /// Base64.
    pub root: String,
    /// Base64.
    pub proof: Vec<String>,
    /// The changes of the log's keys, beginning with `vkey`; left out if there were none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<Change>,
}

/// One change of keys, with what its check needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    pub seq: u64,
    /// Base64.
    pub key: String,
    /// Base64.
    pub signature: String,
}

/// Why evidence proves no fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFork {
    #[error("the verifier key is unusable")]
    Key,
    #[error("a head is not signed by the log's key")]
    Head,
    #[error("the proof does not lead to the larger head's root")]
    Proof,
    #[error("the two heads are of one log")]
    Agree,
}

/// The sizes of two heads that disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub held: u64,
    pub told: u64,
}

impl Evidence {
    pub fn new(log: String, keys: &Keys, held: &str, told: &str, root: &Hash, proof: &[Hash]) -> Self {
        Self {
            log,
            vkey: keys.first().vkey(),
            held: held.to_owned(),
            told: told.to_owned(),
            root: BASE64_STANDARD.encode(root),
            proof: proof.iter().map(|hash| BASE64_STANDARD.encode(hash)).collect(),
            rotations: keys.rotations().iter().map(Change::of).collect(),
        }
    }

    /// Returns the log's keys; `None` if the changes do not lead from one key to the next.
    fn keys(&self) -> Option<Keys> {
        let log: Cid = self.log.parse().ok()?;
        let mut keys = Keys::new(log, Verifier::from_vkey(&self.vkey).ok()?);
        for change in &self.rotations {
            let key = BASE64_STANDARD.decode(&change.key).ok()?.try_into().ok()?;
            let signature = BASE64_STANDARD.decode(&change.signature).ok()?.try_into().ok()?;
            keys.rotate(&Rotation { seq: change.seq, key, signature }).ok()?;
        }
        Some(keys)
    }

    /// Checks both signatures, the proof, and that the heads disagree.
    pub fn check(&self) -> Result<Sizes, NoFork> {
        let keys = self.keys().ok_or(NoFork::Key)?;
        let open = |note: &str| keys.open(note).map_err(|_| NoFork::Head);
        let (held, told) = (open(&self.held)?, open(&self.told)?);
        let hash = |text: &String| -> Option<Hash> { BASE64_STANDARD.decode(text).ok()?.try_into().ok() };
        let root = hash(&self.root).ok_or(NoFork::Proof)?;
        let proof: Option<Vec<Hash>> = self.proof.iter().map(hash).collect();
        let (small, large) = if held.size <= told.size { (&held, &told) } else { (&told, &held) };
        if !proof.is_some_and(|proof| begins(small.size, &root, large, &proof)) {
            return Err(NoFork::Proof);
        }
        match small.root == root {
            true => Err(NoFork::Agree),
            false => Ok(Sizes { held: held.size, told: told.size }),
        }
    }
}

impl Change {
    fn of(rotation: &Rotation) -> Self {
        let (key, signature) =
            (BASE64_STANDARD.encode(rotation.key), BASE64_STANDARD.encode(rotation.signature));
        Self { seq: rotation.seq, key, signature }
    }
}

/// Returns whether the tree of `head` begins with `size` events under `root`.
pub fn begins(size: u64, root: &Hash, head: &Checkpoint, proof: &[Hash]) -> bool {
    verify_consistency(size, root, head.size, &head.root, proof)
}
