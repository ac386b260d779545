//! Checks the record of one entity, block by block, while it is read from an archive.
//!
//! Invariants:
//! - every block hashes to its name, has the form it is named as, and is named: contracts and plans stand before the
//!   events, a payload stands after the first event that names it, and a part after its payload;
//! - events keep the rules of a log as far as they can be checked without the events between them.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::evidence::{self, Evidence, Proof};
use crate::{
    archive::kept::{ARCHIVES_MAX, DIRECTORY, EVENTS_MAX},
    archive::writing::Manifest,
    block::car::CarError,
    block::{Cid, Codec, decode_exactly, encode, links, payload::Payload},
    contract::Contract,
    event::{
        Body, Event, Genesis,
        follows::{Before, Next},
        keeping::rotation,
        rules::{self, Ended, OpenCalls},
    },
    identity::rotation::Keys,
    merkle::Hash,
    verify::Verdict,
    workflow::plan::Plan,
};

/// Says why an archive is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("the archive is refused")]
    Car(#[from] CarError),
    #[error("the archive is refused: event {seq}, {cid}: {fault}")]
    Event { seq: u64, cid: Cid, fault: &'static str },
    #[error("the archive is refused: block {cid}: {fault}")]
    Block { cid: Cid, fault: &'static str },
    #[error(
        "the archive is refused: it holds {found} events, from {from} to {to}, not those its manifest speaks of"
    )]
    Count { found: u64, from: u64, to: u64 },
    #[error("the archive is refused: the submission of {subject} is not in it")]
    NoSubmission { subject: String },
    #[error("the archive holds {count} events; the bound is {EVENTS_MAX}")]
    TooLarge { count: u64 },
    #[error("the archive is refused: {fault}")]
    Proof { fault: &'static str },
    #[error(
        "an archive of this root is kept already, with other content: `{file}`; move that file away to keep this one in its place"
    )]
    Differs { file: String },
    #[error("the directory keeps {ARCHIVES_MAX} archives already; remove some of its `{DIRECTORY}`")]
    TooMany,
    #[error("the data directory cannot be written")]
    Io(#[from] io::Error),
}

impl KeepError {
    /// Returns the verdict on the refused archive; returns none if something other than its content prevents keeping
    /// it.
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Car(err) => Verdict::of_archive(err),
            Self::Event { .. } | Self::Block { .. } | Self::Proof { .. } => Some(Verdict::Invalid),
            Self::Count { .. } | Self::NoSubmission { .. } => Some(Verdict::Incomplete),
            Self::TooLarge { .. } | Self::Differs { .. } | Self::TooMany | Self::Io(_) => None,
        }
    }
}

const UNNAMED: &str = "it is no event, and nothing before it names it";

/// Holds what was read of an archive so far.
pub(super) struct Check<'a> {
    manifest: &'a Manifest,
    subject: &'a str,
    /// The log's keys are known once the genesis block, which holds the first key, was read.
    keys: Option<Keys>,
    /// Maps each contract to whether an event has named it; `plans` does the same.
    contracts: HashMap<Cid, bool>,
    plans: HashMap<Cid, bool>,
    /// Holds what the contracts and plans name as contracts.
    links: HashSet<Cid>,
    payloads: Payloads,
    calls: OpenCalls,
    begun: HashSet<Cid>,
    /// Holds all causes named so far. An event among them stands after its effect and is refused.
    causes: HashSet<Cid>,
    /// Holds the CIDs of the events read so far.
    met: HashSet<Cid>,
    leaves: Vec<(u64, Hash)>,
    /// The last event.
    last: Option<Before>,
    from: u64,
    submitted: bool,
    pub events: u64,
    pub blocks: u64,
}

/// Holds the payloads that events have named, and their parts.
#[derive(Default)]
struct Payloads {
    /// Maps a payload to the bytes of content that its events state.
    lens: HashMap<Cid, u64>,
    /// Maps a part to the least and the most bytes that its block may have.
    parts: HashMap<Cid, (usize, usize)>,
}

impl Payloads {
    /// Records a payload that an event names. Returns false if an earlier event stated another length.
    fn name(&mut self, cid: Cid, len: u64) -> bool {
        *self.lens.entry(cid).or_insert(len) == len
    }

