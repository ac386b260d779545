//! What an archive of one entity must hold, block by block as it is read.
//!
//! Invariants:
//! - every block is what it is named as, and named by something: contracts and plans stand before the events, payloads
//!   behind the first that names them, parts behind their payload;
//! - events keep the rules that a log keeps, as far as one that lacks its neighbours can be held to them.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::evidence::{self, Evidence, Proof};
use crate::{
    archive::kept::{ARCHIVES_MAX, DIRECTORY, EVENTS_MAX},
    archive::writing::Manifest,
    block::car::CarError,
    block::{Cid, Codec, decode_exactly, payload::Payload},
    contract::Contract,
    event::{
        Body, Event, Genesis,
        keeping::rotation,
        rules::{self, Ended, OpenCalls},
    },
    identity::rotation::Keys,
    merkle::Hash,
    verify::Verdict,
    workflow::plan::Plan,
};

/// Why an archive is not kept.
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
    /// What the archive is that was refused; none where something else stands against keeping it.
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

/// What was read so far of an archive.
pub(super) struct Check<'a> {
    manifest: &'a Manifest,
    subject: &'a str,
    /// The log's keys; none before the genesis block, which holds the first.
    keys: Option<Keys>,
    /// Contracts and plans, and whether anything has named each.
    contracts: HashMap<Cid, bool>,
    plans: HashMap<Cid, bool>,
    payloads: Payloads,
    calls: OpenCalls,
    begun: HashSet<Cid>,
    /// Causes that were not met yet.
    causes: HashSet<Cid>,
    /// Events so far.
    met: HashSet<Cid>,
    leaves: Vec<(u64, Hash)>,
    /// Seq, name and moment of the last event.
    last: Option<(u64, Cid, u64)>,
    from: u64,
    submitted: bool,
    pub events: u64,
    pub blocks: u64,
}

/// Payloads that events have named, and their parts.
#[derive(Default)]
struct Payloads {
    /// Bytes of content that events say each has.
    lens: HashMap<Cid, u64>,
    /// The least and the most bytes of each part.
    parts: HashMap<Cid, (usize, usize)>,
}

impl Payloads {
    /// Notes what an event names; false where another event said otherwise.
    fn name(&mut self, cid: Cid, len: u64) -> bool {
        *self.lens.entry(cid).or_insert(len) == len
    }

    /// Takes a block that was named; false where it is none of these.
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

    /// Checks the next block, whose bytes have its name.
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
        if self.last.is_none() && decode_exactly::<Contract>(&bytes).is_ok_and(|contract| contract.v == 1) {
            self.blocks += 1;
            self.contracts.insert(cid, false);
            return Ok(());
        }
        if self.last.is_none() && Plan::is_block(&bytes) {
            self.blocks += 1;
            self.plans.insert(cid, false);
            return Ok(());
        }
        let event = Event::open(bytes).map_err(|_| refused(UNNAMED))?;
        self.event(&event)
    }

    /// The log's first block, which holds the first of its keys.
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
        // What is remembered of events is bounded by what the manifest promises.
        rule(self.events < self.manifest.count, "the archive holds more events than its manifest says")?;
        rule(fields.log == self.manifest.log, "it is of another log")?;
        if let Some((before, prev, ts)) = self.last {
            rule(seq > before, "it stands after a later event")?;
            rule(seq > before + 1 || fields.prev == Some(prev), "`prev` is not the event before")?;
            rule(fields.ts >= ts, "`ts` is before that of the event before")?;
        } else {
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
            let one = self.payloads.name(pay.cid, pay.len);
            rule(one, "it says another length of a payload than an earlier event")?;
        }
        self.causes.extend(fields.cause);
        self.met.insert(cid);
        self.leaves.push(evidence::leaf(event));
        self.last = Some((seq, cid, fields.ts));
        self.events += 1;
        Ok(())
    }

    /// A call whose start is here ends once, as what it began as.
    fn call(&mut self, event: &Event) -> Result<(), &'static str> {
        let fields = event.fields();
        let here =
            fields.kind == "call.started" || fields.cause.is_some_and(|cause| self.begun.contains(&cause));
        if !here {
            return Ok(());
        }
        if fields.kind == "call.started" {
            self.begun.insert(event.cid());
        }
        match self.calls.take(event.cid(), &rules::said(event, &[])) {
            Ended::Rightly => Ok(()),
            Ended::NotOpen => Err("it ends a call that is not open"),
            Ended::Otherwise => Err("it ends a call under another subject or contract than it began"),
        }
    }

    /// Whether a name is that of a block or an event that is no payload.
    fn kept(&self, cid: &Cid) -> bool {
        *cid == self.manifest.log
            || cid.codec() == Codec::Raw
            || self.contracts.contains_key(cid)
            || self.plans.contains_key(cid)
            || self.causes.contains(cid)
            || self.met.contains(cid)
    }

    /// What holds once everything was read.
    pub fn end(&self, proof: &Proof<'_>) -> Result<Evidence, KeepError> {
        let Manifest { from, to, count, .. } = *self.manifest;
        let last = self.last.map_or(0, |(seq, ..)| seq);
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
        let refused = |fault| KeepError::Proof { fault };
        let keys = self.keys.as_ref().ok_or_else(|| refused("its genesis block is missing"))?;
        if proof.open() {
            return Err(refused("blocks of its proof are missing"));
        }
        let head = evidence::head_of(self.manifest, keys).map_err(refused)?;
        evidence::judge(self.manifest, &head, &self.leaves, proof).map_err(refused)
    }
}

/// The contract that an event publishes or retires.
fn published(facts: Option<&Body>) -> Option<&Cid> {
    match facts? {
        Body::ContractPublished(facts) => Some(&facts.contract),
        Body::ContractRetired(facts) => Some(&facts.contract),
        _ => None,
    }
}
