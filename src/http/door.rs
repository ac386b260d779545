//! The door's sockets and what is behind them: health alone while the node starts, then everything.
//!
//! Invariants:
//! - an address that is bound answers at once: what needs the node is refused with 503 until it has started;
//! - nothing of the node is served before it is opened;
//! - a request is served by the routes that were current when it came, however they are replaced.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use axum::{Router, response::IntoResponse};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    App, Edge,
    guard::Current,
    health::{self, Health},
    listen::{Offer, listen},
    routes,
    tls::Tls,
};
use crate::{config::Server, problem::problem};

/// The largest number of open connections of the door.
const CONNECTIONS_MAX: usize = 4096;
/// The largest number of open connections of an address for health alone.
const HEALTH_CONNECTIONS_MAX: usize = 64;

/// A bound address of the door.
pub struct Door {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    opener: Opener,
    early: Router,
}

/// Opens a door once there is a node behind it.
#[derive(Clone)]
pub struct Opener {
    address: SocketAddr,
    scheme: &'static str,
    health: Arc<Health>,
    open: Arc<RwLock<Option<Router>>>,
    access: Current,
}

impl Door {
    /// Prepares a door that serves health alone. Errors: the listener has no address.
    pub fn new(
        listener: TcpListener,
        server: &Server,
        tls: Option<Arc<Tls>>,
        health: Arc<Health>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let early = match metrics_open(address, server) {
            true => health::routes(&health).merge(health::metrics(&health)),
            false => health::routes(&health),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let opener = Opener { address, scheme, health, open: Arc::default(), access: Arc::default() };
        Ok(Self { listener, tls, opener, early: early.fallback(starting) })
    }

    /// Returns what opens this door.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// Dropping the future closes every connection at once.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { listener, tls, opener, early } = self;
        let metrics = Arc::clone(&opener.health.metrics);
        let routes = Arc::new(move || opener.current().unwrap_or_else(|| early.clone()));
        let offer = Offer { routes, tls, metrics, connections_max: CONNECTIONS_MAX, counted: true };
        listen(listener, offer, shutdown).await;
    }
}

impl Opener {
    fn current(&self) -> Option<Router> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves `app` from now on, in the place of what was served before. Whoever is being answered and would not be let
    /// in any more gets no more of the answer.
    pub fn open(&self, app: App) {
        let metrics_open = metrics_open(self.address, &app.server);
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&app.access));
        let current = Arc::clone(&self.access);
        let (edge, audit, ready) = Edge::new(app, self.address, self.scheme, current);
        let routes = routes(&Arc::new(edge), &self.health, audit, metrics_open);
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = Some(routes);
        self.health.started(ready);
    }
}

/// Serves health and metrics alone, to whoever reaches the listener, until `shutdown`.
pub async fn serve_health(listener: TcpListener, health: Arc<Health>, shutdown: CancellationToken) {
    let metrics = Arc::clone(&health.metrics);
    let router = health::routes(&health).merge(health::metrics(&health));
    let router = router
        .fallback(async || problem(StatusCode::NOT_FOUND, "not found", "health and metrics are served here"));
    let routes = Arc::new(move || router.clone());
    let connections_max = HEALTH_CONNECTIONS_MAX;
    listen(listener, Offer { routes, tls: None, metrics, connections_max, counted: false }, shutdown).await;
}

/// Returns whether metrics need no token. Behind a public URL a caller on the loopback address is a proxy, which may pass
/// on anybody's request.
fn metrics_open(address: SocketAddr, server: &Server) -> bool {
    address.ip().to_canonical().is_loopback() && server.public_url.is_none()
}

async fn starting() -> axum::response::Response {
    let response =
        problem(StatusCode::SERVICE_UNAVAILABLE, "starting", "the node starts; /readyz says how far");
    ([(RETRY_AFTER, HeaderValue::from_static("1"))], response).into_response()
}
