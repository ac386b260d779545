//! Following a log over a stream: reads, writes and the store around the follower's rules.
//!
//! Invariants:
//! - the rules and the store run on one blocking thread; what waits for it is bounded;
//! - dropping it midway is safe: what was kept stays, and the next time goes on after it.

use std::{collections::VecDeque, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf},
    sync::mpsc,
    task::JoinError,
    time::timeout,
};

use super::{
    Refused,
    evidence::Evidence,
    store::{Looked, Store},
    wire::{AskHead, Request, Response, ToldHead, WireError, read, read_frame, write_frame},
};
use crate::{
    block::Cid,
    follow::{
        copy::FollowedError,
        rules::{Ending, Lacking, Machine, Wish, genesis},
    },
    identity::rotation::Keys,
    log::home::Home,
    query::QueryError,
};

/// Frames that wait for the store: at most this many MiB.
const FRAMES_WAITING: usize = 8;
/// Requests that wait for the stream.
const REQUESTS_WAITING: usize = 8;
/// How long a peer may take to send or to take one frame.
const FRAME_WAIT: Duration = Duration::from_secs(60);

/// Which log is expected of the peer, and what to ask for beside it. Without a known log, whichever the peer shows is
/// accepted.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub log: Option<Cid>,
    /// The verifier key of its genesis block, as text.
    pub vkey: Option<String>,
    /// The seq from which on payloads that did not come with their events are asked for again.
    pub again: Option<u64>,
    pub erasures: Erasures,
}

/// What is done about the erasures that a followed log records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Erasures {
    /// Erased payloads lose their bytes here too. No other block does, whatever an erasure names.
    #[default]
    Follow,
    /// The bytes stay here.
    Keep,
}

/// How far following has come. Sent after each durable batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub log: Cid,
    pub origin: String,
    /// Events held, and checked.
    pub held: u64,
    /// Events under the signed head.
    pub signed: u64,
}

/// The result of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub log: Cid,
    pub origin: String,
    pub vkey: String,
    pub ending: Ending,
    /// Events held before and after.
    pub before: u64,
    pub held: u64,
    pub lacking: Lacking,
    /// The seq from which to ask again in the next pass; `None` if all was asked for, or the peer withheld
    /// everything.
    pub again: Option<u64>,
}

