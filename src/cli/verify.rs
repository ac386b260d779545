//! `cairn log verify`: checks a log. The exit code is its verdict.
//!
//! Exit codes: 0 verified, 20 incomplete, 30 forked, 40 invalid, 50 unreadable.

use std::{fs::File, io::Read, path::Path, process::ExitCode};

use anyhow::Context;

use crate::{
    cli::{
        args::Verify,
        judged, out,
        progress::Progress,
        readable,
        table::{self, Table},
    },
    verify::{Checks, Report, Step, Takeover, Verdict, verify},
};

/// The largest number of bytes that are read of a checkpoint file; a signed head has about 200.
const NOTE_MAX: u64 = 64 * 1024;

pub fn run(args: Verify, quiet: bool) -> anyhow::Result<ExitCode> {
    let checkpoint =
        args.checkpoint.as_ref().map(|file| note(file).map_err(|err| judged(err, Some(Verdict::Unreadable))));
    let checks = Checks {
        checkpoint: checkpoint.transpose()?,
        key: args.key.map(|key| key.vkey()),
        derived: args.state,
        payloads: !args.no_payloads,
        ..Checks::default()
    };
    let home = readable(&args.data.data)?;
    let mut progress = Progress::new("blocks", 0, quiet);
    let report = verify(&home, &checks, &mut |step| tell(&mut progress, step));
    drop(progress);
    match args.json {
        true => out::print_json(&serde_json::to_value(&report)?)?,
        false => out::print(&shown(&report))?,
    }
    Ok(ExitCode::from(report.verdict.exit_code()))
}

/// Reads the text of a signed head from a file.
fn note(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = File::open(file).and_then(|opened| opened.take(NOTE_MAX).read_to_string(&mut text));
    read.with_context(|| format!("{} is no checkpoint that can be read", file.display()))?;
    Ok(text)
}

/// Moves the progress bar to this step.
pub fn tell(progress: &mut Progress, step: Step) {
    let (what, done, of) = match step {
        Step::Blocks(done) => ("blocks", done, done),
        Step::Events(done, of) => ("events", done, of),
        Step::Derived(done, of) => ("state", done, of),
    };
    progress.stage(what, of);
    progress.at(done);
}

pub fn shown(report: &Report) -> String {
    let verdict = report.verdict.as_str();
    let mut text = format!("{verdict}: {} events, {} blocks", report.checked_events, report.checked_blocks);
    if let Some(root) = &report.root {
        text += &format!(", root {root}");
    }
    if let Some(head) = &report.head {
        text += &format!(", under the head over {} events that {} signed", head.size, head.key);
    }
    if let Some(payloads) = report.payloads {
        text += &format!(", payloads {payloads}");
    }
    if let (Some(checked), Some(erased)) = (report.checked_payloads, report.erased_payloads) {
        text += &format!(", {checked} payloads, {erased} erased");
    }
    for Takeover { seq, from_seq, events } in &report.takeovers.events {
        text += &format!(
            "\ntaken over by event {seq}: no head covered {events} events from seq {from_seq} on, an operator signed them"
        );
    }
    let more = report.takeovers.count.saturating_sub(report.takeovers.events.len() as u64);
    if more > 0 {
        text += &format!("\nand taken over {more} more times");
    }
    if let Some(first) = report.unnamed.cids.first() {
        text += &format!(
            "\n{} blocks that nothing names, the first {}; they are no fault of the log",
            report.unnamed.count,
            table::short(first, true)
        );
    }
    if report.faults.is_empty() {
        return text;
    }
    let mut faults = Table::new(&["seq", "name", "fault"]);
    for fault in &report.faults {
        faults.row(vec![
            fault.seq.map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            fault.cid.as_ref().map_or_else(|| "-".to_owned(), |cid| table::short(cid, true)),
            fault.fault.clone(),
        ]);
    }
    text += &format!("\n{}", faults.render());
    let more = report.faults_total.saturating_sub(report.faults.len() as u64);
    if more > 0 {
        text += &format!("\nand {more} more");
    }
    text
}
