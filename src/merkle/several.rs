//! Proofs that several leaves are in one tree: the hashes of the largest subtrees that hold none of the leaves.
//!
//! Invariant: the leaves, their indexes and the size determine which subtrees those are, so a proof is only hashes,
//! from left to right; one hash too many or too few is refused.

use super::{Hash, Nodes, ProofError, Tiles, split};

/// Returns the proof for some leaves of the tree of `size` leaves. `holds(start, end)` returns whether any of them has
/// an index in `start..end`.
pub fn inclusion_of<T: Tiles>(
    tiles: &T,
    size: u64,
    holds: &dyn Fn(u64, u64) -> bool,
) -> Result<Vec<Hash>, ProofError<T::Error>> {
    let mut nodes = Nodes::new(tiles);
    let mut proof = Vec::new();
    // Holds the subtrees still to be looked at, the leftmost last. There are at most two for each level.
    let mut open = vec![(0, size)];
    while let Some((start, end)) = open.pop() {
        if !holds(start, end) {
            proof.push(nodes.subtree(start, end)?);
        } else if end - start > 1 {
            let middle = start + split(end - start);
            open.extend([(middle, end), (start, middle)]);
        }
    }
    Ok(proof)
}

/// Returns the root of the tree of `size` leaves that has these leaves at these indexes. Returns none if the indexes do
/// not rise, or if the proof has a hash too many or too few.
pub fn root_of(leaves: &[(u64, Hash)], size: u64, proof: &[Hash]) -> Option<Hash> {
    let rise = leaves.is_sorted_by(|(a, _), (b, _)| a < b) && leaves.last()?.0 < size;
    let mut rest = proof.iter();
    let root = rise.then(|| subtree(leaves, 0, size, &mut rest)).flatten()?;
    rest.next().is_none().then_some(root)
}

/// Returns the root of the leaves `start..end`, taking hashes from the proof. Recurses once for each level of the tree,
/// at most 64 times.
fn subtree(
    leaves: &[(u64, Hash)],
    start: u64,
    end: u64,
    rest: &mut std::slice::Iter<'_, Hash>,
) -> Option<Hash> {
    match leaves {
        [] => rest.next().copied(),
        [(_, leaf)] if end - start == 1 => Some(*leaf),
        _ => {
            let middle = start + split(end - start);
            let (left, right) = leaves.split_at(leaves.partition_point(|(place, _)| *place < middle));
            let left = subtree(left, start, middle, rest)?;
            let right = subtree(right, middle, end, rest)?;
            Some(super::node_hash(&left, &right))
        }
    }
}
