//! `cairn backup`: copies a data directory, also while others write it, and verifies the copy.
//!
//! Exit codes: 0 if the copy is verified, else those of `cairn log verify`, or 1.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::{
    archive::backup::{self, BackupError, Copied, Stage, Wanted},
    cli::{Data, judged, out, progress::Progress, readable, verify},
    follow::copy,
    ledger::fitting,
    log::{home::Home, sqlite::SqliteReader},
};

#[derive(Args)]
pub struct Backup {
    /// The directory to make; it must not be there, or be empty.
    dir: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Copy the keys too: whoever has such a backup can sign in this log's name.
    #[arg(long)]
    keys: bool,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Backup, quiet: bool) -> anyhow::Result<ExitCode> {
    let home = readable(&args.data.data)?;
    let owner = format!("`cairn backup` (process {})", std::process::id());
    let fits = |copy: &Home| {
        let log = SqliteReader::open(&copy.log_path());
        log.is_ok_and(|log| fitting::fits(copy, &log).is_ok())
    };
    let wanted = Wanted { keys: args.keys.then_some(&fits), logs: copy::DIRECTORY };
    let mut progress = Progress::new("copying", 0, quiet);
    let copied = backup::backup(&home, &args.dir, wanted, &owner, &mut |stage| tell(&mut progress, stage));
    drop(progress);
    let copied = match copied {
        Err(err) => return refused(err, args.json),
        Ok(copied) => copied,
    };
    match args.json {
        true => out::print_json(&json!({
            "backup": args.dir,
            "report": copied.report,
            "keys": copied.keys,
            "tokens": copied.tokens,
            "archives": copied.archives,
            "followed": copied.logs,
        }))?,
        false => out::print(&shown(&copied))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Moves the progress bar to this stage.
pub fn tell(progress: &mut Progress, stage: Stage) {
    match stage {
        Stage::Copying(done, of) => {
            progress.stage("copying", of);
            progress.at(done);
        }
        Stage::Verifying(step) => verify::tell(progress, step),
    }
}

/// Reports why there is no copy, with the exit code of the log's verdict. Of a copy that does not verify, prints the
/// faults too.
pub fn refused(err: BackupError, json: bool) -> anyhow::Result<ExitCode> {
    if let BackupError::Unverified { report, .. } = &err {
        match json {
            true => out::print_json(&json!({ "report": report }))?,
            false => out::print(&verify::shown(report))?,
        }
    }
    let verdict = err.verdict();
    Err(judged(err, verdict))
}

fn shown(copied: &Copied) -> String {
    let yes = |there| if there { "in it" } else { "not in it" };
    format!(
        "{}\nkeys {}, tokens {}, {} archives, {} followed logs",
        verify::shown(&copied.report),
        yes(copied.keys),
        yes(copied.tokens),
        copied.archives,
        copied.logs
    )
}
