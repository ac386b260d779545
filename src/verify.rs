//! Verifies a log: every event and block is hashed, read strictly, and checked against what it links to.
//!
//! Invariants:
//! - nothing derived is trusted: the log, its signed heads and its keys are the only evidence;
//! - a fault is reported at its place, and verification goes on after it as far as it can;
//! - missing content is reported as erased only if an event of the log records its erasure.

mod chain;
mod blocks;
pub mod derived;
mod events;
mod heads;
mod payloads;

#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::{
    block::{Cid, car::CarError, decode, payload::Payload},
    error::chain,
    identity::Checkpoint,
    log::{LogError, Reader, Stored, home::Home, sqlite::SqliteReader},
    merkle,
    query::{QueryError, View, proof::Head},
    verify::chain::{Bytes, Chain, Heads},
    words::words,
};

/// A report lists at most this many faults. The rest are only counted.
pub const FAULTS_MAX: usize = 100;
/// A report lists at most this many blocks that nothing names. The rest are only counted.
const UNNAMED_MAX: usize = 100;
/// A report lists at most this many takeovers. The rest are only counted.
const TAKEOVERS_MAX: usize = 100;
/// Progress is reported each time this many events or blocks were checked.
const STEP: u64 = 1024;

words! {
    /// What the log is, from best to worst.
    #[derive(PartialOrd, Ord, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Verdict {
        Verified = "verified",
        /// Something that was there is missing.
        Incomplete = "incomplete",
        /// Two heads of the log's key are of two logs.
        Forked = "forked",
        /// Bytes are not what they must be.
        Invalid = "invalid",
        /// The files cannot be read.
        Unreadable = "unreadable",
    }
}

impl Verdict {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Verified => 0,
            Self::Incomplete => 20,
            Self::Forked => 30,
            Self::Invalid => 40,
            Self::Unreadable => 50,
        }
    }

    /// Returns the verdict on a log that cannot be read any further.
    pub fn of_log(err: &LogError) -> Self {
        match err {
            LogError::Corrupt { .. } => Self::Invalid,
            LogError::Conflict
            | LogError::Orphan { .. }
            | LogError::Full
            | LogError::Newer { .. }
            | LogError::Behind
            | LogError::Store(_) => Self::Unreadable,
        }
    }

    /// Returns the verdict on an archive that cannot be read any further; returns none if it only exceeds a bound.
    pub fn of_archive(err: &CarError) -> Option<Self> {
        match err {
            CarError::Io(_) | CarError::Header => Some(Self::Unreadable),
            CarError::Truncated { .. } | CarError::RootMissing { .. } => Some(Self::Incomplete),
            CarError::Varint { .. }
            | CarError::Short { .. }
            | CarError::SectionTooLarge { .. }
            | CarError::Cid { .. }
            | CarError::Digest { .. }
            | CarError::Duplicate { .. } => Some(Self::Invalid),
            CarError::TooLarge { .. } => None,
        }
    }
}

/// Says what is verified.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The first seq. Any other than 0 leaves out what needs the whole log: the root, the heads over it, and blocks
    /// that nothing names.
    pub from_seq: u64,
    /// The last seq, included. None stands for the last event of the log.
    pub to_seq: Option<u64>,
    /// A signed head kept elsewhere, which the log must contain.
    pub checkpoint: Option<String>,
    /// The verifier key that the caller trusts, which must be one of the log's keys. None stands for the key in the
    /// genesis block.
    pub key: Option<String>,
    /// If set, the state is derived again and every table is compared.
    pub derived: bool,
    /// If set, every block is hashed and every payload looked for. Otherwise only those blocks are read without which
    /// an event cannot be understood.
    pub payloads: bool,
}

impl Default for Checks {
    /// Returns the checks of the whole log under its own keys, without its state.
    fn default() -> Self {
        Self { from_seq: 0, to_seq: None, checkpoint: None, key: None, derived: false, payloads: true }
    }
}

/// Describes one rule that does not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    pub seq: Option<u64>,
    pub cid: Option<String>,
    pub fault: String,
    #[serde(skip)]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub verified: bool,
    pub verdict: Verdict,
    pub checked_events: u64,
    pub checked_blocks: u64,
    /// Counts each payload that is stored and valid once. None if payloads were left out or only a part of the log was
    /// checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_payloads: Option<u64>,
    /// Counts the payloads whose bytes are gone and whose erasure is on record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased_payloads: Option<u64>,
    /// Lists the takeovers: an operator signed events that no head covered.
    #[serde(skip_serializing_if = "Takeovers::is_empty")]
    pub takeovers: Takeovers,
    /// The Merkle root of the whole log, in hex.
    pub root: Option<String>,
    /// The signed head that covers the events. None unless the verdict is `verified`.
    pub head: Option<Under>,
    /// Lists the blocks that nothing names. In a log they are no fault, because the events that name them may still
    /// come.
    #[serde(skip_serializing_if = "Unnamed::is_empty")]
    pub unnamed: Unnamed,
    /// Says `not checked` if payloads were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payloads: Option<&'static str>,
    pub faults: Vec<Fault>,
    pub faults_total: u64,
}

