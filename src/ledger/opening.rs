//! Opening a ledger: lock, keys, log, state, and the checks that make a bad day visible before it spreads.
//!
//! Invariants:
//! - a log that does not stand under a signed head over exactly its events is not opened;
//! - opening runs no tool; what was running when a process died is ended as interrupted.

use std::{collections::HashMap, fs, sync::Arc, thread, time::Duration};

use serde_bytes::ByteArray;
use tokio::sync::{mpsc, watch};

use crate::{
    block::Block,
    catalogue::Entry,
    event::{Body, Event, Genesis, Position, body::LogOpened},
    identity::{
        Signer, claimed_size,
        rotation::{self},
    },
    ledger::{
        About, Command, GROUP_MAX, Ledger, Reach, Shelf, WAITING_MAX, clock,
        commit::{Commit, log_fact, node},
        fitting::{HeadError, OpenError, check_salt, genesis, signer},
        folding::{Folding, catch_up},
        heads::{Heads, notes},
        holding::Holding,
        keeping::Keeping,
        loading::Loading,
        progress::Progress,
        sealer::Sealer,
        upkeep,
        world::World,
        writer::Writer,
    },
    log::{
        Batch, Log, LogError, Reader,
        home::{HeadFile, Home, HomeError, Keys, Lock},
        sqlite::SqliteLog,
    },
    merkle::{Growing, leaf_hash},
    metrics::Metrics,
    query,
    queue::Rates,
    state::{self, Database, StateError, StoredTiles, fold::Folder},
    task::Limits,
};

/// Commits that may wait for the fold; then the writer waits too.
const FOLD_BACKLOG: usize = 64;

/// Events from which on the state's tables are worth statistics.
const STATISTICS_MIN: u64 = 100_000;

/// How a ledger is run.
#[derive(Clone)]
pub struct Settings {
    pub group_max: usize,
    pub fsync: bool,
    pub checkpoint_interval: Duration,
    /// Counts every commit.
    pub metrics: Option<Arc<Metrics>>,
    /// The bounds of durable work.
    pub limits: Limits,
    /// How often tasks of a rate key may start.
    pub rates: Rates,
    /// Filled once there is a catalogue.
    pub tools: Shelf,
    /// When the log's files are tended.
    pub upkeep: upkeep::Bounds,
    /// Told how far the state is derived while the ledger opens.
    pub progress: Arc<Progress>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            group_max: GROUP_MAX,
            fsync: true,
            checkpoint_interval: Duration::from_secs(1),
            metrics: None,
            limits: Limits::default(),
            rates: Rates::default(),
            tools: Shelf::default(),
            upkeep: upkeep::Bounds::default(),
            progress: Arc::default(),
        }
    }
}

/// The running threads, and the right to write. Dropping every [`Ledger`] and joining this ends them in order.
pub struct Running {
    writer: thread::JoinHandle<()>,
    folding: thread::JoinHandle<()>,
    clock: thread::JoinHandle<()>,
    upkeep: thread::JoinHandle<()>,
    _lock: Lock,
}

impl Running {
    /// Waits until the threads have ended; they do once every handle is dropped.
    pub fn join(self) {
        // A panicked thread has said so on standard error; there is nothing left to hand on.
        let _ = self.writer.join();
        let _ = self.folding.join();
        let _ = self.clock.join();
        let _ = self.upkeep.join();
    }
}

/// What the caller provides because opening takes neither names nor randomness from its surroundings.
pub struct Birth<'a> {
    /// Written into the lock file, for whoever finds the directory in use.
    pub owner: &'a str,
    pub random: &'a mut dyn FnMut() -> [u8; 32],
    pub now_us: u64,
    /// Told how many events are folded while the state catches up.
    pub step: &'a mut dyn FnMut(u64),
}

