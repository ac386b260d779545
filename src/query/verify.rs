//! Verifying a log: every event and block hashed, read strictly, and checked against what it links to.
//!
//! Invariants:
//! - nothing derived is trusted: only `log.db`, the signed head, and keys;
//! - a fault is reported where it is; verifying goes on after it as far as it can;
//! - erased content is told from missing content by the event that says so.

mod derived;
mod strict;

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    block::{
        Cid, Codec, Sha256Digest, decode, decode_ipld,
        payload::{INLINE_MAX, Payload},
    },
    contract::Contract,
    event::{Body, Event, Genesis},
    identity::{Checkpoint, Verifier, open_checkpoint},
    log::{BlockRow, EventRow, LogError, Reader, Stored, home::Home, sqlite::SqliteReader},
    merkle::{self, Growing},
    query::{QueryError, View, proof::Head},
    state::StoredTiles,
};

/// Faults told one by one; the rest are counted.
pub const FAULTS_MAX: usize = 100;
/// Bytes of a payload's salt.
const SALT_LEN: usize = 16;
/// Recent events by name, so that most causes need no look-up.
const RECENT_MAX: usize = 16 * 1024;
/// Events or blocks between two words about progress.
const STEP: u64 = 1024;

/// What the log is, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Verified,
    /// Something that was there is missing.
    Incomplete,
    /// It holds together, but another log was signed.
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
}

/// What is verified.
#[derive(Clone, Debug, Default)]
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
    /// The Merkle root of the whole log, in hex.
    pub root: Option<String>,
    pub faults: Vec<Fault>,
    pub faults_total: u64,
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
    let mut found = Found::default();
    let checked =
        SqliteReader::open(&home.log_path()).and_then(|log| found.check(home, &log, checks, step));
    if let Err(err) = checked {
        let verdict = match err {
            LogError::Corrupt { .. } => Verdict::Invalid,
            _ => Verdict::Unreadable,
        };
        found.fault(
            verdict,
            None,
            None,
            format!("the log cannot be read on: {}", chain(&err)),
        );
    }
    // Only what a whole log gives can be compared.
    if checks.derived && found.verdict == Verdict::Verified {
        match derived::compare(home, &mut |done, of| step(Step::Derived(done, of))) {
            Ok(differing) => {
                for table in differing {
                    let fault = format!(
                        "table `{table}` of state.db is not what the log gives; run `cairn rebuild`"
                    );
                    found.fault(Verdict::Invalid, None, None, fault);
                }
            }
            Err(err) => {
                let fault = format!(
                    "state.db cannot be compared: {}; run `cairn rebuild`",
                    chain(&err)
                );
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
            let checks = Checks {
                from_seq: seq,
                to_seq: Some(seq),
                ..Checks::default()
            };
            let chain =
                found.check_events(self.log.as_ref(), &checks, Vec::new(), &mut |_| {})?;
            found.end(chain, HashSet::new())?;
            let root = self.root(head.size)?;
            let proof = merkle::inclusion(&StoredTiles(&self.state), seq, head.size);
            let leaf = merkle::leaf_hash(cid);
            let under = proof
                .is_ok_and(|proof| merkle::verify_inclusion(&leaf, seq, head.size, &proof, &root));
            if !under {
                found.fault(
                    Verdict::Forked,
                    Some(seq),
                    Some(cid),
                    "the event is not under the signed head",
                );
            }
            found.root = Some(root);
            return Ok(found.report());
        }
        found.blocks = 1;
        match self.log.block(cid) {
            Ok(Some(Stored::Present(bytes))) => {
                found.check_block(cid, &bytes, None, self.log.as_ref())?;
            }
            Ok(Some(Stored::Erased)) => return Err(QueryError::Erased(*cid)),
            Ok(None) => return Err(QueryError::NotFound(cid.to_string())),
            Err(LogError::Corrupt { what }) => found.fault(Verdict::Invalid, None, Some(cid), what),
            Err(err) => return Err(err.into()),
        }
        Ok(found.report())
    }
}

/// What verifying has found so far.
struct Found {
    verdict: Verdict,
    faults: Vec<Fault>,
    faults_total: u64,
    events: u64,
    blocks: u64,
    root: Option<merkle::Hash>,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            verdict: Verdict::Verified,
            faults: Vec::new(),
            faults_total: 0,
            events: 0,
            blocks: 0,
            root: None,
        }
    }
}

