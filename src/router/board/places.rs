//! Resources by URI: whose each is, and the URI by which it is known here.
//!
//! Invariants:
//! - a URI in a list leads to the source that listed it. Where an earlier source has the same one, that of the later
//!   source is listed under a URI that names the source;
//! - such a URI leads to its source whether it is listed or not, and the source is asked for its own;
//! - where several sources might have a URI, none is guessed.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, value::RawValue};

use super::{Source, drafts::Told};
use crate::{
    block::splice,
    router::{Listed, Tool},
};

/// What stands between a source's name, as an authority, and its own URI without the scheme.
const MARK: &str = "~/";
/// The scheme of what stands here for a URI without an authority.
const OPAQUE: &str = "cairn+uri";

/// The beginnings of URIs that clients follow by themselves.
const WEB: [&str; 2] = ["http://", "https://"];

/// A resource or template of a source: the source's own URI, and the definition with the public one.
pub struct Placed {
    pub source: Arc<Source>,
    pub inner: String,
    pub listed: Arc<Listed>,
}

/// The resources of all sources, in the order of the sources.
#[derive(Default)]
pub struct Places {
    pub resources: Vec<Placed>,
    pub templates: Vec<Placed>,
    /// The index of each resource by its public URI.
    listed: HashMap<String, usize>,
    /// The sources that have resources.
    sources: Vec<Arc<Source>>,
}

impl Places {
    /// Places what a source lists, after all that were placed before.
    pub(super) fn add(&mut self, source: &Arc<Source>, told: &mut Told) {
        if source.declared.resources {
            self.sources.push(source.clone());
        }
        let twice = |placed: Option<&Placed>| placed.is_some_and(|placed| placed.source.name == source.name);
        for own in &source.resources {
            let taken = self.listed.get(&own.name).and_then(|at| self.resources.get(*at));
            if twice(taken) {
                continue;
            }
            let Some(listed) = public(own, "uri", taken.map(|_| source), told) else { continue };
            if self.listed.contains_key(&listed.name) {
                continue;
            }
            self.listed.insert(listed.name.clone(), self.resources.len());
            self.resources.push(Placed { source: source.clone(), inner: own.name.clone(), listed });
        }
        for own in &source.templates {
            let taken = self.templates.iter().find(|other| other.listed.name == own.name);
            if twice(taken) {
                continue;
            }
            let Some(listed) = public(own, "uriTemplate", taken.map(|_| source), told) else { continue };
            self.templates.push(Placed { source: source.clone(), inner: own.name.clone(), listed });
        }
    }

    /// Returns the source that a URI names or that lists it, and the source's own URI.
    pub fn named(&self, uri: &str) -> Option<(Arc<Source>, String)> {
        if let Some(placed) = self.listed.get(uri).and_then(|at| self.resources.get(*at)) {
            return Some((placed.source.clone(), placed.inner.clone()));
        }
        self.sources.iter().find_map(|source| Some((source.clone(), own_of(&source.name, uri)?)))
    }

    /// Returns the source of a resource that [`Self::named`] does not know: one whose template fits; else the one whose
    /// tools name it; else the only one with resources; else the only one that lists one of the same scheme.
    pub fn unlisted(&self, uri: &str) -> Option<Arc<Source>> {
        let fits = |placed: &&Placed| template_fits(&placed.inner, uri);
        if let Some(placed) = self.templates.iter().find(fits) {
            return Some(placed.source.clone());
        }
        let quoted = splice::quoted(uri);
        let names = |source: &&Arc<Source>| {
            source.tools.iter().any(|entry| entry.tool.definition.get().contains(&quoted))
        };
        if let Some(source) = self.sources.iter().find(names) {
            return Some(source.clone());
        }
        if let [only] = self.sources.as_slice() {
            return Some(only.clone());
        }
        let scheme = uri.split_once(':').map(|(scheme, _)| format!("{scheme}:"))?;
        let alike = |listed: &Arc<Listed>| listed.name.starts_with(&scheme);
        let lists =
            |source: &&Arc<Source>| source.resources.iter().any(alike) || source.templates.iter().any(alike);
        let mut alike = self.sources.iter().filter(lists);
        alike.next().filter(|_| alike.next().is_none()).cloned()
    }

