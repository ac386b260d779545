//! Codes: the JSON-RPC errors that this node gives and acts on, by name.
//!
//! Invariants:
//! - a code is written once, here: who gives it and who reads it mean the same;
//! - what a tool's server answers passes with its own code, whatever that is.

/// JSON-RPC 2.0, section 5.1.
pub const PARSE_ERROR: i64 = -32700;
/// The message is no request, or not one that this caller may make.
pub const INVALID_REQUEST: i64 = -32600;
pub const METHOD_NOT_FOUND: i64 = -32601;
/// The parameters make no sense, or name what is not on offer.
pub const INVALID_PARAMS: i64 = -32602;
pub const INTERNAL_ERROR: i64 = -32603;

/// A request took too long, and may have taken effect; MCP's own libraries use it.
pub const REQUEST_TIMEOUT: i64 = -32001;
/// MCP: there is no such resource.
pub const RESOURCE_NOT_FOUND: i64 = -32002;
/// A request is over a quota, and nothing of it ran; MCP servers over libp2p share it.
pub const RATE_LIMITED: i64 = -32010;
/// MCP: a header says something else than the request's body, or is missing.
pub const HEADER_MISMATCH: i64 = -32020;
/// MCP: what is asked needs a capability that the client did not declare.
pub const MISSING_CAPABILITY: i64 = -32021;
/// MCP: the request is of a revision that is not spoken here.
pub const UNSUPPORTED_VERSION: i64 = -32022;
