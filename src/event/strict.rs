//! Reads the fields of an event in place, without building it, for verifiers that read millions of events.
//!
//! Invariant: it accepts exactly the bytes that `Event::open` accepts; a test compares the two on damaged events.

use crate::{
    block::{CID_LEN, Cid, DEPTH_MAX, payload::PAYLOAD_MAX},
    event::{EVENT_MAX, KIND_MAX, PAYLOADS_MAX, REFS_MAX, rules::Said},
};

/// A link in CBOR begins with tag 42, the head of a byte string of 37 bytes, and the multibase prefix of binary.
const LINK_HEAD: [u8; 5] = [0xd8, 0x2a, 0x58, 0x25, 0x00];
const NULL: u8 = 0xf6;
const ROLES: &[&[u8]] = &[b"input", b"output", b"error", b"log", b"artifact", b"note"];

/// Holds the fields that are checked against other events and blocks.
#[derive(Debug, PartialEq)]
pub struct Checked<'a> {
    pub v: u64,
    pub kind: &'a str,
    pub log: Cid,
    pub seq: u64,
    pub prev: Option<Cid>,
    pub cause: Option<Cid>,
    pub tool: Option<Cid>,
    pub subject: &'a str,
    /// Links to what the actor proves itself by.
    pub proof: Option<Cid>,
    /// The bytes of the event's body.
    pub body: &'a [u8],
    /// The lengths of content that the event states for its payloads, in order. Unused places hold 0.
    pub lens: [u64; PAYLOADS_MAX],
    pub ts: u64,
}

impl Checked<'_> {
    /// Returns what the rules look at.
    pub fn said(&self) -> Said<'_> {
        let Self { v, kind, log, seq, cause, tool, subject, body, .. } = *self;
        Said { v, kind, log, seq, subject, cause, tool, body }
    }
}

/// Reads one event. Empties `refs` and `pay`, and fills them with the event's refs and payloads.
///
/// Returns none if the bytes are not an event.
pub fn read<'a>(bytes: &'a [u8], refs: &mut Vec<Cid>, pay: &mut Vec<Cid>) -> Option<Checked<'a>> {
    refs.clear();
    pay.clear();
    if bytes.len() > EVENT_MAX {
        return None;
    }
    let mut at = Cursor { bytes };
    holds(at.head()? == (5, 13))?;
    at.key(b"v")?;
    let v = at.number().filter(|v| *v >= 1)?;
    at.key(b"ts")?;
    let ts = at.number()?;
    at.key(b"log")?;
    let log = at.link()?;
    at.key(b"pay")?;
    let mut lens = [0; PAYLOADS_MAX];
    let held = usize::try_from(at.list(PAYLOADS_MAX)?).ok()?;
    for place in lens.get_mut(..held)? {
        let (cid, len) = at.payload()?;
        pay.push(cid);
        *place = len;
    }
    at.key(b"seq")?;
    let seq = at.number()?;
    at.key(b"body")?;
    let body = at.body()?;
    at.key(b"kind")?;
    let kind = at.text()?;
    holds(!kind.is_empty() && kind.len() <= KIND_MAX)?;
    at.key(b"prev")?;
    let prev = at.nullable_link()?;
    holds((seq == 0) == prev.is_none())?;
    at.key(b"refs")?;
    for _ in 0..at.list(REFS_MAX)? {
        refs.push(at.link()?);
    }
    holds(refs.is_sorted_by(|a, b| a < b))?;
    at.key(b"tool")?;
    let tool = at.nullable_link()?;
    at.key(b"actor")?;
    let proof = at.actor()?;
    at.key(b"cause")?;
    let cause = at.nullable_link()?;
    at.key(b"subject")?;
    let subject = at.text()?;
    holds(at.bytes.is_empty())?;
    Some(Checked { v, kind, log, seq, prev, cause, tool, subject, proof, body, lens, ts })
}

