//! Checks the tree against two other implementations, the vectors of RFC 6962, and the paths of C2SP tlog-tiles.

use std::{collections::HashMap, convert::Infallible};

use ct_merkle::{HashableLeaf, digest::Update, mem_backed_tree::MemoryBackedTree};
use sha2_next::Sha256;

use super::*;
use crate::block::Codec;

#[derive(Default)]
struct Stored(HashMap<(u8, u64), Vec<u8>>);

impl Tiles for Stored {
    type Error = Infallible;

    fn tile(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(&(level, index)).cloned())
    }
}

impl Stored {
    fn store(&mut self, growing: &mut Growing) {
        for row in growing.take_changed() {
            assert!((1..=TILE_WIDTH * HASH_LEN).contains(&row.hashes.len()));
            self.0.insert((row.level, row.index), row.hashes);
        }
    }
}

struct Leaf(Vec<u8>);

impl HashableLeaf for Leaf {
    fn hash<H: Update>(&self, hasher: &mut H) {
        hasher.update(&self.0);
    }
}

fn cid(index: u64) -> Cid {
    Cid::of(Codec::DagCbor, &index.to_be_bytes())
}

/// Returns a tree of `size` leaves that was stored in batches of `batch`.
fn grown(size: u64, batch: u64) -> (Growing, Stored) {
    let mut growing = Growing::new();
    let mut stored = Stored::default();
    for index in 0..size {
        growing.push(leaf_hash(&cid(index)));
        if (index + 1) % batch == 0 {
            stored.store(&mut growing);
        }
    }
    stored.store(&mut growing);
    (growing, stored)
}

/// Gives pseudo-random numbers (splitmix64) from a seed that a failing test prints.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn seed() -> u64 {
    let seed = std::time::UNIX_EPOCH.elapsed().expect("the clock is past 1970").as_nanos() as u64;
    println!("seed {seed}");
    seed
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).expect("hex")
}

#[test]
fn roots_of_the_certificate_transparency_vectors() {
    let leaves =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut growing = Growing::new();
    assert_eq!(growing.root()[..], hex(roots[0]));
    for (leaf, root) in leaves.iter().zip(&roots[1..]) {
        growing.push(hash_leaf(&hex(leaf)));
        assert_eq!(growing.root()[..], hex(root), "after {leaf:?}");
    }
}

#[test]
fn every_root_and_proof_up_to_600_is_that_of_another_make() {
    let (_, stored) = grown(600, 7);
    let mut theirs = MemoryBackedTree::<Sha256, Leaf>::new();
    let mut random = Random(seed());
    for size in 1..=600u64 {
        theirs.push(Leaf(cid(size - 1).to_bytes().to_vec()));
        let root = root_at(&stored, size).expect("all tiles are stored");
        assert_eq!(root[..], theirs.root().as_bytes()[..], "size {size}");
        // Small trees are tested at all indexes, larger ones at some.
        let indexes: Vec<u64> = match size {
            1..=40 => (0..size).collect(),
            _ => (0..2).map(|_| random.below(size)).collect(),
        };
        for index in indexes {
            check_inclusion(&stored, &theirs, index, size, &root);
            check_consistency(&stored, &theirs, index + 1, size, &root);
        }
    }
}

#[test]
fn larger_trees_agree_with_another_make() {
    let mut random = Random(seed());
    let mut theirs = MemoryBackedTree::<Sha256, Leaf>::new();
    for size in [65_535, 65_536, 65_537, 66_000 + random.below(5_000)] {
        let (growing, stored) = grown(size, 1 + random.below(1_024));
        for index in theirs.len()..size {
            theirs.push(Leaf(cid(index).to_bytes().to_vec()));
        }
        let root = root_at(&stored, size).expect("all tiles are stored");
        assert_eq!(root, growing.root());
        assert_eq!(root[..], theirs.root().as_bytes()[..]);
        for _ in 0..40 {
            let index = random.below(size);
            check_inclusion(&stored, &theirs, index, size, &root);
            check_consistency(&stored, &theirs, index + 1, size, &root);
        }
    }
}

