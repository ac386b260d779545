//! The machine's own figures, which every other figure is read beside.

use std::{
    fs::File,
    io::{Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

const WRITES: usize = 200;
const WRITE_LEN: usize = 4096;

/// Where the probe writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the end of a file, whose new length is made durable too: a write-ahead log while it grows.
    End,
    /// Over what is there: a write-ahead log from its first checkpoint on.
    Over,
}

/// The median time of making 4 KiB of a file in `dir` durable.
pub fn fdatasync_p50(dir: &Path, place: Place) -> Duration {
    let scratch = tempfile::tempdir_in(dir).expect("a directory");
    let mut file = File::create(scratch.path().join("probe")).expect("a file");
    if place == Place::Over {
        file.write_all(&vec![1; WRITES * WRITE_LEN]).expect("a file is filled");
        file.sync_all().expect("it is synced");
        file.rewind().expect("its start");
    }
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
