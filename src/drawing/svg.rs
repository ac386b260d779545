//! A run as one self-contained SVG picture, drawn from left to right.
//!
//! Invariants:
//! - the picture loads nothing and runs nothing: it has no script, no style sheet and no external reference;
//! - text of users is escaped, and never becomes markup;
//! - the picture has at most `STEPS_MAX` boxes and `BENDS_MAX` bends. The plan bounds its edges.

use std::{collections::HashMap, fmt::Write};

use super::run::{look, standing};
use crate::{
    visible,
    workflow::graph::{Critical, Graph},
};

/// The largest number of steps that are drawn, since a larger picture cannot be read. The head says how many are shown.
const STEPS_MAX: usize = 500;
/// The largest number of spots that are kept free for edges to pass columns; further edges go straight.
const BENDS_MAX: usize = 5_000;
/// How many sweeps, to and fro, order the spots of each column; as many then set their heights.
const SWEEPS: usize = 6;

const BOX_WIDTH: i64 = 184;
const BOX_HEIGHT: i64 = 42;
/// The height that an edge takes when it passes a column.
const BEND_HEIGHT: i64 = 8;
/// The gap between two spots of a column.
const ROW_GAP: i64 = 14;
const COLUMN_GAP: i64 = 56;
const MARGIN: i64 = 24;
const HEAD_HEIGHT: i64 = 40;
/// The largest number of characters in a box. A tooltip shows the full text.
const TEXT_MAX: usize = 24;

/// Returns the picture of a run as SVG.
pub fn draw(graph: &Graph) -> String {
    let layout = Layout::of(graph);
    let critical = graph.critical();
    let (width, height) = layout.size();
    let head = head(graph, layout.steps);
    let width = width.max(2 * MARGIN + 8 * i64::try_from(head.chars().count()).unwrap_or(0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\" font-family=\"ui-sans-serif, system-ui, sans-serif\" font-size=\"12\">\n<title>{head}</title>\n\
         <defs><clipPath id=\"box\"><rect width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\"/></clipPath></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{MARGIN}\" font-size=\"14\" font-weight=\"600\" fill=\"#1f2328\">{head}</text>\n",
        head = escaped(&head),
    );
    edges(&mut svg, graph, &layout, &critical);
    boxes(&mut svg, graph, &layout, &critical);
    svg + "</svg>\n"
}

/// Returns the head line: the run's title, its steps by status, and how many are shown if not all.
fn head(graph: &Graph, shown: usize) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for node in graph.nodes() {
        let status = look(&node.status).status;
        match counts.iter_mut().find(|(name, _)| *name == status) {
            Some((_, count)) => *count += 1,
            None => counts.push((status, 1)),
        }
    }
    let counts: Vec<String> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    let mut head = format!("{}: {}", graph.title(), counts.join(", "));
    if shown < graph.nodes().len() {
        let _ = write!(head, " (the first {shown} steps are shown)");
    }
    head
}

fn edges(svg: &mut String, graph: &Graph, layout: &Layout, critical: &Critical) {
    for (number, &(from, to)) in graph.edges().iter().enumerate() {
        let (Some(start), Some(end)) = (layout.place[from], layout.place[to]) else {
            continue;
        };
        let bends = layout.bends.get(&number).cloned().unwrap_or_default();
        let mut at = layout.corner(start);
        at.0 += BOX_WIDTH;
        let mut path = format!("M{} {}", at.0, at.1);
        for spot in bends.chain([end]) {
            let (x, y) = layout.corner(spot);
            let middle = (at.0 + x) / 2;
            // Writing to a string cannot fail, here and below.
            let _ = write!(path, "C{middle} {} {middle} {y} {x} {y}", at.1);
            at = (x, y);
            if spot != end {
                at.0 += BOX_WIDTH;
                let _ = write!(path, "H{}", at.0);
            }
        }
        let (line, thick) = if critical.edge(from, to) { ("#1f2328", 3) } else { ("#8b949e", 1) };
        let (x, y) = at;
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{line}\" stroke-width=\"{thick}\"/>\
             <path d=\"M{x} {y}l-7 -4v8z\" fill=\"{line}\"/>",
        );
    }
}