    /// Checks a block that was named as a payload or a part. Returns false if it was named as neither.
    fn take(&mut self, cid: &Cid, bytes: &[u8]) -> Result<bool, &'static str> {
        if let Some((least, most)) = self.parts.get(cid) {
            return match (*least..=*most).contains(&bytes.len()) {
                true => Ok(true),
                false => Err("the part has another length than its place asks for"),
            };
        }
        let Some(len) = self.lens.get(cid) else { return Ok(false) };
        let payload: Payload =
            decode_exactly(bytes).map_err(|_| "an event names it as a payload, and it is none")?;
        for part in
            payload.layout(Some(*len)).map_err(|_| "the payload is not of its form, or of another length")?
        {
            let lens = (part.least, part.most);
            if *self.parts.entry(part.cid).or_insert(lens) != lens {
                return Err("the payload names one part in places of two lengths");
            }
        }
        Ok(true)
    }
}

impl<'a> Check<'a> {
    pub fn new(manifest: &'a Manifest, subject: &'a str) -> Self {
        Self {
            manifest,
            subject,
            keys: None,
            contracts: HashMap::new(),
            plans: HashMap::new(),
            links: HashSet::new(),
            payloads: Payloads::default(),
            calls: OpenCalls::default(),
            begun: HashSet::new(),
            causes: HashSet::new(),
            met: HashSet::new(),
            leaves: Vec::new(),
            last: None,
            from: 0,
            submitted: false,
            events: 0,
            blocks: 0,
        }
    }

    /// Checks the next block. The caller has checked that its bytes hash to `cid`.
    pub fn block(&mut self, cid: Cid, bytes: Vec<u8>) -> Result<(), KeepError> {
        let refused = |fault| KeepError::Block { cid, fault };
        if self.keys.is_none() {
            self.blocks += 1;
            self.keys = Some(self.genesis(cid, &bytes).map_err(refused)?);
            return Ok(());
        }
        if self.payloads.take(&cid, &bytes).map_err(refused)? {
            self.blocks += 1;
            return Ok(());
        }
        if cid.codec() == Codec::Raw {
            return Err(refused(UNNAMED));
        }
        if self.last.is_none() && self.named_by_events(cid, &bytes) {
            return Ok(());
        }
        let event = Event::open(bytes).map_err(|_| refused(UNNAMED))?;
        self.event(&event)
    }

    /// Takes a contract or a plan, with what it names as contracts. Returns false if the block is neither.
    fn named_by_events(&mut self, cid: Cid, bytes: &[u8]) -> bool {
        let blocks = match (Contract::is_block(bytes), Plan::is_block(bytes)) {
            (true, _) => &mut self.contracts,
            (false, true) => &mut self.plans,
            (false, false) => return false,
        };
        blocks.insert(cid, false);
        self.blocks += 1;
        self.links.extend(links(cid.codec(), bytes).unwrap_or_default());
        true
    }

