//! Checks every block: its bytes against its name, and its form.
//!
//! Invariants:
//! - a block is known by its whole CID: a block that is stored under another codec counts as missing;
//! - a block of unknown form is valid if its bytes hash to its name; the events that name it decide what it must be;
//! - sixteen bytes are kept in memory for each block.

use std::ops::ControlFlow;

use crate::{
    block::{Cid, Codec, decode_exactly, decode_ipld, links, payload::Payload},
    contract::Contract,
    event::Genesis,
    log::{BlockRow, LogError, Reader, Stored, sqlite::SqliteReader},
    verify::{
        Found, STEP, Step, Verdict,
        chain::{Blocks, Bytes, Chain, Form, Row},
    },
    workflow::plan::Plan,
};

pub(super) const PART_GONE: &str = "the bytes of a part are gone, and its payload is not erased";
const GONE: &str = "the block's bytes are gone, and no event says they were erased";

impl Found {
    /// Checks every stored block and returns one row for each.
    pub(super) fn check_blocks(
        &mut self,
        log: &SqliteReader,
        step: &mut dyn FnMut(Step),
    ) -> Result<Blocks, LogError> {
        let mut blocks = Blocks::default();
        log.blocks(0, &mut |row| {
            // An erased block has no bytes to check.
            self.blocks += u64::from(row.bytes.is_some());
            blocks.0.extend(self.check_block_row(row));
            if self.blocks.is_multiple_of(STEP) {
                step(Step::Blocks(self.blocks));
            }
            ControlFlow::Continue(())
        })?;
        Ok(blocks)
    }

    fn check_block_row(&mut self, row: BlockRow<'_>) -> Option<Row> {
        let number = row.number;
        let Some(codec) = row.codec else {
            self.fault(Verdict::Invalid, None, None, format!("block {number} has an unknown codec"));
            return None;
        };
        let cid = Cid::from_digest(codec, row.digest);
        let (form, len) = match row.bytes {
            None => (Form::Gone, 0),
            Some(bytes) if cid.names(bytes) => self.form(&cid, bytes, None),
            Some(_) => {
                self.fault(Verdict::Invalid, None, Some(&cid), "the block's bytes do not have its name");
                (Form::Broken, 0)
            }
        };
        Some(Row { number, len, form, codec, named: false, paid: false })
    }

    /// Returns the form of a block, and the bytes of content in the block itself. The caller has checked that the bytes
    /// hash to `cid`.
    pub(super) fn form(&mut self, cid: &Cid, bytes: &[u8], seq: Option<u64>) -> (Form, u32) {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if cid.codec() == Codec::Raw {
            return (Form::Raw, len(bytes));
        }
        if let Ok(payload) = decode_exactly::<Payload>(bytes)
            && payload.layout(None).is_ok()
        {
            return payload.data.map_or((Form::Large, 0), |data| (Form::Payload, len(&data)));
        }
        let form = if Contract::is_block(bytes) {
            Form::Contract
        } else if Plan::is_block(bytes) {
            Form::Plan
        } else if Genesis::open(bytes).is_ok() {
            Form::Genesis
        } else if decode_ipld(bytes).is_ok() {
            Form::Other
        } else {
            self.fault(Verdict::Invalid, seq, Some(cid), "the block is not strict dag-cbor");
            Form::Broken
        };
        (form, 0)
    }

    /// Returns the form of a block that an event names; returns none if its bytes are not stored.
    pub(super) fn form_of(
        &mut self,
        cid: &Cid,
        seq: u64,
        chain: &mut Chain<'_>,
    ) -> Result<Option<Form>, LogError> {
        if let Some(blocks) = &mut chain.blocks {
            let Some(at) = blocks.place(cid, chain.log)? else { return Ok(None) };
            let row = blocks.row(at);
            row.named = true;
            return Ok(Some(row.form).filter(|form| *form != Form::Gone));
        }
        let bytes = self.bytes(cid, Some(seq), chain.log)?;
        self.blocks += u64::from(bytes.is_some());
        Ok(bytes.map(|bytes| match bytes {
            Bytes::Good(bytes) => self.form(cid, &bytes, Some(seq)).0,
            Bytes::Bad => Form::Broken,
        }))
    }

    /// Returns a block's bytes after checking them against its name; returns none if they are not stored.
    pub(super) fn bytes(
        &mut self,
        cid: &Cid,
        seq: Option<u64>,
        log: &dyn Reader,
    ) -> Result<Option<Bytes>, LogError> {
        match log.block(cid) {
            Ok(Some(Stored::Present(bytes))) => Ok(Some(Bytes::Good(bytes))),
            Ok(Some(Stored::Erased) | None) => Ok(None),
            Err(LogError::Corrupt { what }) => {
                self.fault(Verdict::Invalid, seq, Some(cid), what);
                Ok(Some(Bytes::Bad))
            }
            Err(err) => Err(err),
        }
    }

    /// Checks that a block has the form that its name demands, and does the same for the contracts that a contract or a
    /// plan names.
    pub(super) fn check_named(
        &mut self,
        first: Cid,
        form: Form,
        seq: u64,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let mut open = vec![(first, form)];
        while let Some((cid, form)) = open.pop() {
            if !chain.known.insert((cid, form)) {
                continue;
            }
            let what = match form {
                Form::Plan => "the run's plan",
                Form::Genesis => "the genesis block",
                _ => "the call's contract",
            };
            match self.form_of(&cid, seq, chain)? {
                // An event is no block, and nothing that must be DAG-CBOR has the name of a raw block.
                None if cid.codec() == Codec::Raw || chain.seq_of(&cid)?.is_some() => {
                    self.fault(Verdict::Invalid, Some(seq), Some(&cid), format!("{what} is not of its form"));
                }
                // A contract that only another block names may belong to another log, so it may be missing.
                None if cid != first => {}
                None => self.fault(Verdict::Incomplete, Some(seq), Some(&cid), format!("{what} is missing")),
                Some(Form::Broken) => {}
                Some(found) if found != form => {
                    self.fault(Verdict::Invalid, Some(seq), Some(&cid), format!("{what} is not of its form"));
                }
                Some(_) => {
                    let Some(Bytes::Good(bytes)) = self.bytes(&cid, Some(seq), chain.log)? else { continue };
                    let named = links(cid.codec(), &bytes).unwrap_or_default();
                    open.extend(named.into_iter().map(|contract| (contract, Form::Contract)));
                }
            }
        }
        Ok(())
    }

    /// Reports the blocks that are gone or that nothing names, after every event was read.
    pub(super) fn end_blocks(&mut self, chain: &Chain<'_>) -> Result<(), LogError> {
        for row in chain.blocks.iter().flat_map(|blocks| &blocks.0) {
            let told = match (row.form, row.codec) {
                (Form::Gone, Codec::DagCbor) => row.paid || row.named,
                // An erased payload no longer links to its parts, so once anything was erased, a missing part may
                // belong to it.
                (Form::Gone, Codec::Raw) => row.named || !chain.erased.is_empty(),
                _ => row.named,
            };
            let Some(cid) = (!told).then(|| chain.log.block_named(row.number)).transpose()?.flatten() else {
                continue;
            };
            match row.form {
                Form::Gone if chain.erased.contains_key(&cid) => {}
                Form::Gone => self.fault(Verdict::Incomplete, None, Some(&cid), GONE),
                _ => self.unnamed(&cid),
            }
        }
        Ok(())
    }
}
