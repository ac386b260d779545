//! Another key for the heads of a log: recorded under the old one, signed by the new one.
//!
//! Invariants:
//! - the event that names the new key, signed by the old one, and the first head the new one signs are one commit;
//! - a crash at any line leaves a key that fits the log: the old one, or the new one under its other name.

use crate::{
    event::{Body, keeping::LogKeyRotated},
    identity::Signer,
    ledger::{
        fitting::{self, OpenError},
        folding::catch_up,
        heads::{Heads, notes, record},
        opening,
    },
    log::{Log, home::Home, sqlite::SqliteLog},
    state::StoredTiles,
};

/// A change of keys that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Where the log names the new key.
    pub seq: u64,
    /// The verifier keys, as text.
    pub before: String,
    pub now: String,
}

/// Replaces the log's signing key by the key of `seed`. The caller must hold the lock: a running server's guests
/// would have to hear of the new key before the next head.
///
/// The log must stand under its last head, as for a start. `step` is told how many events are folded.
pub fn rotate(home: &Home, seed: &[u8; 32], step: &mut dyn FnMut(u64)) -> Result<Rotated, OpenError> {
    let mut log = SqliteLog::open(&home.log_path(), true)?;
    let reader = log.reader()?;
    let genesis = fitting::genesis(reader.as_ref())?;
    let (mut keys, signer) = fitting::signer(home, reader.as_ref(), &genesis)?;
    let found = reader.tip()?.map_or(0, |tip| tip.seq + 1);
    let heads = Heads::of(notes(home, reader.as_ref())?, &keys);
    heads.over(found)?;
    let mut folder = opening::derive(home, &log, step)?;
    heads.agree(&StoredTiles { state: folder.state(), log: reader.as_ref() }, found)?;
    fitting::check_salt(home, Some(folder.state()), reader.as_ref(), &keys.log())?;

    let next = Signer::new(&genesis.origin, *seed).map_err(|_| OpenError::Key)?;
    let rotation = signer.sign_rotation(&keys.log(), found, next.verifier());
    keys.rotate(&rotation)?;
    // Others know the node by a key of its own from here on, so that it stays the one they know.
    home.keep_peer_key()?;
    // A crash after this leaves a key that nothing names; the next start takes it away.
    home.put_next_key(seed)?;
    let body =
        Body::LogKeyRotated(LogKeyRotated { key: rotation.key.into(), signature: rotation.signature.into() });
    let note = record(&mut log, reader.as_ref(), folder.edge(), &next, body)?;
    // A crash after this leaves the new key under its other name; the next start finds that it is the log's.
    catch_up(&mut folder, reader.as_ref(), &mut |_| {})?;
    let mut head = home.head()?;
    head.write(&note, true).map_err(OpenError::Head)?;
    home.take_next_key()?;
    Ok(Rotated { seq: found, before: signer.vkey(), now: next.vkey() })
}
