//! Beside: what passes between a server and the clients of one connection outside of requests.
//!
//! Invariants:
//! - a server reaches a client this way only over a connection that serves that client alone;
//! - what a server says before its client is ready waits, `BESIDE_MAX` messages of it;
//! - a server is told the lowest level that its clients want, and none if none of them has named one.

use std::{
    future::pending,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    block::splice,
    router::{
        Client, RpcError,
        audience::{Audience, Manner},
        codes::INTERNAL_ERROR,
        standing::{Heard, LEVELS, Standing, rank},
    },
    runtime::upstream::{
        Notification, Options,
        inbox::{Asked, Said},
        link::Link,
        wire,
    },
};

/// Messages of a server that wait for its client; more are dropped, and questions refused.
pub const BESIDE_MAX: usize = 64;
/// Questions that are open at once.
const OPEN_MAX: usize = 16;
/// How long a client may take to answer one.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// How long a server may take to take a level, and its client waits for that.
const LEVEL_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server is to hear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The place of a level; `None` if nobody has named one.
    level: Option<usize>,
    /// How often the roots have changed.
    roots: u64,
    /// How often this has changed.
    turn: u64,
}

/// The clients of one connection, and of those that replace it.
pub struct Beside {
    /// Says whether the connection serves one client alone.
    pub own: bool,
    /// That client, once it is known.
    client: watch::Sender<Option<Weak<Standing>>>,
    sharers: Mutex<Sharers>,
    wanted: watch::Sender<Wanted>,
    /// The turn of what the server has taken.
    done: watch::Sender<u64>,
}

#[derive(Default)]
struct Sharers {
    sessions: Vec<Weak<Standing>>,
    /// The lowest level that a request without a session has named.
    named: Option<usize>,
}

impl Beside {
    pub fn new(own: bool) -> Self {
        Self {
            own,
            client: watch::Sender::new(None),
            sharers: Mutex::default(),
            wanted: watch::Sender::default(),
            done: watch::Sender::default(),
        }
    }

    /// Counts a client among those that the connection serves.
    pub fn serve(&self, audience: &Audience) {
        let named =
            audience.log_level.as_deref().filter(|_| audience.manner == Manner::Rounds).and_then(rank);
        match &audience.standing {
            Some(standing) => {
                let mut sharers = self.sharers();
                let weak = Arc::downgrade(standing);
                if sharers.sessions.iter().any(|known| known.ptr_eq(&weak)) {
                    return;
                }
                sharers.sessions.retain(|known| known.strong_count() > 0);
                sharers.sessions.push(weak.clone());
                drop(sharers);
                if self.own {
                    self.client.send_replace(Some(weak));
                }
            }
            None if named.is_none() => return,
            None => {
                let mut sharers = self.sharers();
                if sharers.named.is_some_and(|lowest| Some(lowest) <= named) {
                    return;
                }
                sharers.named = named;
            }
        }
        self.weigh();
    }

    /// Takes what a client said. Returns once the server has taken it too, within a bound, if it `is_up`.
    pub async fn hear(&self, heard: Heard, is_up: bool) {
        match heard {
            Heard::Level => self.weigh(),
            Heard::Roots => self.wanted.send_modify(|wanted| {
                wanted.roots += 1;
                wanted.turn += 1;
            }),
        }
        if is_up {
            self.settled().await;
        }
    }

    /// Waits until the server has taken what it was to hear, within a bound.
    pub async fn settled(&self) {
        let turn = self.wanted.borrow().turn;
        let mut done = self.done.subscribe();
        // A server that does not answer has no say in what its client does next.
        let _ = timeout(LEVEL_TIMEOUT, done.wait_for(|done| *done >= turn)).await;
    }

    /// Returns whether the server has not taken yet what it is to hear.
    pub fn is_unsettled(&self) -> bool {
        self.wanted.borrow().turn > *self.done.borrow()
    }