fn boxes(svg: &mut String, graph: &Graph, layout: &Layout, critical: &Critical) {
    for (place, node) in graph.nodes().iter().enumerate() {
        let Some(spot) = layout.place[place] else { continue };
        let (x, y) = layout.corner(spot);
        let y = y - BOX_HEIGHT / 2;
        let look = look(&node.status);
        let thick = if critical.node(place) { 3 } else { 1 };
        let standing = standing(node);
        let _ = writeln!(
            svg,
            "<g transform=\"translate({x} {y})\"><title>{}: {}, {}</title>\
             <rect width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\" fill=\"{}\" stroke=\"{}\" stroke-width=\"{thick}\"/>\
             <g clip-path=\"url(#box)\"><text x=\"10\" y=\"18\" font-weight=\"600\" fill=\"#1f2328\">{}</text>\
             <text x=\"10\" y=\"34\" font-size=\"11\" fill=\"{}\">{}</text></g></g>",
            escaped(&node.id),
            escaped(&node.label),
            escaped(&standing),
            look.fill,
            look.line,
            escaped(&cut(&node.id)),
            look.line,
            escaped(&cut(&standing)),
        );
    }
}

/// The index of a spot: the room in a column for a step, or for an edge that passes.
type Spot = usize;

/// The places of all steps and edges.
struct Layout {
    /// The number of steps that are drawn.
    steps: usize,
    /// The spot of each step; `None` if it is not drawn.
    place: Vec<Option<Spot>>,
    /// The spots that an edge passes, by the edge's number.
    bends: HashMap<usize, std::ops::Range<Spot>>,
    column: Vec<usize>,
    /// The vertical middle of each spot, from the top of the picture.
    middle: Vec<f64>,
    half: Vec<f64>,
}

impl Layout {
    fn of(graph: &Graph) -> Self {
        let mut layout = Self {
            steps: 0,
            place: vec![None; graph.nodes().len()],
            bends: HashMap::new(),
            column: Vec::new(),
            middle: Vec::new(),
            half: Vec::new(),
        };
        layout.columns(graph);
        let (before, after) = layout.neighbours(graph);
        layout.middle = vec![0.0; layout.column.len()];
        let mut columns: Vec<Vec<Spot>> =
            vec![Vec::new(); layout.column.iter().max().map_or(0, |last| last + 1)];
        for (spot, &column) in layout.column.iter().enumerate() {
            columns[column].push(spot);
        }
        for column in &columns {
            layout.set(column, |_| 0.0);
        }
        for sweep in 0..2 * SWEEPS {
            // The first half of the sweeps finds the order in each column; the second keeps it and finds better
            // heights.
            let free = sweep < SWEEPS;
            let forth = sweep % 2 == 0;
            let near = if forth { &before } else { &after };
            for number in 0..columns.len() {
                let number = if forth { number } else { columns.len() - 1 - number };
                let wish =
                    |layout: &Self, spot: Spot| layout.mean(&near[spot]).unwrap_or(layout.middle[spot]);
                let column = &mut columns[number];
                let wishes: HashMap<Spot, f64> =
                    column.iter().map(|&spot| (spot, wish(&layout, spot))).collect();
                if free {
                    column.sort_by(|a, b| wishes[a].total_cmp(&wishes[b]));
                }
                layout.set(column, |spot| wishes[&spot]);
            }
        }
        let edge = |spot: Spot| layout.middle[spot] - layout.half[spot];
        let top = (0..layout.middle.len()).map(edge).fold(f64::INFINITY, f64::min);
        layout.middle.iter_mut().for_each(|middle| *middle -= top);
        layout
    }

