//! `cairn log export` and `cairn log import`: write a log or a run to a file, and take one in.
//!
//! Exit codes of an import: 0 if it was taken in, those of `cairn log verify` if the archive is refused, else 1.
//!
//! Invariant: a file under the given name is complete. An export that fails leaves none.

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    archive::{
        export::{Format, Scope},
        import::{self, Imported},
        keep::KeptArchive,
    },
    cli::{
        Usage,
        args::Export,
        judged, out,
        progress::Progress,
        remote::Messages,
        runtime,
        source::{self, Source},
        table, verify,
    },
    verify::{Report, Verdict},
};

pub fn run(args: Export, quiet: bool) -> anyhow::Result<ExitCode> {
    let binary = args.format == Format::Car;
    if binary && args.output.as_os_str() == "-" && io::stdout().is_terminal() {
        return Err(Usage("a car is not text; name a file with -o".to_owned()).into());
    }
    let source = Source::open(&args.place, quiet)?;
    let runtime = runtime()?;
    let cid = runtime.block_on(source.resolved(args.cid.as_ref()))?;
    let mut progress = Progress::bytes("exporting", quiet);
    out::to_file(&args.output, |to| {
        let mut to = Counted { to, bytes: 0, progress: &mut progress };
        match &source {
            Source::Files(files) => {
                let (home, view) = (&files.home, &files.view);
                let scope = match (args.subject, cid) {
                    (Some(subject), _) => Scope::Subject(subject),
                    (None, Some(cid)) => Scope::Ancestors(cid),
                    (None, None) => Scope::Range { from: None, to: None },
                };
                let selected = view.select(&scope, args.format, &source::head(home, view)?)?;
                Ok(view.export(&selected, args.format, &mut to)?)
            }
            Source::Server(remote) => {
                let mut query = vec![("format", args.format.as_str().to_owned())];
                query.extend(args.subject.map(|subject| ("subject", subject)));
                query.extend(cid.map(|cid| ("cid", cid.to_string())));
                runtime.block_on(async {
                    let mut body = Messages::new(remote.get("/v1/export", &query, "*/*").await?);
                    while let Some(bytes) = body.chunk().await? {
                        to.write_all(&bytes)?;
                    }
                    Ok(())
                })
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

pub fn import(file: &Path, data: &Path, json: bool, quiet: bool) -> anyhow::Result<ExitCode> {
    let archive = File::open(file).with_context(|| format!("cannot read {}", file.display()));
    let archive = archive.map_err(|err| judged(err, Some(Verdict::Unreadable)))?;
    let mut progress = Progress::new("blocks", 0, quiet);
    let imported = import::import(archive, data, &mut |step| verify::tell(&mut progress, step));
    drop(progress);
    let imported = imported.map_err(|err| {
        let verdict = err.verdict();
        judged(err, verdict)
    })?;
    match (json, quiet) {
        (true, _) => out::print_json(&value(&imported))?,
        (false, false) => say!("{}", told(&imported, data)),
        (false, true) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn value(imported: &Imported) -> Value {
    match imported {
        Imported::Log(report, evidence) => json!({
            "imported": "log",
            "events": report.checked_events,
            "blocks": report.checked_blocks,
            "evidence": evidence,
        }),
        Imported::Run(kept) => json!({
            "imported": "run",
            "subject": kept.subject,
            "events": kept.events,
            "blocks": kept.blocks,
            "file": kept.file.display().to_string(),
            "already": kept.already,
            "evidence": kept.evidence,
        }),
    }
}

fn told(imported: &Imported, data: &Path) -> String {
    let (what, place, evidence) = match imported {
        Imported::Log(report, evidence) => {
            let Report { checked_events: events, checked_blocks: blocks, .. } = report;
            (
                format!("imported {events} events and {blocks} blocks"),
                format!("into {}", data.display()),
                evidence,
            )
        }
        Imported::Run(kept) => {
            let verb = if kept.already { "kept already" } else { "imported" };
            let KeptArchive { subject, events, blocks, .. } = kept;
            let what = format!("{verb} {subject}, {events} events and {blocks} blocks");
            (what, format!("as {}", kept.file.display()), &kept.evidence)
        }
    };
    table::printable(&format!("{what}, {place}: {evidence}"))
}

/// A writer that shows how many bytes were written.
struct Counted<'a> {
    to: &'a mut dyn Write,
    bytes: u64,
    progress: &'a mut Progress,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        self.progress.at(self.bytes);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
