//! Sharing one data directory: whoever starts first owns the log, the others reach it through a socket in it.
//!
//! Invariants:
//! - a guest's command is ruled once, even when its owner dies between the commit and the answer;
//! - when the owner ends, one guest takes over; calls of processes that still run stay open;
//! - the socket is as private as the directory: only its owner's user can connect.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_bytes::ByteArray;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    block::{Cid, decode, encode},
    ledger::{
        About, Ask, Command, Ledger, Reach, Ruling, Stopped, WAITING_MAX,
        claims::claims_of,
        commit::node,
        fitting::OpenError,
        opening::{self, Birth, Running, Settings},
        sealer::clock_us,
        work::{GiveBack, Wish, Work},
    },
    log::home::{Home, HomeError, Runner},
};

/// Bytes of one frame: a payload of 64 MiB in parts, and what stands around it.
const FRAME_MAX: usize = 72 * 1024 * 1024;
/// Commands of one guest that may be on their way.
const GUEST_WAITING_MAX: usize = 1024;
/// How long a process tries to find or become the owner.
const SEARCH_MAX: Duration = Duration::from_secs(10);
/// How long the commands of a guest that left may take.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// Between two tries.
const SEARCH_PAUSE: Duration = Duration::from_millis(20);

/// What a process needs to join a data directory, as owner or guest.
#[derive(Clone)]
pub struct Member {
    pub home: Home,
    pub settings: Settings,
    /// This process, in the calls it starts.
    pub runner: String,
    /// How this process is named to whoever finds the directory in use.
    pub owner: String,
    /// Gives 32 bytes nobody can guess.
    pub random: fn() -> [u8; 32],
}

/// This process's part in the directory: it owns the log, or reaches its owner.
pub struct Sharing {
    part: Part,
    _mark: Runner,
}

enum Part {
    Owner { running: Running, host: JoinHandle<()> },
    Guest { relay: JoinHandle<()> },
}

/// A frame from a guest to the owner.
#[derive(Serialize, Deserialize)]
enum Said {
    Hello { runner: String },
    Rule { id: u64, command: Box<Command>, again: bool },
}

/// A frame from the owner to a guest.
#[derive(Serialize, Deserialize)]
enum OwnerFrame {
    Welcome {
        log: Cid,
        origin: String,
        vkey: String,
        salted: ByteArray<16>,
    },
    /// `committed` counts the events of the ruling, too.
    Ruling {
        id: u64,
        ruling: Box<Ruling>,
        committed: u64,
    },
    Reach {
        applied: u64,
        checkpoint: String,
    },
}

/// Opens the log of a directory, or reaches the process that owns it.
pub async fn join(member: Member) -> Result<(Ledger, Sharing), OpenError> {
    let mark = member.home.enrol(&member.runner)?;
    let part = find(&member).await?;
    Ok(match part {
        Found::Own(ledger, running) => {
            let host = tokio::spawn(host(ledger.clone()));
            (ledger, Sharing { part: Part::Owner { running: *running, host }, _mark: mark })
        }
        Found::Other(line) => {
            let (inbox, asks) = mpsc::channel(WAITING_MAX);
            let (committed_to, committed) = watch::channel(0);
            let (reach_to, reach) = watch::channel(Reach::default());
            let about = Arc::new(line.about.clone());
            let ledger = Ledger { inbox, committed, reach, wal: None, about, home: member.home.clone() };
            let relay = Relay {
                member,
                asks,
                committed: committed_to,
                reach: reach_to,
                pending: BTreeMap::new(),
                next: 0,
            };
            let relay = tokio::spawn(relay.run(line));
            (ledger, Sharing { part: Part::Guest { relay }, _mark: mark })
        }
    })
}

impl Sharing {
    /// Waits until every command given before the ledger was closed is done.
    pub async fn end(self) {
        match self.part {
            Part::Owner { running, host } => {
                // Guests see the end of their lines and look for a new owner once the lock is free.
                host.abort();
                // Joining blocks; the threads end as soon as the last commit is folded and signed.
                let _ = tokio::task::spawn_blocking(move || running.join()).await;
            }
            Part::Guest { relay } => {
                // A relay that failed has said so.
                let _ = relay.await;
            }
        }
    }
}

