//! What a volume and its bricks look like, read out of their volfiles.
//!
//! Turns the client's graph into replica sets, and the brick's ([`features`]) into the
//! list of features that writing past the brick process would bypass. Whether
//! such a volume can be served is decided elsewhere.

mod features;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use super::pending::PENDING_PREFIX;
use super::tls::TlsFiles;
use super::volfile::{Graph, Translator, VolfileSyntax};

pub use features::{BrickFeatures, MandatoryLocking};

const REPLICATE: &str = "cluster/replicate";
const DISPERSE: &str = "cluster/disperse";
const CLIENT: &str = "protocol/client";

/// A replicated volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The volume's name.
    pub name: String,
    /// The volume's identity; bricks refuse clients of another.
    pub volume_id: Uuid,
    /// The replica sets, in the order of the volfile. More than one: files are
    /// distributed over them.
    pub replica_sets: Vec<ReplicaSet>,
    /// Types of translators through which the volume's clients see files and of which
    /// it is not known that they leave a file's bytes as they are on the brick.
    pub unknown: BTreeSet<String>,
}

/// The bricks that hold copies of the same files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaSet {
    /// Name of the `cluster/replicate` translator (`gv0-replicate-0`): the lock
    /// domain of AFR's writes, and with `:self-heal` appended that of its heal.
    pub name: String,
    /// The bricks in child order; arbiters are the last.
    pub bricks: Vec<BrickSpec>,
    /// How many of the last bricks hold no data.
    pub arbiter_count: usize,
    /// Complete names of the pending attributes, `trusted.afr.` included, in
    /// child order and as many as bricks.
    pub pending_names: Vec<String>,
    /// AFR's client quorum, where the volfile sets it.
    pub quorum: QuorumOption,
}

/// The options `cluster.quorum-type` and `cluster.quorum-count`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuorumOption {
    /// Not in the volfile: AFR's default for that many bricks.
    Default,
    /// No quorum is asked for.
    None,
    /// More than half, or half with the first brick.
    Auto,
    /// At least that many bricks.
    Fixed(usize),
}

/// How to reach a brick.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrickSpec {
    /// Name of its `protocol/client` translator.
    pub client_name: String,
    /// Host name or address.
    pub host: String,
    /// The brick's directory there.
    pub path: String,
    /// Name to log in with. Only the volfile that glusterd gives to clients on
    /// its own host has one; without it the volume's `auth.allow` decides.
    pub username: Option<String>,
    /// Password to log in with.
    pub password: Option<String>,
    /// Does the brick want TLS?
    pub tls: bool,
    /// With which certificates, if not the usual ones.
    #[serde(default)]
    pub tls_files: TlsFiles,
}

impl std::fmt::Debug for BrickSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BrickSpec({} {self})", self.client_name)
    }
}

impl std::fmt::Display for BrickSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.path)
    }
}

/// The volfile describes no volume that can be understood here.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VolfileError {
    /// Not a volfile.
    #[error("the volume's description cannot be read")]
    Syntax(#[from] VolfileSyntax),
    /// Files have no full copies on several bricks.
    #[error("volume {volume} is not replicated: it is {layout}; only replica volumes can be used")]
    NotReplicated {
        /// The volume.
        volume: String,
        /// What it is.
        layout: Layout,
    },
    /// A replica set with a thin arbiter, whose marks are kept in another way.
    #[error("replica set {replica_set} has a thin arbiter, which is not supported")]
    ThinArbiter {
        /// The replica set.
        replica_set: String,
    },
    /// A translator lacks an option or it makes no sense.
    #[error("the volfile's {translator} has no valid {option}")]
    BadOption {
        /// Name of the translator.
        translator: String,
        /// Name of the option.
        option: &'static str,
    },
}

/// Layouts other than replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each file on one brick.
    Distribute,
    /// Each file in coded pieces.
    Disperse,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Distribute => "plain distribute (one copy of each file)",
            Self::Disperse => "dispersed",
        })
    }
}

