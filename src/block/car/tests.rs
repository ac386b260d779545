//! Checks that what is written to an archive is read back, and that every kind of damage is reported.

use super::*;
use crate::block::{Block, Codec};

const LIMITS: Limits = Limits { section_max: SECTION_MAX, total_max: 64 * 1024 * 1024 };

fn blocks() -> Vec<Block> {
    let mut blocks = vec![Block::encode(&"manifest")];
    blocks.extend([0, 1, 90, 91, 92, 300, 70_000].map(|len| Block::new(Codec::Raw, vec![7; len])));
    blocks
}

fn archive(blocks: &[Block]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), blocks[0].cid()).expect("memory");
    for block in blocks {
        assert!(writer.write(&block.cid(), block.bytes()).expect("memory"));
    }
    assert!(!writer.write(&blocks[0].cid(), blocks[0].bytes()).expect("memory"));
    writer.finish().expect("memory")
}

fn read(bytes: &[u8], limits: Limits) -> Result<Vec<(Cid, Vec<u8>)>, CarError> {
    Reader::new(bytes, limits)?.collect()
}

fn section(bytes: &[u8]) -> Vec<u8> {
    let mut section = Vec::new();
    write_varint(&mut section, bytes.len()).expect("memory");
    section.extend(bytes);
    section
}

fn block_section(block: &Block) -> Vec<u8> {
    section(&[&block.cid().to_bytes(), block.bytes()].concat())
}

#[test]
fn an_archive_gives_back_its_blocks_in_order() {
    let blocks = blocks();
    let bytes = archive(&blocks);
    let reader = Reader::new(&bytes[..], LIMITS).expect("our own header");
    assert_eq!(reader.root(), blocks[0].cid());
    let read: Result<Vec<_>, _> = reader.collect();
    let expected: Vec<_> = blocks.into_iter().map(|b| (b.cid(), b.bytes().to_vec())).collect();
    assert_eq!(read.expect("our own archive"), expected);
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let bytes = archive(&blocks()[..4]);
    let whole = read(&bytes, LIMITS).expect("our own archive");
    for end in 0..bytes.len() {
        // An archive that is cut between two sections is still valid, and only its manifest tells that blocks are
        // missing.
        if let Ok(some) = read(&bytes[..end], LIMITS) {
            assert_eq!(some, whole[..some.len()]);
        }
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped, LIMITS).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn what_the_format_leaves_open_is_closed_here() {
    fn check(bytes: &[u8], expected: &str) {
        let err = read(bytes, LIMITS).expect_err(expected);
        assert!(err.to_string().contains(expected), "{err} for {expected}");
    }
    let blocks = blocks();
    let (root, second) = (&blocks[0], &blocks[2]);
    let good = archive(&blocks[..1]);
    let with = |section: &[u8]| [&good[..], section].concat();
    check(&with(&[0]), "too short");
    check(&with(&section(&second.cid().to_bytes()[..35])), "too short");
    check(&with(&block_section(root)), "stands twice");
    check(&with(&[0x80]), "ends within");
    check(&with(&[0xa4, 0x80, 0x00]), "minimal varint");
    check(&with(&[0xff; 10]), "minimal varint");
    check(&with(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), "over the bound of 2097152");
    let mut wrong = second.cid().to_bytes().to_vec();
    wrong.push(8);
    check(&with(&section(&wrong)), "digest");
    let identity = [&[1, 0x55, 0, 40][..], &[7; 40]].concat();
    check(&with(&section(&identity)), "cid of this log's profile");
    let blake3 = [&[1, 0x55, 0x1e, 32][..], &[7; 40]].concat();
    check(&with(&section(&blake3)), "cid of this log's profile");
    let version_0 = [&[0x12, 0x20][..], second.cid().digest(), second.bytes(), &[0; 8]].concat();
    check(&with(&section(&version_0)), "cid of this log's profile");

    let header = |roots: &[Cid], version| {
        let header = Header { roots: roots.to_vec(), version };
        [section(&encode(&header)), block_section(root)].concat()
    };
    check(&header(&[], 1), "header");
    check(&header(&[root.cid(), second.cid()], 1), "header");
    check(&header(&[root.cid()], 2), "header");
    check(&header(&[second.cid()], 1), "is not in the archive");
    check(&[], "header");
    check(&[0], "header");
    check(&section(&[0xa0; 2000]), "header");
    check(&section(&encode(&"roots")), "header");
}

#[test]
fn bounds_hold() {
    let bytes = archive(&blocks());
    let tight = Limits { total_max: bytes.len() as u64, ..LIMITS };
    assert!(read(&bytes, tight).is_ok());
    let total = Limits { total_max: bytes.len() as u64 - 1, ..LIMITS };
    assert!(matches!(read(&bytes, total), Err(CarError::TooLarge { .. })));
    let section = Limits { section_max: 70_000, ..LIMITS };
    assert!(matches!(read(&bytes, section), Err(CarError::SectionTooLarge { .. })));
}

#[test]
fn nothing_follows_an_error() {
    let bytes = [&archive(&blocks()[..1])[..], &[0], &archive(&blocks()[..1])].concat();
    let mut reader = Reader::new(&bytes[..], LIMITS).expect("our own header");
    assert!(matches!(reader.next(), Some(Ok(_))));
    assert!(matches!(reader.next(), Some(Err(CarError::Short { .. }))));
    assert!(reader.next().is_none());
}
