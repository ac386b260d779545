//! What the doors have counted, which tokens are in force and which settings: put on record.
//!
//! Invariants:
//! - a node that nobody asks and whose tokens stay writes nothing;
//! - what was counted is recorded once its minute is over, and the rest when the node stops.

use std::{io, path::Path, time::Duration};

use crate::{
    auth::{AuthError, tokens},
    config::Config,
    event::keeping::TokenAdded,
    ledger::{Command, Ledger, Stopped, keeping::Keeping, writer::node},
    metrics::{
        Metrics,
        access::{Count, What},
    },
};

/// Between two looks at the counts and the tokens.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Records the settings of a door where they are not those it was opened under before.
pub(super) async fn configured(ledger: &Ledger, door: &str, config: &Config) -> Result<(), Stopped> {
    let settings = config.on_record();
    let usual = settings == Config::default().on_record();
    let keeping = Keeping::Configured { door: door.to_owned(), settings, usual };
    ledger.submit(Command::Keep { keeping, actor: node() }).await.map(|_| ())
}

/// Records what was counted in minutes that are over, or everything.
pub(super) async fn counted(ledger: &Ledger, metrics: &Metrics, all: bool) -> Result<(), Stopped> {
    let mut counts = metrics.access.take(all).into_iter();
    while let Some(count) = counts.next() {
        let Count { minute, ref actor, what, times } = count;
        let keeping = match what {
            What::Read => Keeping::Read { reads: times, minute },
            What::Refused(reason) => Keeping::Refused { refusals: times, minute, reason },
        };
        if let Err(stopped) = ledger.submit(Command::Keep { keeping, actor: actor.clone() }).await {
            metrics.access.put_back(std::iter::once(count).chain(counts));
            return Err(stopped);
        }
    }
    Ok(())
}

/// The file of tokens as it was last recorded.
#[derive(Default)]
pub(super) struct Recorded {
    /// Where there was nothing to look at yet, none.
    stamp: Option<Option<tokens::Stamp>>,
}

impl Recorded {
    /// Records which tokens were added to the file and which taken out of it, where it has changed.
    ///
    /// Blocks while another process changes the file.
    pub(super) fn look(&mut self, directory: &Path, ledger: &Ledger) -> io::Result<()> {
        let stamp = tokens::stamp(directory)?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        let first = self.stamp.is_none();
        if first && stamp.is_none() {
            // Without a file there are no tokens; those on record from before are told as revoked.
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

/// A token's entry as it stands on record: without its digest.
pub fn token_added(entry: tokens::Entry) -> TokenAdded {
    TokenAdded { token: entry.id, name: entry.name, scopes: entry.scopes, expires: entry.expires }
}

fn other(err: AuthError) -> io::Error {
    io::Error::other(err)
}
