//! `cairn rebuild`: derives `state.db` again from `log.db`, and compares the digest of every table before and after.
//!
//! Invariants:
//! - nobody else writes meanwhile: the lock is held until the end;
//! - a takeover of events that no head covered is recorded in the log.

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Map, Value, json};

use crate::{
    cli::{Rebuild, existing, out, progress::Progress, table::Table},
    ledger::{heads::take_over, opening},
    log::{Reader, sqlite::SqliteReader},
    state,
};

/// How many characters of a digest the table shows without `--wide`.
const DIGEST_SHOWN: usize = 16;

pub fn run(args: Rebuild, quiet: bool) -> anyhow::Result<ExitCode> {
    let home = existing(&args.data.data)?;
    let _one = home.lock(&format!("`cairn rebuild` (process {})", std::process::id()))?;
    let events = SqliteReader::open(&home.log_path())?.tip()?.map_or(0, |tip| tip.seq + 1);
    // A state that cannot be read is a reason to rebuild it, not an error.
    let before = state::open_reader(&home.state_path(), &home.log_path())
        .and_then(|state| Ok((state::progress(&state)?.applied, state::digest::tables(&state)?)));
    let (applied, before) = before.unwrap_or((0, BTreeMap::new()));
    let mut progress = Progress::new("folding", events, quiet);
    let mut folder = opening::rebuild(&home, &mut |applied| progress.at(applied))?;
    drop(progress);
    let taken = match args.sign {
        true => take_over(&home, &mut folder)?,
        false => None,
    };
    let after = state::digest::tables(folder.state())?;

    if args.json {
        let tables = after.iter().map(|(name, digest)| {
            let old = before.get(name);
            (name.clone(), json!({"before": old, "after": digest, "same": old == Some(digest)}))
        });
        let taken = taken.map(|taken| json!({"from_seq": taken.from_seq, "events": taken.events}));
        let tables: Map<String, Value> = tables.collect();
        out::print_json(
            &json!({"events": events, "applied_before": applied, "taken_over": taken, "tables": tables}),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["table", "before", "after", "same"]);
    for (name, digest) in &after {
        let old = before.get(name);
        let shown = |digest: &str| match args.wide {
            true => digest.to_owned(),
            false => digest.chars().take(DIGEST_SHOWN).collect(),
        };
        table.row(vec![
            name.clone(),
            old.map_or_else(|| "-".to_owned(), |old| shown(old)),
            shown(digest),
            if old == Some(digest) { "yes" } else { "no" }.to_owned(),
        ]);
    }
    out::print(&table.render())?;
    if !quiet && args.sign {
        match taken {
            Some(taken) => say!(
                "taken over and signed: {} events from seq {} that no signed head covered; it is on record as log.taken_over",
                taken.events,
                taken.from_seq
            ),
            None => say!("the log stood under its signed head already; nothing was taken over"),
        }
    }
    if !quiet && applied < events {
        say!("the state was at event {applied} of {events} before");
    }
    Ok(ExitCode::SUCCESS)
}
