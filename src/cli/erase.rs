//! `cairn erase`: deletes a payload's content, and keeps its name and every proof.
//!
//! Invariants:
//! - the log's one writer erases in the log, in whichever process it is; nothing here touches the log's files;
//! - archives are rewritten after the log. Repeating the command finishes what a crash left undone.

use std::process::ExitCode;

use serde_json::json;

use crate::{
    archive::erase,
    cli::{args::Erase, existing, naming::Name, out, runtime, source::Source},
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
    let runtime = runtime()?;
    let payload = match args.cid {
        // One that only an archive holds is in no log.
        Name::Cid(cid) => cid,
        name => runtime.block_on(Source::files(&dir, quiet)?.resolve(&name))?,
    };
    let member = Member {
        home,
        settings: Settings::default(),
        runner: uuid::Uuid::now_v7().simple().to_string(),
        owner: format!("`cairn erase` (process {})", std::process::id()),
        random: node::random,
    };
    let command = Command::Erase { payload, basis: args.basis, actor: operator() };
    let ruling = runtime.block_on(async {
        let (ledger, sharing) = sharing::join(member).await?;
        let ruling = ledger.submit(command).await;
        ledger.close().await;
        sharing.end().await;
        anyhow::Ok(ruling?)
    })?;
    let in_log = match ruling {
        Ruling::Done(sealed) => Ok(Some(sealed.cid)),
        Ruling::Unchanged => Ok(None),
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
    if let Ok(Some(event)) = &in_log
        && !args.json
    {
        out::print(&event.to_string())?;
    }
    let archives = erase::erase(&dir, &payload)?;
    let event = match in_log {
        Err(refusal) if archives == 0 => anyhow::bail!("{}", refusal.message),
        Ok(event) => {
            if event.is_none() && !quiet && !args.json {
                say!("it was erased before");
            }
            event
        }
        Err(_) => None,
    };
    if args.json {
        let event = event.map(|event| event.to_string());
        out::print_json(&json!({"payload": payload.to_string(), "event": event, "archives": archives}))?;
    } else if archives > 0 && !quiet {
        say!("{archives} archives beside the log held it and are without it now");
    }
    Ok(ExitCode::SUCCESS)
}
