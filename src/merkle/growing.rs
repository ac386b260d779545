//! The Merkle tree as the writer keeps it: its right edge and the tiles that changed.
//!
//! Invariant: the edge and the tiles taken so far determine the tree, so appending reads nothing.

use super::{
    HASH_LEN, Hash, Nodes, ProofError, TILE_HEIGHT, TILE_WIDTH, TileRow, Tiles, heights, join, node_hash,
};

/// The right edge of a growing tree, from which leaves are appended and the root is computed.
#[derive(Clone, Debug, Default)]
pub struct Growing {
    size: u64,
    /// Holds the roots of the complete subtrees from left to right: one for each set bit of `size`, the highest first.
    stack: Vec<Hash>,
    /// Holds the last tile of each level, which has fewer than [`TILE_WIDTH`] hashes.
    edge: Vec<EdgeTile>,
    /// Holds the tiles that were filled since the last [`Growing::take_changed`].
    full: Vec<TileRow>,
}

#[derive(Clone, Debug, Default)]
struct EdgeTile {
    index: u64,
    hashes: Vec<u8>,
    changed: bool,
}

impl Growing {
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the right edge of a stored tree of `size` leaves. Errors: a tile is missing or too short.
    pub fn resume<T: Tiles>(size: u64, tiles: &T) -> Result<Self, ProofError<T::Error>> {
        let mut nodes = Nodes::new(tiles);
        let mut stack = Vec::new();
        let mut start = 0;
        for height in heights(size) {
            stack.push(nodes.complete(height, start >> height)?);
            start += 1 << height;
        }
        let mut edge = Vec::new();
        let mut hashes = size;
        while hashes > 0 {
            let index = hashes >> TILE_HEIGHT;
            let width = (hashes as usize) % TILE_WIDTH;
            let level = edge.len() as u8;
            edge.push(EdgeTile {
                index,
                hashes: match width {
                    0 => Vec::new(),
                    _ => nodes.row(level, index, 0..width)?.to_vec(),
                },
                changed: false,
            });
            hashes = index;
        }
        Ok(Self { size, stack, edge, full: Vec::new() })
    }

    /// Appends a leaf. Computes one node hash on average.
    pub fn push(&mut self, leaf: Hash) {
        self.size += 1;
        self.store(0, &leaf);
        let mut node = leaf;
        for height in 1..=self.size.trailing_zeros() {
            let left = self.stack.pop().expect("the stack has a root for each bit of the size");
            node = node_hash(&left, &node);
            if height % TILE_HEIGHT == 0 {
                self.store((height / TILE_HEIGHT) as usize, &node);
            }
        }
        self.stack.push(node);
    }

    /// Returns the number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the root over all leaves so far. Computes at most 63 hashes.
    pub fn root(&self) -> Hash {
        join(&self.stack)
    }

    /// Returns the tiles that changed since the last call: first the filled ones, then those at the edge.
    ///
    /// Until they are taken, filled tiles are held in memory, 32 bytes a leaf.
    pub fn take_changed(&mut self) -> Vec<TileRow> {
        let mut changed = std::mem::take(&mut self.full);
        for (level, tile) in self.edge.iter_mut().enumerate() {
            if std::mem::take(&mut tile.changed) {
                changed.push(TileRow { level: level as u8, index: tile.index, hashes: tile.hashes.clone() });
            }
        }
        changed
    }

    /// Drops the filled tiles, which a caller that needs only the root has no use for.
    pub fn forget_tiles(&mut self) {
        self.full.clear();
    }

    fn store(&mut self, level: usize, hash: &Hash) {
        if level == self.edge.len() {
            self.edge.push(EdgeTile::default());
        }
        let tile = &mut self.edge[level];
        tile.hashes.extend(hash);
        tile.changed = true;
        if tile.hashes.len() == TILE_WIDTH * HASH_LEN {
            let next = EdgeTile { index: tile.index + 1, ..EdgeTile::default() };
            let EdgeTile { index, hashes, .. } = std::mem::replace(tile, next);
            self.full.push(TileRow { level: level as u8, index, hashes });
        }
    }
}