/// What the walk over the events carries along.
struct Chain<'a> {
    log: &'a dyn Reader,
    whole: bool,
    genesis: Option<Cid>,
    next: u64,
    prev: Option<(Cid, u64)>,
    /// The tree so far; none once a leaf is missing or in doubt.
    tree: Option<Growing>,
    heads: Vec<(Checkpoint, &'static str)>,
    recent: HashMap<Sha256Digest, u64>,
    contracts: HashSet<Cid>,
    open_calls: HashSet<Cid>,
    erased: HashSet<Cid>,
    /// Payloads without bytes, and the first event that names each.
    missing: HashMap<Cid, u64>,
    refs: Vec<Cid>,
    pay: Vec<Cid>,
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
        // Before the events are read, so that the log has grown at least this far.
        let heads = match whole {
            true => self.heads(home, log, checks)?,
            false => Vec::new(),
        };
        let nulls = match whole {
            true => self.check_blocks(log, step)?,
            false => HashSet::new(),
        };
        let chain = self.check_events(log, checks, heads, step)?;
        self.end(chain, nulls)
    }

    /// Walks over the events that are asked for.
    fn check_events<'a>(
        &mut self,
        log: &'a dyn Reader,
        checks: &Checks,
        heads: Vec<(Checkpoint, &'static str)>,
        step: &mut dyn FnMut(Step),
    ) -> Result<Chain<'a>, LogError> {
        let whole = checks.from_seq == 0 && checks.to_seq.is_none();
        let total = log.tip().ok().flatten().map_or(0, |tip| tip.seq + 1);
        let before = checks
            .from_seq
            .checked_sub(1)
            .map(|seq| log.event_at(seq))
            .transpose()?
            .flatten();
        let mut chain = Chain {
            log,
            whole,
            genesis: before.as_ref().map(|event| event.fields().log),
            next: checks.from_seq,
            prev: before.map(|event| (event.cid(), event.fields().ts)),
            tree: whole.then(Growing::new),
            heads,
            recent: HashMap::new(),
            contracts: HashSet::new(),
            open_calls: HashSet::new(),
            erased: HashSet::new(),
            missing: HashMap::new(),
            refs: Vec::new(),
            pay: Vec::new(),
        };
        let mut failed = None;
        log.events(checks.from_seq, &mut |row| {
            if checks.to_seq.is_some_and(|to| row.seq > to) {
                return ControlFlow::Break(());
            }
            if let Err(err) = self.check_event(row, &mut chain) {
                failed = Some(err);
                return ControlFlow::Break(());
            }
            if self.events.is_multiple_of(STEP) {
                step(Step::Events(self.events, total));
            }
            ControlFlow::Continue(())
        })?;
        if let Some(err) = failed {
            return Err(err);
        }
        step(Step::Events(self.events, total));
        Ok(chain)
    }

    /// The signed heads the log must contain.
    fn heads(
        &mut self,
        home: &Home,
        log: &SqliteReader,
        checks: &Checks,
    ) -> Result<Vec<(Checkpoint, &'static str)>, LogError> {
        let first = log.event_at(0).ok().flatten();
        let Some(genesis) = first
            .map(|event| log.block(&event.fields().log))
            .transpose()?
            .flatten()
        else {
            return Ok(Vec::new());
        };
        let Stored::Present(bytes) = genesis else {
            return Ok(Vec::new());
        };
        let genesis: Option<Genesis> = decode(&bytes).ok();
        let own = genesis.and_then(|genesis| {
            Verifier::from_key(&genesis.origin, genesis.key.try_into().ok()?).ok()
        });
        let Some(own) = own else {
            self.fault(
                Verdict::Invalid,
                Some(0),
                None,
                "the genesis block holds no usable key",
            );
            return Ok(Vec::new());
        };
        let given = match &checks.key {
            None => own.clone(),
            Some(key) => match Verifier::from_vkey(key) {
                Ok(verifier) => verifier,
                Err(err) => {
                    self.fault(
                        Verdict::Invalid,
                        None,
                        None,
                        format!("the key given is unusable: {err}"),
                    );
                    return Ok(Vec::new());
                }
            },
        };
        if given != own {
            self.fault(
                Verdict::Forked,
                None,
                None,
                "the genesis block names another key than the one given",
            );
        }
        let mut heads = Vec::new();
        let notes = home.signed_heads().unwrap_or_default();
        let kept = notes
            .iter()
            .filter_map(|note| open_checkpoint(note, &own).ok());
        match kept.max_by_key(|head| head.size) {
            Some(head) => heads.push((head, "the signed head beside the log")),
            None => self.fault(
                Verdict::Incomplete,
                None,
                None,
                "no signed head stands beside the log",
            ),
        }
        match checks
            .checkpoint
            .as_deref()
            .map(|note| open_checkpoint(note, &given))
        {
            Some(Ok(head)) => heads.push((head, "the checkpoint given")),
            Some(Err(err)) => {
                self.fault(
                    Verdict::Invalid,
                    None,
                    None,
                    format!("the checkpoint given: {err}"),
                );
            }
            None => {}
        }
        Ok(heads)
    }

    /// Checks every stored block; gives back those whose bytes are gone.
    fn check_blocks(
        &mut self,
        log: &SqliteReader,
        step: &mut dyn FnMut(Step),
    ) -> Result<HashSet<Cid>, LogError> {
        let mut nulls = HashSet::new();
        let mut failed = None;
        log.blocks(0, &mut |row| {
            self.blocks += 1;
            match self.check_block_row(row, log) {
                Ok(Some(erased)) => {
                    nulls.insert(erased);
                }
                Ok(None) => {}
                Err(err) => {
                    failed = Some(err);
                    return ControlFlow::Break(());
                }
            }
            if self.blocks.is_multiple_of(STEP) {
                step(Step::Blocks(self.blocks));
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(nulls), Err)
    }

    fn check_block_row(
        &mut self,
        row: BlockRow<'_>,
        log: &SqliteReader,
    ) -> Result<Option<Cid>, LogError> {
        let Some(codec) = row.codec else {
            self.fault(
                Verdict::Invalid,
                None,
                None,
                format!("block {} has an unknown codec", row.number),
            );
            return Ok(None);
        };
        let cid = Cid::from_digest(codec, row.digest);
        let Some(bytes) = row.bytes else {
            return Ok(Some(cid));
        };
        self.check_block(&cid, bytes, None, log)?;
        Ok(None)
    }

    /// Checks a block's bytes against its name and the rules of what it is.
    fn check_block(
        &mut self,
        cid: &Cid,
        bytes: &[u8],
        seq: Option<u64>,
        log: &dyn Reader,
    ) -> Result<(), LogError> {
        if !cid.names(bytes) {
            self.fault(
                Verdict::Invalid,
                seq,
                Some(cid),
                "the block's bytes do not have its name",
            );
            return Ok(());
        }
        if cid.codec() == Codec::Raw {
            return Ok(());
        }
        let Ok(payload) = decode::<Payload>(bytes) else {
            let known = decode::<Contract>(bytes).is_ok() || decode_ipld(bytes).is_ok();
            if !known {
                self.fault(
                    Verdict::Invalid,
                    seq,
                    Some(cid),
                    "the block is not strict dag-cbor",
                );
            }
            return Ok(());
        };
        let whole = match (&payload.data, &payload.parts) {
            (Some(data), None) => data.len() <= INLINE_MAX,
            (None, Some(parts)) => !parts.is_empty(),
            (Some(_), Some(_)) | (None, None) => false,
        };
        if payload.v != 1 || payload.salt.len() != SALT_LEN || !whole {
            self.fault(Verdict::Invalid, seq, Some(cid), "the payload is malformed");
        }
        for part in payload.parts.iter().flatten() {
            if log.number_of(part)?.is_none() {
                self.fault(
                    Verdict::Incomplete,
                    seq,
                    Some(part),
                    format!("a part of payload {cid} is missing"),
                );
            }
        }
        Ok(())
    }

    fn check_event(&mut self, row: EventRow<'_>, chain: &mut Chain<'_>) -> Result<(), LogError> {
        self.events += 1;
        let seq = row.seq;
        let cid = Cid::from_digest(Codec::DagCbor, Sha256::digest(row.bytes).into());
        if row.seq != chain.next {
            let fault = match row.seq - chain.next {
                1 => format!("event {} is missing", chain.next),
                _ => format!("events {} to {} are missing", chain.next, row.seq - 1),
            };
            self.fault(Verdict::Incomplete, Some(chain.next), None, fault);
            chain.break_off();
        }
        chain.next = seq + 1;
        if cid.digest() != &row.digest {
            self.fault(
                Verdict::Invalid,
                Some(seq),
                Some(&cid),
                "the event's bytes do not have its name",
            );
            chain.break_off();
            return Ok(());
        }
        let (mut refs, mut pay) = (
            std::mem::take(&mut chain.refs),
            std::mem::take(&mut chain.pay),
        );
        let Some(event) = strict::read(row.bytes, &mut refs, &mut pay) else {
            self.fault(
                Verdict::Invalid,
                Some(seq),
                Some(&cid),
                "the bytes are not an event",
            );
            chain.break_off();
            return Ok(());
        };
        self.check_place(&event, seq, &cid, chain);
        self.check_parents(&event, &refs, &cid, chain)?;
        self.check_links(&event, &pay, row.bytes, &cid, chain)?;
        chain.prev = Some((cid, event.ts));
        if chain.recent.len() == RECENT_MAX {
            chain.recent.clear();
        }
        chain.recent.insert(*cid.digest(), seq);
        if let Some(tree) = &mut chain.tree {
            tree.push(merkle::leaf_hash(&cid));
            // Tiles are the server's business; the tree's edge is all that is needed here.
            tree.take_changed();
            self.check_heads(chain);
        }
        (chain.refs, chain.pay) = (refs, pay);
        Ok(())
    }

    /// The event's place in its log.
    fn check_place(
        &mut self,
        event: &strict::Checked<'_>,
        seq: u64,
        cid: &Cid,
        chain: &mut Chain<'_>,
    ) {
        let mut rule = |holds: bool, fault: &str| {
            if !holds {
                self.fault(Verdict::Invalid, Some(seq), Some(cid), fault);
            }
        };
        rule(
            event.seq == seq,
            "the event is stored under another seq than its own",
        );
        let genesis = *chain.genesis.get_or_insert(event.log);
        rule(event.log == genesis, "the event is of another log");
        if let Some((prev, ts)) = chain.prev {
            rule(event.prev == Some(prev), "`prev` is not the event before");
            rule(event.ts >= ts, "`ts` is before that of the event before");
        }
        rule(
            seq > 0 || event.kind == "log.opened",
            "the first event is not log.opened",
        );
    }

    /// Causal parents come before their children, and a call ends once.
    fn check_parents(
        &mut self,
        event: &strict::Checked<'_>,
        refs: &[Cid],
        cid: &Cid,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let seq = event.seq;
        if let Some(cause) = &event.cause {
            match chain.seq_of(cause)? {
                Some(parent) if parent < seq => {}
                Some(_) => self.fault(
                    Verdict::Invalid,
                    Some(seq),
                    Some(cid),
                    "`cause` is a later event",
                ),
                None => self.fault(
                    Verdict::Incomplete,
                    Some(seq),
                    Some(cause),
                    "the event's cause is missing",
                ),
            }
        }
        for parent in refs {
            if chain.seq_of(parent)?.is_some_and(|parent| parent >= seq) {
                self.fault(
                    Verdict::Invalid,
                    Some(seq),
                    Some(cid),
                    "a ref is a later event",
                );
            }
        }
        if !chain.whole {
            return Ok(());
        }
        match event.kind {
            "call.started" => {
                chain.open_calls.insert(*cid);
            }
            "call.succeeded" | "call.failed" | "call.refused" | "call.interrupted"
            | "call.cancelled" => {
                if !event
                    .cause
                    .is_some_and(|cause| chain.open_calls.remove(&cause))
                {
                    self.fault(
                        Verdict::Invalid,
                        Some(seq),
                        Some(cid),
                        "ends a call that is not open",
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Contracts and payloads are there, or erased.
    fn check_links(
        &mut self,
        event: &strict::Checked<'_>,
        pay: &[Cid],
        bytes: &[u8],
        cid: &Cid,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let seq = event.seq;
        for block in event
            .tool
            .iter()
            .filter(|tool| !chain.contracts.contains(tool))
        {
            match self.block(block, seq, chain)? {
                true => {}
                false => self.fault(
                    Verdict::Incomplete,
                    Some(seq),
                    Some(block),
                    "the call's contract is missing",
                ),
            }
        }
        chain.contracts.extend(event.tool);
        for payload in pay {
            if !self.block(payload, seq, chain)? {
                chain.missing.entry(*payload).or_insert(seq);
            }
        }
        if event.kind == "payload.erased"
            && let Some(Body::PayloadErased(facts)) = Event::open(bytes.to_vec())
                .ok()
                .and_then(|event| event.body())
        {
            chain.erased.insert(facts.payload);
        }
        if seq == 0 && !self.block(&event.log, seq, chain)? {
            self.fault(
                Verdict::Incomplete,
                Some(0),
                Some(cid),
                "the genesis block is missing",
            );
        }
        Ok(())
    }

    /// Whether a block is stored. In part of a log it is checked here; in a whole one it has been.
    fn block(&mut self, cid: &Cid, seq: u64, chain: &Chain<'_>) -> Result<bool, LogError> {
        if chain.whole {
            return Ok(chain.log.number_of(cid)?.is_some());
        }
        self.blocks += 1;
        match chain.log.block(cid) {
            Ok(Some(Stored::Present(bytes))) => {
                self.check_block(cid, &bytes, Some(seq), chain.log)?;
                Ok(true)
            }
            // Its erasure may be recorded outside the part that is checked.
            Ok(Some(Stored::Erased)) => Ok(true),
            Ok(None) => Ok(false),
            Err(LogError::Corrupt { what }) => {
                self.fault(Verdict::Invalid, Some(seq), Some(cid), what);
                Ok(true)
            }
            Err(err) => Err(err),
        }
    }

    /// Compares the tree with the heads that are of its size.
    fn check_heads(&mut self, chain: &Chain<'_>) {
        let Some(tree) = &chain.tree else { return };
        for (head, what) in chain
            .heads
            .iter()
            .filter(|(head, _)| head.size == tree.size())
        {
            if tree.root() != head.root {
                let fault = format!("{what} over {} events is of another log", head.size);
                self.fault(Verdict::Forked, Some(head.size - 1), None, fault);
            }
        }
    }

    fn end(&mut self, chain: Chain<'_>, nulls: HashSet<Cid>) -> Result<(), LogError> {
        for (head, what) in &chain.heads {
            if head.size > chain.next {
                let fault = format!(
                    "{what} is over {} events, the log has {}: the last events are missing",
                    head.size, chain.next
                );
                self.fault(Verdict::Incomplete, Some(chain.next), None, fault);
            }
        }
        if chain.whole && chain.next == 0 {
            self.fault(Verdict::Incomplete, None, None, "the log is empty");
        }
        let mut missing: Vec<(Cid, u64)> = chain.missing.into_iter().collect();
        missing.sort_unstable_by_key(|(_, seq)| *seq);
        for (payload, seq) in missing {
            if !chain.erased.contains(&payload) {
                self.fault(
                    Verdict::Incomplete,
                    Some(seq),
                    Some(&payload),
                    "the payload is missing, and no event says it was erased",
                );
            }
        }
        for block in nulls {
            // The parts of an erased payload have no link left that would lead to them.
            let on_record = match block.codec() {
                Codec::Raw => !chain.erased.is_empty(),
                Codec::DagCbor => chain.erased.contains(&block),
            };
            if !on_record {
                self.fault(
                    Verdict::Incomplete,
                    None,
                    Some(&block),
                    "the block's bytes are gone, and no event says they were erased",
                );
            }
        }
        self.root = chain.tree.map(|tree| tree.root());
        Ok(())
    }

    fn fault(
        &mut self,
        verdict: Verdict,
        seq: Option<u64>,
        cid: Option<&Cid>,
        fault: impl Into<String>,
    ) {
        self.verdict = self.verdict.max(verdict);
        self.faults_total += 1;
        if self.faults.len() < FAULTS_MAX {
            let cid = cid.map(Cid::to_string);
            self.faults.push(Fault {
                seq,
                cid,
                fault: fault.into(),
                verdict,
            });
        }
    }

    fn report(self) -> Report {
        Report {
            verified: self.verdict == Verdict::Verified,
            verdict: self.verdict,
            checked_events: self.events,
            checked_blocks: self.blocks,
            root: self.root.map(|root| data_encoding::HEXLOWER.encode(&root)),
            faults: self.faults,
            faults_total: self.faults_total,
        }
    }
}

impl Chain<'_> {
    /// After a hole nothing can be said of the tree, nor of the next event's `prev`.
    fn break_off(&mut self) {
        self.tree = None;
        self.prev = None;
    }

    fn seq_of(&self, cid: &Cid) -> Result<Option<u64>, LogError> {
        match self.recent.get(cid.digest()) {
            Some(seq) => Ok(Some(*seq)),
            None => self.log.seq_of(cid),
        }
    }
}

/// An error with its causes, in one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
