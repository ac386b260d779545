//! CARv1 archives: blocks in a row behind one root.
//!
//! Invariants:
//! - what [`Reader`] gives hashes to its name, is in our CID profile, and was not given before;
//! - an archive is one chain of bytes for one list of blocks: varints are minimal, nothing is padding;
//! - nothing is allocated on the word of a length that is over its bound.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize};

use crate::block::{CID_LEN, Cid, decode, encode};

/// Bytes of one section: a CID and its block.
pub const SECTION_MAX: u64 = 2 * 1024 * 1024;

/// Bytes of a header with one root, with room to name what is wrong with another.
const HEADER_MAX: u64 = 1024;
/// Bytes of a varint of 63 bits, the most that multiformats allows.
const VARINT_MAX: usize = 9;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    roots: Vec<Cid>,
    version: u64,
}

/// Writes an archive.
pub struct Writer<W> {
    to: W,
    written: HashSet<Cid>,
}

impl<W: Write> Writer<W> {
    /// Begins an archive of what hangs on `root`, which must be written too.
    pub fn new(mut to: W, root: Cid) -> io::Result<Self> {
        let header = encode(&Header { roots: vec![root], version: 1 });
        write_varint(&mut to, header.len())?;
        to.write_all(&header)?;
        Ok(Self { to, written: HashSet::new() })
    }

    /// Adds the block `bytes` that `cid` names; false where it stands in the archive already.
    pub fn write(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<bool> {
        if !self.written.insert(*cid) {
            return Ok(false);
        }
        self.append(cid, bytes)?;
        Ok(true)
    }

    /// Adds a block that the caller knows is not in the archive, and will not be given to [`Writer::write`].
    ///
    /// Nothing is remembered of it, so that archives of any size need little memory.
    pub fn append(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<()> {
        write_varint(&mut self.to, CID_LEN + bytes.len())?;
        self.to.write_all(&cid.to_bytes())?;
        self.to.write_all(bytes)
    }

    /// Ends the archive and gives back what it was written to, flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }
}

/// What a reader accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one section.
    pub section_max: u64,
    /// Bytes of the whole archive.
    pub total_max: u64,
}

/// Why an archive is refused. `at` counts bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum CarError {
    #[error("archive cannot be read")]
    Io(#[from] io::Error),
    #[error("archive ends within a section at byte {at}")]
    Truncated { at: u64 },
    #[error("length at byte {at} is not a minimal varint")]
    Varint { at: u64 },
    #[error("header is not that of a carv1 archive with one root")]
    Header,
    #[error("section at byte {at} is too short for a block")]
    Short { at: u64 },
    #[error("section at byte {at} is over the bound of {max} bytes")]
    SectionTooLarge { at: u64, max: u64 },
    #[error("archive is over the bound of {max} bytes")]
    TooLarge { max: u64 },
    #[error("section at byte {at} does not begin with a cid of this log's profile")]
    Cid { at: u64 },
    #[error("block {cid} does not have the digest it is named by")]
    Digest { cid: Cid },
    #[error("block {cid} stands twice")]
    Duplicate { cid: Cid },
    #[error("root {cid} is not in the archive")]
    RootMissing { cid: Cid },
}

/// Reads an archive written by anyone. Reads lengths byte by byte: give it a buffered source.
///
/// After an error there is nothing more; an archive is good only if the iterator ends without one.
pub struct Reader<R> {
    from: R,
    limits: Limits,
    root: Cid,
    at: u64,
    seen: HashSet<Cid>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn new(mut from: R, limits: Limits) -> Result<Self, CarError> {
        let mut at = 0;
        let len = read_varint(&mut from, &mut at)?.ok_or(CarError::Header)?;
        if len > HEADER_MAX {
            return Err(CarError::Header);
        }
        let bytes = read_exactly(&mut from, len, &mut at)?;
        let header: Header = decode(&bytes).map_err(|_| CarError::Header)?;
        let (1, &[root]) = (header.version, &header.roots[..]) else {
            return Err(CarError::Header);
        };
        Ok(Self { from, limits, root, at, seen: HashSet::new(), ended: false })
    }

    pub fn root(&self) -> Cid {
        self.root
    }

    /// Bytes read: the last section ends here.
    pub fn at(&self) -> u64 {
        self.at
    }

    fn section(&mut self) -> Result<Option<(Cid, Vec<u8>)>, CarError> {
        let at = self.at;
        let Some(len) = read_varint(&mut self.from, &mut self.at)? else {
            return match self.seen.contains(&self.root) {
                true => Ok(None),
                false => Err(CarError::RootMissing { cid: self.root }),
            };
        };
        if len < CID_LEN as u64 {
            return Err(CarError::Short { at });
        }
        let Limits { section_max, total_max } = self.limits;
        if len > section_max {
            return Err(CarError::SectionTooLarge { at, max: section_max });
        }
        if self.at.saturating_add(len) > total_max {
            return Err(CarError::TooLarge { max: total_max });
        }
        let name = read_exactly(&mut self.from, CID_LEN as u64, &mut self.at)?;
        let cid = Cid::from_bytes(&name).map_err(|_| CarError::Cid { at })?;
        let bytes = read_exactly(&mut self.from, len - CID_LEN as u64, &mut self.at)?;
        if !cid.names(&bytes) {
            return Err(CarError::Digest { cid });
        }
        if !self.seen.insert(cid) {
            return Err(CarError::Duplicate { cid });
        }
        Ok(Some((cid, bytes)))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<(Cid, Vec<u8>), CarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let section = self.section().transpose();
        self.ended = !matches!(section, Some(Ok(_)));
        section
    }
}

/// Writes `number` as unsigned LEB128.
fn write_varint(to: &mut impl Write, number: usize) -> io::Result<()> {
    let mut rest = number;
    while rest >= 0x80 {
        to.write_all(&[rest as u8 | 0x80])?;
        rest >>= 7;
    }
    to.write_all(&[rest as u8])
}

/// Reads a varint; none at the clean end of the source.
fn read_varint(from: &mut impl Read, at: &mut u64) -> Result<Option<u64>, CarError> {
    let start = *at;
    let mut number = 0;
    for place in 0..VARINT_MAX {
        let byte = match read_exactly(from, 1, at) {
            Ok(byte) => byte[0],
            Err(CarError::Truncated { .. }) if place == 0 => return Ok(None),
            Err(err) => return Err(err),
        };
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            let minimal = byte > 0 || place == 0;
            return minimal.then_some(Some(number)).ok_or(CarError::Varint { at: start });
        }
    }
    Err(CarError::Varint { at: start })
}

fn read_exactly(from: &mut impl Read, len: u64, at: &mut u64) -> Result<Vec<u8>, CarError> {
    let mut bytes = Vec::new();
    let got = from.by_ref().take(len).read_to_end(&mut bytes)? as u64;
    *at += got;
    match got == len {
        true => Ok(bytes),
        false => Err(CarError::Truncated { at: *at }),
    }
}

#[cfg(test)]
mod tests;