    /// Returns the source that has a URI, of all that might, and its own URI.
    pub fn resource(&self, uri: &str) -> Option<(Arc<Source>, String)> {
        self.named(uri).or_else(|| Some((self.unlisted(uri)?, uri.to_owned())))
    }

    /// Returns whether several sources have resources, so that a URI alone may not say whose it is.
    pub fn are_shared(&self) -> bool {
        self.sources.len() > 1
    }

    /// Returns the sources that declare an extension.
    pub fn declaring(&self, extension: &str) -> Vec<Arc<Source>> {
        let declares = |source: &&Arc<Source>| source.declared.extensions.contains_key(extension);
        self.sources.iter().filter(declares).cloned().collect()
    }

    /// Returns the source of this name, if it has resources.
    pub fn source(&self, name: &str) -> Option<Arc<Source>> {
        self.sources.iter().find(|source| source.name == name).cloned()
    }

    /// Returns the URIs by which a source's own is listed here; its own, if no list has it.
    pub fn public(&self, source: &str, uri: &str) -> String {
        let lists = |placed: &&Placed| placed.source.name == source && placed.inner == uri;
        self.resources.iter().find(lists).map_or_else(|| uri.to_owned(), |placed| placed.listed.name.clone())
    }

    /// Returns a tool whose page has a URI that leads to another source, with the URI that leads to its own; `None` for
    /// any other tool.
    pub(super) fn retold(&self, source: &str, tool: &Tool, told: &mut Told) -> Option<Arc<Tool>> {
        let meta = splice::member(&tool.definition, "_meta").ok().flatten()?;
        let ui = splice::member(meta, "ui").ok().flatten();
        let page = |object: &RawValue, key: &str| {
            let uri: String = serde_json::from_str(splice::member(object, key).ok()??.get()).ok()?;
            let (owner, _) = self.resource(&uri)?;
            (owner.name != source).then(|| splice::raw(splice::quoted(&aliased(source, &uri))))
        };
        let (nested, flat) = (ui.and_then(|ui| page(ui, "resourceUri")), page(meta, "ui/resourceUri"));
        if nested.is_none() && flat.is_none() {
            return None;
        }
        told.warn(
            "the page of a tool has a URI of an earlier source; its own names its source",
            source,
            &tool.name,
        );
        let ui =
            ui.zip(nested).and_then(|(ui, uri)| splice::edit(ui, &[("resourceUri", &uri)], |_| false).ok());
        let set: Vec<(&str, &RawValue)> = [("ui", &ui), ("ui/resourceUri", &flat)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect();
        let meta = splice::edit(meta, &set, |_| false).ok()?;
        let definition = splice::edit(&tool.definition, &[("_meta", &meta)], |_| false).ok()?;
        Some(Arc::new(Tool { name: tool.name.clone(), definition, contract: tool.contract }))
    }

    /// Returns a result of a source in which links to resources that another source lists name their own source; `None`
    /// if there are none. Links into the web stay: clients follow them by themselves.
    pub fn relinked(&self, source: &str, result: &RawValue) -> Option<Box<RawValue>> {
        let content = splice::member(result, "content").ok()??;
        let mut blocks: Vec<Box<RawValue>> = serde_json::from_str(content.get()).ok()?;
        let mut changed = false;
        for block in &mut blocks {
            if let Some(relinked) = self.relinked_block(source, block) {
                (*block, changed) = (relinked, true);
            }
        }
        let content = serde_json::to_string(&blocks).ok().filter(|_| changed)?;
        splice::edit(result, &[("content", &splice::raw(content))], |_| false).ok()
    }

    fn relinked_block(&self, source: &str, block: &RawValue) -> Option<Box<RawValue>> {
        let public = |object: &RawValue| {
            let uri = uri_of(object)?;
            let owner = self.listed.get(&uri).and_then(|at| self.resources.get(*at))?;
            if owner.source.name == source || WEB.iter().any(|web| uri.starts_with(web)) {
                return None;
            }
            let quoted = splice::raw(splice::quoted(&aliased(source, &uri)));
            splice::edit(object, &[("uri", &quoted)], |_| false).ok()
        };
        match splice::member(block, "resource").ok()? {
            Some(held) => splice::edit(block, &[("resource", &public(held)?)], |_| false).ok(),
            None => public(block),
        }
    }
}

/// Returns the URIs of resources that a result links to or holds.
pub fn links(result: &RawValue) -> Vec<String> {
    let content = splice::member(result, "content").ok().flatten();
    let blocks: Vec<&RawValue> =
        content.and_then(|content| serde_json::from_str(content.get()).ok()).unwrap_or_default();
    let link = |block: &RawValue| match splice::member(block, "resource").ok()? {
        Some(held) => uri_of(held),
        None => uri_of(block),
    };
    blocks.into_iter().filter_map(link).collect()
}

fn uri_of(object: &RawValue) -> Option<String> {
    let uri: Value = serde_json::from_str(splice::member(object, "uri").ok()??.get()).ok()?;
    uri.as_str().map(str::to_owned)
}

/// Returns an entry of a list as it is shown here. `taken` is its source, if an earlier source has its URI.
fn public(own: &Arc<Listed>, key: &str, taken: Option<&Arc<Source>>, told: &mut Told) -> Option<Arc<Listed>> {
    let Some(source) = taken else { return Some(own.clone()) };
    told.warn(
        "an earlier source has the URI of a resource; it is listed under one that names its source",
        &source.name,
        &own.name,
    );
    let name = aliased(&source.name, &own.name);
    let quoted = splice::raw(splice::quoted(&name));
    let definition = splice::edit(&own.definition, &[(key, &quoted)], |_| false).ok()?;
    Some(Arc::new(Listed { name, definition }))
}

/// Returns the URI that stands here for a source's own: the source's name is its authority, and what was that is the
/// beginning of its path.
pub fn aliased(source: &str, uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{source}{MARK}{rest}"),
        None => format!("{OPAQUE}://{source}{MARK}{uri}"),
    }
}

