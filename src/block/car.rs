//! CARv1 archives: blocks in a row behind a header with one root.
//!
//! Invariants:
//! - a block that [`Reader`] returns hashes to its CID, has a CID of our form, and was not returned before;
//! - a list of blocks has exactly one encoding: varints are minimal, and there is no padding;
//! - a length over its bound is refused before anything is allocated for it.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
};

use serde::{Deserialize, Serialize};

use crate::block::{CID_LEN, Cid, decode, encode};

/// A section, which is a CID and its block, has at most this many bytes.
pub const SECTION_MAX: u64 = 2 * 1024 * 1024;

/// A header with one root needs fewer bytes. The rest is room to read a header with several roots and to refuse it as
/// such.
const HEADER_MAX: u64 = 1024;
/// Multiformats allow varints of at most 63 bits, which take this many bytes.
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
    /// Writes the header. The block `root` must be written too, or readers refuse the archive.
    pub fn new(mut to: W, root: Cid) -> io::Result<Self> {
        let header = encode(&Header { roots: vec![root], version: 1 });
        write_varint(&mut to, header.len())?;
        to.write_all(&header)?;
        Ok(Self { to, written: HashSet::new() })
    }

    /// Writes the block `bytes` named `cid`. Returns false, and writes nothing, if that block was already written.
    pub fn write(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<bool> {
        if !self.written.insert(*cid) {
            return Ok(false);
        }
        self.append(cid, bytes)?;
        Ok(true)
    }

    /// Writes a block that the caller knows not to be in the archive and will not pass to [`Writer::write`].
    ///
    /// The writer does not remember it, so an archive of any size needs little memory.
    pub fn append(&mut self, cid: &Cid, bytes: &[u8]) -> io::Result<()> {
        write_varint(&mut self.to, CID_LEN + bytes.len())?;
        self.to.write_all(&cid.to_bytes())?;
        self.to.write_all(bytes)
    }

    /// Flushes the archive and returns what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Bounds what a reader accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A section has at most this many bytes.
    pub section_max: u64,
    /// The whole archive has at most this many bytes.
    pub total_max: u64,
}

/// Says why an archive is refused. `at` counts bytes from its start.
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

/// Reads an archive from any source. Lengths are read byte by byte, so the source should be buffered.
///
/// The iterator ends after an error. An archive is valid only if the iterator ends without one.
pub struct Reader<R> {
    from: R,
    limits: Limits,
    root: Cid,
    at: u64,
    seen: HashSet<Cid>,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header. Errors: `Header` if it is not that of CARv1 with one root.
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

    /// Returns the number of bytes read, which is where the last section ends.
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

/// Reads a varint; returns none if the source ends before it.
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
