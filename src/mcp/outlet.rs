//! Outlets: where what is said to a client goes, and the event streams of a session over HTTP.
//!
//! Invariants:
//! - what belongs to a request goes the way of its answer, and never behind it;
//! - a stream that broke is resumed after the last event that its client saw, as long as its events are kept;
//! - of each stream [`KEPT_MAX`] events are kept, of ended ones for [`KEPT_FOR`] and until they were read to the end.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Events of one stream that are kept for a client that lost its connection.
const KEPT_MAX: usize = 32;
/// How long they are kept once the stream has ended.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Ended streams of one session that nobody read to the end.
const ENDED_MAX: usize = 16;
/// Events that wait for one reader: whoever sends more waits for it.
const READER_MAX: usize = 2 * KEPT_MAX;
/// Readers of one session's own stream. The first one that is there is told.
const READERS_MAX: usize = 32;
/// After how long a client opens a stream anew that broke.
const RETRY_MS: u32 = 3_000;
/// The number of the session's own stream, which belongs to no request.
const OWN: u64 = 0;

/// Frames a message for whoever writes to the client.
pub type Frame = fn(String) -> Bytes;

/// Where messages to a client go.
#[derive(Clone)]
pub enum Outlet {
    /// One queue for all messages.
    Queue(mpsc::Sender<Bytes>, Frame),
    /// A session's streams: this one for what belongs to a request, the session's own for all else.
    Streams(Arc<Streams>, u64),
    /// Nobody wants to hear anything.
    Nowhere,
}

impl Outlet {
    /// Sends what belongs to the request. A client that is gone hears nothing.
    pub async fn say(&self, message: String) {
        match self {
            Self::Queue(queue, frame) => {
                let _ = queue.send(frame(message)).await;
            }
            Self::Streams(streams, stream) => streams.say(*stream, message).await,
            Self::Nowhere => {}
        }
    }

    /// Sends what belongs to the session alone.
    pub async fn tell(&self, message: String) {
        match self {
            Self::Streams(streams, _) => streams.say(OWN, message).await,
            Self::Queue(..) | Self::Nowhere => self.say(message).await,
        }
    }
}

/// Returns a message as an event without an id.
pub fn event(message: String) -> Bytes {
    let mut event = format!("data: {message}\n\n").into_bytes();
    let end = event.len() - 2;
    one_line(&mut event[..end]);
    event.into()
}

