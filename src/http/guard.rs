//! Callers while they are answered: whoever's token is revoked or expires meanwhile gets no more of the answer.
//!
//! Invariants:
//! - a token is looked at again every [`LOOK_EVERY`] while its request is open: whether it has expired, and whether it is
//!   still good for as much when tokens, keys or the configuration have changed;
//! - an event stream then ends in order. Any other answer breaks off, so that a part is not taken for the whole.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use hyper::body::Body as _;

use crate::{
    auth::{Access, Denied},
    caller::Caller,
    clock::now_s,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const EVENTS: &str = "text/event-stream";

/// How callers are let in now. It is replaced together with what is served.
pub(super) type Current = Arc<RwLock<Option<Arc<Access>>>>;

/// What a request was let in with.
pub(super) struct Admission {
    pub current: Current,
    /// What let it in.
    pub access: Arc<Access>,
    pub authorization: Option<HeaderValue>,
    pub caller: Caller,
    /// The version of the tokens or keys.
    pub version: Option<u64>,
    pub until: Option<u64>,
}

/// Ends when a caller may not call any more.
pub(super) type Lost = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Admission {
    /// Waits until the caller may not call any more.
    pub async fn lost(mut self) {
        // A file that is being replaced may be unreadable for a moment.
        let mut unverifiable = false;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.until.is_some_and(|until| until <= now_s()) {
                return;
            }
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
            let access = current.unwrap_or_else(|| Arc::clone(&self.access));
            let version = access.version();
            if Arc::ptr_eq(&access, &self.access) && version == self.version {
                continue;
            }
            match access.admit(self.authorization.as_ref()).await {
                Ok(admitted) if self.holds(&admitted.caller) => {
                    (self.access, self.version, self.until) = (access, version, admitted.until);
                    unverifiable = false;
                }
                Err(Denied::Unverifiable) if !unverifiable => unverifiable = true,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Returns whether a caller is still the one who was let in, and may still do all that it might.
    fn holds(&self, caller: &Caller) -> bool {
        let former = &self.caller;
        caller.actor == former.actor && former.scopes.iter().all(|scope| caller.scopes.contains(scope))
    }
}

/// Returns the response, which ends when its caller may not call any more. One that is whole already is left as it is.
pub(super) fn guard(response: Response, lost: impl FnOnce() -> Lost) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let (events, lost) = (is_events(response.headers()), lost());
    response.map(|body| {
        let frames = stream::unfold(Some((body.into_data_stream(), lost)), move |state| async move {
            let (mut frames, mut lost) = state?;
            tokio::select! {
                biased;
                () = &mut lost => {
                    let broken = axum::Error::new("the caller's token is not valid any more");
                    (!events).then_some((Err(broken), None))
                }
                frame = frames.next() => frame.map(|frame| (frame, Some((frames, lost)))),
            }
        });
        Body::from_stream(frames)
    })
}

fn is_events(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|media| media.as_bytes().starts_with(EVENTS.as_bytes()))
}
