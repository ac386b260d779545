//! Records in the log what the doors have counted, which tokens are in force, and the settings of each door.
//!
//! Invariants:
//! - nothing is written while nobody reads or is refused, and the tokens and settings stay as they are;
//! - a count is recorded once its minute is over, or when the node stops. A crash loses those not recorded yet;
//! - a count that cannot be recorded now is kept, and one whose principal no event can name goes to the others.

use std::{collections::VecDeque, io, path::Path, time::Duration};

use crate::{
    auth::{AuthError, tokens},
    config::Config,
    event::keeping::TokenAdded,
    ledger::{Command, Ledger, Ruling, Stopped, commit::node, keeping::Keeping},
    metrics::{
        Metrics,
        access::{Count, What, several},
    },
};

/// The pause between two looks at the counts and the tokens.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Records the settings of a door, if they differ from those recorded for it last.
pub(super) async fn configured(ledger: &Ledger, door: &str, config: &Config) -> Result<(), Stopped> {
    let settings = config.on_record();
    let usual = settings == Config::default().on_record();
    let keeping = Keeping::Configured { door: door.to_owned(), settings, usual };
    ledger.submit(Command::Keep { keeping, actor: node() }).await.map(|_| ())
}

/// Records the counts of past minutes, or with `all` every count. Those that cannot be recorded are put back.
pub(super) async fn counted(ledger: &Ledger, metrics: &Metrics, all: bool) -> Result<(), Stopped> {
    let mut counts = VecDeque::from(metrics.access.take(all));
    while let Some(count) = counts.pop_front() {
        let Count { minute, ref actor, what, times } = count;
        let keeping = match what {
            What::Read => Keeping::Read { reads: times, minute },
            What::Refused(reason) => Keeping::Refused { refusals: times, minute, reason },
        };
        match ledger.submit(Command::Keep { keeping, actor: actor.clone() }).await {
            Ok(Ruling::Denied(_)) if *actor != several() => {
                counts.push_back(Count { actor: several(), ..count });
            }
            Ok(_) => {}
            Err(stopped) => {
                metrics.access.put_back(std::iter::once(count).chain(counts));
                return Err(stopped);
            }
        }
    }
    Ok(())
}

/// The version of the file of tokens that was recorded last.
#[derive(Default)]
pub(super) struct Recorded {
    /// `None` before the first look; `Some(None)` if there was no file.
    stamp: Option<Option<tokens::Stamp>>,
}

impl Recorded {
    /// Records the tokens in force if the file has changed, so that the log gets those added and those revoked.
    ///
    /// Blocks while another process changes the file.
    pub(super) fn look(&mut self, directory: &Path, ledger: &Ledger) -> io::Result<()> {
        let stamp = tokens::stamp(directory)?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        let first = self.stamp.is_none();
        if first && stamp.is_none() {
            // Without a file there are no tokens, and those that the log still has are recorded as revoked.
            return self.record(stamp, Vec::new(), ledger);
        }
        let held = tokens::Held::take(directory).map_err(other)?;
        let entries = held.list().map_err(other)?;
        let in_force = entries.into_iter().map(token_added).collect();
        self.record(stamp, in_force, ledger)
    }

    fn record(
        &mut self,
        stamp: Option<tokens::Stamp>,
        in_force: Vec<TokenAdded>,
        ledger: &Ledger,
    ) -> io::Result<()> {
        let command = Command::Keep { keeping: Keeping::Tokens(in_force), actor: node() };
        ledger.submit_blocking(command).map_err(io::Error::other)?;
        self.stamp = Some(stamp);
        Ok(())
    }
}

/// Returns a token's entry as the log records it: without the digest.
pub fn token_added(entry: tokens::Entry) -> TokenAdded {
    TokenAdded { token: entry.id, name: entry.name, scopes: entry.scopes, expires: entry.expires }
}

fn other(err: AuthError) -> io::Error {
    io::Error::other(err)
}

#[cfg(test)]
mod tests;
