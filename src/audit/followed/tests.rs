//! Followed logs over HTTP: the same bytes as from their owner.

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::Service;

use crate::{
    audit::{Audit, routes},
    p2p::sync::tests::owner::{Owner, once},
};

struct Door(axum::Router);

impl Door {
    fn of(owner: &Owner) -> Self {
        Self(routes(Audit::new(owner.ledger.clone())))
    }

    async fn raw(&mut self, path: &str) -> (StatusCode, Vec<u8>) {
        let request = Request::get(path).header("accept", "application/vnd.ipld.raw");
        let request = request.body(Body::empty()).expect("a request");
        let Ok(response) = self.0.call(request).await;
        let status = response.status();
        (status, response.into_body().collect().await.expect("a body").to_bytes().to_vec())
    }

    async fn json(&mut self, path: &str) -> Value {
        let Ok(response) = self.0.call(Request::get(path).body(Body::empty()).expect("a request")).await;
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).expect("json")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_is_read_as_its_owner_shows_it() {
    let (owner, follower) = (Owner::new(1), Owner::new(2));
    let tool = owner.publish("echo").await;
    let outputs = owner.calls(Some(tool), "call", 3, false).await;
    let (mut theirs, mut ours) = (Door::of(&owner), Door::of(&follower));
    let log = owner.log();
    let followed = format!("/v1/followed/{log}");
    assert_eq!(ours.json("/v1/followed").await["returned_count"], 0);
    assert_eq!(ours.raw(&format!("{followed}/events")).await.0, StatusCode::NOT_FOUND);
    once(&owner.server(), &follower.home).await.expect("followed");

    let listed = ours.json("/v1/followed").await;
    assert_eq!(listed["followed"][0]["log"], log.to_string());
    assert_eq!(listed["followed"][0]["key"], owner.ledger.about().vkey);
    let head = ours.raw(&format!("{followed}/checkpoint")).await;
    assert_eq!(head, theirs.raw("/log/checkpoint").await);
    let page = ours.json(&format!("{followed}/events?kind=call.succeeded&limit=2")).await;
    assert_eq!((page["returned_count"].as_u64(), page["has_more"].as_bool()), (Some(2), Some(true)));
    assert_eq!(page["events"], theirs.json("/v1/events?kind=call.succeeded&limit=2").await["events"]);

    let event = page["events"][0]["cid"].as_str().expect("a cid").to_owned();
    let names =
        [format!("/v1/events/{event}"), format!("/v1/blocks/{}", outputs[0]), format!("/v1/blocks/{tool}")];
    for path in names {
        let answer = ours.raw(&path).await;
        assert_eq!(answer.0, StatusCode::OK, "{path}");
        assert_eq!(answer, theirs.raw(&path).await, "{path}");
        assert_eq!(ours.json(&path).await, theirs.json(&path).await, "{path}");
    }
    owner.erase(outputs[0]).await;
    once(&owner.server(), &follower.home).await.expect("followed");
    assert_eq!(ours.raw(&format!("/v1/blocks/{}", outputs[0])).await.0, StatusCode::GONE);
    assert_eq!(
        ours.raw(&format!("/v1/blocks/{}", crate::block::Cid::of(crate::block::Codec::Raw, b"x"))).await.0,
        StatusCode::NOT_FOUND
    );
}