enum Found {
    Own(Ledger, Box<Running>),
    Other(Line),
}

/// A connection to the owner, after the handshake.
struct Line {
    about: About,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

/// Becomes the owner if there is none, else connects to it.
async fn find(member: &Member) -> Result<Found, OpenError> {
    let deadline = tokio::time::Instant::now() + SEARCH_MAX;
    loop {
        let taken = match own(member).await {
            Err(OpenError::Home(taken @ HomeError::Owned { .. })) => taken,
            Ok((ledger, running)) => return Ok(Found::Own(ledger, Box::new(running))),
            Err(err) => return Err(err),
        };
        if let Ok(line) = connect(member).await {
            // What this process salts and commits to must be what its owner knows it by.
            let salted = member.home.keys()?.salt.commitment_for(&line.about.log);
            return if salted == line.about.salted { Ok(Found::Other(line)) } else { Err(OpenError::Salt) };
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(taken.into());
        }
        // The owner is still opening, or has just ended; neither can be waited for.
        tokio::time::sleep(SEARCH_PAUSE).await;
    }
}

async fn own(member: &Member) -> Result<(Ledger, Running), OpenError> {
    let member = member.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let now_us = clock_us();
        let mut random = member.random;
        let birth = Birth { owner: &member.owner, random: &mut random, now_us, step: &mut |_| {} };
        opening::open(&member.home, &member.settings, birth)
    });
    opened.await.unwrap_or(Err(OpenError::Stopped(Stopped)))
}

async fn connect(member: &Member) -> io::Result<Line> {
    let (mut reader, mut writer) = UnixStream::connect(member.home.socket_path()).await?.into_split();
    write_frame(&mut writer, &Said::Hello { runner: member.runner.clone() }).await?;
    match read_frame(&mut reader).await? {
        OwnerFrame::Welcome { log, origin, vkey, salted } => {
            Ok(Line { about: About { log, origin, vkey, salted: *salted }, reader, writer })
        }
        OwnerFrame::Ruling { .. } | OwnerFrame::Reach { .. } => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Serves guests until it is aborted. Without a socket the owner works alone.
async fn host(ledger: Ledger) {
    let path = ledger.home().socket_path();
    // Whoever left a socket here does not own the lock any more.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).and_then(|listener| {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map(|()| listener)
    });
    let listener = match listener {
        Ok(listener) => listener,
        Err(err) => {
            tracing::warn!(%err, "the data directory cannot be shared: its socket cannot be made");
            return;
        }
    };
    let mut guests = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    guests.spawn(guest(stream, ledger.clone()));
                }
                Err(err) => tracing::warn!(%err, "a guest of the data directory was not accepted"),
            },
            Some(_) = guests.join_next() => {}
        }
    }
}

/// Serves one guest's connection. If the guest's process has ended with it, its running calls are interrupted.
async fn guest(stream: UnixStream, ledger: Ledger) {
    let (mut reader, writer) = stream.into_split();
    let Ok(Said::Hello { runner }) = read_frame(&mut reader).await else {
        return;
    };
    let (told, telling) = mpsc::channel(GUEST_WAITING_MAX);
    let teller = tokio::spawn(tell(writer, telling, ledger.clone()));
    let mut rulings = JoinSet::new();
    while let Ok(Said::Rule { id, command, again }) = read_frame(&mut reader).await {
        let (committed, told) = (ledger.committed.clone(), told.clone());
        if rulings.len() >= GUEST_WAITING_MAX {
            rulings.join_next().await;
        }
        // In line before the next one is read, so a guest's commands are ruled in its order; answers come in any.
        let Ok(ruling) = ledger.enqueue(*command, again).await else { break };
        rulings.spawn(async move {
            if let Ok(ruling) = ruling.await {
                // A guest that went away asks again from its next owner.
                let committed = *committed.borrow();
                let _ = told.send(OwnerFrame::Ruling { id, ruling: Box::new(ruling), committed }).await;
            }
        });
        while rulings.try_join_next().is_some() {}
    }
    drop(told);
    // Claims that wait have nobody left to be answered; everything else is ruled within a moment.
    let ruled = async { while rulings.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LEAVE_MAX, ruled).await;
    rulings.abort_all();
    teller.abort();
    if !ledger.home().runs(&runner) {
        // A stopped ledger leaves this to the next start.
        let _ = ledger.submit(Command::Recover { runners: vec![runner] }).await;
    }
}

