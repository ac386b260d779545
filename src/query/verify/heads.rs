//! The signed heads that a log must contain.
//!
//! Invariant: only a head whose signature holds is compared with the log.

use crate::{
    block::decode,
    event::Genesis,
    identity::{Checkpoint, CheckpointError, Verifier, open_checkpoint},
    log::{LogError, Reader, Stored, home::Home, sqlite::SqliteReader},
    query::verify::{Checks, Found, Verdict},
};

impl Found {
    /// The signed heads the log must contain.
    pub(super) fn heads(
        &mut self,
        home: &Home,
        log: &SqliteReader,
        checks: &Checks,
    ) -> Result<Vec<(Checkpoint, &'static str)>, LogError> {
        let first = log.event_at(0).ok().flatten();
        let Some(genesis) = first.map(|event| log.block(&event.fields().log)).transpose()?.flatten() else {
            return Ok(Vec::new());
        };
        let Stored::Present(bytes) = genesis else {
            return Ok(Vec::new());
        };
        let genesis: Option<Genesis> = decode(&bytes).ok();
        let own = genesis
            .and_then(|genesis| Verifier::from_key(&genesis.origin, genesis.key.try_into().ok()?).ok());
        let Some(own) = own else {
            self.fault(Verdict::Invalid, Some(0), None, "the genesis block holds no usable key");
            return Ok(Vec::new());
        };
        let given = match &checks.key {
            None => own.clone(),
            Some(key) => match Verifier::from_vkey(key) {
                Ok(verifier) => verifier,
                Err(err) => {
                    self.fault(Verdict::Invalid, None, None, format!("the key given is unusable: {err}"));
                    return Ok(Vec::new());
                }
            },
        };
        if given != own {
            self.fault(Verdict::Forked, None, None, "the genesis block names another key than the one given");
        }
        let mut heads = Vec::new();
        let notes = home.signed_heads().unwrap_or_default();
        let kept = notes.iter().filter_map(|note| open_checkpoint(note, &own).ok());
        match kept.max_by_key(|head| head.size) {
            Some(head) => heads.push((head, "the signed head beside the log")),
            None => self.fault(Verdict::Incomplete, None, None, "no signed head stands beside the log"),
        }
        match checks.checkpoint.as_deref().map(|note| open_checkpoint(note, &given)) {
            Some(Ok(head)) => heads.push((head, "the checkpoint given")),
            Some(Err(err)) => {
                let verdict = match err {
                    CheckpointError::Unsigned | CheckpointError::Origin { .. } => Verdict::Forked,
                    CheckpointError::Note | CheckpointError::Malformed | CheckpointError::Signature => {
                        Verdict::Invalid
                    }
                };
                self.fault(verdict, None, None, format!("the checkpoint given: {err}"));
            }
            None => {}
        }
        Ok(heads)
    }
}
