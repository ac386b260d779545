//! Every block: its bytes against its name, and against the rules of what it is.
//!
//! Invariant: a block nobody knows is kept and verified by its name; only payloads and raw parts may be empty.

use std::{collections::HashSet, ops::ControlFlow};

use crate::{
    block::{
        Cid, Codec, decode, decode_ipld,
        payload::{INLINE_MAX, Payload},
    },
    contract::Contract,
    log::{BlockRow, LogError, Reader, sqlite::SqliteReader},
    query::verify::{Found, STEP, Step, Verdict},
};

/// Bytes of a payload's salt.
const SALT_LEN: usize = 16;

impl Found {
    /// Checks every stored block; gives back those whose bytes are gone.
    pub(super) fn check_blocks(
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

    pub(super) fn check_block_row(
        &mut self,
        row: BlockRow<'_>,
        log: &SqliteReader,
    ) -> Result<Option<Cid>, LogError> {
        let Some(codec) = row.codec else {
            self.fault(Verdict::Invalid, None, None, format!("block {} has an unknown codec", row.number));
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
    pub(super) fn check_block(
        &mut self,
        cid: &Cid,
        bytes: &[u8],
        seq: Option<u64>,
        log: &dyn Reader,
    ) -> Result<(), LogError> {
        if !cid.names(bytes) {
            self.fault(Verdict::Invalid, seq, Some(cid), "the block's bytes do not have its name");
            return Ok(());
        }
        if cid.codec() == Codec::Raw {
            return Ok(());
        }
        let Ok(payload) = decode::<Payload>(bytes) else {
            let known = decode::<Contract>(bytes).is_ok() || decode_ipld(bytes).is_ok();
            if !known {
                self.fault(Verdict::Invalid, seq, Some(cid), "the block is not strict dag-cbor");
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
}
