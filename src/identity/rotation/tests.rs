//! Checks which key signs which head, and what is refused as a rotation.

use super::*;
use crate::block::Codec;

const ORIGIN: &str = "cairn.example/log1";

fn signer(seed: u8) -> Signer {
    Signer::new(ORIGIN, [seed; 32]).expect("the origin is a key name")
}

fn log(n: u8) -> Cid {
    Cid::from_digest(Codec::DagCbor, [n; 32])
}

/// Returns the keys 1, 2 and 3 of one log: the second from seq 4, the third from seq 9.
fn keys() -> Keys {
    let mut keys = Keys::new(log(1), signer(1).verifier().clone());
    for rotation in [rotation(1, 4, 2), rotation(2, 9, 3)] {
        keys.rotate(&rotation).expect("each signed by the one before");
    }
    keys
}

fn rotation(by: u8, seq: u64, to: u8) -> Rotation {
    signer(by).sign_rotation(&log(1), seq, signer(to).verifier())
}

#[test]
fn a_head_is_signed_by_the_key_after_the_last_rotation_under_it() {
    let keys = keys();
    for (size, seed) in [(0, 1), (4, 1), (5, 2), (9, 2), (10, 3), (u64::MAX, 3)] {
        assert_eq!(keys.at(size), signer(seed).verifier(), "{size}");
        for other in [1, 2, 3] {
            let opened = keys.open(&signer(other).sign_checkpoint(size, &[0; 32]));
            assert_eq!(opened.is_ok(), other == seed, "{size} signed by {other}: {opened:?}");
        }
    }
    assert_eq!(keys.current(), signer(3).verifier());
    let all: Vec<u64> = keys.all().map(|(from, _)| from).collect();
    assert_eq!(all, [0, 5, 10]);
    assert!(keys.holds(signer(2).verifier()) && !keys.holds(signer(4).verifier()));
}

#[test]
fn a_rotation_is_signed_by_the_key_before_it_for_this_log_and_place() {
    let refused = |rotation: Rotation| keys().rotate(&rotation).expect_err("not a rotation");
    let unsigned = RotationError::Signature { seq: 20 };
    assert_eq!(refused(rotation(1, 20, 4)), unsigned);
    assert_eq!(refused(rotation(4, 20, 4)), unsigned);
    assert_eq!(refused(Rotation { seq: 20, ..rotation(3, 21, 4) }), unsigned);
    assert_eq!(refused(signer(3).sign_rotation(&log(2), 20, signer(4).verifier())), unsigned);
    let other_key = Rotation { key: signer(5).public_key(), ..rotation(3, 20, 4) };
    assert_eq!(refused(other_key), unsigned);
    let mut flipped = rotation(3, 20, 4);
    flipped.signature[63] ^= 1;
    assert_eq!(refused(flipped), unsigned);
    assert_eq!(refused(rotation(3, 9, 4)), RotationError::Order { seq: 9 });
    assert_eq!(refused(rotation(3, 20, 1)), RotationError::Again { seq: 20 });
    assert_eq!(refused(rotation(3, 20, 3)), RotationError::Again { seq: 20 });
    let weak = Rotation { key: [0; 32], ..rotation(3, 20, 4) };
    assert_eq!(refused(weak), RotationError::Key(KeyError::Key));
    let mut fresh = Keys::new(log(1), signer(1).verifier().clone());
    assert_eq!(fresh.rotate(&rotation(1, 0, 2)), Err(RotationError::Order { seq: 0 }));
    assert_eq!(fresh.rotate(&rotation(1, 1, 2)), Ok(()));
}

/// Other verifiers sign and check these bytes, so they must not change.
#[test]
fn the_statement_is_four_lines() {
    let vkey = signer(2).vkey();
    let said = format!("cairn key rotation\n{}\n4\n{vkey}\n", log(1));
    assert_eq!(statement(&log(1), 4, signer(2).verifier()), said);
}
