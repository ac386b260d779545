//! The signed head that a log must stand under when it is opened.
//!
//! Invariants:
//! - an opened log has a head over exactly its events: none is missing, and none stands under no head;
//! - nothing is signed here in passing: a log that is refused is taken over by an operator, by name and on record.

use crate::{
    event::{Body, Event, Position, keeping::LogTakenOver},
    identity::{Checkpoint, Signer, claimed_size, rotation::Keys},
    ledger::{
        commit::{log_fact, operator},
        fitting::{self, HeadError, OpenError},
        folding::catch_up,
        sealer::clock_us,
    },
    log::{Batch, Log, LogError, Reader, home::Home, sqlite::SqliteLog},
    merkle::{self, Growing, leaf_hash},
    state::{StoredTiles, fold::Folder},
};

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
    let genesis = fitting::genesis(reader.as_ref())?;
    let (keys, signer) = fitting::signer(home, reader.as_ref(), &genesis)?;
    fitting::check_salt(home, Some(folder.state()), reader.as_ref(), &keys.log())?;
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
    let place = Position {
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
