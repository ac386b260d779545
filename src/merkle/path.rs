//! Paths of tiles as C2SP tlog-tiles defines them, such as `tile/0/x001/x234/067.p/112`.
//!
//! Invariant: each tile of each width has one path, and only that path parses.

use super::TILE_WIDTH;

/// C2SP tlog-tiles allows levels 0 to 63 in a path.
const LEVEL_MAX: u8 = 63;
const GROUP: u64 = 1000;
const ENTRIES: &str = "entries";

/// Says what a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Hashes(u8),
    Entries,
}

/// Names a tile as a client asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TilePath {
    pub level: Level,
    pub index: u64,
    /// Counts 1 to 256 hashes or entries.
    pub width: usize,
}

/// Returns the path of a tile of `width` hashes or entries, without a leading slash.
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

/// Parses a canonical path; returns none for any other.
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
    // Formatting the path again refuses signs, leading zeros, groups of a wrong length and misplaced `x`.
    let canonical = (1..=TILE_WIDTH).contains(&width) && tile_path(level, index, width) == path;
    canonical.then_some(TilePath { level, index, width })
}