fn check_inclusion(
    stored: &Stored,
    theirs: &MemoryBackedTree<Sha256, Leaf>,
    index: u64,
    size: u64,
    root: &Hash,
) {
    let proof = inclusion(stored, index, size).expect("index is within size");
    let other = theirs.prove_inclusion(index as usize);
    assert_eq!(proof.concat(), other.as_bytes(), "{index} of {size}");
    let leaf = leaf_hash(&cid(index));
    assert!(verify_inclusion(&leaf, index, size, &proof, root));
    assert!(!verify_inclusion(&leaf, index + 1, size, &proof, root));
    assert!(!verify_inclusion(&leaf_hash(&cid(size)), index, size, &proof, root));
    for at in 0..proof.len() {
        let mut bad = proof.clone();
        bad[at][0] ^= 1;
        assert!(!verify_inclusion(&leaf, index, size, &bad, root));
        bad.remove(at);
        assert!(!verify_inclusion(&leaf, index, size, &bad, root));
    }
    let longer = [&proof[..], &[*root]].concat();
    assert!(!verify_inclusion(&leaf, index, size, &longer, root));
    let record = proof.iter().map(|hash| tlog_tiles::Hash(*hash)).collect();
    tlog_tiles::check_record(&record, size, tlog_tiles::Hash(*root), index, tlog_tiles::Hash(leaf))
        .expect("a second verifier accepts the proof");
}

fn check_consistency(
    stored: &Stored,
    theirs: &MemoryBackedTree<Sha256, Leaf>,
    old: u64,
    new: u64,
    root: &Hash,
) {
    let old_root = root_at(stored, old).expect("all tiles are stored");
    let proof = consistency(stored, old, new).expect("old is within new");
    if old < new {
        let other = theirs.prove_consistency((new - old) as usize);
        assert_eq!(proof.concat(), other.as_bytes(), "{old} to {new}");
    }
    assert!(verify_consistency(old, &old_root, new, root, &proof));
    for at in 0..proof.len() {
        let mut bad = proof.clone();
        bad[at][31] ^= 1;
        assert!(!verify_consistency(old, &old_root, new, root, &bad), "{at} of {old} to {new}");
        bad.remove(at);
        assert!(!verify_consistency(old, &old_root, new, root, &bad));
    }
    let longer = [&proof[..], &[*root]].concat();
    assert!(!verify_consistency(old, &old_root, new, root, &longer));
    assert!(!verify_consistency(old, &[7; 32], new, root, &proof));
    assert!(!verify_consistency(old, &old_root, new, &[7; 32], &proof));
    let theirs = proof.iter().map(|hash| tlog_tiles::Hash(*hash)).collect();
    let (new_root, old_root) = (tlog_tiles::Hash(*root), tlog_tiles::Hash(old_root));
    tlog_tiles::check_tree(&theirs, new, new_root, old, old_root)
        .expect("a second verifier accepts the proof");
}

#[test]
fn a_resumed_tree_grows_as_if_it_had_never_stopped() {
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 600, 65_535, 65_536, 65_800] {
        let (mut whole, mut stored) = grown(size, 100);
        let root = whole.root();
        let mut resumed = Growing::resume(size, &stored).expect("all tiles are stored");
        assert_eq!(resumed.take_changed(), []);
        for index in size..size + 600 {
            assert_eq!((resumed.size(), resumed.root()), (whole.size(), whole.root()));
            whole.push(leaf_hash(&cid(index)));
            resumed.push(leaf_hash(&cid(index)));
        }
        assert_eq!(resumed.clone().take_changed(), whole.take_changed(), "resumed at {size}");
        // A crash between two commits can leave tiles beyond the size. They must change nothing.
        stored.store(&mut resumed);
        let behind = Growing::resume(size, &stored).expect("all tiles are stored");
        assert_eq!(behind.root(), root);
    }
}

#[test]
fn tiles_of_70_000_leaves_are_those_the_specification_lists() {
    let (_, stored) = grown(70_000, 1_000);
    let widths = |level: u8| -> Vec<usize> {
        let mut tiles: Vec<_> = stored.0.iter().filter(|((l, _), _)| *l == level).collect();
        tiles.sort();
        tiles.iter().map(|(_, tile)| tile.len() / HASH_LEN).collect()
    };
    assert_eq!(widths(0), [&[256; 273][..], &[112]].concat());
    assert_eq!(widths(1), [256, 17]);
    assert_eq!(widths(2), [1]);
    assert!(widths(3).is_empty());
}

#[test]
fn what_is_not_there_is_not_proven() {
    let (_, mut stored) = grown(600, 600);
    assert!(matches!(inclusion(&stored, 600, 600), Err(ProofError::Range { .. })));
    assert!(matches!(inclusion(&stored, 0, 0), Err(ProofError::Range { .. })));
    assert!(matches!(consistency(&stored, 601, 600), Err(ProofError::Range { .. })));
    assert!(matches!(root_at(&stored, 601), Err(ProofError::Missing { level: 0, index: 2 })));
    stored.0.remove(&(1, 0));
    assert!(matches!(root_at(&stored, 600), Err(ProofError::Missing { level: 1, index: 0 })));
    assert!(matches!(Growing::resume(600, &stored), Err(ProofError::Missing { .. })));
    assert!(!verify_inclusion(&[0; 32], 0, 0, &[], &empty_root()));
    assert!(verify_consistency(0, &empty_root(), 5, &[1; 32], &[]));
    assert!(!verify_consistency(0, &[1; 32], 5, &[1; 32], &[]));
    assert!(!verify_consistency(5, &[1; 32], 0, &empty_root(), &[]));
}