/// The bytes that are still to be read. Every method returns none if they are not in the one form that a writer gives.
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    /// Reads a major type and an argument in its shortest form.
    fn head(&mut self) -> Option<(u8, u64)> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let (width, least) = match info {
            0..=23 => return Some((major, info.into())),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            _ => return None,
        };
        let argument = self.take(width)?;
        let argument = argument.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        (argument >= least).then_some((major, argument))
    }

    /// Reads a map key that must be `name`.
    fn key(&mut self, name: &[u8]) -> Option<()> {
        let key = self.take(1 + name.len())?;
        holds(key[0] == 0x60 | name.len() as u8 && key[1..] == *name)
    }

    fn number(&mut self) -> Option<u64> {
        let (major, number) = self.head()?;
        (major == 0).then_some(number)
    }

    fn list(&mut self, max: usize) -> Option<u64> {
        let (major, len) = self.head()?;
        (major == 4 && len <= max as u64).then_some(len)
    }

    fn text(&mut self) -> Option<&'a str> {
        let (major, len) = self.head()?;
        holds(major == 3)?;
        std::str::from_utf8(self.take(usize::try_from(len).ok()?)?).ok()
    }

    fn link(&mut self) -> Option<Cid> {
        let link = self.take(LINK_HEAD.len() + CID_LEN)?;
        holds(link[..LINK_HEAD.len()] == LINK_HEAD)?;
        Cid::from_bytes(&link[LINK_HEAD.len()..]).ok()
    }

    fn nullable_link(&mut self) -> Option<Option<Cid>> {
        if self.bytes.first() == Some(&NULL) {
            self.take(1)?;
            return Some(None);
        }
        self.link().map(Some)
    }

    fn payload(&mut self) -> Option<(Cid, u64)> {
        holds(self.head()? == (5, 3))?;
        self.key(b"cid")?;
        let cid = self.link()?;
        self.key(b"len")?;
        let len = self.number()?;
        self.key(b"role")?;
        let role = self.text()?;
        (ROLES.contains(&role.as_bytes()) && len <= PAYLOAD_MAX as u64).then_some((cid, len))
    }

    fn actor(&mut self) -> Option<Option<Cid>> {
        holds(self.head()? == (5, 3))?;
        self.key(b"id")?;
        self.text()?;
        self.key(b"role")?;
        self.text()?;
        self.key(b"proof")?;
        self.nullable_link()
    }

    /// Reads a map of any values but floats, and returns its bytes. The map is at depth 2.
    fn body(&mut self) -> Option<&'a [u8]> {
        holds(self.bytes.first()? >> 5 == 5)?;
        let from = self.bytes;
        self.value(1)?;
        from.get(..from.len() - self.bytes.len())
    }

    /// Reads any value inside `depth` open containers.
    fn value(&mut self, depth: usize) -> Option<()> {
        let first = *self.bytes.first()?;
        match first >> 5 {
            0 | 1 => self.head().map(|_| ()),
            2 => {
                let (_, len) = self.head()?;
                self.take(usize::try_from(len).ok()?).map(|_| ())
            }
            3 => self.text().map(|_| ()),
            4 => {
                let (_, len) = self.head()?;
                holds(depth < DEPTH_MAX)?;
                (0..len).try_for_each(|_| self.value(depth + 1))
            }
            5 => {
                let (_, len) = self.head()?;
                holds(depth < DEPTH_MAX)?;
                let mut last: Option<&str> = None;
                for _ in 0..len {
                    let key = self.text()?;
                    let order = |key: &'a str| (key.len(), key.as_bytes());
                    holds(last.is_none_or(|last| order(last) < order(key)))?;
                    last = Some(key);
                    self.value(depth + 1)?;
                }
                Some(())
            }
            6 => self.link().map(|_| ()),
            // These are false, true and null. The others are floats, or do not exist in DAG-CBOR.
            _ => self.take(1).and_then(|byte| holds((0xf4..=0xf6).contains(&byte[0]))),
        }
    }
}

fn holds(rule: bool) -> Option<()> {
    rule.then_some(())
}
