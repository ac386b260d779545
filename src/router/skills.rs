//! Skills: the requests about them, passed to the sources that declare the extension (SEP-2640).
//!
//! Invariants:
//! - what is passed is as its source wrote it, but for URIs that an earlier source has: those name their source;
//! - the manifest of a skill is a contract: a changed one is published with the one it replaces;
//! - a source that fails costs a list only its own skills.

use std::collections::HashSet;

use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    caller::Caller,
    contract::Contract,
    ledger::{Command, commit::node},
    router::{
        Router, RpcError,
        audience::Audience,
        board::{Source, aliased},
        codes::METHOD_NOT_FOUND,
    },
    words::words,
};

/// The extension that a source with skills declares.
pub const EXTENSION: &str = "io.modelcontextprotocol/skills";
/// Pages that are read of one source's list.
const PAGES_MAX: usize = 100;
/// Skills that are listed of one source.
const SKILLS_MAX: usize = 1_000;
/// Bytes of a skill's URI for its manifest to be a contract: events name it.
const URI_MAX: usize = 200;

words! {
    /// A request about skills.
    pub enum Asked {
        List = "skills/list",
        Get = "skills/get",
        Directory = "resources/directory/read",
    }
}

impl Router {
    /// Passes a request about skills to the sources that have them. What is asked is not recorded, as lists are not.
    /// Errors: no source that the caller sees has skills, or none has this one.
    pub async fn skills(
        &self,
        asked: Asked,
        params: &RawValue,
        caller: &Caller,
        audience: &Audience,
    ) -> Result<Box<RawValue>, RpcError> {
        let sight = self.sight();
        let mut sources = sight.board().places.declaring(EXTENSION);
        sources.retain(|source| sight.reads(caller, source));
        if sources.is_empty() {
            let method = asked.as_str();
            return Err(RpcError::new(METHOD_NOT_FOUND, format!("there is no method {method}")));
        }
        if asked == Asked::List {
            if let [only] = sources.as_slice() {
                let page = only.run.pass(asked.as_str(), params.to_owned(), audience).await?;
                self.keep(only, &entries(&page), caller).await;
                return Ok(page);
            }
            return Ok(self.all_skills(&sources, caller, audience).await);
        }
        let uri = text(params, "uri").ok_or_else(|| RpcError::invalid_params("`uri` must be a string"))?;
        let named = sight.board().places.named(&uri).filter(|(_, inner)| *inner != uri);
        if let Some((source, inner)) = named {
            let quoted = splice::raw(splice::quoted(&inner));
            let own = splice::edit(params, &[("uri", &quoted)], |_| false);
            let own = own.map_err(|_| RpcError::invalid_params("params must be an object"))?;
            let result = source.run.pass(asked.as_str(), own, audience).await?;
            self.publish(&source, &entries(&result)).await;
            return Ok(told(&result, &source.name).unwrap_or(result));
        }
        let linked = self.inner.links.source(&caller.actor.id, &uri);
        sources.sort_by_key(|source| linked.as_deref() != Some(source.name.as_str()));
        let mut refusal = RpcError::internal();
        for source in sources {
            match source.run.pass(asked.as_str(), params.to_owned(), audience).await {
                Ok(result) => {
                    self.keep(&source, &entries(&result), caller).await;
                    return Ok(result);
                }
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Returns the skills of several sources as one list.
    async fn all_skills(
        &self,
        sources: &[std::sync::Arc<Source>],
        caller: &Caller,
        audience: &Audience,
    ) -> Box<RawValue> {
        let lists = sources.iter().map(|source| skills_of(source, audience));
        let lists = futures_util::future::join_all(lists).await;
        let (mut known, mut listed) = (HashSet::new(), Vec::new());
        for (source, skills) in sources.iter().zip(lists) {
            self.publish(source, &skills).await;
            for skill in skills {
                let Some(uri) = text(&skill, "uri") else { continue };
                if known.insert(uri) {
                    self.note_files(source, &skill, caller);
                    listed.push(skill);
                } else {
                    // Its own URI is an earlier source's, and must not lead here.
                    listed.push(renamed(&skill, &source.name).unwrap_or(skill));
                }
            }
        }
        splice::raw(json!({"skills": listed}).to_string())
    }

    /// Publishes the manifests of skills as contracts, and remembers whose their files are.
    async fn keep(&self, source: &Source, skills: &[Box<RawValue>], caller: &Caller) {
        self.publish(source, skills).await;
        skills.iter().for_each(|skill| self.note_files(source, skill, caller));
    }

    async fn publish(&self, source: &Source, skills: &[Box<RawValue>]) {
        let manifests = skills.iter().take(SKILLS_MAX).filter_map(|skill| manifest(&source.name, skill));
        let published = manifests
            .map(|contract| self.inner.parts.ledger.submit(Command::Publish { contract, actor: node() }));
        // A ledger that has stopped ends the node; the list is an answer all the same.
        let _ = futures_util::future::join_all(published).await;
    }

    fn note_files(&self, source: &Source, skill: &RawValue, caller: &Caller) {
        if self.board().places.are_shared() {
            files(skill).iter().for_each(|uri| self.inner.links.note(&caller.actor.id, uri, &source.name));
        }
    }
}

/// Returns all skills that a source lists, within bounds; none if it fails.
async fn skills_of(source: &Source, audience: &Audience) -> Vec<Box<RawValue>> {
    let mut skills = Vec::new();
    let mut params = splice::raw("{}".to_owned());
    for _ in 0..PAGES_MAX {
        let page = match source.run.pass(Asked::List.as_str(), params, audience).await {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(source = source.name, error = error.message, "a list of skills is left out");
                break;
            }
        };
        skills.extend(entries(&page));
        let cursor = text(&page, "nextCursor").filter(|cursor| !cursor.is_empty());
        let Some(cursor) = cursor.filter(|_| skills.len() < SKILLS_MAX) else { break };
        params = splice::raw(json!({"cursor": cursor}).to_string());
    }
    skills.truncate(SKILLS_MAX);
    skills
}

/// Returns the skills of a result: those of a list, or the one that was asked for.
fn entries(result: &RawValue) -> Vec<Box<RawValue>> {
    let member = |key| splice::member(result, key).ok().flatten();
    if let Some(one) = member("skill") {
        return vec![one.to_owned()];
    }
    member("skills").and_then(|skills| serde_json::from_str(skills.get()).ok()).unwrap_or_default()
}

/// Returns the URIs of a skill and its files.
fn files(skill: &RawValue) -> Vec<String> {
    let listed = splice::member(skill, "resources").ok().flatten();
    let listed: Vec<Value> =
        listed.and_then(|listed| serde_json::from_str(listed.get()).ok()).unwrap_or_default();
    let files = listed.iter().filter_map(|file| file["uri"].as_str()).map(str::to_owned);
    text(skill, "uri").into_iter().chain(files).collect()
}

/// Returns the contract that a skill's manifest is; `None` if the skill cannot be named.
fn manifest(source: &str, skill: &RawValue) -> Option<Contract> {
    let uri = text(skill, "uri").filter(|uri| uri.len() <= URI_MAX && !uri.chars().any(char::is_control))?;
    let known: Value = serde_json::from_str(skill.get()).ok()?;
    let description = known["frontmatter"]["description"].as_str().unwrap_or_default();
    let (name, description) = (splice::quoted(&uri), splice::quoted(description));
    let definition = format!(
        r#"{{"name":{name},"description":{description},"inputSchema":{{"type":"object"}},"annotations":{{"readOnlyHint":true,"openWorldHint":false,"skill":{skill}}}}}"#
    );
    Contract::of_definition(&format!("{source}/skills"), "", &splice::raw(definition)).ok()
}

/// Returns a result with URIs that name the source: those of its skill, or of the resources in its directory.
fn told(result: &RawValue, source: &str) -> Option<Box<RawValue>> {
    if let Some(skill) = splice::member(result, "skill").ok()? {
        return splice::edit(result, &[("skill", &renamed(skill, source)?)], |_| false).ok();
    }
    splice::edit(
        result,
        &[("resources", &named(splice::member(result, "resources").ok()??, source)?)],
        |_| false,
    )
    .ok()
}

/// Returns a skill with URIs that name its source.
fn renamed(skill: &RawValue, source: &str) -> Option<Box<RawValue>> {
    let own = named_one(skill, source)?;
    let listed = splice::member(&own, "resources").ok()??;
    match named(listed, source) {
        Some(files) => splice::edit(&own, &[("resources", &files)], |_| false).ok(),
        None => Some(own),
    }
}

/// Returns a list of objects with URIs that name their source; `None` if it is no such list.
fn named(listed: &RawValue, source: &str) -> Option<Box<RawValue>> {
    let listed: Vec<Box<RawValue>> = serde_json::from_str(listed.get()).ok()?;
    let named: Option<Vec<Box<RawValue>>> = listed.iter().map(|one| named_one(one, source)).collect();
    Some(splice::raw(serde_json::to_string(&named?).ok()?))
}

fn named_one(object: &RawValue, source: &str) -> Option<Box<RawValue>> {
    let quoted = splice::raw(splice::quoted(&aliased(source, &text(object, "uri")?)));
    splice::edit(object, &[("uri", &quoted)], |_| false).ok()
}

fn text(object: &RawValue, key: &str) -> Option<String> {
    serde_json::from_str(splice::member(object, key).ok()??.get()).ok()
}
