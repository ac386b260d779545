//! `cairn erase`: deletes a payload's content, and keeps its name and every proof.
//!
//! Invariants:
//! - the log's one writer erases in the log, in whichever process it is; nothing here touches the log's files;
//! - archives are rewritten after the log. Repeating the command finishes what a crash left undone.

use std::process::ExitCode;

use crate::{
    archive::erase,
    cli::{args::Erase, existing, out, runtime},
    error::Code,
    ledger::{
        Command, Ruling,
        commit::operator,
        opening::Settings,
        sharing::{self, Member},
    },
    node,
};

/// Erases through the process that owns the log. If there is none, this process owns it meanwhile.
pub fn run(args: Erase, quiet: bool) -> anyhow::Result<ExitCode> {
    let home = existing(&args.data.data)?;
    let dir = home.dir().to_owned();
    let member = Member {
        home,
        settings: Settings::default(),
        runner: uuid::Uuid::now_v7().simple().to_string(),
        owner: format!("`cairn erase` (process {})", std::process::id()),
        random: node::random,
    };
    let payload = args.cid;
    let command = Command::Erase { payload, basis: args.basis, actor: operator() };
    let ruling = runtime()?.block_on(async {
        let (ledger, sharing) = sharing::join(member).await?;
        let ruling = ledger.submit(command).await;
        ledger.close().await;
        sharing.end().await;
        anyhow::Ok(ruling?)
    })?;
    let in_log = match ruling {
        Ruling::Done(sealed) => {
            out::print(&sealed.cid.to_string())?;
            Ok(())
        }
        Ruling::Unchanged => {
            if !quiet {
                eprintln!("it was erased before");
            }
            Ok(())
        }
        // A payload that only an archive holds was never in the log, so the log records nothing of it.
        Ruling::Denied(refusal) if refusal.code == Code::NotFound => Err(refusal),
        Ruling::Denied(refusal) => anyhow::bail!("{}", refusal.message),
        Ruling::Published { .. }
        | Ruling::Worked(_)
        | Ruling::Run(_)
        | Ruling::Began { .. }
        | Ruling::Refused(_)
        | Ruling::Answered(_) => {
            anyhow::bail!("the ledger answered something else; nothing is known to be erased")
        }
    };
    let archives = erase::erase(&dir, &payload)?;
    if archives > 0 && !quiet {
        eprintln!("{archives} archives beside the log held it and are without it now");
    }
    match in_log {
        Err(refusal) if archives == 0 => anyhow::bail!("{}", refusal.message),
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}
