//! Streams that are cut, slow, lying about lengths, or whose follower is killed.
//!
//! Whatever the stream does, what was kept before stays, and the next pass goes on after it.

use std::{
    io::BufRead,
    process::{Command, Stdio},
    sync::Arc,
};

use tokio::{
    io::{AsyncWriteExt, duplex},
    net::{UnixListener, UnixStream},
};

use super::{
    check, content, held,
    owner::{Between, Owner, once, once_through, temp},
};
use crate::{
    follow::{
        copy::Followed,
        driver::{self, Expected, FollowError, follow},
        rules::Ending,
        serve::STREAMS_MAX,
        wire::{
            self, AskHead, FRAME_MAX, Reason, Request, Response, WireError, read, read_frame, write_frame,
        },
    },
    log::home::Home,
    verify::Verdict,
};

/// Where the test that is started again as a follower finds its owner, and its own directory.
const SOCKET: &str = "CAIRN_TEST_FOLLOW_SOCKET";
const DIRECTORY: &str = "CAIRN_TEST_FOLLOW_DIRECTORY";

/// Asks for short tails, so that a small log comes in many.
fn short(request: Request) -> Request {
    match request {
        Request::Tail(mut ask) => {
            ask.max = ask.max.min(7);
            Request::Tail(ask)
        }
        other => other,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_at_any_frame_leaves_a_true_log_and_is_gone_on_with() {
    let owner = Owner::new(1);
    let tool = owner.publish("echo").await;
    owner.calls(Some(tool), "call", 12, true).await;
    let server = owner.server();
    let vkey = owner.ledger.about().vkey.clone();
    let resumed = temp();
    let resumed = Home::open(resumed.path()).expect("a home");
    for frames in 0.. {
        let dir = temp();
        let fresh = Home::open(dir.path()).expect("a home");
        let cut = |mut left: usize| {
            move |response| {
                left = left.checked_sub(1)?;
                Some(vec![response])
            }
        };
        let ended = Between { request: short, response: cut(frames) }.follow(&server, &fresh).await;
        // One log is cut again and again, each time a little later than the time before.
        let again = Between { request: short, response: cut(4 + frames % 9) }.follow(&server, &resumed).await;
        for result in [&ended, &again] {
            let broke = matches!(result, Err(FollowError::Closed | FollowError::Wire(_)));
            assert!(broke || result.is_ok(), "after {frames} frames: {result:?}");
        }
        if let Some(followed) = Followed::open(&fresh, &owner.log())
            && followed.size().expect("a size") > 0
        {
            let verdict = check(followed.home(), &vkey).verdict;
            assert!(verdict <= Verdict::Incomplete, "after {frames} frames: {verdict:?}");
            let (events, _) = content(followed.home());
            assert!(content(&owner.home).0.starts_with(&events), "not the owner's after {frames} frames");
        }
        if ended.is_ok() {
            assert!(frames > 20, "only {frames} frames");
            break;
        }
    }
    once(&server, &resumed).await.expect("what is left comes");
    let followed = Followed::open(&resumed, &owner.log()).expect("held");
    assert_eq!(check(followed.home(), &vkey).verdict, Verdict::Verified);
    assert!(content(followed.home()) == content(&owner.home));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_at_a_time_is_as_good_as_all_at_once() {
    let owner = Owner::new(1);
    owner.calls(None, "call", 4, false).await;
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let outcome = once_through(&owner.server(), &home, 1).await.expect("followed");
    assert_eq!((outcome.ending, outcome.held), (Ending::Current, owner.head().size));
}

#[tokio::test]
async fn a_length_that_is_nothing_or_too_much_ends_the_stream() {
    for len in [0, FRAME_MAX as u32 + 1, u32::MAX] {
        let (mut near, mut far) = duplex(64);
        near.write_all(&len.to_be_bytes()).await.expect("written");
        let read = read_frame(&mut far).await;
        assert!(matches!(read, Err(WireError::Length { len: told }) if told == len), "{read:?}");
    }
    for cut in [1, 3, 4, 10] {
        let (mut near, mut far) = duplex(64);
        let frame = [&20_u32.to_be_bytes()[..], &[0; 20]].concat();
        near.write_all(&frame[..cut]).await.expect("written");
        drop(near);
        assert!(matches!(read_frame(&mut far).await, Err(WireError::Cut)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers_nonsense_once_and_closes() {
    let owner = Owner::new(1);
    for bytes in [&[0_u8, 0, 0, 1, 0xf6][..], &[0, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff]] {
        let (mut near, far) = duplex(1024);
        near.write_all(bytes).await.expect("written");
        assert!(owner.server().serve(far, "peer").await.is_err());
    }
    let far_ahead = [
        Request::Tail(wire::AskTail { from: 0, max: 1, size: u64::MAX }),
        Request::Tail(wire::AskTail { from: u64::MAX, max: u64::MAX, size: 1 }),
        Request::Blocks(wire::AskBlocks { cids: vec![owner.log(); 65] }),
    ];
    for request in far_ahead {
        let (mut near, far) = duplex(64 * 1024);
        let server = owner.server();
        let serving = tokio::spawn(async move { server.serve(far, "peer").await });
        write_frame(&mut near, &request).await.expect("written");
        let frame = read_frame(&mut near).await.expect("read").expect("an answer");
        assert_eq!(read::<Response>(&frame).expect("an answer"), Response::Refused(Reason::Malformed));
        drop(near);
        serving.await.expect("no panic").expect("the stream was closed in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_so_many_streams_and_no_more() {
    let owner = Owner::new(1);
    let server = owner.server();
    let mut open = Vec::new();
    for _ in 0..STREAMS_MAX {
        let (mut near, far) = duplex(64 * 1024);
        let server = server.clone();
        tokio::spawn(async move { server.serve(far, "peer").await });
        write_frame(&mut near, &Request::Head(AskHead { held: 0 })).await.expect("written");
        read_frame(&mut near).await.expect("read").expect("an answer");
        open.push(near);
    }
    let (mut near, far) = duplex(64 * 1024);
    server.serve(far, "peer").await.expect("refused in order");
    let frame = read_frame(&mut near).await.expect("read").expect("an answer");
    assert_eq!(read::<Response>(&frame).expect("an answer"), Response::Refused(Reason::Busy));
    let dir = temp();
    let home = Home::open(dir.path()).expect("a home");
    let (near, far) = duplex(64 * 1024);
    tokio::spawn({
        let server = server.clone();
        async move { server.serve(far, "another").await }
    });
    follow(near, &home, Expected::default(), |_| {}).await.expect("another peer is served");
}

/// The follower that is killed: does nothing unless it is started by the test below.
#[test]
fn a_follower_in_a_process_of_its_own() {
    let (Ok(socket), Ok(dir)) = (std::env::var(SOCKET), std::env::var(DIRECTORY)) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let home = Home::open(std::path::Path::new(&dir)).expect("a home");
        let stream = UnixStream::connect(socket).await.expect("the owner listens");
        let told = |progress: driver::Progress| println!("held {}", progress.held);
        follow(stream, &home, Expected::default(), told).await.expect("followed");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_killed_goes_on_with_a_true_log() {
    let owner = Owner::new(1);
    owner.calls(None, "call", 120, true).await;
    let (dir, sockets) = (temp(), temp());
    let socket = sockets.path().join("owner.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let owner = Arc::new(owner);
    let server = owner.server();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (inner, far) = duplex(64 * 1024);
            let server = server.clone();
            tokio::spawn(async move { server.serve(far, "peer").await });
            let passing = Between { request: short, response: |response| Some(vec![response]) };
            tokio::spawn(passing.pass(stream, inner));
        }
    });
    let home = Home::open(dir.path()).expect("a home");
    let vkey = owner.ledger.about().vkey.clone();
    let mut kills = 0;
    for batches in (1..).map(|round| 1 + round % 5) {
        let before = held(&home, &owner.log());
        let (socket, at) = (socket.clone(), dir.path().to_owned());
        let killed = tokio::task::spawn_blocking(move || {
            let mut child = Command::new(std::env::current_exe().expect("this test's program"))
                .args([
                    "--exact",
                    "follow::tests::streams::a_follower_in_a_process_of_its_own",
                    "--nocapture",
                ])
                .env(SOCKET, socket)
                .env(DIRECTORY, at)
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts");
            let lines = std::io::BufReader::new(child.stdout.take().expect("asked for")).lines();
            let held = lines.map_while(Result::ok).filter(|line| line.contains("held ")).nth(batches);
            if held.is_some() {
                child.kill().expect("killed");
            }
            let status = child.wait().expect("it ended");
            assert!(held.is_some() || status.success());
            held.is_some()
        });
        let killed = killed.await.expect("no panic");
        kills += u32::from(killed);
        let followed = Followed::open(&home, &owner.log()).expect("held");
        let verdict = check(followed.home(), &vkey).verdict;
        assert!(verdict <= Verdict::Incomplete, "{verdict:?}");
        assert!(followed.size().expect("a size") > before);
        if !killed || followed.size().expect("a size") == owner.head().size {
            break;
        }
    }
    println!("killed {kills} times");
    assert!(kills >= 3);
    serving.abort();
    once(&owner.server(), &home).await.expect("the rest comes");
    let followed = Followed::open(&home, &owner.log()).expect("held");
    assert_eq!(check(followed.home(), &vkey).verdict, Verdict::Verified);
    assert!(content(followed.home()) == content(&owner.home));
}
