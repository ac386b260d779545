//! Paths of tiles, as C2SP tlog-tiles writes them: `tile/0/x001/x234/067.p/112`.
//!
//! Invariant: each tile of each width has one path, and only that one parses.

use super::TILE_WIDTH;

/// The highest level of hashes a path may name (C2SP tlog-tiles: 0 to 63).
const LEVEL_MAX: u8 = 63;
const GROUP: u64 = 1000;
const ENTRIES: &str = "entries";

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Hashes(u8),
    Entries,
}

/// A tile as a client asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePath {
    pub level: Level,
    pub index: u64,
    /// 1 to 256 hashes or entries.
    pub width: usize,
}

/// The path of a tile of `width` hashes or entries, without a leading slash.
pub fn tile_path(level: Level, index: u64, width: usize) -> String {
    let mut number = format!("{:03}", index % GROUP);
    let mut rest = index / GROUP;
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % GROUP);
        rest /= GROUP;
    }
    let level = match level {
        Level::Hashes(level) => level.to_string(),
        Level::Entries => ENTRIES.to_owned(),
    };
    match width {
        TILE_WIDTH => format!("tile/{level}/{number}"),
        _ => format!("tile/{level}/{number}.p/{width}"),
    }
}

/// Reads a canonical path; none for any other.
pub fn parse_tile_path(path: &str) -> Option<TilePath> {
    let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
    let level = match level {
        ENTRIES => Level::Entries,
        number => Level::Hashes(number.parse().ok().filter(|level| *level <= LEVEL_MAX)?),
    };
    let (number, width) = match rest.split_once(".p/") {
        Some((number, width)) => (number, width.parse().ok()?),
        None => (rest, TILE_WIDTH),
    };
    let mut index: u64 = 0;
    for group in number.split('/') {
        let digits: u64 = group.strip_prefix('x').unwrap_or(group).parse().ok()?;
        index = index.checked_mul(GROUP)?.checked_add(digits)?;
    }
    // Writing it again settles signs, leading zeros, lengths of groups and the place of each `x`.
    let canonical = (1..=TILE_WIDTH).contains(&width) && tile_path(level, index, width) == path;
    canonical.then_some(TilePath { level, index, width })
}
