//! Requests about skills (SEP-2640), as the protocol library calls them.
//!
//! Invariant: results leave as parcels of raw bytes; only the skill that was asked for is typed beside them.

use rmcp::{
    ErrorData, RoleServer,
    model::{GetSkillResult, ListResourcesResult, ListSkillsResult, MetaObject, ReadResourceDirectoryResult},
    service::RequestContext,
};
use serde_json::value::RawValue;

use super::{
    Handler,
    reading::{asked, era},
};
use crate::{
    mcp::{
        answer::{LIST_TTL_MS, finish},
        client::to_library,
        raw::pack,
    },
    router::{RpcError, codes::INTERNAL_ERROR, skills::Asked},
};

impl Handler {
    pub(super) async fn skill_list(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<ListSkillsResult, ErrorData> {
        let meta = Some(self.skills(Asked::List, context).await?.1);
        Ok(ListSkillsResult { meta, ..ListSkillsResult::default() })
    }

    pub(super) async fn skill(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<GetSkillResult, ErrorData> {
        let (result, meta) = self.skills(Asked::Get, context).await?;
        let mut typed: GetSkillResult = serde_json::from_str(result.get())
            .map_err(|_| to_library(RpcError::new(INTERNAL_ERROR, "the server gave no skill")))?;
        typed.meta = Some(meta);
        Ok(typed)
    }

    pub(super) async fn directory(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<ReadResourceDirectoryResult, ErrorData> {
        let meta = Some(self.skills(Asked::Directory, context).await?.1);
        Ok(ListResourcesResult { meta, ..ListResourcesResult::default() })
    }

    /// Asks the router about skills. Returns the result, and the same as a parcel.
    async fn skills(
        &self,
        what: Asked,
        context: &RequestContext<RoleServer>,
    ) -> Result<(Box<RawValue>, MetaObject), ErrorData> {
        let (asked, era) = (asked(&context.extensions)?, era(context));
        let audience = self.audience(asked, era);
        let mut out = String::new();
        let result = self.shared.router.skills(what, &asked.params, &asked.caller, &audience).await;
        let result = result.map_err(to_library)?;
        finish(&mut out, &result, era, Some(LIST_TTL_MS), None).map_err(to_library)?;
        Ok((result, pack(out)))
    }
}
