//! Verifying a log: every event and block hashed, read strictly, and checked against what it links to.
//!
//! Invariants:
//! - nothing derived is trusted: only `log.db`, the signed head, and keys;
//! - a fault is reported where it is; verifying goes on after it as far as it can;
//! - erased content is told from missing content by the event that says so.

mod blocks;
mod chain;
mod derived;
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
};

/// Faults told one by one; the rest are counted.
pub const FAULTS_MAX: usize = 100;
/// Blocks that nothing names which are told by name; the rest are counted.
pub const UNNAMED_MAX: usize = 100;
/// Takeovers told with their events; the rest are counted.
pub const TAKEOVERS_MAX: usize = 100;
/// Events or blocks between two words about progress.
const STEP: u64 = 1024;

/// What the log is, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Verified,
    /// Something that was there is missing.
    Incomplete,
    /// Two heads of the log's key are of two logs.
    Forked,
    /// Bytes are not what they must be.
    Invalid,
    /// The files cannot be read.
    Unreadable,
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

    /// What a log is that cannot be read on.
    pub fn of_log(err: &LogError) -> Self {
        match err {
            LogError::Corrupt { .. } => Self::Invalid,
            LogError::Conflict | LogError::Orphan { .. } | LogError::Full | LogError::Store(_) => {
                Self::Unreadable
            }
        }
    }

    /// What an archive is that cannot be read on; none where only a bound is against it.
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

/// What is verified.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The first seq; anything but 0 leaves out what only a whole log shows: its root, its heads, blocks nobody names.
    pub from_seq: u64,
    /// The last seq, included.
    pub to_seq: Option<u64>,
    /// A signed head kept elsewhere, which the log must contain.
    pub checkpoint: Option<String>,
    /// The verifier key of the heads; else the genesis block's.
    pub key: Option<String>,
    /// Derive the state again and compare every table.
    pub derived: bool,
    /// Hash every block and look for every payload; else only blocks that an event cannot be understood without.
    pub payloads: bool,
}

impl Default for Checks {
    /// The whole log, by its own word, without its state.
    fn default() -> Self {
        Self { from_seq: 0, to_seq: None, checkpoint: None, key: None, derived: false, payloads: true }
    }
}

/// Something that does not hold.
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
    /// Payloads that are here and hold, each once; none where they were left out, or a part of a log was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_payloads: Option<u64>,
    /// Payloads whose content is gone by an erasure that is on record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub erased_payloads: Option<u64>,
    /// Times that an operator signed events which no head covered.
    #[serde(skip_serializing_if = "Takeovers::is_empty")]
    pub takeovers: Takeovers,
    /// The Merkle root of the whole log, in hex.
    pub root: Option<String>,
    /// The signed head that the events were found under.
    pub head: Option<Under>,
    /// Blocks that nothing names. In a log they are no fault: what names them may not have come.
    #[serde(skip_serializing_if = "Unnamed::is_empty")]
    pub unnamed: Unnamed,
    /// Where payloads were left out, that they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payloads: Option<&'static str>,
    pub faults: Vec<Fault>,
    pub faults_total: u64,
}

/// The head that a verdict is under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Under {
    /// Events under it.
    pub size: u64,
    /// The verifier key of who signed it.
    pub key: String,
}

/// Blocks that are stored and that nothing names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Unnamed {
    pub count: u64,
    /// The first of them.
    pub cids: Vec<String>,
}

impl Unnamed {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What `cairn rebuild --sign` put on record: an operator's word in the place of a head.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Takeovers {
    pub count: u64,
    /// The first of them.
    pub events: Vec<Takeover>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Takeover {
    /// The event that says so.
    pub seq: u64,
    /// The first event that no head covered, and how many there were.
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

/// How far verifying has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Blocks(u64),
    /// Events checked, of so many.
    Events(u64, u64),
    /// Events folded again, of so many.
    Derived(u64, u64),
}

/// Verifies the log of a data directory. `step` is told how far it is.
pub fn verify(home: &Home, checks: &Checks, step: &mut dyn FnMut(Step)) -> Report {
    let mut found = Found { payloads: checks.payloads, ..Found::default() };
    let checked = SqliteReader::open(&home.log_path()).and_then(|log| found.check(home, &log, checks, step));
    if let Err(err) = checked {
        found.fault(Verdict::of_log(&err), None, None, format!("the log cannot be read on: {}", chain(&err)));
    }
    // Only what a whole log gives can be compared.
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
    /// Verifies one event, with what it links to and its place under the signed head; or one block.
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
    /// Whether the event `cid` is the leaf at `seq` of the tree that `head` signs.
    fn has_leaf(&self, cid: &Cid, seq: u64, head: &Checkpoint) -> bool {
        let proof = merkle::inclusion(&self.tiles(), seq, head.size);
        let leaf = merkle::leaf_hash(cid);
        proof.is_ok_and(|proof| merkle::verify_inclusion(&leaf, seq, head.size, &proof, &head.root))
    }
}

/// What verifying has found so far.
struct Found {
    verdict: Verdict,
    faults: Vec<Fault>,
    faults_total: u64,
    events: u64,
    blocks: u64,
    /// Payloads that hold, and those that are erased.
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
        // The head beside a log is written after its events: what is read before them is of no more than they are.
        let mut notes = home.signed_heads().unwrap_or_default();
        // From here on the events and the head in the log are of one moment, whoever writes meanwhile.
        log.freeze()?;
        let heads = self.heads(home, log, checks, notes.clone())?;
        let blocks = match whole && checks.payloads {
            true => Some(self.check_blocks(log, step)?),
            false => None,
        };
        let chain = self.check_events(log, checks, heads, blocks, step)?;
        if !whole {
            notes.extend(log.head()?);
            let last = chain.prev.map(|(cid, _)| (cid, chain.next.saturating_sub(1)));
            let read = chain.next > checks.from_seq;
            self.check_part(home, log, &chain.heads, &notes, last.filter(|_| read));
        }
        self.end(chain)
    }

    /// Checks one block by its form, together with the parts it names.
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
        self.end_payloads(&chain);
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
