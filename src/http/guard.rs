//! Callers while they are answered: whoever's token is revoked or expires meanwhile gets no more of the answer.
//!
//! Invariants:
//! - a token is looked at again every [`LOOK_EVERY`] while its request is open: whether it has expired, and whether it is
//!   still good when tokens or keys have changed;
//! - an event stream then ends in order. Any other answer breaks off, so that a part is not taken for the whole.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use hyper::body::Body as _;

use crate::{
    auth::{Access, Denied},
    caller::Scope,
    clock::now_s,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const EVENTS: &str = "text/event-stream";

/// What a request was let in with.
pub(super) struct Admission {
    pub access: Arc<Access>,
    pub authorization: Option<HeaderValue>,
    pub scope: Scope,
    /// The version of the tokens or keys.
    pub version: u64,
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
            let version = self.access.version().unwrap_or(self.version);
            if self.until.is_some_and(|until| until <= now_s()) {
                return;
            }
            if version == self.version {
                continue;
            }
            match self.access.admit(self.authorization.as_ref()).await {
                Ok(admitted) if admitted.caller.may(self.scope.clone()) => {
                    (self.version, self.until) = (version, admitted.until);
                    unverifiable = false;
                }
                Err(Denied::Unverifiable) if !unverifiable => unverifiable = true,
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// Returns the response, which ends when its caller may not call any more. One that is whole already is left as it is.
pub(super) fn guard(response: Response, lost: Lost) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let events = is_events(response.headers());
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