#[test]
fn tiles_have_one_path_each() {
    let good = [
        ("tile/0/000", Level::Hashes(0), 0, 256),
        ("tile/0/x001/x234/067", Level::Hashes(0), 1_234_067, 256),
        ("tile/0/x001/x234/067.p/112", Level::Hashes(0), 1_234_067, 112),
        ("tile/1/000.p/17", Level::Hashes(1), 0, 17),
        ("tile/63/999.p/1", Level::Hashes(63), 999, 1),
        ("tile/entries/x001/000.p/255", Level::Entries, 1_000, 255),
        ("tile/entries/273.p/112", Level::Entries, 273, 112),
        ("tile/0/x018/x446/x744/x073/x709/x551/615", Level::Hashes(0), u64::MAX, 256),
    ];
    for (text, level, index, width) in good {
        assert_eq!(tile_path(level, index, width), text);
        let path = TilePath { level, index, width };
        assert_eq!(parse_tile_path(text), Some(path), "{text}");
    }
    let bad = [
        "",
        "/tile/0/000",
        "tile/0/",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/+1/000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/x001/x000",
        "tile/0/xx01/000",
        "tile/0/+01",
        "tile/0/000/",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/0/000.p/1.p/1",
        "tile/0/000.p/1/",
        "tile/data/000",
        "tile/8/0/000",
        "tile/0/x018/x446/x744/x073/x709/x551/616",
        "tile/0/x001/x018/x446/x744/x073/x709/x551/615",
    ];
    for text in bad {
        assert_eq!(parse_tile_path(text), None, "{text:?}");
    }
}

#[test]
fn a_bundle_is_lengths_and_cids() {
    let bundle = entries_bundle(&[cid(0), cid(1)]);
    let expected = [&[0, 36][..], &cid(0).to_bytes(), &[0, 36], &cid(1).to_bytes()].concat();
    assert_eq!(bundle, expected);
    assert!(entries_bundle(&[]).is_empty());
}

#[test]
fn any_leaves_together_lead_to_the_root_and_no_others_do() {
    let mut random = Random(seed());
    for size in [1, 2, 3, 7, 8, 255, 256, 257, 700] {
        let (growing, stored) = grown(size, 100);
        let root = growing.root();
        for _ in 0..12 {
            let count = 1 + random.below(size.min(40));
            let places: std::collections::BTreeSet<u64> = (0..count).map(|_| random.below(size)).collect();
            let holds = |start, end| places.range(start..end).next().is_some();
            let proof = several::inclusion_of(&stored, size, &holds).expect("all tiles are stored");
            let leaves: Vec<(u64, Hash)> =
                places.iter().map(|place| (*place, leaf_hash(&cid(*place)))).collect();
            assert_eq!(several::root_of(&leaves, size, &proof), Some(root), "{places:?} of {size}");
            if let [one] = leaves[..] {
                let alone = inclusion(&stored, one.0, size).expect("within size");
                assert_eq!(proof.len(), alone.len());
            }
            refused(&leaves, size, &proof, &root);
        }
        let all: Vec<(u64, Hash)> = (0..size).map(|place| (place, leaf_hash(&cid(place)))).collect();
        assert_eq!(several::root_of(&all, size, &[]), Some(root));
        assert_eq!(several::root_of(&[], size, &[root]), None);
    }
}

/// Asserts that no damaged leaves and no damaged proof lead to the root.
fn refused(leaves: &[(u64, Hash)], size: u64, proof: &[Hash], root: &Hash) {
    let not = |leaves: &[(u64, Hash)], size, proof: &[Hash]| {
        assert_ne!(several::root_of(leaves, size, proof), Some(*root));
    };
    for at in 0..proof.len() {
        let mut bad = proof.to_vec();
        bad[at][0] ^= 1;
        not(leaves, size, &bad);
        bad.remove(at);
        not(leaves, size, &bad);
    }
    not(leaves, size, &[proof, &[*root]].concat());
    for at in 0..leaves.len() {
        let mut bad = leaves.to_vec();
        bad[at].1[31] ^= 1;
        not(&bad, size, proof);
        bad.remove(at);
        not(&bad, size, proof);
        let mut twice = leaves.to_vec();
        twice.insert(at, leaves[at]);
        not(&twice, size, proof);
    }
}