    /// Finds the lowest level that is wanted. Whoever has named none wants what the server says unasked, which may be
    /// everything.
    fn weigh(&self) {
        let sharers = self.sharers();
        let sessions: Vec<Arc<Standing>> = sharers.sessions.iter().filter_map(Weak::upgrade).collect();
        let levels: Vec<Option<usize>> = sessions.iter().map(|session| session.level()).collect();
        let any = sharers.named.is_some() || levels.iter().any(Option::is_some);
        let levels = levels.iter().map(|level| level.unwrap_or(0)).chain(sharers.named);
        let level = levels.min().filter(|_| any);
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.level != level;
            wanted.level = level;
            wanted.turn += u64::from(changed);
            changed
        });
    }

    fn sharers(&self) -> MutexGuard<'_, Sharers> {
        self.sharers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the client that the connection serves alone, and until it is ready.
    async fn client(&self) -> Arc<dyn Client> {
        let mut given = self.client.subscribe();
        loop {
            let standing = given.borrow_and_update().as_ref().and_then(Weak::upgrade);
            if let Some(mut client) = standing.map(|standing| standing.client()) {
                tokio::select! {
                    open = client.wait_for(Option::is_some) => {
                        if let Some(open) = open.ok().and_then(|open| open.clone()) {
                            return open;
                        }
                    }
                    _ = given.changed() => continue,
                }
            }
            // Its session has ended, or there has been none.
            if given.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    }

    /// Carries what is said beside requests for as long as a connection lasts. In a session the server `logs` if it
    /// declared that.
    pub async fn carry(&self, link: &Link, said: mpsc::Receiver<Said>, session: bool, logs: bool) {
        tokio::join!(self.hand_on(link, said), self.tell(link, session, logs));
    }

    /// Hands the client what the server says, and the server what the client answers.
    async fn hand_on(&self, link: &Link, mut said: mpsc::Receiver<Said>) {
        let mut open = FuturesUnordered::new();
        // Taken before the client is: who waits for the server must not hold the client's session open meanwhile.
        let mut taken = None;
        loop {
            let next = async {
                if taken.is_none() {
                    taken = said.recv().await;
                }
                if taken.is_none() {
                    pending::<()>().await;
                }
                self.client().await
            };
            tokio::select! {
                biased;
                Some(answer) = open.next() => link.tell(answer).await,
                client = next, if open.len() < OPEN_MAX => match taken.take() {
                    Some(Said::Told(Notification { method, params })) => client.tell(&method, &params),
                    Some(Said::Asked(asked)) => open.push(answer(client, asked)),
                    None => {}
                },
            }
        }
    }

    /// Tells the server what its clients want.
    async fn tell(&self, link: &Link, session: bool, logs: bool) {
        let mut wanted = self.wanted.subscribe();
        // A connection that is new has heard of no level, and asks for the roots when it needs them.
        let mut told = Wanted { roots: wanted.borrow().roots, ..Wanted::default() };
        loop {
            let now = *wanted.borrow_and_update();
            let level = now.level.filter(|_| session && logs && now.level != told.level);
            if let Some(level) = level.and_then(|level| LEVELS.get(level)) {
                let params = splice::raw(format!(r#"{{"level":"{level}"}}"#));
                let options = Options::default();
                let asked = link.request("logging/setLevel", &params, &options);
                if !matches!(timeout(LEVEL_TIMEOUT, asked).await, Ok(Ok(_))) {
                    tracing::debug!("an upstream did not take a log level");
                }
            }
            if session && now.roots != told.roots {
                link.notify("notifications/roots/list_changed", &wire::empty()).await;
            }
            told = now;
            self.done.send_replace(now.turn);
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Puts a question to a client. Returns the message to send back.
async fn answer(client: Arc<dyn Client>, asked: Asked) -> String {
    let Asked { id, method, params } = asked;
    let params = serde_json::from_str(params.get()).unwrap_or_default();
    let nobody = || Err(RpcError::new(INTERNAL_ERROR, "the client did not answer"));
    let said = timeout(ANSWER_MAX, client.request(&method, params)).await.unwrap_or_else(|_| nobody());
    wire::answer(&id, &said.map(|said| splice::raw(said.to_string())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Beside;
    use crate::router::{
        audience::{Audience, Manner},
        standing::{LEVELS, Standing},
    };

    fn level(beside: &Beside) -> Option<&'static str> {
        let wanted = *beside.wanted.borrow();
        wanted.level.map(|level| LEVELS[level])
    }

    #[test]
    fn the_lowest_level_of_all_is_wanted_and_none_of_nobody() {
        let beside = Beside::new(false);
        let session = |level: &str| {
            let standing = Arc::new(Standing::default());
            standing.set_level(level);
            Audience { standing: Some(standing), manner: Manner::Requests, ..Audience::default() }
        };
        let unsaid = session("not a level");
        beside.serve(&unsaid);
        assert_eq!(level(&beside), None, "nobody has named one");
        let strict = session("error");
        beside.serve(&strict);
        assert_eq!(level(&beside), Some("debug"), "one that named none may want all");
        drop(unsaid);
        beside.weigh();
        assert_eq!(level(&beside), Some("error"));
        let lenient = session("info");
        beside.serve(&lenient);
        beside.serve(&lenient);
        assert_eq!(level(&beside), Some("info"));
        lenient.standing.as_ref().expect("a session").set_level("emergency");
        beside.weigh();
        assert_eq!(level(&beside), Some("error"));
        let alone = |level: &str| Audience {
            log_level: Some(level.to_owned()),
            manner: Manner::Rounds,
            ..Audience::default()
        };
        beside.serve(&alone("warning"));
        beside.serve(&alone("critical"));
        assert_eq!(level(&beside), Some("warning"));
    }
}
