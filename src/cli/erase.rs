//! `cairn erase`: deletes a payload's content and keeps its name and every proof.
//!
//! Invariant: the one writer does it, whichever process that is; nothing here touches the log's files.

use std::process::ExitCode;

use crate::{
    cli::{args::Erase, existing, out, runtime},
    ledger::{
        Command, Ruling,
        opening::Settings,
        sharing::{self, Member},
        writer::operator,
    },
    node,
};

/// Through the process that owns the log, where there is one; else this process owns it for as long as it takes.
pub fn run(args: Erase, quiet: bool) -> anyhow::Result<ExitCode> {
    let home = existing(&args.data.data)?;
    let member = Member {
        home,
        settings: Settings::default(),
        runner: uuid::Uuid::now_v7().simple().to_string(),
        owner: format!("`cairn erase` (process {})", std::process::id()),
        random: node::random,
    };
    let command = Command::Erase { payload: args.cid, basis: args.basis, actor: operator() };
    let ruling = runtime()?.block_on(async {
        let (ledger, sharing) = sharing::join(member).await?;
        let ruling = ledger.submit(command).await;
        ledger.close().await;
        sharing.end().await;
        anyhow::Ok(ruling?)
    })?;
    match ruling {
        Ruling::Done(sealed) => out::print(&sealed.cid.to_string())?,
        Ruling::Unchanged => {
            if !quiet {
                eprintln!("it was erased before");
            }
        }
        Ruling::Denied(refusal) => anyhow::bail!("{}", refusal.message),
        Ruling::Published { .. }
        | Ruling::Worked(_)
        | Ruling::Run(_)
        | Ruling::Began { .. }
        | Ruling::Refused(_)
        | Ruling::Answered(_) => {
            anyhow::bail!("the ledger answered something else; nothing is known to be erased")
        }
    }
    Ok(ExitCode::SUCCESS)
}
