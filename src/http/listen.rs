//! Sockets: accepts connections, speaks HTTP/1.1 on them, and closes them in bounded time.
//!
//! Invariants:
//! - the number of connections, the size of headers and the wait for them are bounded, by [`Seats`];
//! - no more connections are accepted than leave descriptors for the log, the exports and the upstreams;
//! - a stop lets begun answers end, for at most [`DRAIN_MAX`].

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    descriptors,
    seats::{Bounds, Held, Seat, Seats},
    tls::Tls,
    wire::{Answer, Noted},
};
use crate::metrics::{Metrics, door::Closed};

/// The largest number of bytes of a request line with its headers. hyper allows 100 headers.
const HEADERS_MAX: usize = 32 * 1024;
/// The same time as [`Seats`] allow an idle connection; a connection that is late is noticed there.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(70);
/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How often a connection is looked at for being late.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long begun answers may take to end after a stop. The whole process has 10 s.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// The pause after a failed accept, most often for want of file descriptors. Without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener serves, and how.
pub(super) struct Offer {
    /// Returns the routes of a request that comes now.
    pub routes: Arc<dyn Fn() -> Router + Send + Sync>,
    pub tls: Option<Arc<Tls>>,
    pub metrics: Arc<Metrics>,
    /// The largest number of open connections; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Whether the connections are counted as those of the door.
    pub counted: bool,
}

/// Serves until `shutdown`, then drains.
///
/// Dropping the future closes every connection at once.
pub(super) async fn listen(listener: TcpListener, offer: Offer, shutdown: CancellationToken) {
    let connections_max = descriptors::for_connections(offer.connections_max);
    // The rest is for connections that were asked to leave and have not yet.
    let bounds = Bounds::of(connections_max - connections_max / 8);
    let (seats, offer) = (Arc::new(Seats::new(bounds)), Arc::new(offer));
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < connections_max;
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if room => match accepted {
                Ok((stream, address)) => match seats.take(address) {
                    Some((held, left)) => {
                        (0..left).for_each(|_| offer.metrics.door.closed(Closed::Crowded));
                        connections.spawn(converse(stream, held, Arc::clone(&offer), shutdown.clone()));
                    }
                    None => offer.metrics.door.closed(Closed::Full),
                },
                Err(err) => {
                    let shed = seats.shed();
                    tracing::warn!(%err, shed, "connection not accepted");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        if offer.counted {
            offer.metrics.door.connections(seats.number());
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if time::timeout(DRAIN_MAX, drained).await.is_err() {
        tracing::warn!(connections = connections.len(), "answers cut off by the stop");
        connections.shutdown().await;
    }
}

/// Accepts the next connection and sets `TCP_NODELAY`, so that small answers are sent at once. Returns it with the
/// address it comes from.
pub(super) async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, IpAddr)> {
    let (stream, from) = listener.accept().await?;
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(%err, "connection was gone before it was served");
    }
    Ok((stream, from.ip()))
}

async fn converse(stream: TcpStream, held: Held, offer: Arc<Offer>, shutdown: CancellationToken) {
    let seat = Arc::clone(&held.seat);
    let wire = match &offer.tls {
        None => Wire::Plain(stream),
        Some(tls) => {
            let handshake = time::timeout(HANDSHAKE_MAX, tls.acceptor().accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = seat.left() => return,
                () = shutdown.cancelled() => return,
            };
            match shaken {
                Ok(Ok(stream)) => Wire::Tls(Box::new(stream)),
                Ok(Err(_)) | Err(_) => return offer.metrics.door.closed(Closed::Handshake),
            }
        }
    };
    let routes = Arc::clone(&offer.routes);
    let asked = Arc::clone(&seat);
    let respond = service_fn(move |request| respond(routes(), request, Arc::clone(&asked)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_header_size(HEADERS_MAX)
        .serve_connection(TokioIo::new(Noted { stream: wire, seat: Arc::clone(&seat) }), respond);
    let mut connection = pin!(connection);
    let mut looks = time::interval(LOOK_EVERY);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = seat.left() => return,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
            _ = looks.tick() => if seat.is_late() {
                return offer.metrics.door.closed(Closed::Late);
            },
        }
    };
    if let Err(err) = ended {
        tracing::debug!(%err, "connection broke");
    }
}

/// Answers one request. Its handlers find the seat in its extensions.
async fn respond(
    mut routes: Router,
    request: http::Request<Incoming>,
    seat: Arc<Seat>,
) -> Result<http::Response<Answer>, Infallible> {
    seat.asked();
    // Whatever way this ends, the seat hears that it did.
    let mut answer = Answer { body: Body::empty(), seat: Arc::clone(&seat) };
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(seat);
    let (parts, body) = routes.call(request).await?.into_parts();
    answer.body = body;
    Ok(http::Response::from_parts(parts, answer))
}

/// A connection with or without TLS.
enum Wire {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
