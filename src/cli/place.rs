//! Where a command looks: a server's URL or a data directory, by flags and by variables.
//!
//! Invariants:
//! - flags come before variables, and a URL before a directory;
//! - a directory that only a variable names is asked through its server, if one runs on it;
//! - an empty variable is none.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::{Usage, remote::DEFAULT_URL},
    log::home::Home,
};

/// The variables that stand for flags of their names.
const URL: &str = "CAIRN_URL";
const DATA: &str = "CAIRN_DATA";
const CONFIG: &str = "CAIRN_CONFIG";
/// The default data directory.
const DATA_DEFAULT: &str = "./cairn-data";

/// Where a command looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Server(String),
    Files(PathBuf),
}

/// Which node's tools.
#[derive(Args)]
pub struct Reach {
    /// The server's URL [env: CAIRN_URL=] [default: http://127.0.0.1:7420].
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// A token of the server, or `file:PATH` of one.
    #[arg(long, value_name = "T", env = "CAIRN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Start the node of this data directory in this process instead [env: CAIRN_DATA=, where no server runs on it].
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub data: Option<PathBuf>,
    /// The configuration file (TOML) of that node [env: CAIRN_CONFIG=].
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub config: Option<PathBuf>,
}

/// Which log is read: the files of a directory, or a server's.
#[derive(Args, Clone)]
pub struct LogSource {
    /// The data directory [env: CAIRN_DATA=] [default: ./cairn-data].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Ask the server at this URL instead of reading files [env: CAIRN_URL=].
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// A token of that server, or `file:PATH` of one.
    #[arg(long, value_name = "T", env = "CAIRN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

impl Reach {
    /// Returns where tools are called. Errors: `Usage` if a configuration is named for a server.
    pub fn place(&self) -> Result<Place, Usage> {
        let place = match (&self.url, &self.data) {
            (Some(url), _) => Place::Server(url.clone()),
            (None, Some(data)) => Place::Files(data.clone()),
            (None, None) => by_variables(variable),
        };
        match (&place, &self.config) {
            (Place::Server(_), Some(_)) => {
                Err(Usage("--config is of a node that this command starts; name its --data too".to_owned()))
            }
            (place, _) => Ok(place.clone()),
        }
    }

    /// Returns the configuration file of a node that is started here.
    pub fn config(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| variable(CONFIG))
    }
}

impl LogSource {
    /// Returns where the log is read.
    pub fn place(&self) -> Place {
        match (&self.url, &self.data) {
            (Some(url), _) => Place::Server(url.clone()),
            (None, Some(data)) => Place::Files(data.clone()),
            (None, None) => match (variable(URL), variable(DATA)) {
                (Some(url), _) => Place::Server(url.to_string_lossy().into_owned()),
                (None, data) => Place::Files(data.unwrap_or_else(|| DATA_DEFAULT.into())),
            },
        }
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn by_variables(value: impl Fn(&str) -> Option<PathBuf>) -> Place {
    let value = |name| value(name).filter(|path| !path.as_os_str().is_empty());
    match (value(URL), value(DATA)) {
        (Some(url), _) => Place::Server(url.to_string_lossy().into_owned()),
        (None, Some(data)) => served(&data).map_or(Place::Files(data), Place::Server),
        (None, None) => Place::Server(DEFAULT_URL.to_owned()),
    }
}

/// Returns the URL of the server that runs on a data directory, if one does.
pub fn served(data: &Path) -> Option<String> {
    let owner = Home::of(data).server()?;
    let (_, rest) = owner.split_once(" at ")?;
    Some(rest.split_once(' ').map_or(rest, |(url, _)| url).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_comes_before_a_directory_and_the_default_last() {
        let of = |url: &str, data: &str| {
            by_variables(|name| match name {
                URL => Some(url.into()),
                _ => Some(data.into()),
            })
        };
        let server = |url: &str| Place::Server(url.to_owned());
        assert_eq!(of("http://a", "/nowhere"), server("http://a"));
        assert_eq!(of("", "/nowhere"), Place::Files("/nowhere".into()));
        assert_eq!(of("", ""), server(DEFAULT_URL));
    }

    #[test]
    fn the_server_of_a_directory_is_found_while_it_runs() {
        let dir = tempfile::tempdir().expect("there is room");
        let home = Home::open(dir.path()).expect("it can be made");
        assert_eq!(served(dir.path()), None);
        let one = home.serve("`cairn serve` at http://127.0.0.1:1 (process 7)").expect("it is free");
        assert_eq!(served(dir.path()).as_deref(), Some("http://127.0.0.1:1"));
        drop(one);
        assert_eq!(served(dir.path()), None);
    }
}
