//! Every block: its bytes against its name, and against the rules of what it is.
//!
//! Invariants:
//! - a block nobody knows is kept and verified by its name; only payloads and raw parts may be empty;
//! - a part may be empty only where no payload that has its bytes names it.

use std::{collections::HashSet, ops::ControlFlow};

use crate::{
    block::{
        Cid, Codec, decode, decode_ipld,
        payload::{INLINE_MAX, Payload},
    },
    contract::Contract,
    log::{BlockRow, LogError, Reader, Stored, sqlite::SqliteReader},
    query::verify::{Found, STEP, Step, Verdict},
};

/// Bytes of a payload's salt.
const SALT_LEN: usize = 16;

pub(super) const PART_GONE: &str = "the bytes of a part are gone, and its payload is not erased";

/// What the walk over all blocks leaves for the events to explain.
#[derive(Default)]
pub(super) struct Blocks {
    /// Blocks whose bytes are gone.
    pub nulls: HashSet<Cid>,
    /// The parts of payloads that are there: one for each [`INLINE_MAX`] bytes of a large payload.
    pub parts: HashSet<Cid>,
}

impl Found {
    /// Checks every stored block.
    pub(super) fn check_blocks(
        &mut self,
        log: &SqliteReader,
        step: &mut dyn FnMut(Step),
    ) -> Result<Blocks, LogError> {
        let mut blocks = Blocks::default();
        let mut failed = None;
        log.blocks(0, &mut |row| {
            self.blocks += 1;
            if let Err(err) = self.check_block_row(row, log, &mut blocks) {
                failed = Some(err);
                return ControlFlow::Break(());
            }
            if self.blocks.is_multiple_of(STEP) {
                step(Step::Blocks(self.blocks));
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(blocks), Err)
    }

    fn check_block_row(
        &mut self,
        row: BlockRow<'_>,
        log: &SqliteReader,
        blocks: &mut Blocks,
    ) -> Result<(), LogError> {
        let Some(codec) = row.codec else {
            self.fault(Verdict::Invalid, None, None, format!("block {} has an unknown codec", row.number));
            return Ok(());
        };
        let cid = Cid::from_digest(codec, row.digest);
        let Some(bytes) = row.bytes else {
            blocks.nulls.insert(cid);
            return Ok(());
        };
        for part in self.check_block(&cid, bytes, None) {
            if log.number_of(&part)?.is_none() {
                self.part_missing(&cid, &part, None);
            }
            blocks.parts.insert(part);
        }
        Ok(())
    }

    /// Checks a block together with the parts it names.
    pub(super) fn check_block_alone(
        &mut self,
        cid: &Cid,
        bytes: &[u8],
        seq: Option<u64>,
        log: &dyn Reader,
    ) -> Result<(), LogError> {
        for part in self.check_block(cid, bytes, seq) {
            match log.block(&part) {
                Ok(Some(Stored::Present(_))) => {}
                Ok(Some(Stored::Erased)) => self.fault(Verdict::Incomplete, seq, Some(&part), PART_GONE),
                Ok(None) => self.part_missing(cid, &part, seq),
                Err(LogError::Corrupt { what }) => self.fault(Verdict::Invalid, seq, Some(&part), what),
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn part_missing(&mut self, payload: &Cid, part: &Cid, seq: Option<u64>) {
        let fault = format!("a part of payload {payload} is missing");
        self.fault(Verdict::Incomplete, seq, Some(part), fault);
    }

    /// Checks a block's bytes against its name and the rules of what it is; gives the parts it names.
    fn check_block(&mut self, cid: &Cid, bytes: &[u8], seq: Option<u64>) -> Vec<Cid> {
        if !cid.names(bytes) {
            self.fault(Verdict::Invalid, seq, Some(cid), "the block's bytes do not have its name");
            return Vec::new();
        }
        if cid.codec() == Codec::Raw {
            return Vec::new();
        }
        let Ok(payload) = decode::<Payload>(bytes) else {
            let known = decode::<Contract>(bytes).is_ok() || decode_ipld(bytes).is_ok();
            if !known {
                self.fault(Verdict::Invalid, seq, Some(cid), "the block is not strict dag-cbor");
            }
            return Vec::new();
        };
        let whole = match (&payload.data, &payload.parts) {
            (Some(data), None) => data.len() <= INLINE_MAX,
            (None, Some(parts)) => !parts.is_empty(),
            (Some(_), Some(_)) | (None, None) => false,
        };
        if payload.v != 1 || payload.salt.len() != SALT_LEN || !whole {
            self.fault(Verdict::Invalid, seq, Some(cid), "the payload is malformed");
        }
        payload.parts.unwrap_or_default()
    }
}
