//! How servers reach a client outside its requests, while its session lasts.
//!
//! Invariant: the way to a client ends with its session, and does not hold it open.

use std::{future::pending, sync::Arc};

use super::{
    client::{CallClient, relay},
    logs::Logs,
    session::{Opened, Session},
};
use crate::router::audience::Audience;

/// Lets servers reach the client of a session that has begun.
pub fn reach(session: &Arc<Session>) {
    let Some(opened) = session.opened.get() else { return };
    let (standing, wants) = (opened.standing.clone(), session.clone());
    let wanted = move || wants.opened.get().map_or(Logs::None, Opened::logs);
    let audience = Audience { session: None, standing: None, ..opened.audience() };
    let (client, heard) = CallClient::new(wanted, audience, Some(session.clone()));
    standing.open(Arc::new(client));
    let session = session.clone();
    tokio::spawn(async move {
        let told = relay(pending::<()>(), heard, &session.outlet, &session.end);
        session.end.run_until_cancelled(told).await;
        // The client's handle holds the session.
        standing.close();
    });
}
