//! The signed head that a log must stand under when it is opened.
//!
//! Invariants:
//! - an opened log has a head over exactly its events: none is missing, and none stands under no head;
//! - nothing is signed here in passing: a log that is refused is taken over by an operator, by name and on record.

use std::fmt;

use crate::{
    event::{Body, Event, Place, keeping::LogTakenOver},
    identity::{Checkpoint, Signer, claimed_size, rotation::Keys},
    ledger::{
        folding::catch_up,
        opening::{self, OpenError},
        sealer::clock_us,
        writer::{log_fact, operator},
    },
    log::{Batch, Log, LogError, Reader, home::Home, sqlite::SqliteLog},
    merkle::{self, Growing, leaf_hash},
    state::{StoredTiles, fold::Folder},
};

/// Why a log does not stand under its last signed head.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadError {
    #[error(
        "the log has {found} events, but a head over {signed} was signed: events were lost or an older copy was put back; restore the newest copy of log.db"
    )]
    RolledBack { signed: u64, found: u64 },
    #[error(
        "the log is not the one whose head was signed at {signed} events: it was changed or replaced; check it with `cairn log verify` and restore the copy that was signed"
    )]
    Forked { signed: u64 },
    #[error(
        "{} under no signed head: the last one is over {signed} of {found} events, so something else than this node wrote to log.db; look at them with `cairn log query --from-seq {signed}`, restore the copy that was signed, or, if you trust them, take them over with `cairn rebuild --sign`",
        Events { from: *.signed, to: *.found }
    )]
    Unsigned { signed: u64, found: u64 },
    #[error(
        "the log has {found} events but no readable signed head; restore the file `head` beside log.db, or, if you trust this log, take it over with `cairn rebuild --sign`"
    )]
    Headless { found: u64 },
}

/// A range of events, for error texts.
struct Events {
    from: u64,
    to: u64,
}

impl fmt::Display for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to.saturating_sub(self.from) {
            1 => write!(f, "event {} stands", self.from),
            _ => write!(f, "events {} to {} stand", self.from, self.to.saturating_sub(1)),
        }
    }
}

/// Returns the signed notes about a log: the one committed in it, then those of the file `head`.
///
/// There are two places because the row in the log can never be behind its events, and the file is not put back by
/// somebody who restores `log.db` by accident.
pub fn notes(home: &Home, log: &dyn Reader) -> Result<Vec<String>, LogError> {
    let beside = home.signed_heads().unwrap_or_default();
    Ok(log.head()?.into_iter().chain(beside).collect())
}

/// The heads of one log, by size: those whose signature is of the key in force at that size.
pub(super) struct Heads {
    signed: Vec<(Checkpoint, String)>,
    /// The largest size that a note claims, whoever signed it.
    claimed: u64,
}

impl Heads {
    pub fn of(notes: Vec<String>, keys: &Keys) -> Self {
        let claimed = notes.iter().map(|note| claimed_size(note)).max().unwrap_or(0);
        let signed = |note: String| keys.open(&note).ok().map(|head| (head, note));
        Self { signed: notes.into_iter().filter_map(signed).collect(), claimed }
    }

    /// The head over exactly the log's `found` events.
    pub fn over(&self, found: u64) -> Result<&str, HeadError> {
        let last = self.signed.iter().max_by_key(|(head, _)| head.size);
        let Some((head, note)) = last else {
            return Err(match self.claimed {
                0 => HeadError::Headless { found },
                signed => HeadError::Forked { signed },
            });
        };
        match head.size {
            signed if signed > found => Err(HeadError::RolledBack { signed, found }),
            signed if signed < found => Err(HeadError::Unsigned { signed, found }),
            _ => Ok(note),
        }
    }

    /// Returns whether every head up to the log's size agrees with its tree.
    pub fn agree(&self, tree: &StoredTiles<'_>, found: u64) -> Result<(), HeadError> {
        let reached = self.signed.iter().filter(|(head, _)| head.size <= found);
        match reached.map(|(head, _)| head).find(|head| !is_of(head, tree)) {
            Some(head) => Err(HeadError::Forked { signed: head.size }),
            None => Ok(()),
        }
    }

    /// Returns the size of the largest head that agrees with the log's first `found` events.
    fn covered(&self, tree: &StoredTiles<'_>, found: u64) -> u64 {
        let ours = self.signed.iter().map(|(head, _)| head);
        ours.filter(|head| head.size <= found && is_of(head, tree)).map(|head| head.size).max().unwrap_or(0)
    }
}

fn is_of(head: &Checkpoint, tree: &StoredTiles<'_>) -> bool {
    merkle::root_at(tree, head.size).ok() == Some(head.root)
}

/// What an operator took over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    pub from_seq: u64,
    /// Events that no signed head covered.
    pub events: u64,
}

/// Signs the log as it stands, for an operator who trusts it, and records `log.taken_over` with the events that no
/// head covered. Returns `None` if a head over exactly this log was there already.
pub fn take_over(home: &Home, folder: &mut Folder) -> Result<Option<TakenOver>, OpenError> {
    let mut log = SqliteLog::open(&home.log_path(), true)?;
    let reader = log.reader()?;
    let genesis = opening::genesis(reader.as_ref())?;
    let (keys, signer) = opening::signer(home, reader.as_ref(), &genesis)?;
    opening::check_salt(home, Some(folder.state()), reader.as_ref(), &keys.log())?;
    let heads = Heads::of(notes(home, reader.as_ref())?, &keys);
    let found = folder.applied();
    let (stands, covered) = {
        let tree = StoredTiles { state: folder.state(), log: reader.as_ref() };
        (heads.over(found).is_ok() && heads.agree(&tree, found).is_ok(), heads.covered(&tree, found))
    };
    if stands {
        return Ok(None);
    }
    let taken = TakenOver { from_seq: covered, events: found - covered };
    let body = Body::LogTakenOver(LogTakenOver { from_seq: taken.from_seq, events: taken.events });
    let note = record(&mut log, reader.as_ref(), folder.edge(), &signer, body)?;
    catch_up(folder, reader.as_ref(), &mut |_| {})?;
    // Both slots, so that no older head is left to be believed.
    let mut head = home.head()?;
    head.write(&note, true).and_then(|()| head.write(&note, true)).map_err(OpenError::Head)?;
    Ok(Some(taken))
}

/// Appends an operator's event to a log that nobody has open, with a head of `signer` over it.
pub(super) fn record(
    log: &mut SqliteLog,
    reader: &dyn Reader,
    mut tree: Growing,
    signer: &Signer,
    body: Body,
) -> Result<String, OpenError> {
    let last = reader.event_at(tree.size().saturating_sub(1))?;
    let last = last.ok_or(LogError::Corrupt { what: "the log has no last event" })?;
    let place = Place {
        log: last.fields().log,
        seq: tree.size(),
        prev: Some(last.cid()),
        ts: clock_us().max(last.fields().ts),
    };
    let event = Event::seal(log_fact(operator(), body), place)
        .map_err(|_| LogError::Corrupt { what: "what an operator did cannot be sealed" })?;
    tree.push(leaf_hash(&event.cid()));
    let note = signer.sign_checkpoint(tree.size(), &tree.root());
    let batch = Batch { blocks: Vec::new(), events: vec![event], head: Some(note.clone()) };
    // A crash before this leaves the log as it was refused; after it, a log whose own head is exact.
    log.append(Some(last.cid()), &batch)?;
    Ok(note)
}