/// Returns a source's own URI, if this one names the source.
fn own_of(source: &str, uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    // Clients may write an authority in lower case.
    let named = rest.get(..source.len())?.eq_ignore_ascii_case(source);
    let rest = rest.get(source.len()..).filter(|_| named)?.strip_prefix(MARK)?;
    Some(if scheme == OPAQUE { rest.to_owned() } else { format!("{scheme}://{rest}") })
}

/// Returns whether a URI can come from a template, judged by the text before, between and after its expressions.
fn template_fits(template: &str, uri: &str) -> bool {
    let mut rest = uri;
    for (n, piece) in template.split('{').enumerate() {
        let literal = if n == 0 { piece } else { piece.split_once('}').map_or(piece, |(_, after)| after) };
        let found = if n == 0 {
            rest.strip_prefix(literal)
        } else {
            rest.find(literal).map(|at| &rest[at + literal.len()..])
        };
        match found {
            Some(after) => rest = after,
            None => return false,
        }
    }
    template.ends_with('}') || rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::{aliased, own_of, template_fits};

    #[test]
    fn a_uri_that_names_its_source_leads_back_to_its_own() {
        for (uri, here) in [
            ("ui://a/app.html", "ui://two~/a/app.html"),
            ("file:///x/y?z#f", "file://two~//x/y?z#f"),
            ("https://example.org:8080/", "https://two~/example.org:8080/"),
            ("urn:isbn:1", "cairn+uri://two~/urn:isbn:1"),
            ("file:///{+path}", "file://two~//{+path}"),
            ("ui://three~/a/b", "ui://two~/three~/a/b"),
        ] {
            assert_eq!(aliased("two", uri), here);
            assert_eq!(own_of("two", here).as_deref(), Some(uri));
            assert_eq!(own_of("Two", here).as_deref(), Some(uri), "clients may lower an authority");
            assert_eq!(own_of("tw", here), None);
            assert_eq!(own_of("two", uri), None);
        }
        for uri in ["", "two", "ui://", "ui://tw", "ui://two", "ui://two~x", "ui://twé~/x"] {
            assert_eq!(own_of("two", uri), None, "{uri}");
        }
    }

    #[test]
    fn a_template_fits_by_the_text_around_its_expressions() {
        for (template, uri, fits) in [
            ("test://{id}/data", "test://7/data", true),
            ("test://{id}/data", "test://7/other", false),
            ("file:///{+path}", "file:///a/b", true),
            ("file:///a", "file:///a", true),
            ("file:///a", "file:///ab", false),
        ] {
            assert_eq!(template_fits(template, uri), fits, "{template} {uri}");
        }
    }
}
