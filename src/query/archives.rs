//! Archives beside the log: exports of other nodes' runs, kept whole under the name of their root.
//!
//! Invariants:
//! - a file under a root's name was checked when it was kept, and every block is hashed again when it is read;
//! - an archive is evidence, never part of the log: nothing of it is folded, listed or exported again.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::FileExt,
    path::Path,
};

use super::{QueryError, export::archive::Manifest, lookup::corrupt, record::Source};
use crate::{
    block::{
        Cid, Codec,
        car::{self, CarError, SECTION_MAX},
        decode,
    },
    event::Event,
    log::LogError,
};

/// The directory of a data directory that they are kept in.
pub const DIRECTORY: &str = "archives";
/// What their files end with.
pub const EXTENSION: &str = "car";
/// Bytes of one archive.
pub const BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// An archive that was kept: its events in memory, its blocks where they lie.
pub struct Archive {
    root: Cid,
    file: File,
    /// In order.
    events: Vec<Event>,
    places: HashMap<Cid, Place>,
}

/// Where a block's bytes are in the file.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    len: usize,
}

impl Archive {
    /// The archive of a subject that was imported last.
    pub fn of_subject(dir: &Path, subject: &str) -> Result<Option<Self>, QueryError> {
        let entries = match fs::read_dir(dir) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(unreadable)?,
        };
        let mut latest = None;
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let file = File::open(&path).map_err(unreadable)?;
            let kept = file.metadata().and_then(|about| about.modified()).map_err(unreadable)?;
            let manifest = car::Reader::new(BufReader::new(&file), limits())
                .ok()
                .and_then(|mut archive| manifest(&mut archive));
            let wanted = manifest.is_some_and(|manifest| manifest.subject.as_deref() == Some(subject));
            let later = latest.as_ref().is_none_or(|(than, name, _)| (*than, name) < (kept, &path));
            if wanted && later {
                latest = Some((kept, path, file));
            }
        }
        latest.map(|(.., file)| Self::read(file).map_err(broken)).transpose()
    }

    fn read(file: File) -> Result<Self, CarError> {
        use std::io::{Seek, SeekFrom};
        (&file).seek(SeekFrom::Start(0))?;
        let mut archive = car::Reader::new(BufReader::new(&file), limits())?;
        let root = archive.root();
        let mut events = Vec::new();
        let mut places = HashMap::new();
        let mut log = None;
        while let Some((cid, bytes)) = archive.next().transpose()? {
            let place = Place { at: archive.at() - bytes.len() as u64, len: bytes.len() };
            places.insert(cid, place);
            if log.is_none() {
                log = decode::<Manifest>(&bytes).ok().map(|manifest| manifest.log);
            } else if cid.codec() == Codec::DagCbor
                && let Ok(event) = Event::open(bytes)
                && log == Some(event.fields().log)
            {
                events.push(event);
            }
        }
        drop(archive);
        Ok(Self { root, file, events, places })
    }

    pub fn root(&self) -> Cid {
        self.root
    }
}

impl Source for Archive {
    fn events_of_run(&self, id: &str, as_of: Option<u64>) -> Result<Vec<Event>, QueryError> {
        let (run, tasks) = (format!("workflow/{id}"), format!("task/{id}#"));
        let of_run = |event: &&Event| {
            let fields = event.fields();
            (fields.subject == run || fields.subject.starts_with(&tasks))
                && as_of.is_none_or(|as_of| fields.seq <= as_of)
        };
        Ok(self.events.iter().filter(of_run).cloned().collect())
    }

    fn bytes(&self, cid: &Cid) -> Result<Option<Vec<u8>>, QueryError> {
        let Some(place) = self.places.get(cid) else { return Ok(None) };
        let mut bytes = vec![0; place.len];
        self.file.read_exact_at(&mut bytes, place.at).map_err(unreadable)?;
        match cid.names(&bytes) {
            true => Ok(Some(bytes)),
            false => Err(corrupt("a block of an archive does not have its name")),
        }
    }
}

/// The manifest of an archive that nothing was read of yet; none where its root is no manifest.
pub fn manifest<R: io::Read>(archive: &mut car::Reader<R>) -> Option<Manifest> {
    let root = archive.root();
    let (cid, bytes) = archive.next()?.ok()?;
    (cid == root).then(|| decode(&bytes).ok()).flatten()
}

pub fn limits() -> car::Limits {
    car::Limits { section_max: SECTION_MAX, total_max: BYTES_MAX }
}

fn unreadable(err: io::Error) -> QueryError {
    LogError::Store(Box::new(err)).into()
}

fn broken(err: CarError) -> QueryError {
    LogError::Store(Box::new(err)).into()
}