/// Describes the head that a verdict is given under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Under {
    /// Counts the events under the head.
    pub size: u64,
    /// Holds the verifier key of the signature.
    pub key: String,
}

/// Lists stored blocks that nothing names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Unnamed {
    pub count: u64,
    /// Holds the first `UNNAMED_MAX` of them.
    pub cids: Vec<String>,
}

impl Unnamed {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Lists the events in which `cairn rebuild --sign` recorded that an operator signed in place of a missing head.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Takeovers {
    pub count: u64,
    /// Holds the first `TAKEOVERS_MAX` of them.
    pub events: Vec<Takeover>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Takeover {
    /// The seq of the event that records the takeover.
    pub seq: u64,
    /// The first event that no head covered. `events` counts them.
    pub from_seq: u64,
    pub events: u64,
}

impl Takeovers {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, takeover: Takeover) {
        self.count += 1;
        if self.events.len() < TAKEOVERS_MAX {
            self.events.push(takeover);
        }
    }
}

/// Reports the progress of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Blocks(u64),
    /// Holds the events checked so far and the events in all.
    Events(u64, u64),
    /// Holds the events folded again so far and the events in all.
    Derived(u64, u64),
}

/// Verifies the log of a data directory. `step` is called with the progress.
pub fn verify(home: &Home, checks: &Checks, step: &mut dyn FnMut(Step)) -> Report {
    let mut found = Found { payloads: checks.payloads, ..Found::default() };
    let checked = SqliteReader::open(&home.log_path()).and_then(|log| found.check(home, &log, checks, step));
    if let Err(err) = checked {
        found.fault(Verdict::of_log(&err), None, None, format!("the log cannot be read on: {}", chain(&err)));
    }
    // Missing or damaged events cannot be folded, so only a log without faults is compared with its state.
    if checks.derived && found.verdict == Verdict::Verified {
        match derived::compare(home, &mut |done, of| step(Step::Derived(done, of))) {
            Ok(differing) => {
                for table in differing {
                    let fault =
                        format!("table `{table}` of state.db is not what the log gives; run `cairn rebuild`");
                    found.fault(Verdict::Invalid, None, None, fault);
                }
            }
            Err(err) => {
                let fault = format!("state.db cannot be compared: {}; run `cairn rebuild`", chain(&err));
                found.fault(Verdict::Invalid, None, None, fault);
            }
        }
    }
    found.report()
}

impl View {
    /// Verifies one event with its links and its inclusion under the signed head, or one block. Errors: neither has
    /// this CID, the block was erased, or the head does not reach the event.
    pub fn verify_one(&self, cid: &Cid, head: &Head) -> Result<Report, QueryError> {
        let mut found = Found::default();
        if let Some(seq) = self.log.seq_of(cid)? {
            if seq >= head.size {
                return Err(QueryError::NotFound(format!("a signed head over event {cid}")));
            }
            let checks = Checks { from_seq: seq, to_seq: Some(seq), ..Checks::default() };
            let chain =
                found.check_events(self.log.as_ref(), &checks, Heads::default(), None, &mut |_| {})?;
            let log = chain.genesis;
            found.end(chain)?;
            let keys = log.map(|log| self.keys(&log)).transpose()?;
            let signed = keys.as_ref().and_then(|keys| keys.open(&head.note).ok());
            match signed.filter(|signed| self.has_leaf(cid, seq, signed)) {
                Some(signed) => {
                    found.root = Some(signed.root);
                    let key = keys.map_or_else(String::new, |keys| keys.at(signed.size).vkey());
                    found.under = Some(Under { size: signed.size, key });
                }
                None => {
                    let fault = "the event is not under the signed head";
                    found.fault(Verdict::Invalid, Some(seq), Some(cid), fault);
                }
            }
            return Ok(found.report());
        }
        found.blocks = 1;
        match self.log.block(cid) {
            Ok(Some(Stored::Present(bytes))) => found.check_block_alone(cid, &bytes, self.log.as_ref())?,
            Ok(Some(Stored::Erased) | None) => return Err(self.gone(cid)?),
            Err(LogError::Corrupt { what }) => found.fault(Verdict::Invalid, None, Some(cid), what),
            Err(err) => return Err(err.into()),
        }
        Ok(found.report())
    }
}

impl View {
    /// Returns whether the event `cid` is the leaf at `seq` of the tree that `head` signs.
    fn has_leaf(&self, cid: &Cid, seq: u64, head: &Checkpoint) -> bool {
        let proof = merkle::inclusion(&self.tiles(), seq, head.size);
        let leaf = merkle::leaf_hash(cid);
        proof.is_ok_and(|proof| merkle::verify_inclusion(&leaf, seq, head.size, &proof, &head.root))
    }
}

