//! `cairn restore`: puts a backup in the place of a log, and says which events are lost and what was erased again.
//!
//! Exit codes: 0 if it is restored, those of `cairn log verify` if the backup or a later copy does not verify, else 1.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::{
    archive::{
        backup::beside,
        import::{self, Imported},
    },
    cli::{Data, backup, judged, out, progress::Progress, readable, verify},
    clock::now_ms,
    follow::copy,
    ledger::restoring::{self, Later, RestoreError, Restored},
    log::{fresh::Fresh, home::Home},
    node,
    verify::Verdict,
};

#[derive(Args)]
pub struct Restore {
    /// The backup: a directory that `cairn backup` made, or any copy of a data directory.
    backup: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Move a log that is there aside, into `before-restore-<time>` within the data directory; nothing of it is deleted.
    #[arg(long)]
    replace: bool,
    /// A directory with the log's keys, where they are kept apart from the backup.
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// A later copy of the log, which knows what was erased since: a data directory, or an export of the whole log.
    #[arg(long, value_name = "FILE|DIR")]
    erasures: Option<PathBuf>,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Restore, quiet: bool) -> anyhow::Result<ExitCode> {
    let backup = readable(&args.backup)?;
    let into = &args.data.data;
    let (later, unpacked) = match &args.erasures {
        None => (None, None),
        Some(dir) if dir.is_dir() => (Some(readable(dir)?), None),
        Some(file) => {
            let dir = beside(into, ".erasures").context("name the data directory itself")?;
            let archive = File::open(file).with_context(|| format!("cannot read {}", file.display()));
            let archive = archive.map_err(|err| judged(err, Some(Verdict::Unreadable)))?;
            // Only directories that are made here are removed again.
            let fresh = Fresh::of(&dir);
            let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
            let made =
                above.map_or(Ok(()), |above| DirBuilder::new().recursive(true).mode(0o700).create(above));
            let made = made.and_then(|()| DirBuilder::new().mode(0o700).create(&dir));
            made.with_context(|| format!("cannot make {}; move away what is there", dir.display()))?;
            let unpacked = Unpacked { dir: dir.clone(), _fresh: fresh };
            let imported = import::import(archive, &dir, &mut |_| {}).map_err(|err| {
                let verdict = err.verdict();
                judged(err, verdict)
            })?;
            if let Imported::Run(_) = imported {
                let said = format!("{} is the export of a run; give one of the whole log", file.display());
                return Err(judged(anyhow::Error::msg(said), Some(Verdict::Incomplete)));
            }
            (Some(readable(&dir)?), Some(unpacked))
        }
    };
    let now_ms = now_ms();
    let wanted = restoring::Restore {
        backup: &backup,
        into,
        replace: args.replace,
        keys: args.keys.as_deref(),
        later: later.as_ref(),
        logs: copy::DIRECTORY,
        aside: &aside(now_ms),
        owner: &format!("`cairn restore` (process {})", std::process::id()),
        random: node::random,
        now_us: now_ms * 1000,
    };
    let mut progress = Progress::new("copying", 0, quiet);
    let restored = restoring::restore(&wanted, &mut |stage| backup::tell(&mut progress, stage));
    drop(progress);
    drop(unpacked);
    let restored = match restored {
        Err(RestoreError::Backup(err)) => return backup::refused(err, args.json),
        Err(err) => {
            let verdict = err.verdict();
            return Err(judged(err, verdict));
        }
        Ok(restored) => restored,
    };
    match args.json {
        true => out::print_json(&document(&restored, &wanted))?,
        false => out::print(&shown(&restored, &backup))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A directory with an unpacked export, which is removed when this is dropped.
struct Unpacked {
    dir: PathBuf,
    /// Dropped last, so that the directory is empty by then.
    _fresh: Fresh,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // If it cannot be removed, only a copy of the given export is left.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Returns the name under which a log is moved aside, which is unique as long as there is at most one a second.
fn aside(now_ms: u64) -> String {
    let second = i64::try_from(now_ms / 1000).unwrap_or_default();
    let moment = jiff::Timestamp::from_second(second).unwrap_or_default();
    format!("{}{}", restoring::ASIDE, moment.strftime("%Y%m%dT%H%M%SZ"))
}

fn document(restored: &Restored, wanted: &restoring::Restore<'_>) -> serde_json::Value {
    let erased = restored.erased.iter().map(|(payload, basis, event)| {
        json!({ "payload": payload.to_string(), "basis": basis, "event": event.to_string() })
    });
    json!({
        "data": wanted.into,
        "report": restored.copied.report,
        "keys": restored.keys,
        "aside": restored.aside,
        "lost_events": restored.old.iter().chain(&restored.later).filter_map(|told| told.events).max(),
        "unreadable": restored.old.as_ref().and_then(|old| old.fault.clone()),
        "erased": erased.collect::<Vec<_>>(),
    })
}

fn shown(restored: &Restored, backup: &Home) -> String {
    let mut lines = vec![format!("restored from {}", backup.dir().display())];
    lines.push(verify::shown(&restored.copied.report));
    if let Some(aside) = &restored.aside {
        lines.push(format!("what was there is in {}", aside.display()));
    }
    lines.extend(restored.old.iter().map(|old| lost("the log that was there", old)));
    lines.extend(restored.later.iter().map(|later| lost("the later copy", later)));
    if restored.old.is_none() && restored.later.is_none() {
        let unknown = "no log was there: what was recorded or erased after the backup is not known here; a later copy \
                       tells, with --erasures";
        lines.push(unknown.to_owned());
    }
    for (payload, basis, event) in &restored.erased {
        lines.push(format!("erased again: {payload} ({basis}), by event {event}"));
    }
    match (restored.tokens_stay, restored.copied.tokens) {
        (true, _) => lines.push("tokens.json is the one that was there".to_owned()),
        (false, true) => {
            lines.push("tokens.json is the backup's: revoke again what was revoked since".to_owned());
        }
        (false, false) => {}
    }
    if !restored.keys {
        lines.push(
            "keys/log.key and keys/salt.key are missing: put them there before `cairn serve`".to_owned(),
        );
    }
    lines.join("\n")
}

/// Describes in a sentence what a later log holds and the backup does not.
fn lost(which: &str, told: &Later) -> String {
    let fault = told.fault.as_ref().map(|fault| format!("; it tells no more: {fault}")).unwrap_or_default();
    match told.events {
        None if told.fault.is_some() => format!("what {which} holds is not known{fault}"),
        None => {
            format!("{which} is another history of this one; whoever kept a checkpoint of it can prove so")
        }
        Some(0) => format!("{which} has no event after the backup{fault}"),
        Some(events) => format!(
            "{which} has {events} events after the backup, which are lost; whoever kept a checkpoint over them can \
             prove that this log forked: tell them{fault}"
        ),
    }
}
