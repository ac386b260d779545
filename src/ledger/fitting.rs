//! Whether a log and the keys beside it fit each other, and why a log is not opened.
//!
//! Invariant: nothing is written here; what does not fit stays as it is found.

use std::fmt;

use crate::{
    block::{Cid, decode},
    event::{Body, Genesis, body::LogOpened},
    identity::{
        Signer,
        rotation::{self, RotationError},
    },
    ledger::Stopped,
    log::{
        LogError, Reader, Stored,
        home::{Home, HomeError},
    },
    query,
    state::{Database, StateError},
};

/// Why a ledger cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the log cannot be opened")]
    Log(#[from] LogError),
    #[error("the state cannot be derived")]
    State(#[from] StateError),
    #[error(transparent)]
    Standing(#[from] HeadError),
    #[error("the log's signing key does not fit the log; restore keys/log.key from your backup")]
    Key,
    #[error("the log's keys cannot be followed")]
    Rotation(#[from] RotationError),
    #[error("the salt key does not fit the log; restore keys/salt.key from your backup")]
    Salt,
    #[error("the head file cannot be read or written")]
    Head(#[source] std::io::Error),
    #[error("the ledger's threads cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("the ledger stopped while it was being opened")]
    Stopped(#[from] Stopped),
}

/// Checks the salt key beside a log against the commitment in the log. Returns the commitment, and whether it is on
/// record.
///
/// Without the state only the first event is read. It holds the commitment, except in logs begun before it did.
pub(super) fn check_salt(
    home: &Home,
    state: Option<&Database>,
    reader: &dyn Reader,
    log: &Cid,
) -> Result<([u8; 16], bool), OpenError> {
    let salted = home.keys()?.salt.commitment_for(log);
    match salt_on_record(state, reader)? {
        Some(on_record) if on_record != salted => Err(OpenError::Salt),
        on_record => Ok((salted, on_record.is_some())),
    }
}

/// Returns the commitment to the salt key that is on record: in the first event, or in a later `log.salted` of an old
/// log.
fn salt_on_record(state: Option<&Database>, reader: &dyn Reader) -> Result<Option<[u8; 16]>, OpenError> {
    let first = reader.event_at(0)?.and_then(|event| event.body());
    if let Some(Body::LogOpened(LogOpened { salt: Some(salt), .. })) = first {
        return Ok(Some(*salt));
    }
    let Some(state) = state else { return Ok(None) };
    for seq in query::keeping::of_kind(state, "log.salted", 1)? {
        if let Some(Body::LogSalted(facts)) = reader.event_at(seq)?.and_then(|event| event.body()) {
            return Ok(Some(*facts.commitment));
        }
    }
    Ok(None)
}

/// The genesis block the first event names.
pub fn genesis(reader: &dyn Reader) -> Result<Genesis, LogError> {
    let missing = || LogError::Corrupt { what: "the log has no readable genesis block" };
    let first = reader.event_at(0)?.ok_or_else(missing)?;
    match reader.block(&first.fields().log)? {
        Some(Stored::Present(bytes)) => decode(&bytes).map_err(|_| missing()),
        Some(Stored::Erased) | None => Err(missing()),
    }
}

/// Checks that the keys in a data directory are those of its log. The caller must hold the lock.
pub fn fits(home: &Home, log: &dyn Reader) -> Result<(), OpenError> {
    let (keys, _) = signer(home, log, &genesis(log)?)?;
    check_salt(home, None, log, &keys.log()).map(|_| ())
}

/// Returns the log's keys, and its signer if the key beside the log is the one in force. The caller must hold the
/// lock.
///
/// A rotation of keys that a crash broke off is completed or undone here, by what the log holds of it.
pub(super) fn signer(
    home: &Home,
    reader: &dyn Reader,
    genesis: &Genesis,
) -> Result<(rotation::Keys, Signer), OpenError> {
    let of = |seed| Signer::new(&genesis.origin, seed).map_err(|_| OpenError::Key);
    let (signer, next) = (of(home.keys()?.seed)?, home.next_key()?.map(of).transpose()?);
    let fits = |keys: &rotation::Keys, signer: &Signer| keys.current() == signer.verifier();
    let ours = |keys: &rotation::Keys| fits(keys, &signer) || next.iter().any(|next| fits(keys, next));
    let mut keys = query::keeping::keys(home, reader, genesis)?;
    if !ours(&keys) {
        // The state may have hidden a change of them.
        keys = query::keeping::keys_of_events(reader, genesis)?;
    }
    if keys.all().count() > 1 {
        home.check_peer_key()?;
    }
    match (next, fits(&keys, &signer)) {
        (None, true) => Ok((keys, signer)),
        (Some(_), true) => {
            home.forget_next_key()?;
            Ok((keys, signer))
        }
        (Some(next), false) if fits(&keys, &next) => {
            home.take_next_key()?;
            Ok((keys, next))
        }
        (_, false) => Err(OpenError::Key),
    }
}

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
