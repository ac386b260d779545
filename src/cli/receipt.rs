//! `cairn receipt`: writes the proof of one event to a file, and checks such a file.
//!
//! Exit codes of a check: 0 if it proves the event, 40 if it does not, 50 if it is no receipt.
//!
//! Invariant: the check needs the file and a key, and reads no log.

use std::{fs::File, io::Read, path::Path, process::ExitCode};

use anyhow::Context;
use serde_json::json;

use crate::{
    cli::{
        Usage,
        args::{Receipt, ReceiptCommand},
        judged, out, runtime,
        source::{self, Source},
        table,
    },
    identity::Verifier,
    receipt,
    verify::Verdict,
};

/// The largest number of bytes that are read of a receipt file, far above what an event, a genesis block and hashes
/// take.
const RECEIPT_MAX: u64 = 1024 * 1024;

pub fn run(args: Receipt, quiet: bool) -> anyhow::Result<ExitCode> {
    if let Some(ReceiptCommand::Verify { file, key, json }) = args.command {
        return verify(&file, &key, json);
    }
    let cid = args.cid.ok_or_else(|| Usage("name an event".to_owned()))?;
    let source = Source::open(&args.place, quiet)?;
    let runtime = runtime()?;
    let cid = runtime.block_on(source.resolve(&cid))?;
    let receipt = match source {
        Source::Files(files) => {
            let head = source::head(&files.home, &files.view)?;
            source::logs(&files.home, &files.view)
                .ask(&head, |view, head| view.receipt(&cid, head))?
                .to_json()
        }
        Source::Server(remote) => runtime.block_on(remote.json(&format!("/v1/receipts/{cid}"), &[]))?,
    };
    out::to_file(&args.output, |to| Ok(writeln!(to, "{receipt:#}")?))?;
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<receipt::Receipt> {
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(RECEIPT_MAX).read_to_end(&mut bytes));
    read.with_context(|| format!("cannot read {}", file.display()))?;
    receipt::Receipt::read(&bytes).with_context(|| format!("{} proves nothing", file.display()))
}

fn verify(file: &Path, key: &Verifier, json: bool) -> anyhow::Result<ExitCode> {
    let refused = || format!("{} proves nothing", file.display());
    let receipt = read(file).map_err(|err| judged(err, Some(Verdict::Unreadable)))?;
    let verified = receipt.verify(key).with_context(refused);
    let verified = verified.map_err(|err| judged(err, Some(Verdict::Invalid)))?;
    let fields = verified.event.fields();
    let cid = verified.event.cid().to_string();
    if json {
        out::print_json(&json!({
            "verified": true,
            "cid": cid,
            "origin": verified.origin,
            "size": verified.size,
            "seq": verified.seq,
            "kind": fields.kind,
            "subject": fields.subject,
            "actor": fields.actor.id,
            "ts": fields.ts,
        }))?;
    } else {
        out::print(&format!(
            "verified: event {} of {} under the signed head of {}\nevent    {cid}\nkind     {}\nsubject  {}\nactor    {}\ntime     {}",
            verified.seq,
            verified.size,
            verified.origin,
            table::printable(&fields.kind),
            table::printable(&fields.subject),
            table::printable(&fields.actor.id),
            table::moment(fields.ts),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