async fn tell(mut writer: OwnedWriteHalf, mut telling: mpsc::Receiver<OwnerFrame>, ledger: Ledger) {
    let About { log, origin, vkey, salted } = ledger.about().clone();
    let salted = ByteArray::new(salted);
    let mut written = write_frame(&mut writer, &OwnerFrame::Welcome { log, origin, vkey, salted }).await;
    let mut reach = ledger.reach();
    reach.mark_changed();
    while written.is_ok() {
        let told = tokio::select! {
            biased;
            told = telling.recv() => match told {
                Some(told) => told,
                None => return,
            },
            changed = reach.changed() => match changed {
                Ok(()) => {
                    let Reach { applied, checkpoint } = reach.borrow_and_update().clone();
                    OwnerFrame::Reach { applied, checkpoint }
                }
                Err(_) => return,
            },
        };
        written = write_frame(&mut writer, &told).await;
    }
}

/// The guest's side: passes commands to the owner, and finds the next owner when that one ends.
struct Relay {
    member: Member,
    asks: mpsc::Receiver<Ask>,
    committed: watch::Sender<u64>,
    reach: watch::Sender<Reach>,
    /// Commands without a ruling, in the order they were given.
    pending: BTreeMap<u64, (Command, oneshot::Sender<Ruling>)>,
    next: u64,
}

/// Why a relay stopped using one owner.
enum Left {
    Closed,
    Lost,
}

impl Relay {
    async fn run(mut self, line: Line) {
        let mut found = Found::Other(line);
        loop {
            let left = match found {
                Found::Other(line) => self.through(line).await,
                Found::Own(ledger, running) => {
                    self.locally(&ledger).await;
                    // Closing and joining, so that the next owner finds the lock free.
                    ledger.close().await;
                    let _ = tokio::task::spawn_blocking(move || running.join()).await;
                    return;
                }
            };
            if matches!(left, Left::Closed) {
                return;
            }
            found = match find(&self.member).await {
                Ok(found) => found,
                Err(err) => {
                    tracing::error!(%err, "no process owns the log any more, and this one cannot");
                    return;
                }
            };
        }
    }

    /// Passes commands to the owner until that ends or this ledger is closed.
    async fn through(&mut self, line: Line) -> Left {
        // A task of its own reads and one writes: a frame must not be dropped midway, and neither side may
        // wait for the other to read while it does not read itself.
        let (told_to, mut told) = mpsc::channel(GUEST_WAITING_MAX);
        let (say, saying) = mpsc::channel(GUEST_WAITING_MAX);
        let reading = tokio::spawn(read_all(line.reader, told_to));
        let writing = tokio::spawn(write_all(line.writer, saying));
        let mut unsaid: VecDeque<u64> = self.pending.keys().copied().collect();
        let mut again = unsaid.len();
        let left = loop {
            tokio::select! {
                frame = told.recv() => match frame {
                    Some(frame) => {
                        if let Some(command) = self.hear(frame) {
                            self.pending.insert(self.next, (command, oneshot::channel().0));
                            unsaid.push_back(self.next);
                            self.next += 1;
                        }
                    }
                    None => break Left::Lost,
                },
                permit = say.reserve(), if !unsaid.is_empty() => match (permit, unsaid.pop_front()) {
                    (Ok(permit), Some(id)) => {
                        // Those that came from an earlier owner are said first.
                        let asked_before = again > 0;
                        again = again.saturating_sub(1);
                        if let Some((command, _)) = self.pending.get(&id) {
                            permit.send(Said::Rule { id, command: Box::new(command.clone()), again: asked_before });
                        }
                    }
                    (Err(_), _) => break Left::Lost,
                    (Ok(_), None) => {}
                },
                ask = self.asks.recv(), if self.pending.len() < WAITING_MAX => match ask {
                    Some(Ask::Rule { command, reply, .. }) => {
                        self.pending.insert(self.next, (command, reply));
                        unsaid.push_back(self.next);
                        self.next += 1;
                    }
                    Some(Ask::Tick) => {}
                    Some(Ask::Close) | None => break Left::Closed,
                },
            }
        };
        reading.abort();
        writing.abort();
        left
    }

