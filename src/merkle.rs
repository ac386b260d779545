//! The Merkle tree over the log: RFC 6962 hashing, the C2SP tlog-tiles layout, proofs and their verification.
//!
//! Invariants:
//! - a leaf is the 36-byte CID of an event and its index is the event's `seq`, so tiles hold no content;
//! - a stored hash never changes: a tile only gets longer, up to [`TILE_WIDTH`] hashes;
//! - no IO: stored tiles come in through [`Tiles`], changed ones go out through [`Growing::take_changed`].

mod growing;
mod path;
pub mod several;

use sha2::{Digest, Sha256};

pub use self::growing::Growing;
pub use self::path::{Level, TilePath, parse_tile_path, tile_path};
use crate::block::{CID_LEN, Cid};

/// A full tile has this many hashes and covers eight levels of the tree.
pub const TILE_WIDTH: usize = 1 << TILE_HEIGHT;
/// A hash has this many bytes.
pub const HASH_LEN: usize = 32;

const TILE_HEIGHT: u32 = 8;
/// Leaves and nodes are hashed with different prefixes, so that neither can pass for the other (RFC 6962, section 2.1).
const LEAF_PREFIX: [u8; 1] = [0];
const NODE_PREFIX: [u8; 1] = [1];

pub type Hash = [u8; HASH_LEN];

/// Returns the hash of the leaf that stands for the event `cid`.
pub fn leaf_hash(cid: &Cid) -> Hash {
    hash_leaf(&cid.to_bytes())
}

pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [0; 1 + 2 * HASH_LEN];
    bytes[..1].copy_from_slice(&NODE_PREFIX);
    bytes[1..1 + HASH_LEN].copy_from_slice(left);
    bytes[1 + HASH_LEN..].copy_from_slice(right);
    Sha256::digest(bytes).into()
}

/// Returns the root of the tree without leaves: SHA-256 of the empty string (RFC 6962, section 2.1).
fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Returns the C2SP tlog-tiles entry bundle of at most [`TILE_WIDTH`] CIDs. Each entry is a big-endian `u16` length and
/// the CID.
pub fn entries_bundle(cids: &[Cid]) -> Vec<u8> {
    let mut bundle = Vec::with_capacity(cids.len() * (2 + CID_LEN));
    for cid in cids {
        bundle.extend((CID_LEN as u16).to_be_bytes());
        bundle.extend(cid.to_bytes());
    }
    bundle
}

/// Reads stored tiles.
pub trait Tiles {
    type Error;

    /// Returns the stored hashes of one tile, one after another; returns none if there is no such tile. There may be
    /// more hashes than the caller's tree has.
    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Self::Error>;
}

/// A tile to be stored under its level and index. It replaces the stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileRow {
    pub level: u8,
    pub index: u64,
    /// Holds 1 to 256 hashes, one after another.
    pub hashes: Vec<u8>,
}

/// Says why a proof cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProofError<E> {
    #[error("{index} is not within a tree of {size}")]
    Range { index: u64, size: u64 },
    #[error("tile {index} of level {level} is missing or too short")]
    Missing { level: u8, index: u64 },
    #[error("tile cannot be read")]
    Tiles(#[source] E),
}

/// Returns the root of the first `size` leaves.
pub fn root_at<T: Tiles>(tiles: &T, size: u64) -> Result<Hash, ProofError<T::Error>> {
    Nodes::new(tiles).subtree(0, size)
}

