//! Checks the signed heads over a log.
//!
//! Invariants:
//! - only a head with a valid signature is compared with the log;
//! - a key or checkpoint from the caller is never ignored: it is a fault if it does not belong to this log;
//! - the log's own head is over exactly its events, so an event after it is a fault.

use crate::{
    block::Cid,
    error,
    event::{Event, Genesis, keeping::rotation, strict},
    identity::{Checkpoint, CheckpointError, Verifier, rotation::Keys},
    log::{LogError, Reader, Stored, home::Home, sqlite::SqliteReader},
    merkle::{self, Growing},
    query::{View, keeping},
    verify::{
        Checks, Found, Under, Verdict,
        chain::{Chain, Heads, Whose},
    },
};

/// This many CIDs of events are read at once.
const NAMES_READ: u64 = 4096;

impl Found {
    /// Returns the log's signed heads. `before` holds the notes that stood in the head file before anything else was
    /// read.
    pub(super) fn heads(
        &mut self,
        home: &Home,
        log: &SqliteReader,
        checks: &Checks,
        before: Vec<String>,
    ) -> Result<Heads, LogError> {
        let Some(keys) = self.keys(home, log)? else { return Ok(Heads::default()) };
        let given = match checks.key.as_deref().map(Verifier::from_vkey) {
            None => keys.first().clone(),
            Some(Ok(given)) => given,
            Some(Err(err)) => {
                self.fault(Verdict::Invalid, None, None, format!("the key given is unusable: {err}"));
                return Ok(Heads::default());
            }
        };
        if !keys.holds(&given) {
            let fault = "the key given is not this log's: neither its genesis block names it, nor a change of its keys";
            self.fault(Verdict::Invalid, None, None, fault);
        }
        let mut heads = Vec::new();
        let largest = |notes: Vec<String>| {
            notes.iter().filter_map(|note| keys.open(note).ok()).max_by_key(|head| head.size)
        };
        // A log that stores heads has its own head in it. A copy or an old log has it only in the file, which may have
        // grown since the snapshot. So the note that was read before the snapshot is taken if it is over exactly the
        // events in it.
        let events = log.tip()?.map_or(0, |tip| tip.seq + 1);
        let own = match (log.head()?, largest(before)) {
            (Some(note), before) => {
                largest(vec![note]).into_iter().chain(before).max_by_key(|head| head.size)
            }
            (None, Some(before)) if before.size == events => Some(before),
            (None, before) => {
                let after = largest(home.signed_heads().unwrap_or_default());
                after.into_iter().chain(before).max_by_key(|head| head.size)
            }
        };
        match own {
            Some(head) => heads.push((head, Whose::Own)),
            None => self.fault(
                Verdict::Incomplete,
                None,
                None,
                "no signed head stands in the log or beside it: nobody says that these are its events",
            ),
        }
        match checks.checkpoint.as_deref().map(|note| given_head(&keys, note)) {
            Some(Ok((head, whose))) => heads.push((head, whose)),
            Some(Err(err)) => {
                let verdict = match err {
                    CheckpointError::Note | CheckpointError::Malformed => Verdict::Unreadable,
                    CheckpointError::Unsigned
                    | CheckpointError::Origin { .. }
                    | CheckpointError::Signature => Verdict::Invalid,
                };
                self.fault(verdict, None, None, format!("the checkpoint given is not this log's: {err}"));
            }
            None => {}
        }
        Ok(Heads { keys: Some(keys), rotated: 0, heads, disagreeing: Vec::new() })
    }

    /// Returns the keys of the log, from its genesis block on. Returns none, and reports a fault, if the genesis block
    /// is unusable: then no head can be checked.
    fn keys(&mut self, home: &Home, log: &SqliteReader) -> Result<Option<Keys>, LogError> {
        let Some(first) = log.event_at(0).ok().flatten() else { return Ok(None) };
        let name = first.fields().log;
        let fault = match log.block(&name) {
            Ok(Some(Stored::Present(bytes))) => match Genesis::open(&bytes) {
                Ok((genesis, _)) => match keeping::keys(home, log, &genesis) {
                    Ok(keys) => return Ok(Some(keys)),
                    Err(LogError::Corrupt { what }) => what,
                    Err(err) => return Err(err),
                },
                Err(_) => "the genesis block is not of its form, or holds no usable key",
            },
            Ok(Some(Stored::Erased)) => {
                "the genesis block's bytes are gone: it is no payload and cannot be erased, and without it nothing is verified"
            }
            Ok(None) => "the genesis block is missing: without it nothing is verified",
            Err(LogError::Corrupt { .. }) => "the genesis block's bytes do not have its name",
            Err(err) => return Err(err),
        };
        self.fault(Verdict::Invalid, Some(0), Some(&name), fault);
        Ok(None)
    }

    /// Checks that a key rotation among the events is one of those that the keys were read with.
    pub(super) fn check_keys(
        &mut self,
        event: &strict::Checked<'_>,
        bytes: &[u8],
        cid: &Cid,
        heads: &mut Heads,
    ) {
        let Some(keys) = heads.keys.as_ref().filter(|_| event.kind == "log.key_rotated") else { return };
        let told = Event::open(bytes.to_vec()).ok().and_then(|event| rotation(&event));
        let expected = keys.rotated_at(event.seq).map(|key| key.public_key());
        let known = told.is_some_and(|told| Some(told.key) == expected);
        heads.rotated += 1;
        if !known {
            let fault = "the change of keys is not signed by the key before it, or is not what it must be";
            self.fault(Verdict::Invalid, Some(event.seq), Some(cid), fault);
        }
    }

