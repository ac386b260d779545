//! Peers that lie: each lie is refused by its name, and nothing of it is kept.
//!
//! Each lie is told by a peer that is otherwise true to an owner's log.

use serde_bytes::ByteBuf;

use super::{
    held,
    owner::{Between, Owner, temp},
};
use crate::{
    block::{Cid, Codec, encode},
    event::Event,
    follow::{
        Refused,
        driver::FollowError,
        wire::{self, BlockAnswer, Reason, Request, Response},
    },
    identity::Signer,
    log::home::Home,
};

/// One lie, told in place of an honest response.
type Lie = fn(Response, &Owner) -> Vec<Response>;

fn honest(request: Request) -> Request {
    request
}

/// What following ends with where the peer tells `lie`; nothing may have been kept.
async fn told(owner: &std::sync::Arc<Owner>, lie: Lie) -> Refused {
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let liar = std::sync::Arc::clone(owner);
    let peer = Between { request: honest, response: move |response| Some(lie(response, &liar)) };
    let ended = peer.follow(&owner.server(), &home).await;
    assert_eq!(held(&home, &owner.log()), 0);
    match ended {
        Err(FollowError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

/// Changes the bytes of every event.
fn events(response: Response, change: impl Fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>) -> Vec<Response> {
    match response {
        Response::Events(events) => {
            let events = change(events.into_iter().map(ByteBuf::into_vec).collect());
            vec![Response::Events(events.into_iter().map(ByteBuf::from).collect())]
        }
        other => vec![other],
    }
}

/// Changes the fields of the event `seq`, in its canonical form.
fn rewritten(response: Response, seq: usize, change: impl Fn(&mut crate::event::Fields)) -> Vec<Response> {
    events(response, |mut events| {
        let mut fields = Event::open(events[seq].clone()).expect("an event").fields().clone();
        change(&mut fields);
        events[seq] = encode(&fields);
        events
    })
}

fn head(response: Response, change: impl Fn(&mut wire::ToldHead)) -> Vec<Response> {
    match response {
        Response::Head(mut told) => {
            change(&mut told);
            vec![Response::Head(told)]
        }
        other => vec![other],
    }
}

fn block(response: Response, change: impl Fn(BlockAnswer) -> BlockAnswer) -> Vec<Response> {
    match response {
        Response::Block(answer) => vec![Response::Block(change(answer))],
        other => vec![other],
    }
}

macro_rules! refused {
    ($owner:expr, $lie:expr, $refusal:pat) => {
        let refused = told(&$owner, $lie).await;
        assert!(matches!(refused, $refusal), "{}: {refused:?}", stringify!($lie));
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_events_are_refused() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "call", 10, false).await;
    let owner = std::sync::Arc::new(owner);
    refused!(owner, |r, _| rewritten(r, 3, |f| f.prev = Some(f.log)), Refused::Link { seq: 3 });
    refused!(owner, |r, _| rewritten(r, 3, |f| f.ts = 1), Refused::Link { seq: 3 });
    refused!(owner, |r, _| rewritten(r, 3, |f| f.seq = 7), Refused::Seq { expected: 3, found: 7 });
    refused!(
        owner,
        |r, _| rewritten(r, 3, |f| f.log = Cid::of(Codec::DagCbor, b"other")),
        Refused::OtherLog { seq: 3 }
    );
    refused!(
        owner,
        |r, _| rewritten(r, 3, |f| f.cause = Some(Cid::of(Codec::DagCbor, b"nobody"))),
        Refused::Cause { seq: 3 }
    );
    // The last event may say what it likes: it is the root that does not allow it.
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            let mut fields = Event::open(all.pop().expect("events")).expect("an event").fields().clone();
            fields.subject = "call/forged".into();
            all.push(encode(&fields));
            all
        }),
        Refused::Root { .. }
    );
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            all.swap(4, 5);
            all
        }),
        Refused::Seq { expected: 4, found: 5 }
    );
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            all.remove(2);
            all
        }),
        Refused::Seq { expected: 2, found: 3 }
    );
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            all[2].push(0);
            all
        }),
        Refused::Event { seq: 2 }
    );
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            all.push(all[2].clone());
            all
        }),
        Refused::TooMuch
    );
    refused!(owner, |r, _| events(r, |_| Vec::new()), Refused::Stalled);
    refused!(
        owner,
        |r, _| events(r, |mut all| {
            all.pop();
            all
        }),
        Refused::Stalled
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_heads_are_refused() {
    let owner = Owner::new(1);
    owner.calls(None, "call", 10, false).await;
    let owner = std::sync::Arc::new(owner);
    let forged: Lie = |r, owner| {
        head(r, |told| {
            let forger = Signer::new(&owner.ledger.about().origin, [9; 32]).expect("a signer");
            told.checkpoint = forger.sign_checkpoint(99, &[7; 32]);
        })
    };
    refused!(owner, forged, Refused::Head(_));
    refused!(
        owner,
        |r, _| head(r, |told| told.checkpoint = told.checkpoint.replace("\n2", "\n3")),
        Refused::Head(_)
    );
    refused!(owner, |r, _| head(r, |told| told.vkey.push('x')), Refused::Identity);
    refused!(owner, |r, _| head(r, |told| told.genesis = ByteBuf::from(vec![0xa0])), Refused::Identity);
    refused!(owner, |r, _| head(r, |told| told.root = ByteBuf::from(vec![1; 32])), Refused::Proof);
    refused!(owner, |r, _| head(r, |told| told.proof = vec![ByteBuf::from(vec![1; 31])]), Refused::Proof);
    // Another key that signs properly is another log, whatever it calls itself.
    let other: Lie = |r, owner| {
        head(r, |told| {
            let forger = Signer::new(&owner.ledger.about().origin, [9; 32]).expect("a signer");
            told.vkey = forger.vkey();
            told.checkpoint = forger.sign_checkpoint(99, &[7; 32]);
        })
    };
    refused!(owner, other, Refused::Identity);
    refused!(owner, |_, _| vec![Response::Refused(Reason::Busy)], Refused::Declined(Reason::Busy));
    refused!(owner, |_, _| vec![Response::Block(BlockAnswer::Unknown)], Refused::Unasked);
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_proofs_and_blocks_are_refused() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "call", 10, true).await;
    let owner = std::sync::Arc::new(owner);
    let proof: Lie = |r, _| match r {
        Response::End(mut end) => {
            end.proof.push(ByteBuf::from(vec![1; 32]));
            vec![Response::End(end)]
        }
        other => vec![other],
    };
    refused!(owner, proof, Refused::Root { .. });
    let next: Lie = |r, _| match r {
        Response::End(mut end) => {
            end.next += 1;
            vec![Response::End(end)]
        }
        other => vec![other],
    };
    refused!(owner, next, Refused::Stalled);
    refused!(
        owner,
        |r, _| block(r, |_| BlockAnswer::Present(ByteBuf::from(b"something else".to_vec()))),
        Refused::Block { .. }
    );
    refused!(owner, |r, _| block(r, |_| BlockAnswer::Withheld), Refused::Absent { .. });
    refused!(owner, |r, _| block(r, |_| BlockAnswer::Piece(ByteBuf::new())), Refused::Unasked);
    let endless: Lie = |r, _| match r {
        Response::Block(_) => {
            vec![Response::Block(BlockAnswer::Piece(ByteBuf::from(vec![0; 512 * 1024]))); 5]
        }
        other => vec![other],
    };
    refused!(owner, endless, Refused::Block { .. });
}
