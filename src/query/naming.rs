//! Names that are told in part: which events and blocks have a CID that begins or ends so.
//!
//! Invariants:
//! - at most [`NAMED_MAX`] names are returned; more of them are not told apart here;
//! - no row's bytes are read: the digests alone decide.

use rusqlite::params;

use super::{QueryError, View};
use crate::{
    block::{Cid, Codec, Sha256Digest},
    state::StateError,
};

/// The least number of characters of a part.
pub const PART_MIN: usize = 8;
/// Names that one part may stand for, until it says too little.
pub const NAMED_MAX: usize = 8;
/// The characters of a CID after the `b` that says that it is base32.
const DIGITS: usize = 58;
/// Bits of the last character that stand for nothing.
const PADDING: u32 = 2;
/// The bytes of a CID before its digest: version, codec, hash function and length.
const HEAD: usize = 4;
const DIGEST: usize = 32;
/// The bytes at the end of a digest that [`PART_MIN`] characters fix.
const TAIL: usize = 4;

impl View {
    /// Returns the CIDs of events and blocks that begin or end with `part`, events first.
    pub fn named(&self, part: &str) -> Result<Vec<Cid>, QueryError> {
        let digits: Option<Vec<u8>> = part.bytes().map(digit).collect();
        let digits = digits.filter(|digits| (PART_MIN..=DIGITS).contains(&digits.len()));
        let Some(digits) = digits else {
            return Err(QueryError::Invalid(format!(
                "a name in part is {PART_MIN} to {DIGITS} characters of a CID's beginning or end"
            )));
        };
        let mut found = Vec::new();
        let fits = |cid: &Cid| {
            let text = cid.to_string();
            text.starts_with(part) || text.ends_with(part)
        };
        if let Some((codec, from, to)) = beginning(part, &digits) {
            let between = "digest BETWEEN ?1 AND ?2";
            self.collect(between, &from, &to, &|cid| cid.codec() == codec && fits(cid), &mut found)?;
        }
        if let Some(tail) = ending(&digits) {
            let ends = "substr(digest, 29) = ?1 AND ?2 IS NOT NULL";
            self.collect(ends, &tail, &tail, &fits, &mut found)?;
        }
        Ok(found)
    }

    /// Adds the events and blocks whose digests fit a condition of two values, as far as there is room.
    fn collect(
        &self,
        condition: &str,
        one: &[u8],
        two: &[u8],
        fits: &dyn Fn(&Cid) -> bool,
        found: &mut Vec<Cid>,
    ) -> Result<(), QueryError> {
        let applied = self.applied()?;
        // The inner question is answered from the index of digests alone.
        let sql = format!(
            "SELECT digest, 113 FROM log.event WHERE seq IN (SELECT seq FROM log.event WHERE {condition}) AND seq < ?3
             UNION ALL
             SELECT digest, codec FROM log.block WHERE id IN (SELECT id FROM log.block WHERE {condition}) AND length(digest) = 32"
        );
        let mut statement = self.state.prepare_cached(&sql)?;
        let mut rows = statement.query(params![one, two, applied])?;
        while let Some(row) = rows.next()? {
            let (digest, codec): (Sha256Digest, u64) = (row.get(0)?, row.get(1)?);
            let codec = Codec::from_code(codec)
                .ok_or(StateError::Broken { what: "a block's codec is none that is known" })?;
            let cid = Cid::from_digest(codec, digest);
            if fits(&cid) && !found.contains(&cid) && found.len() < NAMED_MAX {
                found.push(cid);
            }
        }
        Ok(())
    }
}

/// Returns the value of a base32 character.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'a'..=b'z' => Some(byte - b'a'),
        b'2'..=b'7' => Some(byte - b'2' + 26),
        _ => None,
    }
}

/// Returns the codec and the least and largest digest of CIDs that begin so; `None` if none does.
fn beginning(part: &str, digits: &[u8]) -> Option<(Codec, Vec<u8>, Vec<u8>)> {
    let (_, digits) = digits.split_first().filter(|_| part.starts_with('b'))?;
    let filled = |with: u8| {
        let all = digits.iter().copied().chain(std::iter::repeat(with));
        bytes(all.take(DIGITS))
    };
    let (least, largest) = (filled(0), filled(31));
    let codec = [Codec::DagCbor, Codec::Raw].into_iter().find(|codec| {
        let head = Cid::from_digest(*codec, [0; DIGEST]).to_bytes();
        least.get(..HEAD) == head.get(..HEAD)
    })?;
    let digest = |bytes: &[u8]| bytes.get(HEAD..HEAD + DIGEST).map(<[u8]>::to_vec);
    Some((codec, digest(&least)?, digest(&largest)?))
}

/// Returns the last bytes of digests whose CIDs end so; `None` if none does.
fn ending(digits: &[u8]) -> Option<[u8; TAIL]> {
    let last = digits.get(digits.len().checked_sub(PART_MIN)?..)?;
    let value = last.iter().fold(0u64, |value, digit| value << 5 | u64::from(*digit));
    let padded = value & ((1 << PADDING) - 1) == 0;
    let value = u32::try_from(value >> PADDING & u64::from(u32::MAX)).ok()?;
    padded.then_some(value.to_be_bytes())
}

/// Joins five bits a digit into whole bytes; what is left of the last one is dropped.
fn bytes(digits: impl Iterator<Item = u8>) -> Vec<u8> {
    let (mut held, mut bits, mut bytes) = (0u32, 0, Vec::new());
    for digit in digits {
        held = held << 5 | u32::from(digit);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
            held &= (1 << bits) - 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_cid_finds_its_digest() {
        for (n, codec) in [(0u8, Codec::DagCbor), (7, Codec::Raw), (200, Codec::DagCbor), (255, Codec::Raw)] {
            let mut digest = [n; DIGEST];
            digest[31] = n.wrapping_add(91);
            let text = Cid::from_digest(codec, digest).to_string();
            for len in PART_MIN..=DIGITS {
                let front: Vec<u8> = text.bytes().take(len).filter_map(digit).collect();
                let (of, least, largest) = beginning(&text[..len], &front).expect("it begins so");
                assert_eq!(of, codec);
                assert!(least.as_slice() <= &digest[..] && &digest[..] <= largest.as_slice(), "{text} {len}");
                let back: Vec<u8> = text.bytes().skip(text.len() - len).filter_map(digit).collect();
                assert_eq!(ending(&back), Some([n, n, n, n.wrapping_add(91)]), "{text} {len}");
            }
        }
        let none: Vec<u8> = b"zzzzzzzb".iter().copied().filter_map(digit).collect();
        assert_eq!(ending(&none), None);
    }
}
