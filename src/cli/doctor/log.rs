//! The log: its keys, its signed head, its state, who has it open, and the clock against its last event.
//!
//! Invariant: this is a quick look; `cairn log verify` reads every byte.

use super::finding::Finding;
use crate::{
    block::Block,
    cli::{place::served, table},
    clock::now_us,
    error::chain,
    ledger::{fitting, heads::notes},
    log::{LogError, Reader, home::Home, sqlite::SqliteReader},
    query::{View, keeping},
};

/// How far the clock may be behind the last event.
const CLOCK_SLACK_US: u64 = 5_000_000;
/// 2024-01-01, in microseconds: a clock before it was never set.
const CLOCK_MIN_US: u64 = 1_704_067_200_000_000;
const RESTORE: &str = "restore your backup; docs/operating.md tells how";

/// Looks at the log of a directory, if it has one.
pub fn look(home: &Home, found: &mut Vec<Finding>) {
    if now_us() < CLOCK_MIN_US {
        found.push(Finding::fail("clock", "the clock was never set", "set it, and keep it with NTP"));
    }
    if Home::existing(home.dir()).is_err() {
        if home.dir().is_dir() {
            found.push(Finding::warn("log", "there is none yet", "a first start begins one; or name --data"));
        }
        return;
    }
    let running = owner(home, found);
    let log = match SqliteReader::open(&home.log_path()) {
        Ok(log) => log,
        Err(err) => return found.push(Finding::fail("log", chain(&err), RESTORE)),
    };
    keys(home, found);
    match head(home, &log, running) {
        Ok(finding) => found.push(finding),
        Err(err) => found.push(Finding::fail("log", chain(&err), RESTORE)),
    }
    if let Ok(Some(tip)) = log.tip() {
        clock(tip.ts, found);
        state(home, tip.seq + 1, running, found);
    }
}

/// Says who has the log open. Returns whether anybody has.
fn owner(home: &Home, found: &mut Vec<Finding>) -> bool {
    if let Some(url) = served(home.dir()) {
        found.push(Finding::ok("server", format!("runs at {url}; `cairn status` tells more")));
    }
    let owner = home.owner();
    if let Some(owner) = &owner {
        found.push(Finding::ok("owner", format!("the log is open in {owner}")));
    }
    owner.is_some()
}

fn keys(home: &Home, found: &mut Vec<Finding>) {
    found.push(match home.keys() {
        Ok(_) => Finding::ok("keys", "the signing key and the salt key can be read"),
        Err(err) => {
            Finding::fail("keys", chain(&err), "restore keys/ from where you keep them, apart from backups")
        }
    });
}

/// Compares the last signed head with the number of events.
fn head(home: &Home, log: &SqliteReader, running: bool) -> Result<Finding, LogError> {
    let genesis = fitting::genesis(log)?;
    // The heads first: a node that runs writes events and heads together.
    let notes = notes(home, log)?;
    let events = log.tip()?.map_or(0, |tip| tip.seq + 1);
    let keys = keeping::keys(home, log, &genesis)?;
    let sizes = notes.iter().filter_map(|note| Some(keys.open(note).ok()?.size));
    let name = Block::encode(&genesis).cid().to_string();
    let name = table::short(&name, false);
    Ok(match sizes.max() {
        Some(size) if size == events || running && size < events => {
            Finding::ok("head", format!("log {name}, {events} events, signed over {size}"))
        }
        Some(size) if size > events => Finding::fail(
            "head",
            format!("the log has {events} events, but a head over {size} was signed: it was cut or put back"),
            "restore the newest copy of log.db",
        ),
        Some(size) => Finding::fail(
            "head",
            format!("the log has {events} events, and the last signed head is over {size}"),
            format!(
                "look at the rest with `cairn log query --from-seq {size}`; take it over only if you trust it"
            ),
        ),
        None => Finding::fail(
            "head",
            "no signed head of this log can be read",
            "restore the file `head`, or take the log over with `cairn rebuild --sign` if you trust it",
        ),
    })
}

fn clock(last_us: u64, found: &mut Vec<Finding>) {
    let now = now_us();
    if now.saturating_add(CLOCK_SLACK_US) < last_us {
        let said = format!(
            "the clock says {}, and the last event is of {}",
            table::moment(now),
            table::moment(last_us)
        );
        found.push(Finding::warn("clock", said, "set the clock; until then times of events stand still"));
    } else {
        found.push(Finding::ok("clock", format!("{}, not before the last event", table::moment(now))));
    }
}

fn state(home: &Home, events: u64, running: bool, found: &mut Vec<Finding>) {
    found.push(match View::open(home).and_then(|view| view.applied()) {
        Ok(applied) if applied >= events || running => {
            Finding::ok("state", format!("state.db has {applied} of {events} events"))
        }
        Ok(applied) => Finding::warn(
            "state",
            format!("state.db has {applied} of {events} events"),
            "nothing to do: the next start folds the rest",
        ),
        Err(err) => Finding::warn(
            "state",
            format!("state.db cannot be read: {}", chain(&err)),
            "nothing is lost: `cairn rebuild` derives it again",
        ),
    });
}