    /// Puts each step into the column after the last of those it waits for. Each longer edge gets a spot in every
    /// column between.
    fn columns(&mut self, graph: &Graph) {
        let after = graph.after();
        let mut rank = vec![0; graph.nodes().len()];
        let order = graph.order();
        for &place in order.iter().take(STEPS_MAX) {
            self.place[place] = Some(self.spot(rank[place], BOX_HEIGHT));
            for &next in &after[place] {
                rank[next] = rank[next].max(rank[place] + 1);
            }
        }
        self.steps = self.column.len();
        for (number, &(from, to)) in graph.edges().iter().enumerate() {
            if self.place[from].is_none() || self.place[to].is_none() {
                continue;
            }
            let between = rank[from] + 1..rank[to];
            if self.column.len() - self.steps + between.len() <= BENDS_MAX {
                let first = self.column.len();
                between.for_each(|column| {
                    self.spot(column, BEND_HEIGHT);
                });
                self.bends.insert(number, first..self.column.len());
            }
        }
    }

    fn spot(&mut self, column: usize, height: i64) -> Spot {
        self.column.push(column);
        self.half.push(height as f64 / 2.0);
        self.column.len() - 1
    }

    /// Returns for each spot those it is joined to in the column before, and those in the column after.
    fn neighbours(&self, graph: &Graph) -> (Vec<Vec<Spot>>, Vec<Vec<Spot>>) {
        let mut before = vec![Vec::new(); self.column.len()];
        let mut after = before.clone();
        for (number, &(from, to)) in graph.edges().iter().enumerate() {
            let (Some(start), Some(end), Some(bends)) =
                (self.place[from], self.place[to], self.bends.get(&number))
            else {
                continue;
            };
            let mut last = start;
            for spot in bends.clone().chain([end]) {
                after[last].push(spot);
                before[spot].push(last);
                last = spot;
            }
        }
        (before, after)
    }

    fn mean(&self, spots: &[Spot]) -> Option<f64> {
        let sum: f64 = spots.iter().map(|&spot| self.middle[spot]).sum();
        (!spots.is_empty()).then(|| sum / spots.len() as f64)
    }

    /// Sets the heights in a column as near to the wishes as its order and gaps allow: with the least sum of squares,
    /// by pooling adjacent violators.
    fn set(&mut self, column: &[Spot], wish: impl Fn(Spot) -> f64) {
        // The distance of each spot from the first, if all stood close together.
        let mut close = Vec::with_capacity(column.len());
        let mut at = 0.0;
        for (number, &spot) in column.iter().enumerate() {
            if number > 0 {
                at += self.half[column[number - 1]] + ROW_GAP as f64 + self.half[spot];
            }
            close.push(at);
        }
        // Blocks of touching spots: the sum of their wishes for the block's start, and the number of spots.
        let mut blocks: Vec<(f64, f64)> = Vec::new();
        for (&spot, close) in column.iter().zip(&close) {
            let mut block = (wish(spot) - close, 1.0);
            while let Some(last) = blocks.pop_if(|last| last.0 / last.1 >= block.0 / block.1) {
                block = (block.0 + last.0, block.1 + last.1);
            }
            blocks.push(block);
        }
        let mut left = column.iter().zip(&close);
        for (sum, count) in blocks {
            for (&spot, close) in left.by_ref().take(count as usize) {
                self.middle[spot] = sum / count + close;
            }
        }
    }

    /// Returns the left end of a spot, at half its height.
    fn corner(&self, spot: Spot) -> (i64, i64) {
        let column = i64::try_from(self.column[spot]).unwrap_or(i64::MAX);
        let x = MARGIN + column * (BOX_WIDTH + COLUMN_GAP);
        (x, MARGIN + HEAD_HEIGHT + self.middle[spot].round() as i64)
    }

    fn size(&self) -> (i64, i64) {
        let spots = 0..self.column.len();
        let width = spots.clone().map(|spot| self.corner(spot).0 + BOX_WIDTH).max().unwrap_or(0);
        let height = spots.map(|spot| self.corner(spot).1 + self.half[spot] as i64).max();
        (width + MARGIN, height.unwrap_or(HEAD_HEIGHT) + MARGIN)
    }
}

fn cut(text: &str) -> String {
    match text.chars().count() > TEXT_MAX {
        true => text.chars().take(TEXT_MAX - 1).chain(['\u{2026}']).collect(),
        false => text.to_owned(),
    }
}

/// Escapes text for XML, and replaces characters that XML 1.0 forbids.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if visible::acts(c) => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
