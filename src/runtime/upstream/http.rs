//! An upstream over Streamable HTTP, or over the transport before it: one POST a message, and streams of events.
//!
//! Invariants:
//! - nothing is sent before something is asked, and nothing is read after this is dropped;
//! - our own answers and cancellations wait in a bounded outbox and hold up no request.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::runtime::upstream::{
    Failure, Protocol,
    credentials::Credentials,
    exchange::{ASIDE_TIMEOUT, Exchange, Post},
    inbox::{Answer, Inbox},
    older::Older,
    site::Site,
};

/// Our answers and cancellations not yet posted; beyond this they are dropped.
const OUTBOX_MAX: usize = 64;

pub struct Http {
    pub outbox: mpsc::Sender<String>,
    exchange: Arc<Exchange>,
    /// The stream on which a server of the older transport answers.
    older: Older,
    /// Posts the outbox; aborted when this is dropped.
    _poster: JoinSet<()>,
}

impl Http {
    /// Prepares a connection; nothing is sent yet. Errors: which setting makes no sense, without its value.
    pub fn open(
        url: &str,
        headers: &BTreeMap<String, String>,
        credentials: Option<Arc<Credentials>>,
        inbox: Arc<Inbox>,
    ) -> Result<Self, String> {
        let (outbox, mut letters) = mpsc::channel::<String>(OUTBOX_MAX);
        let site = Site::new(url, headers, credentials)?;
        let exchange = Arc::new(Exchange { site, inbox, outbox: outbox.clone() });
        let mut poster = JoinSet::new();
        let posting = Arc::clone(&exchange);
        poster.spawn(async move {
            while let Some(letter) = letters.recv().await {
                posting.post_aside(letter).await;
            }
        });
        Ok(Self { outbox, exchange, older: Older::default(), _poster: poster })
    }

    /// Fixes the protocol version that every later message names.
    pub fn settle(&self, protocol: Protocol) {
        self.exchange.site.settle(protocol);
    }

    /// Turns to the older transport, if the server refused the newer one and speaks that. Returns whether it does.
    pub async fn fall_back(&self) -> bool {
        self.older.open(&self.exchange).await
    }

    /// Posts a request and returns its answer. Dropping this closes the stream.
    pub async fn request(&self, post: Post<'_>, mut answer: oneshot::Receiver<Answer>) -> Answer {
        tokio::select! {
            biased;
            answer = &mut answer => answer.unwrap_or(Err(Failure::Died)),
            failure = self.exchange.ask(&post) => match answer.try_recv() {
                Ok(answer) => answer,
                Err(_) => Err(failure),
            },
        }
    }

    /// Posts a notification and waits until it is taken.
    pub async fn notify(&self, body: String) {
        self.exchange.post_aside(body).await;
    }

    /// Follows the server's own stream of messages for as long as it lets us. Session era only.
    pub async fn follow(&self) {
        // On the older transport they come with the answers.
        if !self.exchange.site.is_older() {
            self.exchange.follow().await;
        }
    }

    /// Ends the session, where there is one.
    pub async fn close(&self) {
        if self.exchange.site.has_session() && !self.expired() {
            // The server ends an abandoned session by itself.
            let _ = self.exchange.site.delete(ASIDE_TIMEOUT).await;
        }
        self.exchange.inbox.lose("stopped");
    }

    /// True once the server has forgotten the session: it runs nothing asked for in it.
    pub fn expired(&self) -> bool {
        self.exchange.site.is_expired()
    }
}
