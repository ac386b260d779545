//! Sockets: accepts connections, speaks HTTP/1.1 on them, and closes them in bounded time.
//!
//! Invariants:
//! - the number of connections, the size of headers and the wait for them are bounded;
//! - a stop lets begun answers end, for at most [`DRAIN_MAX`].

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{App, Edge, routes};

/// The largest number of open connections; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 4096;
/// The largest number of bytes of a request line with its headers. hyper allows 100 headers.
const HEADERS_MAX: usize = 32 * 1024;
/// How long headers may take, and how long a connection may be idle between requests.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);
/// How long begun answers may take to end after a stop. The whole process has 10 s.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// The pause after a failed accept, most often for want of file descriptors. Without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The routes of a door with their checks.
pub struct Door(Router);

/// Serves `app` until `shutdown`, then drains. Errors: the listener has no address.
///
/// Dropping the future closes every connection at once.
pub async fn serve(listener: TcpListener, app: App, shutdown: CancellationToken) -> io::Result<()> {
    let (_only, current) = watch::channel(door(app, listener.local_addr()?));
    serve_current(listener, current, shutdown).await
}

/// Returns the routes and checks of `app` at this address.
pub fn door(app: App, address: SocketAddr) -> Door {
    // Behind a public URL a caller on the loopback address is a proxy, which may pass on anybody's request.
    let metrics_open = address.ip().to_canonical().is_loopback() && app.server.public_url.is_none();
    let (edge, audit) = Edge::new(app, address);
    Door(routes(&Arc::new(edge), audit, metrics_open))
}

/// Like [`serve`], but each request meets the routes and checks that are current when it comes.
pub async fn serve_current(
    listener: TcpListener,
    current: watch::Receiver<Door>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(stream, current.clone(), shutdown.clone()));
                }
                Err(err) => {
                    tracing::warn!(%err, "connection not accepted");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if time::timeout(DRAIN_MAX, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "answers cut off by the stop");
        connections.shutdown().await;
    }
    Ok(())
}

/// Accepts the next connection and sets `TCP_NODELAY`, so that small answers are sent at once.
pub(super) async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%err, "connection was gone before it was served");
    }
    Ok(stream)
}

async fn converse(stream: TcpStream, current: watch::Receiver<Door>, shutdown: CancellationToken) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut router = current.borrow().0.clone();
        router.call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_header_size(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(%err, "connection broke");
    }
}
