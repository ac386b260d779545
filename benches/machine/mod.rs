//! The machine's own figures, which every other figure is read beside.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

const WRITES: usize = 200;
const WRITE_LEN: usize = 4096;

/// The median time of making 4 KiB at the end of a file in `dir` durable.
pub fn fdatasync_p50(dir: &Path) -> Duration {
    let scratch = tempfile::tempdir_in(dir).expect("a directory");
    let mut file = File::create(scratch.path().join("probe")).expect("a file");
    let mut times: Vec<Duration> = (0..WRITES)
        .map(|_| {
            file.write_all(&[0; WRITE_LEN]).expect("4 KiB are written");
            let begun = Instant::now();
            file.sync_data().expect("they are synced");
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