    /// Checks a whole log against its heads, after its tree is known.
    pub(super) fn check_heads(&mut self, chain: &Chain<'_>) {
        let (heads, size) = (&chain.heads, chain.next);
        if heads.keys.as_ref().is_some_and(|keys| keys.all().count() != heads.rotated + 1) {
            let fault = "a change of the log's keys is not where it was looked for; run `cairn rebuild`, then verify again";
            self.fault(Verdict::Invalid, None, None, fault);
        }
        let own = heads.own();
        let disagrees = |whose| heads.disagreeing.iter().any(|(_, other)| *other == whose);
        // One head that does not fit can be forged or damaged. Two valid heads that do not fit each other prove a fork,
        // so the log must first fit its own head.
        let stands =
            own.is_some_and(|head| head.size <= size) && !disagrees(Whose::Own) && chain.tree.is_some();
        for (head, whose) in &heads.disagreeing {
            let verdict = match whose {
                Whose::Given | Whose::OutOfForce if stands => Verdict::Forked,
                Whose::Given | Whose::OutOfForce | Whose::Own => Verdict::Invalid,
            };
            let fault = format!("{} over {} events is not of these events", whose.named(), head.size);
            self.fault(verdict, head.size.checked_sub(1), None, fault);
        }
        for (head, whose) in &heads.heads {
            if *whose == Whose::OutOfForce {
                // The head is over more events than are here, so its key was given up by then. A key that signed for
                // its successor and also this head stands for two histories.
                let longer = head.size > size;
                let verdict = if longer && stands { Verdict::Forked } else { Verdict::Invalid };
                let fault = format!("{} is over {} events", whose.named(), head.size);
                self.fault(verdict, head.size.checked_sub(1), None, fault);
                continue;
            }
            if head.size <= size {
                continue;
            }
            let fault = format!(
                "{} is over {} events, the log has {size}: the last events are missing",
                whose.named(),
                head.size
            );
            self.fault(Verdict::Incomplete, Some(size), None, fault);
        }
        if let Some(head) = own.filter(|head| head.size < size) {
            let fault = format!(
                "events {} to {} stand under no signed head: the log's own is over {}",
                head.size,
                size - 1,
                head.size
            );
            self.fault(Verdict::Invalid, Some(head.size), None, fault);
        }
        self.under = own
            .zip(heads.keys.as_ref())
            .map(|(head, keys)| Under { size: head.size, key: keys.at(head.size).vkey() });
    }

    /// Checks a part of a log: its last event must be under a head. The `prev` links lead from it to the earlier
    /// events.
    pub(super) fn check_part(
        &mut self,
        home: &Home,
        log: &SqliteReader,
        heads: &Heads,
        notes: &[String],
        last: Option<(Cid, u64)>,
    ) {
        let Some((cid, seq)) = last else {
            self.fault(Verdict::Incomplete, None, None, "no event of this part is in the log");
            return;
        };
        let Some(keys) = &heads.keys else { return };
        let under = View::open(home).and_then(|view| {
            let applied = view.applied()?;
            let signed = notes.iter().filter_map(|note| keys.open(note).ok());
            let head =
                signed.filter(|head| head.size <= applied && head.size > seq).max_by_key(|head| head.size);
            Ok(head.filter(|head| view.has_leaf(&cid, seq, head)))
        });
        // The state may be missing or behind the log. Then the tree is built from the log.
        let under = match under {
            Ok(Some(head)) => Ok(Some(head)),
            Ok(None) | Err(_) => head_over(log, keys, notes, seq),
        };
        match under {
            Ok(Some(head)) => self.under = Some(Under { size: head.size, key: keys.at(head.size).vkey() }),
            Ok(None) => {
                let fault = "the last event of this part is under no signed head of the log";
                self.fault(Verdict::Invalid, Some(seq), Some(&cid), fault);
            }
            Err(err) => {
                let fault = format!("the log cannot be read on: {}", error::chain(&err));
                self.fault(Verdict::Unreadable, Some(seq), Some(&cid), fault);
            }
        }
    }
}

/// Returns the head in a note from the caller, and whether the key that signed it is in force at its size.
fn given_head(keys: &Keys, note: &str) -> Result<(Checkpoint, Whose), CheckpointError> {
    keys.open(note)
        .map(|head| (head, Whose::Given))
        .or_else(|err| keys.open_out_of_force(note).map(|head| (head, Whose::OutOfForce)).ok_or(err))
}

/// Returns the largest signed head over the event at `seq`; returns none if its root is not that of the log's events.
fn head_over(
    log: &SqliteReader,
    keys: &Keys,
    notes: &[String],
    seq: u64,
) -> Result<Option<Checkpoint>, LogError> {
    let events = log.tip()?.map_or(0, |tip| tip.seq + 1);
    let signed = notes.iter().filter_map(|note| keys.open(note).ok());
    let reached = signed.filter(|head| head.size > seq && head.size <= events);
    let Some(head) = reached.max_by_key(|head| head.size) else { return Ok(None) };
    let mut tree = Growing::new();
    while tree.size() < head.size {
        let from = tree.size();
        let names = log.cids(from, head.size.min(from + NAMES_READ))?;
        if names.is_empty() {
            return Ok(None);
        }
        names.iter().for_each(|name| tree.push(merkle::leaf_hash(name)));
        tree.forget_tiles();
    }
    Ok((tree.root() == head.root).then_some(head))
}