impl Volume {
    /// Reads the volfile of a volume's clients.
    pub fn parse(text: &str) -> Result<Self, VolfileError> {
        let graph = Graph::parse(text)?;
        let name = graph.top().map(|top| top.name.clone()).unwrap_or_default();
        let replicates: Vec<&Translator> = graph.of_kind(REPLICATE).collect();
        let replicated: usize = replicates.iter().map(|set| set.subvolumes.len()).sum();
        let layout = if graph.of_kind(DISPERSE).next().is_some() {
            Some(Layout::Disperse)
        } else if replicates.is_empty() || graph.of_kind(CLIENT).count() > replicated {
            Some(Layout::Distribute)
        } else {
            None
        };
        if let Some(layout) = layout {
            let volume = name;
            return Err(VolfileError::NotReplicated { volume, layout });
        }
        one_use_of_each(&replicates)?;
        let replica_sets = replicates
            .iter()
            .map(|translator| replica_set(&graph, translator))
            .collect::<Result<Vec<_>, _>>()?;
        let volume_id = match replicates.first() {
            Some(first) => required(first, "volume-id")?
                .parse()
                .map_err(|_| bad_option(first, "volume-id"))?,
            None => Uuid::nil(),
        };
        Ok(Self {
            name,
            volume_id,
            replica_sets,
            unknown: features::unknown_to_clients(&graph),
        })
    }
}

/// A brick is in one replica set, once. So what is made of a volfile is no larger
/// than the volfile.
fn one_use_of_each(replicates: &[&Translator]) -> Result<(), VolfileError> {
    let mut used = BTreeSet::new();
    for translator in replicates {
        if !translator.subvolumes.iter().all(|name| used.insert(name)) {
            return Err(bad_option(translator, "subvolumes"));
        }
    }
    Ok(())
}

fn replica_set(graph: &Graph, translator: &Translator) -> Result<ReplicaSet, VolfileError> {
    if translator.options.contains_key("thin-arbiter") {
        let replica_set = translator.name.clone();
        return Err(VolfileError::ThinArbiter { replica_set });
    }
    let bricks = translator
        .subvolumes
        .iter()
        .map(|name| match graph.get(name) {
            Some(client) if client.kind == CLIENT => brick(client),
            _ => Err(bad_option(translator, "subvolumes")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let pending_names: Vec<String> = required(translator, "afr-pending-xattr")?
        .split(',')
        .map(|name| format!("{PENDING_PREFIX}{}", name.trim()))
        .collect();
    if pending_names.len() != bricks.len() {
        return Err(bad_option(translator, "afr-pending-xattr"));
    }
    let arbiter_count = number(translator, "arbiter-count")?.unwrap_or(0);
    if arbiter_count >= bricks.len() {
        return Err(bad_option(translator, "arbiter-count"));
    }
    Ok(ReplicaSet {
        name: translator.name.clone(),
        quorum: quorum(translator)?,
        bricks,
        arbiter_count,
        pending_names,
    })
}

fn brick(client: &Translator) -> Result<BrickSpec, VolfileError> {
    let option = |name: &str| client.options.get(name).cloned();
    let file = |name: &str| option(&format!("transport.socket.ssl-{name}")).map(PathBuf::from);
    Ok(BrickSpec {
        client_name: client.name.clone(),
        host: required(client, "remote-host")?.to_owned(),
        path: required(client, "remote-subvolume")?.to_owned(),
        username: option("username"),
        password: option("password"),
        tls: client.is_on("transport.socket.ssl-enabled"),
        tls_files: TlsFiles {
            certificate: file("own-cert"),
            key: file("private-key"),
            authorities: file("ca-list"),
            revoked: file("crl-path"),
        },
    })
}

fn quorum(translator: &Translator) -> Result<QuorumOption, VolfileError> {
    match translator.options.get("quorum-type").map(String::as_str) {
        None => Ok(QuorumOption::Default),
        Some("none") => Ok(QuorumOption::None),
        Some("auto") => Ok(QuorumOption::Auto),
        Some("fixed") => number(translator, "quorum-count")?
            .map(QuorumOption::Fixed)
            .ok_or_else(|| bad_option(translator, "quorum-count")),
        Some(_) => Err(bad_option(translator, "quorum-type")),
    }
}

fn number(translator: &Translator, option: &'static str) -> Result<Option<usize>, VolfileError> {
    translator
        .options
        .get(option)
        .map(|value| value.parse().map_err(|_| bad_option(translator, option)))
        .transpose()
}

fn required<'a>(translator: &'a Translator, option: &'static str) -> Result<&'a str, VolfileError> {
    translator
        .options
        .get(option)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| bad_option(translator, option))
}

fn bad_option(translator: &Translator, option: &'static str) -> VolfileError {
    VolfileError::BadOption {
        translator: translator.name.clone(),
        option,
    }
}

#[cfg(test)]
mod tests;
