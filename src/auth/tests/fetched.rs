//! Tests of keys at a URL: an issuer of bytes on a real socket, whose answers and questions are counted.
//!
//! Invariant: nothing waits for a time to pass: a source that is to be asked again is expired.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::*;

/// An issuer that answers every request with this text.
struct Published {
    url: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl Published {
    fn new(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
        let (said, count) = (Arc::clone(&answer), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut lines = BufReader::new(&stream).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                count.fetch_add(1, Ordering::SeqCst);
                let text = said.lock().expect("no holder panics").clone();
                let _ = (&stream).write_all(text.as_bytes());
            }
        });
        Self { url, answer, asked }
    }

    fn says(&self, answer: String) {
        *self.answer.lock().expect("no holder panics") = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn ok(body: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: {len}\r\nconnection: close\r\n\r\n{body}"
    )
}

fn keys(issuer: &Issuer) -> String {
    fs::read_to_string(issuer.directory.path().join("keys.json")).expect("the file is there")
}

async fn admitted(access: &Access, token: &str) -> Option<Denied> {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("a token is a header value");
    access.admit(Some(&value)).await.err()
}

#[tokio::test]
async fn keys_are_fetched_when_they_are_needed_and_unknown_ids_ask_once() {
    let issuer = issuer();
    let published =
        Published::new("HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
    let verifier = Verifier::fetching(&published.url, ISSUER, AUDIENCE).expect("the URL makes sense");
    let access = Access::Jwt(verifier);
    let good = sign(Algorithm::EdDSA, Some("ed"), &issuer.ed, &claims(json!({})));
    let stranger = sign(Algorithm::EdDSA, Some("who"), &issuer.ed, &claims(json!({})));
    assert_eq!(published.asked(), 0);
    assert_eq!(admitted(&access, &good).await, Some(Denied::Unverifiable));
    assert_eq!(admitted(&access, &good).await, Some(Denied::Unverifiable));
    assert_eq!(published.asked(), 1, "a source that fails is left alone for a while");
    assert_eq!(access.trouble().as_deref(), Some("the keys of tokens cannot be read: the answer is 500"));

    published.says(ok(r#"{"keys":[]}"#));
    access.reload();
    assert_eq!(admitted(&access, &good).await, Some(Denied::Invalid), "no key is known");
    published.says(ok(&keys(&issuer)));
    let version = access.version();
    access.reload();
    assert_eq!(admitted(&access, &good).await, None);
    assert_ne!(access.version(), version);
    assert_eq!(access.trouble(), None);

    access.reload();
    // What reload left to be fetched again is fetched aside.
    while published.asked() < 4 && admitted(&access, &good).await.is_none() {
        tokio::task::yield_now().await;
    }
    let before = published.asked();
    for _ in 0..50 {
        assert_eq!(admitted(&access, &stranger).await, Some(Denied::Invalid));
    }
    assert!(published.asked() <= before + 1, "{} of {before}", published.asked());
    assert_eq!(admitted(&access, &good).await, None);
}

#[tokio::test]
async fn an_issuer_that_redirects_or_says_too_much_is_not_believed() {
    let issuer = issuer();
    let target = Published::new(ok(&keys(&issuer)));
    let good = sign(Algorithm::EdDSA, Some("ed"), &issuer.ed, &claims(json!({})));
    for answer in [
        format!(
            "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            target.url
        ),
        ok(&" ".repeat(1024 * 1024 + 1)),
        ok("<html>"),
        "nothing of the sort".to_owned(),
    ] {
        let published = Published::new(answer);
        let verifier = Verifier::fetching(&published.url, ISSUER, AUDIENCE).expect("the URL makes sense");
        assert_eq!(admitted(&Access::Jwt(verifier), &good).await, Some(Denied::Unverifiable));
    }
    assert_eq!(target.asked(), 0);
}