/// Returns the proof that the leaf at `index` is in the tree of `size` leaves (RFC 9162, section 2.1.3.1).
pub fn inclusion<T: Tiles>(tiles: &T, index: u64, size: u64) -> Result<Vec<Hash>, ProofError<T::Error>> {
    if index >= size {
        return Err(ProofError::Range { index, size });
    }
    let mut nodes = Nodes::new(tiles);
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            proof.push(nodes.subtree(middle, end)?);
            end = middle;
        } else {
            proof.push(nodes.subtree(start, middle)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Returns the proof that the tree of `new` leaves begins with the tree of `old` leaves (RFC 9162, section 2.1.4.1).
///
/// The proof is empty if `old` is 0 or equal to `new`, because then there is nothing to prove.
pub fn consistency<T: Tiles>(tiles: &T, old: u64, new: u64) -> Result<Vec<Hash>, ProofError<T::Error>> {
    if old > new {
        return Err(ProofError::Range { index: old, size: new });
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let mut nodes = Nodes::new(tiles);
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, new);
    while end != old {
        let middle = start + split(end - start);
        if old <= middle {
            proof.push(nodes.subtree(middle, end)?);
            end = middle;
        } else {
            proof.push(nodes.subtree(start, middle)?);
            start = middle;
        }
    }
    // A verifier knows the old root, so the proof leaves it out if it is one of the nodes.
    if start > 0 {
        proof.push(nodes.subtree(start, end)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Returns whether `proof` shows that `leaf` is at `index` of the tree of `size` leaves under `root` (RFC 9162, section
/// 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last) = (index, size - 1);
    let mut node = *leaf;
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            node = node_hash(sibling, &node);
            climb_to_left_child(&mut at, &mut last);
        } else {
            node = node_hash(&node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && node == *root
}

/// Returns whether `proof` shows that the tree of `new` leaves begins with the tree of `old` leaves (RFC 9162, section
/// 2.1.4.2).
///
/// The empty tree begins every tree, but `old_root` must then be `empty_root`.
pub fn verify_consistency(old: u64, old_root: &Hash, new: u64, new_root: &Hash, proof: &[Hash]) -> bool {
    if old > new {
        return false;
    }
    if old == 0 {
        let empty = empty_root();
        return proof.is_empty() && *old_root == empty && (new > 0 || *new_root == empty);
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    let (first, rest) = match (old.is_power_of_two(), proof) {
        (true, rest) => (old_root, rest),
        (false, [first, rest @ ..]) => (first, rest),
        (false, []) => return false,
    };
    let (mut at, mut last) = (old - 1, new - 1);
    let shared = at.trailing_ones();
    at >>= shared;
    last >>= shared;
    let (mut old_node, mut new_node) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old_node = node_hash(sibling, &old_node);
            new_node = node_hash(sibling, &new_node);
            climb_to_left_child(&mut at, &mut last);
        } else {
            new_node = node_hash(&new_node, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && old_node == *old_root && new_node == *new_root
}

/// Skips the levels on which a node at the right edge has no sibling and passes up unchanged.
fn climb_to_left_child(at: &mut u64, last: &mut u64) {
    while *at & 1 == 0 && *at > 0 {
        *at >>= 1;
        *last >>= 1;
    }
}

/// Returns the largest power of two below `size`, which is at least 2.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// Returns the heights of the complete subtrees that make up a tree of `size` leaves, from left to right.
fn heights(size: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).rev().filter(move |bit| size >> bit & 1 == 1)
}

/// Returns the root over complete subtrees, given from left to right and each lower than the one before.
fn join(subtrees: &[Hash]) -> Hash {
    let mut right_to_left = subtrees.iter().rev();
    match right_to_left.next() {
        Some(last) => right_to_left.fold(*last, |right, left| node_hash(left, &right)),
        None => empty_root(),
    }
}

fn hash_leaf(data: &[u8]) -> Hash {
    Sha256::new().chain_update(LEAF_PREFIX).chain_update(data).finalize().into()
}

/// Computes nodes of the tree from stored tiles. The last tile is kept in memory, because neighbours in a proof often
/// share one.
struct Nodes<'a, T> {
    tiles: &'a T,
    last: Option<(u8, u64, Vec<u8>)>,
}

impl<'a, T: Tiles> Nodes<'a, T> {
    fn new(tiles: &'a T) -> Self {
        Self { tiles, last: None }
    }

    /// Returns the root of the leaves `start..end`. `start` must be a multiple of a power of two that is at least the
    /// span.
    fn subtree(&mut self, start: u64, end: u64) -> Result<Hash, ProofError<T::Error>> {
        let mut subtrees = Vec::new();
        let mut at = start;
        for height in heights(end - start) {
            subtrees.push(self.complete(height, at >> height)?);
            at += 1 << height;
        }
        Ok(join(&subtrees))
    }

    /// Returns the node `index` at `height`, whose leaves must all exist. Computes at most 127 hashes.
    fn complete(&mut self, height: u32, index: u64) -> Result<Hash, ProofError<T::Error>> {
        let level = (height / TILE_HEIGHT) as u8;
        let span = 1 << (height % TILE_HEIGHT);
        let first = index * span;
        let offset = first as usize % TILE_WIDTH;
        let row = self.row(level, first >> TILE_HEIGHT, offset..offset + span as usize)?;
        let mut hashes: Vec<Hash> = row
            .chunks_exact(HASH_LEN)
            .map(|hash| hash.try_into().expect("chunks are of this length"))
            .collect();
        while hashes.len() > 1 {
            hashes = hashes.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
        }
        Ok(hashes[0])
    }

    /// Returns some hashes of one tile.
    fn row(
        &mut self,
        level: u8,
        index: u64,
        hashes: std::ops::Range<usize>,
    ) -> Result<&[u8], ProofError<T::Error>> {
        let missing = ProofError::Missing { level, index };
        if !matches!(self.last, Some((l, i, _)) if (l, i) == (level, index)) {
            let tile = self.tiles.tile(level, index).map_err(ProofError::Tiles)?;
            self.last = tile.map(|tile| (level, index, tile));
        }
        self.last
            .as_ref()
            .and_then(|(_, _, tile)| tile.get(hashes.start * HASH_LEN..hashes.end * HASH_LEN))
            .ok_or(missing)
    }
}

#[cfg(test)]
mod tests;
