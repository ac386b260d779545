//! Tests of followed logs over HTTP: the bytes are the same as from their owner.

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::Service;

use crate::{
    audit::routes,
    block::{Cid, Codec},
    follow::{
        copy::Followed,
        tests::owner::{Owner, once},
    },
    questions::Audit,
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
    assert_eq!(ours.raw(&format!("/v1/blocks/{}", Cid::of(Codec::Raw, b"x"))).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_followed_log_that_cannot_be_read_is_passed_over() {
    let (first, second, follower) = (Owner::new(1), Owner::new(2), Owner::new(3));
    let bad = first.calls(None, "first", 1, false).await.remove(0);
    let good = second.calls(None, "second", 1, false).await.remove(0);
    for owner in [&first, &second] {
        once(&owner.server(), &follower.home).await.expect("followed");
    }
    let followed = Followed::open(&follower.home, &first.log()).expect("held").home().clone();
    let log = rusqlite::Connection::open(followed.log_path()).expect("a log");
    log.execute_batch("DROP TRIGGER block_update").expect("drops");
    log.execute("UPDATE block SET bytes = x'00' WHERE digest = ?1", [bad.digest()]).expect("changed");
    drop(log);
    let mut ours = Door::of(&follower);
    // First a block's bytes do not have its digest, then the files are no databases.
    for damaged in [false, true] {
        if damaged {
            for path in [followed.state_path(), followed.log_path()] {
                std::fs::write(path, b"no database".repeat(100)).expect("written");
            }
        }
        let names = [
            (good, StatusCode::OK),
            (bad, StatusCode::NOT_FOUND),
            (Cid::of(Codec::Raw, b"x"), StatusCode::NOT_FOUND),
        ];
        for (name, expected) in names {
            assert_eq!(ours.raw(&format!("/v1/blocks/{name}")).await.0, expected, "{name}");
        }
    }
}