/// Why following ended without an outcome. All that was kept before stays.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The peer broke the rules: nothing of what it sent last was kept.
    #[error("what the peer sent is refused")]
    Refused(#[from] Refused),
    /// The log forked before, and nobody has lifted the quarantine.
    #[error("the log has forked and is not followed until that is lifted")]
    Quarantined(Box<Evidence>),
    #[error("the stream to the peer failed")]
    Wire(#[from] WireError),
    #[error("the peer closed the stream before it was done")]
    Closed,
    #[error("the followed log cannot be written")]
    Store(#[from] FollowedError),
    #[error("the followed log cannot be folded")]
    Fold(#[from] QueryError),
    #[error("following broke off")]
    Broken(#[from] JoinError),
}

/// Copies the log of the peer behind `stream` into `home`, as far as its owner's signed head.
///
/// Safe to drop midway. This is one pass: call it again if the peer publishes a larger head.
pub async fn follow<S>(
    stream: S,
    home: &Home,
    expected: Expected,
    told: impl FnMut(Progress) + Send + 'static,
) -> Result<Outcome, FollowError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    meet(stream, &expected).await?.follow(home, told).await
}

/// A stream to a peer that has shown which log it has.
pub struct Met<S> {
    pub log: Cid,
    keys: Keys,
    again: Option<u64>,
    erasures: Erasures,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
}

/// Asks the peer behind `stream` which log it has.
pub async fn meet<S>(stream: S, expected: &Expected) -> Result<Met<S>, FollowError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    bounded(write_frame(&mut writer, &Request::Head(AskHead { held: 0 }))).await?;
    let frame = bounded(read_frame(&mut reader)).await?.ok_or(FollowError::Closed)?;
    let (log, keys) = introduced(&frame, expected)?;
    let (again, erasures) = (expected.again, expected.erasures);
    Ok(Met { log, keys, again, erasures, reader, writer })
}

impl<S: AsyncRead + AsyncWrite + Send> Met<S> {
    /// Does the rest of [`follow`].
    pub async fn follow(
        self,
        home: &Home,
        told: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Outcome, FollowError> {
        let Self { log, keys, again, erasures, mut reader, mut writer } = self;
        let (frames, inbox) = mpsc::channel(FRAMES_WAITING);
        let (asks, mut outbox) = mpsc::channel(REQUESTS_WAITING);
        let data = home.clone();
        let mut rules = tokio::task::spawn_blocking(move || {
            let rules = Rules { log, keys, again, erasures };
            run(&data, rules, inbox, asks, told)
        });
        let wire = async {
            let reading = async {
                while let Some(frame) = bounded(read_frame(&mut reader)).await? {
                    if frames.send(frame).await.is_err() {
                        break;
                    }
                }
                Err::<(), _>(FollowError::Closed)
            };
            let writing = async {
                while let Some(request) = outbox.recv().await {
                    bounded(write_frame(&mut writer, &request)).await?;
                }
                // The rules have nothing more to ask: what is left is their answer.
                std::future::pending::<Result<(), FollowError>>().await
            };
            tokio::try_join!(reading, writing).map(|((), ())| FollowError::Closed).unwrap_or_else(|err| err)
        };
        let ended = tokio::select! {
            ended = &mut rules => return ended?,
            err = wire => err,
        };
        // The stream is over, but what had come may have been enough; and a reason of ours says more than the stream's end.
        drop((frames, outbox));
        match rules.await? {
            Err(FollowError::Closed) => Err(ended),
            ended => ended,
        }
    }
}

async fn bounded<T>(io: impl Future<Output = Result<T, WireError>>) -> Result<T, FollowError> {
    Ok(timeout(FRAME_WAIT, io).await.map_err(|_| WireError::Idle)??)
}

/// Returns the log that the peer shows, and its keys. Errors: another one is expected.
fn introduced(frame: &[u8], expected: &Expected) -> Result<(Cid, Keys), FollowError> {
    let told: Box<ToldHead> = match read(frame)? {
        Response::Head(told) => told,
        Response::Refused(reason) => return Err(Refused::Declined(reason).into()),
        Response::Events(_) | Response::End(_) | Response::Block(_) => return Err(Refused::Unasked.into()),
    };
    let (log, keys) = genesis(&told)?;
    let other = expected.log.is_some_and(|expected| expected != log)
        || expected.vkey.as_ref().is_some_and(|vkey| *vkey != keys.first().vkey());
    if other {
        return Err(Refused::Identity.into());
    }
    keys.open(&told.checkpoint).map_err(Refused::Head)?;
    Ok((log, keys))
}

/// The follower's state on the blocking thread.
struct Rules {
    log: Cid,
    keys: Keys,
    again: Option<u64>,
    erasures: Erasures,
}

/// Carries out the rules' wishes until they are done or the stream ends.
fn run(
    home: &Home,
    Rules { log, keys, again, erasures }: Rules,
    mut inbox: mpsc::Receiver<Vec<u8>>,
    asks: mpsc::Sender<Request>,
    mut told: impl FnMut(Progress),
) -> Result<Outcome, FollowError> {
    let mut store = Store::open(home, &log)?;
    if let Some(evidence) = store.evidence()? {
        return Err(FollowError::Quarantined(Box::new(evidence)));
    }
    let (origin, vkey) = (keys.origin().to_owned(), keys.first().vkey());
    let edge = store.edge().map_err(FollowedError::from)?;
    let before = edge.tree.size();
    let mut held = before;
    // What was seen of its keys before holds, whatever the peer shows of them now.
    let keys = store.keys(Keys::new(log, keys.first().clone()))?;
    let signed = store.signed(&keys);
    let mut machine = Machine::new(log, keys, signed, edge);
    let mut late = Late { from: again, looked: None };
    let ask = |request| asks.blocking_send(request).map_err(|_| FollowError::Closed);
    ask(machine.begin())?;
    while let Some(frame) = inbox.blocking_recv() {
        let mut wishes = VecDeque::from(machine.handle(read(&frame)?, &store)?);
        while let Some(wish) = wishes.pop_front() {
            match wish {
                Wish::Ask(request) => ask(request)?,
                // A crash after this leaves keys that no head needs yet.
                Wish::Keys(rotations) => store.note_keys(&rotations).map_err(FollowedError::from)?,
                // A crash after this leaves a head over more events than are held: the next time goes on to it.
                Wish::Note(head) => store.note(&head).map_err(FollowedError::from)?,
                Wish::Keep(batch) => {
                    store.keep(&batch).map_err(FollowedError::from)?;
                    if let Some(last) = batch.events.last() {
                        held = last.seq + 1;
                        let (_, signed) = machine.reached();
                        told(Progress { log, origin: origin.clone(), held, signed });
                    }
                }
                Wish::Done(ending) => {
                    if ending == Ending::Current {
                        let absent = late.begin(&store, machine.lacking())?;
                        if !absent.is_empty() {
                            wishes.extend(machine.again(&absent)?);
                            continue;
                        }
                    }
                    if let Ending::Forked(evidence) = &ending {
                        store.keep_evidence(evidence).map_err(FollowedError::from)?;
                    }
                    let lacking = machine.lacking();
                    let again = late.end(&store, lacking)?;
                    store.tell_again(before).map_err(FollowedError::from)?;
                    store.fold()?;
                    // Not before here, so that an erasure which a later event undoes is never carried out. A crash
                    // before this leaves the bytes; the next pass takes them away.
                    if erasures == Erasures::Follow {
                        store.erase()?;
                    }
                    return Ok(Outcome { log, origin, vkey, ending, before, held, lacking, again });
                }
            }
        }
    }
    Err(FollowError::Closed)
}

/// Missing payloads that this pass asks for again.
struct Late {
    /// The seq from which to look for them; `None` once that is done.
    from: Option<u64>,
    /// What was found, how many blocks are asked for, and how many were withheld before.
    looked: Option<(Looked, u64, u64)>,
}

impl Late {
    /// Returns the blocks to ask for, now that all events are held; empty the second time.
    fn begin(&mut self, store: &Store, lacking: Lacking) -> Result<Vec<Cid>, FollowedError> {
        let Some(from) = self.from.take() else {
            return Ok(Vec::new());
        };
        let mut looked = store.look(from)?;
        let absent = std::mem::take(&mut looked.absent);
        self.looked = Some((looked, absent.len() as u64, lacking.withheld));
        Ok(absent)
    }

    /// Tells the state which payloads have come, in this pass or before a crash. Returns the seq from which the next
    /// pass looks.
    fn end(self, store: &Store, lacking: Lacking) -> Result<Option<u64>, FollowedError> {
        let Some((looked, asked, withheld)) = self.looked else {
            return Ok(self.from);
        };
        store.tell_late(&looked.held)?;
        // Who withholds all of so many will not be asked for the rest of them now.
        let refused = asked > 0 && lacking.withheld - withheld == asked;
        Ok(looked.next.filter(|_| !refused))
    }
}