/// Opens the log of `home` and starts its writer.
pub fn open(home: &Home, settings: &Settings, birth: Birth<'_>) -> Result<(Ledger, Running), OpenError> {
    let lock = home.lock(birth.owner)?;
    let mut log: Box<dyn Log> = Box::new(SqliteLog::open(&home.log_path(), settings.fsync)?);
    let reader = log.reader()?;
    let head = home.head()?;
    if reader.tip()?.is_none() {
        let claimed = notes(home, reader.as_ref())?.iter().map(|note| claimed_size(note)).max();
        if let Some(signed) = claimed {
            return Err(HeadError::RolledBack { signed, found: 0 }.into());
        }
        home.make_keys(&mut *birth.random)?;
        begin(log.as_mut(), &home.keys()?, (birth.random)(), birth.now_us)?;
    }
    let genesis = genesis(reader.as_ref())?;
    let (keys, signer) = signer(home, reader.as_ref(), &genesis)?;
    let found = reader.tip()?.map_or(0, |tip| tip.seq + 1);
    let heads = Heads::of(notes(home, reader.as_ref())?, &keys);
    let note = heads.over(found)?.to_owned();
    settings.progress.at(0, found);
    let folder = derive(home, log.as_ref(), &mut |folded| {
        settings.progress.at(folded, found);
        (birth.step)(folded);
    })?;
    settings.progress.at(found, found);
    heads.agree(&StoredTiles { state: folder.state(), log: reader.as_ref() }, found)?;
    // The state may have hidden a change of keys until now; it is the log's from here on.
    let mut folded = rotation::Keys::new(keys.log(), keys.first().clone());
    query::keeping::rotate(&mut folded, folder.state(), reader.as_ref())?;
    if folded != keys {
        return Err(OpenError::Key);
    }
    erase_again(folder.state(), log.as_mut(), reader.as_ref())?;
    // Statistics of a few rows mislead the planner once there are many.
    if folder.applied() >= STATISTICS_MIN {
        folder.state().execute_batch("PRAGMA optimize").map_err(StateError::from)?;
    }

    let name = Block::encode(&genesis).cid();
    let (salted, on_record) = check_salt(home, Some(folder.state()), reader.as_ref(), &name)?;
    let about = About { log: name, origin: genesis.origin, vkey: signer.vkey(), salted };
    let loading = Loading { state: folder.state(), log: reader.as_ref(), now_ms: birth.now_us / 1000 };
    let (holding, contracts) = (loading.holding(&settings.rates)?, loading.contracts()?);
    let dead = dead_runners(&holding, home);
    home.sweep();
    let (ledger, running) =
        start(home, settings, Checked { lock, log, head, note, signer, folder, holding, contracts, about })?;
    if !dead.is_empty() {
        ledger.submit_blocking(Command::Recover { runners: dead })?;
    }
    if !on_record {
        ledger.submit_blocking(Command::Keep { keeping: Keeping::Salted, actor: node() })?;
    }
    Ok((ledger, running))
}

/// A log that has passed the checks of [`open`] and may be written.
struct Checked {
    lock: Lock,
    log: Box<dyn Log>,
    head: HeadFile,
    /// The signed head over exactly the log's events.
    note: String,
    signer: Signer,
    folder: Folder,
    holding: Holding,
    contracts: HashMap<(String, String), Entry>,
    about: About,
}

/// Starts the threads that write and fold the log.
fn start(home: &Home, settings: &Settings, checked: Checked) -> Result<(Ledger, Running), OpenError> {
    let Checked { lock, mut log, head, note, signer, mut folder, holding, contracts, about } = checked;
    let reader = log.reader()?;
    let tip = reader.tip()?;
    if reader.head()?.as_ref() != Some(&note) {
        // A log from before heads stood in it: the one beside it takes its place there.
        let batch = Batch { head: Some(note.clone()), ..Batch::default() };
        log.append(tip.map(|tip| tip.cid), &batch)?;
    }
    let keeper = log.upkeep()?;
    let (inbox, asks) = mpsc::channel(WAITING_MAX);
    let (fold, commits) = std::sync::mpsc::sync_channel(FOLD_BACKLOG);
    let (committed, committed_rx) = watch::channel(tip.map_or(0, |tip| tip.seq + 1));
    let (reach, reach_rx) = watch::channel(Reach::default());
    folder.watched_by(settings.metrics.clone());
    let tree = folder.edge();
    let mut folding = Folding { folder, head, reach, sync_every: settings.checkpoint_interval };
    folding.tell(note, true).map_err(OpenError::Head)?;
    let (alarm, face) = clock::clock();
    let (wal_to, wal) = watch::channel(upkeep::Wal::default());
    let world = World {
        reader,
        state: state::open_reader(&home.state_path(), &home.log_path())?,
        applied: reach_rx.clone(),
        limits: settings.limits,
        salt: home.keys()?.salt,
        tools: settings.tools.clone(),
        contracts,
        holding,
        stale: false,
        commit: Commit::new(Sealer { log: about.log, tip, looked_us: 0, tree, signer }),
    };
    let writer = Writer {
        log,
        world,
        alarm,
        fold,
        committed,
        group_max: settings.group_max.clamp(1, WAITING_MAX),
        rates: settings.rates.clone(),
        metrics: settings.metrics.clone(),
    };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(OpenError::Thread)
    };
    let folding = spawn("fold", Box::new(move || folding.run(commits)))?;
    let weak = inbox.downgrade();
    let clock = spawn("clock", Box::new(move || clock::run(&face, &weak)))?;
    let bounds = settings.upkeep;
    let upkeep = spawn("upkeep", Box::new(move || upkeep::run(keeper, &bounds, &wal_to)))?;
    let writer = spawn("ledger", Box::new(move || writer.run(asks)))?;
    let ledger = Ledger {
        inbox,
        committed: committed_rx,
        reach: reach_rx,
        wal: Some(wal),
        about: Arc::new(about),
        home: home.clone(),
    };
    Ok((ledger, Running { writer, folding, clock, upkeep, _lock: lock }))
}

