//! Checks the payloads that events name: their form, length and parts, and which of them may be erased.
//!
//! Invariants:
//! - a payload may be missing without fault only if no event after its last erasure names it;
//! - in a whole log, only a block that an earlier event names as a payload can be erased;
//! - what an event or another block is named as is no payload, whatever was erased;
//! - parts are checked by their length and hash and are never put together.

use crate::{
    block::{
        Cid, Codec, decode_exactly,
        payload::{Part, Payload},
    },
    log::LogError,
    verify::{
        Found, Verdict,
        blocks::PART_GONE,
        chain::{Bytes, Chain, Form, Missing},
    },
};

const MISSING: &str =
    "the payload is missing, and no event says it was erased; of a followed log, its owner withholds it";
const MISSING_AGAIN: &str = "the payload is missing, though an event after its erasure names it again";
const NO_PAYLOAD: &str = "erases what no earlier event names as a payload";
const NAMED_AS_PAYLOAD: &str = "an event names it as a payload, and it is none";
const OTHER_LEN: &str = "an event says another length of this payload than an event before";

impl Found {
    /// Checks a payload against the length of content that the event states.
    pub(super) fn check_payload(
        &mut self,
        cid: &Cid,
        len: u64,
        seq: u64,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let mut walked = None;
        match &mut chain.blocks {
            Some(blocks) => {
                walked = blocks.place(cid, chain.log)?;
                if let Some(at) = walked {
                    let row = blocks.row(at);
                    (row.named, row.paid) = (true, true);
                    if row.form == Form::Broken || row.form == Form::Payload && u64::from(row.len) == len {
                        return Ok(());
                    }
                }
            }
            None if chain.whole => drop(chain.paid.insert(*cid)),
            None => {}
        }
        if cid.codec() == Codec::Raw {
            self.fault(Verdict::Invalid, Some(seq), Some(cid), NAMED_AS_PAYLOAD);
            return Ok(());
        }
        if !self.payloads {
            return Ok(());
        }
        let bytes = self.bytes(cid, Some(seq), chain.log)?;
        self.blocks += u64::from(walked.is_none() && bytes.is_some());
        let bytes = match bytes {
            Some(Bytes::Good(bytes)) => bytes,
            Some(Bytes::Bad) => return Ok(()),
            None => return self.note_missing(cid, len, seq, chain),
        };
        let parts = match decode_exactly::<Payload>(&bytes) {
            Ok(payload) => payload.layout(Some(len)).map_err(|fault| fault.to_string()),
            Err(_) => Err(NAMED_AS_PAYLOAD.to_owned()),
        };
        let parts = match parts {
            Ok(parts) => parts,
            Err(fault) => {
                self.fault(Verdict::Invalid, Some(seq), Some(cid), fault);
                return Ok(());
            }
        };
        let mut whole = true;
        for part in parts {
            whole &= self.check_piece(&part, cid, seq, chain)?;
        }
        if let (Some(at), Some(blocks), true) = (walked, &mut chain.blocks, whole) {
            let row = blocks.row(at);
            row.form = Form::Payload;
            // A payload has at most 256 parts of 256 KiB, so its length fits.
            row.len = u32::try_from(len).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    /// Notes a payload without bytes. Whether that is a fault is known once every erasure is.
    fn note_missing(&mut self, cid: &Cid, len: u64, seq: u64, chain: &mut Chain<'_>) -> Result<(), LogError> {
        // For a part of a log, the event that erased the payload may lie outside of the part.
        if !chain.whole && chain.log.number_of(cid)?.is_some() {
            return Ok(());
        }
        let missing = chain.missing.entry(*cid).or_insert(Missing { first: seq, last: seq, len });
        missing.last = seq;
        if missing.len != len {
            self.fault(Verdict::Invalid, Some(seq), Some(cid), OTHER_LEN);
        }
        Ok(())
    }

    /// Checks that a part is stored and has a length that its place allows. Returns whether it does.
    fn check_piece(
        &mut self,
        part: &Part,
        payload: &Cid,
        seq: u64,
        chain: &mut Chain<'_>,
    ) -> Result<bool, LogError> {
        let len = match &mut chain.blocks {
            Some(blocks) => match blocks.place(&part.cid, chain.log)?.map(|at| blocks.row(at)) {
                Some(row) => {
                    row.named = true;
                    match row.form {
                        Form::Broken => return Ok(false),
                        Form::Gone => None,
                        _ => Some(row.len as usize),
                    }
                }
                None => None,
            },
            None => match self.bytes(&part.cid, Some(seq), chain.log)? {
                Some(Bytes::Bad) => return Ok(false),
                Some(Bytes::Good(bytes)) => Some(bytes.len()),
                None => None,
            },
        };
        match len {
            Some(len) if (part.least..=part.most).contains(&len) => return Ok(true),
            Some(_) => {
                let fault = format!("a part of payload {payload} has another length than its place asks for");
                self.fault(Verdict::Invalid, Some(seq), Some(&part.cid), fault);
            }
            None if chain.log.number_of(&part.cid)?.is_some() => {
                self.fault(Verdict::Incomplete, Some(seq), Some(&part.cid), PART_GONE);
            }
            None => {
                let fault = format!("a part of payload {payload} is missing");
                self.fault(Verdict::Incomplete, Some(seq), Some(&part.cid), fault);
            }
        }
        Ok(false)
    }

    /// Checks that an event erases a payload, and records up to which seq the erasure holds.
    pub(super) fn check_erasure(
        &mut self,
        payload: Cid,
        seq: u64,
        cid: &Cid,
        chain: &mut Chain<'_>,
    ) -> Result<(), LogError> {
        let known = match &mut chain.blocks {
            _ if payload.codec() == Codec::Raw => false,
            Some(_) if chain.missing.contains_key(&payload) => true,
            Some(blocks) => {
                let place = blocks.place(&payload, chain.log)?;
                place.is_some_and(|at| blocks.row(at).paid)
            }
            None if chain.whole => chain.paid.contains(&payload) && !chain.is_no_payload(&payload)?,
            // The events before a part of a log are not known, so only the form of the block can tell.
            None => {
                let form = self.form_of(&payload, seq, chain)?;
                form.is_none_or(|form| matches!(form, Form::Payload | Form::Large | Form::Broken))
                    && chain.log.seq_of(&payload)?.is_none()
                    && chain.genesis != Some(payload)
            }
        };
        if !known {
            self.fault(Verdict::Invalid, Some(seq), Some(cid), NO_PAYLOAD);
        }
        chain.erased.insert(payload, seq);
        Ok(())
    }

    /// Reports the missing payloads after every erasure is known.
    pub(super) fn end_payloads(&mut self, chain: &Chain<'_>) -> Result<(), LogError> {
        let mut missing: Vec<(&Cid, &Missing)> = chain.missing.iter().collect();
        missing.sort_unstable_by_key(|(_, said)| (said.first, said.last));
        let mut erased_payloads = 0;
        for (payload, Missing { first, last, .. }) in missing {
            match chain.erased.get(payload) {
                _ if chain.is_no_payload(payload)? => {
                    self.fault(Verdict::Invalid, Some(*first), Some(payload), NAMED_AS_PAYLOAD);
                }
                Some(erased) if erased > last => erased_payloads += 1,
                Some(_) => self.fault(Verdict::Incomplete, Some(*last), Some(payload), MISSING_AGAIN),
                None => self.fault(Verdict::Incomplete, Some(*first), Some(payload), MISSING),
            }
        }
        self.paid = chain.blocks.as_ref().map(|blocks| (blocks.payloads(), erased_payloads));
        Ok(())
    }
}
