//! The check of `Host` and `Origin`: the names this server answers to, and the web pages that may call it.
//!
//! Invariants:
//! - a host name that is not known is refused, whatever address it resolves to (DNS rebinding). Health and metrics are
//!   for machines, which know this one by any name: there only browsers are asked for the name;
//! - a page may call if its origin is this server's or is listed; the origin `null` never may;
//! - a request without `Origin` is judged by its token alone: browsers send the header with every request whose answer
//!   a foreign page could read.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{
        ACCEPT_LANGUAGE, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
    },
    uri::Authority,
};

use super::health::is_for_machines;
use crate::config::Server;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const METHODS: &str = "GET, POST, DELETE";
const HEADERS: &str = "Authorization, Content-Type, Accept, Last-Event-ID, MCP-Protocol-Version, \
                       Mcp-Session-Id, Mcp-Method, Mcp-Name";
/// What the names of headers begin with that carry a tool's arguments. Which there are, its schema says.
const MIRRORED: &str = "mcp-param-";
/// The largest number of such headers that a page is allowed at once.
const MIRRORED_MAX: usize = 64;
const EXPOSED: &str = "WWW-Authenticate, Retry-After, ETag, Mcp-Session-Id";

/// Why a request is refused before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("this server does not answer to that host; an operator can list it in server.allowed_hosts")]
    Host,
    #[error("pages of that origin may not call; an operator can list it in server.allowed_origins")]
    Origin,
}

pub(super) struct Gate {
    hosts: Vec<Name>,
    origins: Vec<String>,
}

/// A host name in lower case. Without a port it matches every port.
struct Name {
    host: String,
    port: Option<u16>,
}

impl Gate {
    pub(super) fn new(server: &Server, address: SocketAddr) -> Self {
        let public: Option<Uri> = server.public_url.as_deref().and_then(|url| url.parse().ok());
        let authority = public.as_ref().and_then(Uri::authority);
        let listed = server.allowed_hosts.iter().filter_map(|host| host.parse().ok());
        let mut hosts: Vec<Name> = listed.map(|host: Authority| Name::of(&host)).collect();
        hosts.extend(LOOPBACK.map(str::to_owned).map(Name::any_port));
        hosts.extend(authority.map(|at| Name::any_port(at.host().to_ascii_lowercase())));
        // Nobody is named 0.0.0.0, but browsers connect it to the loopback address.
        if !address.ip().is_unspecified() {
            hosts.extend(
                address.to_string().parse().ok().map(|at: Authority| Name::any_port(at.host().to_owned())),
            );
        }
        let mut origins = server.allowed_origins.clone();
        if let (Some(scheme), Some(authority)) = (public.as_ref().and_then(Uri::scheme_str), authority) {
            origins.push(format!("{scheme}://{authority}").to_ascii_lowercase());
        }
        Self { hosts, origins }
    }

    /// Returns the request's origin, if it has one. Errors: its host or its origin is not allowed.
    pub(super) fn judge(&self, request: &Request) -> Result<Option<HeaderValue>, Refusal> {
        let headers = request.headers();
        if is_for_machines(request.uri().path()) && !is_rebound(headers) {
            return Ok(None);
        }
        let host = only(headers, &HOST).ok().flatten().ok_or(Refusal::Host)?;
        let host: Authority = host.as_bytes().try_into().map_err(|_| Refusal::Host)?;
        // A request target in absolute form (RFC 9112, section 3.2.2) names the host a second time.
        let named = request.uri().authority();
        if !self.answers_to(&host) || named.is_some_and(|named| !self.answers_to(named)) {
            return Err(Refusal::Host);
        }
        let Some(origin) = only(headers, &ORIGIN).map_err(|()| Refusal::Origin)? else {
            return Ok(None);
        };
        let text = origin.to_str().map_err(|_| Refusal::Origin)?;
        let own = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let own = own.is_some_and(|own| own.eq_ignore_ascii_case(host.as_str()));
        if !own && !self.origins.iter().any(|listed| listed == text) {
            return Err(Refusal::Origin);
        }
        Ok(Some(origin.clone()))
    }

    fn answers_to(&self, at: &Authority) -> bool {
        let asked = Name::of(at);
        let same =
            |name: &Name| name.host == asked.host && name.port.is_none_or(|port| Some(port) == asked.port);
        !at.as_str().contains('@') && self.hosts.iter().any(same)
    }
}

impl Name {
    fn of(at: &Authority) -> Self {
        Self { host: at.host().to_ascii_lowercase(), port: at.port_u16() }
    }

    fn any_port(host: String) -> Self {
        Self { host, port: None }
    }
}

/// Returns whether a request may be a page's whose host name leads here by a trick (DNS rebinding). Such a page has a
/// name and not an address, and every browser names a language with every request.
fn is_rebound(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let name = host.as_ref().map_or("", |host| host.host().trim_start_matches('[').trim_end_matches(']'));
    let speaks = headers.get(ACCEPT_LANGUAGE).is_some_and(|language| language != "*");
    headers.contains_key(ORIGIN) || (speaks && name.parse::<IpAddr>().is_err())
}

/// Returns whether this is a CORS preflight (the Fetch standard).
pub(super) fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns the names of headers that carry a tool's arguments, among those that a preflight asks for.
pub(super) fn asked_headers(request: &Request) -> Vec<HeaderName> {
    let values = request.headers().get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let names = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let names = names.filter_map(|name| name.trim().parse::<HeaderName>().ok());
    names.filter(|name| name.as_str().starts_with(MIRRORED)).take(MIRRORED_MAX).collect()
}

/// Adds the CORS headers that let a page of this allowed origin read the answer, and send the headers that it asks for.
pub(super) fn share(headers: &mut HeaderMap, origin: HeaderValue, asked: &[HeaderName]) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    for (name, value) in [(ACCESS_CONTROL_ALLOW_METHODS, METHODS), (ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let allowed = asked.iter().fold(HEADERS.to_owned(), |all, name| format!("{all}, {name}"));
    if let Ok(allowed) = HeaderValue::try_from(allowed) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
}

/// Returns the value of a header. Errors: it is there more than once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(()),
    }
}
