//! Checks every event in order: its bytes, its place, its parents, what it links to, and the Merkle tree over all
//! events.
//!
//! Invariants:
//! - an event whose bytes are in doubt is not in the tree, and no head is compared after it;
//! - memory grows by sixteen bytes with every block, and with open calls, erased and missing payloads, and named
//!   contracts and plans; if payloads are left out, also with their names;
//! - a recent parent is found without a look-up in the store.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use sha2::{Digest, Sha256};

use crate::{
    block::{Cid, Codec, links},
    event::{
        Body,
        follows::{Before, Next},
        rules::{self, Ended, OpenCalls},
        strict,
    },
    log::{EventRow, LogError, Reader},
    merkle::{self, Growing},
    verify::{
        Checks, Found, STEP, Step, Takeover, Verdict,
        chain::{Blocks, Chain, Form, Heads, Recent},
    },
};

/// A link in CBOR begins with this byte, the head of a tag with a one-byte number.
const LINK_TAG: u8 = 0xd8;

/// The tree collects filled tiles, which are not needed here. They are dropped each time this many events were added.
const TILES_EVERY: u64 = 4096;

impl Found {
    /// Checks the events that are asked for, in order.
    pub(super) fn check_events<'a>(
        &mut self,
        log: &'a dyn Reader,
        checks: &Checks,
        heads: Heads,
        blocks: Option<Blocks>,
        step: &mut dyn FnMut(Step),
    ) -> Result<Chain<'a>, LogError> {
        let whole = checks.from_seq == 0 && checks.to_seq.is_none();
        let total = log.tip().ok().flatten().map_or(0, |tip| tip.seq + 1);
        let before = checks.from_seq.checked_sub(1).map(|seq| log.event_at(seq)).transpose()?.flatten();
        let mut chain = Chain {
            log,
            whole,
            blocks,
            genesis: before.as_ref().map(|event| event.fields().log),
            next: checks.from_seq,
            before: before.map(|event| Before {
                seq: checks.from_seq.saturating_sub(1),
                cid: event.cid(),
                ts: event.fields().ts,
            }),
            tree: whole.then(Growing::new),
            heads,
            recent: Recent::new(),
            known: HashSet::new(),
            open_calls: OpenCalls::default(),
            paid: HashSet::new(),
            erased: HashMap::new(),
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
            self.fault(Verdict::Invalid, Some(seq), Some(&cid), "the event's bytes do not have its name");
            chain.break_off();
            return Ok(());
        }
        let (mut refs, mut pay) = (std::mem::take(&mut chain.refs), std::mem::take(&mut chain.pay));
        let Some(event) = strict::read(row.bytes, &mut refs, &mut pay) else {
            self.fault(Verdict::Invalid, Some(seq), Some(&cid), "the bytes are not an event");
            chain.break_off();
            return Ok(());
        };
        self.check_place(&event, seq, &cid, chain);
        self.check_keys(&event, row.bytes, &cid, &mut chain.heads);
        self.check_parents(&event, &refs, &cid, chain)?;
        self.check_calls(&event, &cid, chain);
        self.check_links(&event, &refs, &pay, &cid, chain)?;
        chain.before = Some(Before { seq, cid, ts: event.ts });
        chain.recent.put(cid.digest(), seq);
        if let Some(tree) = &mut chain.tree {
            tree.push(merkle::leaf_hash(&cid));
            if tree.size().is_multiple_of(TILES_EVERY) {
                tree.take_changed();
            }
            let size = tree.size();
            chain.heads.compare(size, || tree.root());
        }
        (chain.refs, chain.pay) = (refs, pay);
        Ok(())
    }

    /// Checks that an event has the seq, log, `prev` and timestamp that its place demands.
    fn check_place(&mut self, event: &strict::Checked<'_>, seq: u64, cid: &Cid, chain: &mut Chain<'_>) {
        if event.seq != seq {
            let fault = "the event is stored under another seq than its own";
            self.fault(Verdict::Invalid, Some(seq), Some(cid), fault);
        }
        let log = *chain.genesis.get_or_insert(event.log);
        // It is held to the order of the place it is stored at, whatever it says.
        let next = Next { seq, ..Next::from(event) };
        for fault in next.misplaced(&log, chain.before) {
            self.fault(Verdict::Invalid, Some(seq), Some(cid), fault.as_str());
        }
    }

    /// Checks that the cause exists and that no parent comes after its child.
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
                Some(_) => self.fault(Verdict::Invalid, Some(seq), Some(cid), "`cause` is a later event"),
                None => {
                    self.fault(Verdict::Incomplete, Some(seq), Some(cause), "the event's cause is missing")
                }
            }
        }
        for parent in refs {
            if chain.seq_of(parent)?.is_some_and(|parent| parent >= seq) {
                self.fault(Verdict::Invalid, Some(seq), Some(cid), "a ref is a later event");
            }
        }
        Ok(())
    }

    /// Checks that a call ends at most once, and under the subject and contract it began with, and that its questions
    /// and answers have their turn. Only a whole log holds every start.
    fn check_calls(&mut self, event: &strict::Checked<'_>, cid: &Cid, chain: &mut Chain<'_>) {
        if !chain.whole {
            return;
        }
        let fault = match chain.open_calls.take(*cid, &event.said()) {
            Ended::Rightly => return,
            Ended::NotOpen => "ends a call that is not open",
            Ended::Otherwise => "ends a call under another subject or contract than it began",
            Ended::OutOfTurn => "asks or answers out of turn, or in a call that is not open",
        };
        self.fault(Verdict::Invalid, Some(event.seq), Some(cid), fault);
    }

    /// Checks the rules of the event's kind, and each block that the event names as what it is named as.
    fn check_links(
        &mut self,
        event: &strict::Checked<'_>,
        refs: &[Cid],
        pay: &[Cid],
        cid: &Cid,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let seq = event.seq;
        match chain.whole {
            // The checks of the heads have already reported a missing genesis block of a whole log.
            true if seq == 0 => drop(self.form_of(&event.log, seq, chain)?),
            true => {}
            false => self.check_named(event.log, Form::Genesis, seq, chain)?,
        }
        if let Some(contract) = event.tool {
            self.check_named(contract, Form::Contract, seq, chain)?;
        }
        let facts = rules::check(&event.said());
        // What an erasure names in its own `pay` does not count as named before it.
        if let Ok(Some(Body::PayloadErased(facts))) = &facts {
            self.check_erasure(facts.payload, seq, cid, chain)?;
        }
        for (payload, len) in pay.iter().zip(event.lens) {
            self.check_payload(payload, len, seq, chain)?;
        }
        match facts {
            Err(fault) => self.fault(Verdict::Invalid, Some(seq), Some(cid), fault),
            Ok(Some(Body::LogTakenOver(facts))) => {
                self.takeovers.add(Takeover { seq, from_seq: facts.from_seq, events: facts.events });
            }
            Ok(Some(Body::ContractPublished(facts))) => {
                self.check_named(facts.contract, Form::Contract, seq, chain)?;
            }
            Ok(Some(Body::ContractRetired(facts))) => {
                self.check_named(facts.contract, Form::Contract, seq, chain)?;
            }
            Ok(Some(Body::WorkflowSubmitted(facts))) => {
                self.check_named(facts.plan, Form::Plan, seq, chain)?
            }
            Ok(_) => {}
        }
        name_others(event, refs, chain)
    }
}

/// Marks the blocks that the event names in its body, its refs or its actor's proof as named.
fn name_others(event: &strict::Checked<'_>, refs: &[Cid], chain: &mut Chain<'_>) -> Result<(), LogError> {
    let Some(blocks) = &mut chain.blocks else { return Ok(()) };
    let in_body = match event.body.contains(&LINK_TAG) {
        true => links(Codec::DagCbor, event.body).unwrap_or_default(),
        false => Vec::new(),
    };
    for named in in_body.iter().chain(refs).chain(&event.proof) {
        if let Some(at) = blocks.place(named, chain.log)? {
            blocks.row(at).named = true;
        }
    }
    Ok(())
}