/// Puts JSON on one line. Strict JSON has line ends only between tokens, where a space means the same.
pub fn one_line(json: &mut [u8]) {
    for byte in json {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// The event streams of one session.
pub struct Streams {
    streams: Mutex<HashMap<u64, Stream>>,
}

#[derive(Default)]
struct Stream {
    /// The last events, each under its index.
    kept: VecDeque<(u64, Bytes)>,
    next: u64,
    /// The first index that no reader was given.
    unread: u64,
    readers: VecDeque<mpsc::Sender<Bytes>>,
    ended: Option<Instant>,
}

/// The events of one stream, as a client reads them.
pub struct Reading {
    streams: Arc<Streams>,
    stream: u64,
    events: mpsc::Receiver<Bytes>,
}

impl Streams {
    pub fn new() -> Self {
        Self { streams: Mutex::new(HashMap::from([(OWN, Stream::default())])) }
    }

    /// Opens the stream of a request.
    pub fn open(self: &Arc<Self>, stream: u64) -> Reading {
        let mut streams = self.lock();
        forget(&mut streams);
        let mut opened = Stream::default();
        opened.keep(stream, None);
        let events = opened.read(0);
        streams.insert(stream, opened);
        Reading { streams: self.clone(), stream, events }
    }

    /// Opens the session's own stream, from the first event that nobody was given.
    pub fn listen(self: &Arc<Self>) -> Reading {
        let mut streams = self.lock();
        let own = streams.entry(OWN).or_default();
        if own.next == 0 {
            own.keep(OWN, None);
        }
        let events = own.read(own.unread.min(own.next));
        Reading { streams: self.clone(), stream: OWN, events }
    }

    /// Opens a stream again after the event with this id; returns none if there is no such stream.
    pub fn resume(self: &Arc<Self>, last: &str) -> Option<Reading> {
        let (index, stream) = last.split_once('/').unwrap_or((last, "0"));
        let (index, stream): (u64, u64) = (index.parse().ok()?, stream.parse().ok()?);
        let mut streams = self.lock();
        let found = streams.get_mut(&stream)?;
        if stream != OWN {
            found.readers.clear();
        }
        let events = found.read(index.saturating_add(1));
        if found.ended.is_some() {
            found.readers.clear();
        }
        Some(Reading { streams: self.clone(), stream, events })
    }

    /// Ends the stream of a request. What it held is kept for a while.
    pub fn end(&self, stream: u64) {
        if let Some(ended) = self.lock().get_mut(&stream) {
            ended.readers.clear();
            ended.ended.get_or_insert_with(Instant::now);
        }
    }

    async fn say(&self, stream: u64, message: String) {
        let (event, reader) = {
            let mut streams = self.lock();
            let Some(found) = streams.get_mut(&stream).filter(|found| found.ended.is_none()) else {
                return;
            };
            let event = found.keep(stream, Some(&message));
            found.readers.retain(|reader| !reader.is_closed());
            let reader = found.readers.front().cloned();
            if reader.is_some() {
                found.unread = found.next;
            }
            (event, reader)
        };
        if let Some(reader) = reader {
            // One that leaves now finds the event kept.
            let _ = reader.send(event).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    /// Keeps the next event; without a message, it is one from whose id the stream can be resumed.
    fn keep(&mut self, stream: u64, message: Option<&str>) -> Bytes {
        let index = self.next.max(u64::from(message.is_some()));
        let slash = if stream == OWN { String::new() } else { format!("/{stream}") };
        let mut event = format!("data: {}\nid: {index}{slash}\n", message.unwrap_or_default()).into_bytes();
        let end = "data: ".len() + message.map_or(0, str::len);
        one_line(&mut event[..end]);
        if message.is_none() {
            event.extend_from_slice(format!("retry: {RETRY_MS}\n").as_bytes());
        }
        event.push(b'\n');
        let event = Bytes::from(event);
        self.kept.push_back((index, event.clone()));
        self.next = index + 1;
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
        event
    }

    /// Adds a reader, and gives it what is kept from this index on.
    fn read(&mut self, from: u64) -> mpsc::Receiver<Bytes> {
        let (reader, events) = mpsc::channel(READER_MAX);
        self.readers.retain(|reader| !reader.is_closed());
        // Beside a reader that is told, another one waits for its turn.
        if self.readers.is_empty() {
            for (_, event) in self.kept.iter().filter(|(index, _)| *index >= from) {
                // There is room: no more is kept.
                let _ = reader.try_send(event.clone());
            }
            self.unread = self.next;
        }
        self.readers.push_back(reader);
        if self.readers.len() > READERS_MAX {
            self.readers.remove(1);
        }
        events
    }
}

/// Forgets ended streams that nobody comes back for.
fn forget(streams: &mut HashMap<u64, Stream>) {
    streams.retain(|_, stream| stream.ended.is_none_or(|ended| ended.elapsed() < KEPT_FOR));
    let ended = |streams: &HashMap<u64, Stream>| {
        let ended = streams.iter().filter_map(|(stream, found)| Some((found.ended?, *stream)));
        let oldest = ended.clone().min().map(|(_, stream)| stream);
        oldest.filter(|_| ended.count() > ENDED_MAX)
    };
    while let Some(oldest) = ended(streams) {
        streams.remove(&oldest);
    }
}

impl Reading {
    /// Returns the next event; none at the end. Safe to drop midway.
    pub async fn next(&mut self) -> Option<Bytes> {
        let next = self.events.recv().await;
        if next.is_none() {
            let mut streams = self.streams.lock();
            if streams.get(&self.stream).is_some_and(|stream| stream.ended.is_some()) {
                streams.remove(&self.stream);
            }
        }
        next
    }
}