    /// Returns the keys from the genesis block, which must be the first block after the proof.
    fn genesis(&self, cid: Cid, bytes: &[u8]) -> Result<Keys, &'static str> {
        if cid != self.manifest.log {
            return Err("it stands where the genesis block of the log should");
        }
        let (_, key) = Genesis::open(bytes).map_err(|_| "it is no genesis block with an ed25519 key")?;
        Ok(Keys::new(cid, key))
    }

    fn event(&mut self, event: &Event) -> Result<(), KeepError> {
        let (fields, cid) = (event.fields(), event.cid());
        let seq = fields.seq;
        let refused = |fault| KeepError::Event { seq, cid, fault };
        let rule = |holds: bool, fault| if holds { Ok(()) } else { Err(refused(fault)) };
        // The count in the manifest bounds what is remembered of events, and so the memory.
        rule(self.events < self.manifest.count, "the archive holds more events than its manifest says")?;
        if let Some(fault) = Next::from(fields).misplaced(&self.manifest.log, self.last).next() {
            return Err(refused(fault.as_str()));
        }
        if self.last.is_none() {
            self.from = seq;
        }
        rule(!self.causes.contains(&cid), "an earlier event names it as its cause")?;
        let facts = rules::check_event(event).map_err(refused)?;
        self.call(event).map_err(refused)?;
        for named in fields.tool.iter().chain(published(facts.as_ref())) {
            let there = self.contracts.get_mut(named).map(|named| *named = true);
            rule(there.is_some(), "its contract is missing")?;
        }
        match &facts {
            Some(Body::WorkflowSubmitted(facts)) => {
                let there = self.plans.get_mut(&facts.plan).map(|named| *named = true);
                rule(there.is_some(), "its plan is missing")?;
                self.submitted |= fields.subject == self.subject;
            }
            Some(Body::PayloadErased(facts)) => {
                rule(!self.kept(&facts.payload), "it erases what is no payload")?
            }
            _ => {}
        }
        if let Some(keys) = self.keys.as_mut().filter(|_| fields.kind == "log.key_rotated") {
            let followed = rotation(event).is_some_and(|rotation| keys.rotate(&rotation).is_ok());
            rule(followed, "the key before it did not sign for its key")?;
        }
        for pay in &fields.pay {
            rule(!self.kept(&pay.cid), "it names as a payload what is none")?;
            let one = self.payloads.name(pay.cid, pay.len);
            rule(one, "it says another length of a payload than an earlier event")?;
        }
        self.causes.extend(fields.cause);
        self.met.insert(cid);
        self.leaves.push(evidence::leaf(event));
        self.last = Some(Before { seq, cid, ts: fields.ts });
        self.events += 1;
        Ok(())
    }

    /// Checks that a call ends at most once and under the subject and contract it began with, and that its questions
    /// and answers have their turn. What belongs to a call whose start is not in the archive is not checked.
    fn call(&mut self, event: &Event) -> Result<(), &'static str> {
        let fields = event.fields();
        let here =
            fields.kind == "call.started" || fields.cause.is_some_and(|cause| self.begun.contains(&cause));
        if !here {
            return Ok(());
        }
        if matches!(fields.kind.as_str(), "call.started" | "call.asked") {
            self.begun.insert(event.cid());
        }
        match self.calls.take(event.cid(), &rules::said(event, &encode(&fields.body))) {
            Ended::Rightly => Ok(()),
            Ended::NotOpen => Err("it ends a call that is not open"),
            Ended::Otherwise => Err("it ends a call under another subject or contract than it began"),
            Ended::OutOfTurn => Err("it asks or answers out of turn, or in a call that is not open"),
        }
    }

    /// Returns whether a CID names a block or an event that is not a payload.
    fn kept(&self, cid: &Cid) -> bool {
        *cid == self.manifest.log
            || cid.codec() == Codec::Raw
            || self.contracts.contains_key(cid)
            || self.plans.contains_key(cid)
            || self.causes.contains(cid)
            || self.met.contains(cid)
    }

    /// Returns whether a CID names what the archive holds as something else than a contract.
    fn is_no_contract(&self, cid: &Cid) -> bool {
        let payload = self.payloads.lens.contains_key(cid);
        !self.contracts.contains_key(cid) && (payload || self.kept(cid))
    }

    /// Runs the checks that need the whole archive, and returns what the proof shows.
    pub fn end(&self, proof: &Proof<'_>) -> Result<Evidence, KeepError> {
        let Manifest { from, to, count, .. } = *self.manifest;
        let last = self.last.map_or(0, |last| last.seq);
        if (self.from, last, self.events) != (from, to, count) {
            return Err(KeepError::Count { found: self.events, from: self.from, to: last });
        }
        if !self.submitted {
            return Err(KeepError::NoSubmission { subject: self.subject.to_owned() });
        }
        let mut named = self.contracts.iter().chain(&self.plans);
        if let Some((cid, _)) = named.find(|(_, named)| !**named) {
            return Err(KeepError::Block { cid: *cid, fault: "no event of the archive names it" });
        }
        if let Some(cid) = self.links.iter().find(|cid| self.is_no_contract(cid)) {
            return Err(KeepError::Block {
                cid: *cid,
                fault: "a block names it as a contract, and it is none",
            });
        }
        let refused = |fault| KeepError::Proof { fault };
        let keys = self.keys.as_ref().ok_or_else(|| refused("its genesis block is missing"))?;
        if proof.open() {
            return Err(refused("blocks of its proof are missing"));
        }
        let head = evidence::head_of(self.manifest, keys).map_err(refused)?;
        evidence::judge(self.manifest, &head, &self.leaves, proof).map_err(refused)
    }
}

/// Returns the contract that an event publishes or retires.
fn published(facts: Option<&Body>) -> Option<&Cid> {
    match facts? {
        Body::ContractPublished(facts) => Some(&facts.contract),
        Body::ContractRetired(facts) => Some(&facts.contract),
        _ => None,
    }
}