/// Derives the state again from the log alone.
pub fn rebuild(home: &Home, step: &mut dyn FnMut(u64)) -> Result<Folder, OpenError> {
    let log = SqliteLog::open(&home.log_path(), true)?;
    remove_state(home)?;
    Ok(derive(home, &log, step)?)
}

fn begin(log: &mut dyn Log, keys: &Keys, nonce: [u8; 32], now_us: u64) -> Result<(), OpenError> {
    let origin = format!("cairn/{}", &data_encoding::HEXLOWER.encode(&nonce)[..16]);
    let signer = Signer::new(&origin, keys.seed).map_err(|_| OpenError::Key)?;
    let genesis = Block::encode(&Genesis {
        v: 1,
        origin,
        key: signer.public_key().to_vec(),
        created: now_us,
        nonce: nonce[..16].to_vec(),
    });
    let software = format!("cairn {}", env!("CARGO_PKG_VERSION"));
    let salt = Some(ByteArray::new(keys.salt.commitment_for(&genesis.cid())));
    let opened = LogOpened { genesis: genesis.cid(), software, salt };
    let place = Position { log: genesis.cid(), seq: 0, prev: None, ts: now_us };
    let event = Event::seal(log_fact(node(), Body::LogOpened(opened)), place)
        .map_err(|_| LogError::Corrupt { what: "the first event cannot be sealed" })?;
    // A crash before this leaves an empty log, which the next start begins again.
    let mut tree = Growing::new();
    tree.push(leaf_hash(&event.cid()));
    let head = Some(signer.sign_checkpoint(tree.size(), &tree.root()));
    log.append(None, &Batch { blocks: vec![genesis], events: vec![event], head })?;
    Ok(())
}

/// Returns the state, caught up with the log. A state that is damaged or of another log is derived anew.
pub fn derive(home: &Home, log: &dyn Log, step: &mut dyn FnMut(u64)) -> Result<Folder, StateError> {
    let resumed = state::open(&home.state_path())
        .and_then(|state| Folder::resume(state, log.reader()?))
        .and_then(|folder| Ok(belongs(&folder, log.reader()?.as_ref())?.then_some(folder)));
    let mut folder = match resumed {
        Ok(Some(folder)) => folder,
        Ok(None)
        | Err(
            StateError::Store(_)
            | StateError::Broken { .. }
            | StateError::Migration(_)
            | StateError::Newer { .. },
        ) => {
            tracing::warn!("state.db is damaged, of a newer program or not this log's; deriving it again");
            remove_state(home).map_err(|_| StateError::Broken { what: "state.db cannot be removed" })?;
            Folder::resume(state::open(&home.state_path())?, log.reader()?)?
        }
        Err(err) => return Err(err),
    };
    // The state is this log's as far as it goes, so what cannot be folded is the log's own fault.
    catch_up(&mut folder, log.reader()?.as_ref(), step).map_err(|err| match err {
        StateError::Broken { .. } => StateError::Log(LogError::Corrupt {
            what: "events are missing, out of order or unreadable; see `cairn log verify`, then restore your backup",
        }),
        other => other,
    })?;
    Ok(folder)
}

/// Whether the state's last event is the log's at that place: events pin everything before them.
fn belongs(folder: &Folder, reader: &dyn Reader) -> Result<bool, LogError> {
    if !state::whole(folder.state()) {
        return Ok(false);
    }
    let Some(last) = folder.applied().checked_sub(1) else {
        return Ok(true);
    };
    Ok(reader.event_at(last)?.map(|event| event.cid()) == folder.last())
}

/// Removes the derived state, so that it is derived again. The caller must hold the lock.
pub fn remove_state(home: &Home) -> Result<(), HomeError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = home.state_path().into_os_string();
        path.push(suffix);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(HomeError::Io { dir: home.dir().display().to_string(), source: err });
            }
            _ => {}
        }
    }
    home.keep_private()
}

/// Erases again every payload that is on record as erased and was not recorded again since. A crash may have come
/// between the commit of `payload.erased` and the removal of the bytes.
fn erase_again(state: &Database, log: &mut dyn Log, reader: &dyn Reader) -> Result<(), OpenError> {
    log.erase(&query::erasure::pending(state, reader)?)?;
    Ok(())
}

/// Returns the runners of calls, attempts and connections whose processes have ended. A runner is known by its lock on
/// a file and not by a process id, because ids are reused.
fn dead_runners(holding: &Holding, home: &Home) -> Vec<String> {
    let mut runners = holding.runners();
    runners.retain(|runner| !home.runs(runner));
    runners
}