/// Collects what was found so far.
struct Found {
    verdict: Verdict,
    faults: Vec<Fault>,
    faults_total: u64,
    events: u64,
    blocks: u64,
    /// Counts the valid payloads and the erased ones.
    paid: Option<(u64, u64)>,
    takeovers: Takeovers,
    unnamed: Unnamed,
    payloads: bool,
    root: Option<merkle::Hash>,
    under: Option<Under>,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            verdict: Verdict::Verified,
            faults: Vec::new(),
            faults_total: 0,
            events: 0,
            blocks: 0,
            paid: None,
            takeovers: Takeovers::default(),
            unnamed: Unnamed::default(),
            payloads: true,
            root: None,
            under: None,
        }
    }
}

impl Found {
    fn check(
        &mut self,
        home: &Home,
        log: &SqliteReader,
        checks: &Checks,
        step: &mut dyn FnMut(Step),
    ) -> Result<(), LogError> {
        let whole = checks.from_seq == 0 && checks.to_seq.is_none();
        // A head file is written after the events under it. So the heads read here are over no more events than are
        // read below.
        let mut notes = home.signed_heads().unwrap_or_default();
        // From here on the events and the head in the log are read from one snapshot, whatever other processes write.
        log.freeze()?;
        let heads = self.heads(home, log, checks, notes.clone())?;
        let blocks = match whole && checks.payloads {
            true => Some(self.check_blocks(log, step)?),
            false => None,
        };
        let chain = self.check_events(log, checks, heads, blocks, step)?;
        if !whole {
            notes.extend(log.head()?);
            let last = chain.before.map(|last| (last.cid, last.seq));
            let read = chain.next > checks.from_seq;
            self.check_part(home, log, &chain.heads, &notes, last.filter(|_| read));
        }
        self.end(chain)
    }

    /// Checks the form of one block and the lengths of its parts.
    fn check_block_alone(&mut self, cid: &Cid, bytes: &[u8], log: &dyn Reader) -> Result<(), LogError> {
        self.form(cid, bytes, None);
        let Ok(payload) = decode::<Payload>(bytes) else { return Ok(()) };
        let parts = match payload.layout(None) {
            Ok(parts) => parts,
            Err(fault) => {
                self.fault(Verdict::Invalid, None, Some(cid), fault.to_string());
                return Ok(());
            }
        };
        for part in parts {
            match self.bytes(&part.cid, None, log)? {
                Some(Bytes::Good(bytes)) if (part.least..=part.most).contains(&bytes.len()) => {}
                Some(Bytes::Bad) => {}
                Some(Bytes::Good(_)) => {
                    let fault = "a part has another length than its place asks for";
                    self.fault(Verdict::Invalid, None, Some(&part.cid), fault);
                }
                None => self.fault(Verdict::Incomplete, None, Some(&part.cid), "a part is missing"),
            }
        }
        Ok(())
    }

    fn end(&mut self, chain: Chain<'_>) -> Result<(), LogError> {
        if chain.whole {
            self.check_heads(&chain);
        }
        if chain.whole && chain.next == 0 {
            self.fault(Verdict::Incomplete, None, None, "the log is empty");
        }
        self.end_payloads(&chain)?;
        self.end_blocks(&chain)?;
        self.root = chain.tree.map(|tree| tree.root());
        Ok(())
    }

    fn fault(&mut self, verdict: Verdict, seq: Option<u64>, cid: Option<&Cid>, fault: impl Into<String>) {
        self.verdict = self.verdict.max(verdict);
        self.faults_total += 1;
        if self.faults.len() < FAULTS_MAX {
            let cid = cid.map(Cid::to_string);
            self.faults.push(Fault { seq, cid, fault: fault.into(), verdict });
        }
    }

    fn unnamed(&mut self, cid: &Cid) {
        self.unnamed.count += 1;
        if self.unnamed.cids.len() < UNNAMED_MAX {
            self.unnamed.cids.push(cid.to_string());
        }
    }

    fn report(self) -> Report {
        Report {
            verified: self.verdict == Verdict::Verified,
            verdict: self.verdict,
            checked_events: self.events,
            checked_blocks: self.blocks,
            checked_payloads: self.paid.map(|(checked, _)| checked),
            erased_payloads: self.paid.map(|(_, erased)| erased),
            takeovers: self.takeovers,
            unnamed: self.unnamed,
            root: self.root.map(|root| data_encoding::HEXLOWER.encode(&root)),
            head: self.under.filter(|_| self.verdict == Verdict::Verified),
            payloads: (!self.payloads).then_some("not checked"),
            faults: self.faults,
            faults_total: self.faults_total,
        }
    }
}
