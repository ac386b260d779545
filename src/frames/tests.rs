//! Frames from outside: cut anywhere, empty, too long, false about their length.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncWriteExt, duplex},
    sync::mpsc,
};

use super::{Broken, Frames, STEP, write};

const MAX: usize = 200_000;

fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes(), content].concat()
}

/// What comes out of `bytes`, written `step` at a time: the frames, and how it ended.
async fn read(bytes: Vec<u8>, step: usize) -> (Vec<Bytes>, Result<(), Broken>) {
    let (mut near, far) = duplex(step);
    let writing = tokio::spawn(async move {
        for part in bytes.chunks(step) {
            if near.write_all(part).await.is_err() {
                return;
            }
        }
    });
    let mut frames = Frames::new(far, MAX);
    let mut all = Vec::new();
    let end = loop {
        match frames.next().await {
            Ok(Some(frame)) => all.push(frame),
            Ok(None) => break Ok(()),
            Err(broken) => break Err(broken),
        }
    };
    drop(frames);
    writing.await.expect("the writer does not panic");
    (all, end)
}

#[tokio::test]
async fn frames_come_out_the_same_however_the_bytes_are_cut() {
    let contents = [b"{}".to_vec(), vec![b'a'; 3], vec![b'b'; 700], b"[1,2]".to_vec()];
    let stream: Vec<u8> = contents.iter().flat_map(|content| framed(content)).collect();
    for step in [1, 2, 3, 5, 7, 64, 4_096] {
        let (frames, end) = read(stream.clone(), step).await;
        assert_eq!(frames, contents, "{step} bytes at a time");
        assert!(end.is_ok());
    }
    let large = vec![b'c'; MAX];
    assert_eq!(read(framed(&large), 9_973).await.0, [large]);
}

#[tokio::test]
async fn a_length_that_lies_ends_the_stream() {
    let check = async |bytes: &[u8], wanted: &str| {
        let (_, end) = read(bytes.to_vec(), 4_096).await;
        assert_eq!(end.expect_err("the stream is refused").to_string(), wanted);
    };
    check(&[0, 0, 0, 0, b'{', b'}'], "a frame is empty").await;
    check(&[255, 255, 255, 255, b'{'], "a frame of 4294967295 bytes is over the bound of 200000").await;
    check(&[0, 3, 13, 65], "a frame of 200001 bytes is over the bound of 200000").await;
    check(&[0, 0, 0, 9, b'{', b'}'], "the stream ended within a frame").await;
    check(&[0, 0], "the stream ended within a frame").await;
    check(b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes is over the bound of 200000").await;
}

#[tokio::test]
async fn an_announced_length_takes_no_memory() {
    let (mut near, far) = duplex(64);
    let mut frames = Frames::new(far, MAX);
    near.write_all(&(MAX as u32).to_be_bytes()).await.expect("there is room");
    near.write_all(b"{").await.expect("there is room");
    tokio::select! {
        biased;
        _ = frames.next() => panic!("no frame is whole"),
        () = tokio::task::yield_now() => {}
    }
    assert!(frames.come.capacity() <= 2 * STEP, "{}", frames.come.capacity());
}

#[tokio::test]
async fn reading_that_is_dropped_midway_loses_nothing() {
    let (mut near, far) = duplex(64);
    let mut frames = Frames::new(far, MAX);
    for byte in framed(b"whole") {
        tokio::select! {
            biased;
            _ = frames.next() => panic!("the frame is not whole"),
            () = tokio::task::yield_now() => {}
        }
        near.write_all(&[byte]).await.expect("there is room");
    }
    assert_eq!(frames.next().await.expect("a frame").expect("a frame"), "whole");
}

#[tokio::test]
async fn what_is_written_is_read() {
    let (near, far) = duplex(16);
    let (messages, waiting) = mpsc::channel(4);
    let writing = tokio::spawn(write(waiting, near, Duration::from_secs(60)));
    let mut frames = Frames::new(far, MAX);
    let large = Bytes::from(vec![b'x'; MAX]);
    for message in [Bytes::from_static(b"{}"), large, Bytes::from_static(b"1")] {
        messages.send(message.clone()).await.expect("the writer takes it");
        assert_eq!(frames.next().await.expect("a frame"), Some(message));
    }
    drop(messages);
    assert!(frames.next().await.expect("a clean end").is_none());
    writing.await.expect("no panic").expect("all is written");
}