    /// Delivers a frame of the owner. Returns the command that gives claimed tasks back, if nobody waits for them any
    /// more.
    fn hear(&mut self, frame: OwnerFrame) -> Option<Command> {
        match frame {
            OwnerFrame::Ruling { id, ruling, committed } => {
                self.committed.send_modify(|known| *known = (*known).max(committed));
                let (_, reply) = self.pending.remove(&id)?;
                let claims = claims_of(reply.send(*ruling).err()?);
                let wish = Wish::GiveBack(GiveBack { claims: claims.clone() });
                let work = Work { wish, actor: node(), cause: None, note: None };
                (!claims.is_empty()).then(|| Command::Work(Box::new(work)))
            }
            OwnerFrame::Reach { applied, checkpoint } => {
                self.committed.send_modify(|committed| *committed = (*committed).max(applied));
                self.reach.send_replace(Reach { applied, checkpoint });
                None
            }
            OwnerFrame::Welcome { .. } => None,
        }
    }

    /// Works as the owner, until the ledger is closed.
    async fn locally(&mut self, ledger: &Ledger) {
        let host = tokio::spawn(host(ledger.clone()));
        for (command, reply) in std::mem::take(&mut self.pending).into_values() {
            // A local ledger that has stopped has said so; whoever asked sees the reply dropped.
            let _ = ledger.inbox.send(Ask::Rule { command, reply, again: true }).await;
        }
        let (mut reach, mut committed) = (ledger.reach(), ledger.committed());
        reach.mark_changed();
        committed.mark_changed();
        loop {
            tokio::select! {
                ask = self.asks.recv() => match ask {
                    Some(ask @ Ask::Rule { .. }) => {
                        if ledger.inbox.send(ask).await.is_err() {
                            break;
                        }
                    }
                    Some(Ask::Tick) => {}
                    Some(Ask::Close) | None => break,
                },
                Ok(()) = committed.changed() => {
                    self.committed.send_replace(*committed.borrow_and_update());
                }
                Ok(()) = reach.changed() => {
                    self.reach.send_replace(reach.borrow_and_update().clone());
                }
                () = ledger.stopped() => break,
            }
        }
        host.abort();
    }
}

async fn read_all(mut reader: OwnedReadHalf, told: mpsc::Sender<OwnerFrame>) {
    while let Ok(frame) = read_frame(&mut reader).await {
        if told.send(frame).await.is_err() {
            return;
        }
    }
}

async fn write_all(mut writer: OwnedWriteHalf, mut saying: mpsc::Receiver<Said>) {
    while let Some(said) = saying.recv().await {
        if write_frame(&mut writer, &said).await.is_err() {
            return;
        }
    }
}

async fn write_frame<T: Serialize>(writer: &mut OwnedWriteHalf, frame: &T) -> io::Result<()> {
    let body = encode(frame);
    let len = u32::try_from(body.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&body);
    writer.write_all(&bytes).await
}

async fn read_frame<T: DeserializeOwned>(reader: &mut OwnedReadHalf) -> io::Result<T> {
    let len = reader.read_u32().await? as usize;
    if len > FRAME_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).await?;
    decode(&body).map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
}
