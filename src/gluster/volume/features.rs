//! What the translators of a volume do that a writer of the brick's files bypasses.
//!
//! Called with the volfiles that [`super::super::Glusterd`] gives. What is not known to
//! be harmless is named, so that a newer Gluster's translator is not bypassed unseen. It
//! refuses nothing itself.

use std::collections::BTreeSet;

use super::VolfileError;
use crate::gluster::volfile::{Graph, Translator};

/// Translators of a brick that need not see a write, or say themselves whether they do
/// ([`BrickFeatures`]): those of `server_graph_table` of glusterd-volgen.c, 10.3 and 11,
/// without `features/cdc`, which changes what is on the wire.
const HARMLESS_ON_BRICKS: [&str; 23] = [
    "debug/io-stats",
    "features/access-control",
    "features/arbiter",
    "features/barrier",
    "features/bitrot-stub",
    "features/changelog",
    "features/index",
    "features/leases",
    "features/locks",
    "features/marker",
    "features/namespace",
    "features/quota",
    "features/read-only",
    "features/sdfs",
    "features/selinux",
    "features/simple-quota",
    "features/trash",
    "features/upcall",
    "features/worm",
    "performance/io-threads",
    "protocol/server",
    "storage/posix",
    // Of Gluster 7 and before.
    "performance/decompounder",
];

/// Translators of a client that leave a file's bytes as they are on the brick
/// (`volgen_graph_build_clients` and its callers, glusterd-volgen.c). `features/shard`
/// cuts some files into pieces: each says itself whether it is one.
const HARMLESS_TO_CLIENTS: [&str; 25] = [
    "cluster/distribute",
    "cluster/nufa",
    "cluster/replicate",
    "cluster/switch",
    "debug/io-stats",
    "features/gfid-access",
    "features/namespace",
    "features/quiesce",
    "features/quota",
    "features/read-only",
    "features/shard",
    "features/snapview-client",
    "features/utime",
    "performance/io-cache",
    "performance/io-threads",
    "performance/md-cache",
    "performance/nl-cache",
    "performance/open-behind",
    "performance/quick-read",
    "performance/read-ahead",
    "performance/readdir-ahead",
    "performance/symlink-cache",
    "performance/write-behind",
    "protocol/client",
    "system/posix-acl",
];

/// Features of a brick process that a writer of its files bypasses, or that
/// decide which locks it can hold there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrickFeatures {
    /// Bit-rot signing is on: it must see every write.
    pub bitrot: bool,
    /// The changelog of geo-replication is on, or its time marks: it must see every write.
    pub changelog: bool,
    /// Quota accounting of some kind is on.
    pub quota: bool,
    /// Files are write-once or may become so.
    pub worm: bool,
    /// The brick refuses every change.
    pub read_only: bool,
    /// Types of translators of which it is not known that they need not see a write.
    pub unknown: BTreeSet<String>,
    /// The brick takes locks away from whoever holds them for long, or while many wait.
    pub revokes_locks: bool,
    /// When the brick enforces posix locks against other clients.
    pub mandatory_locking: MandatoryLocking,
    /// May a file be fenced by `trusted.glusterfs.enforce-mandatory-lock`? Needs
    /// `mandatory_locking` to be on as well.
    pub enforce_mandatory_lock: bool,
}

/// Volume option `locks.mandatory-locking`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MandatoryLocking {
    /// Posix locks are advisory.
    #[default]
    Off,
    /// For files with the set-group-id bit and no group execution.
    File,
    /// Every posix lock is enforced.
    Forced,
    /// Locks that ask for it are enforced.
    Optimal,
}

impl BrickFeatures {
    /// Can a file of this brick be fenced against other clients?
    pub fn can_fence(&self) -> bool {
        use MandatoryLocking::{Forced, Optimal};
        self.enforce_mandatory_lock && matches!(self.mandatory_locking, Forced | Optimal)
    }

    /// Reads the volfile of a brick process.
    pub fn parse(text: &str) -> Result<Self, VolfileError> {
        let graph = Graph::parse(text)?;
        let on = |kind, option| graph.of_kind(kind).any(|found| found.is_on(option));
        let marker = |option| on("features/marker", option);
        let mut unknown = unknown(&graph, &HARMLESS_ON_BRICKS);
        // A client with a lease caches what it reads and writes.
        if on("features/leases", "leases") {
            unknown.insert("features/leases".to_owned());
        }
        Ok(Self {
            bitrot: on("features/bitrot-stub", "bitrot"),
            changelog: on("features/changelog", "changelog") || marker("xtime"),
            quota: on("features/quota", "server-quota")
                || marker("quota")
                || marker("inode-quota")
                || graph.of_kind("features/simple-quota").any(counts),
            worm: on("features/worm", "worm") || on("features/worm", "worm-file-level"),
            read_only: on("features/read-only", "read-only"),
            unknown,
            revokes_locks: graph.of_kind("features/locks").any(revokes),
            mandatory_locking: mandatory_locking(&graph)?,
            enforce_mandatory_lock: on("features/locks", "enforce-mandatory-lock"),
        })
    }
}

/// Does Gluster 11's simple-quota count? It is in every graph, and passes everything
/// through unless it is told not to (simple-quota.c, `options`).
fn counts(simple_quota: &Translator) -> bool {
    simple_quota.options.contains_key("pass-through") && !simple_quota.is_on("pass-through")
}

/// Either limit is 0 by default, which is none (`pl_options`, locks/src/posix.c).
fn revokes(locks: &Translator) -> bool {
    let limits = ["revocation-secs", "revocation-max-blocked"];
    let set = |name: &str| locks.options.get(name).is_some_and(|limit| limit != "0");
    limits.into_iter().any(set)
}

fn mandatory_locking(graph: &Graph) -> Result<MandatoryLocking, VolfileError> {
    let locks = graph.of_kind("features/locks").next();
    let mode = locks.and_then(|found| Some((found, found.options.get("mandatory-locking")?)));
    match mode.map(|(found, mode)| (found, mode.as_str())) {
        None | Some((_, "off")) => Ok(MandatoryLocking::Off),
        Some((_, "file")) => Ok(MandatoryLocking::File),
        Some((_, "forced")) => Ok(MandatoryLocking::Forced),
        Some((_, "optimal")) => Ok(MandatoryLocking::Optimal),
        Some((found, _)) => Err(VolfileError::BadOption {
            translator: found.name.clone(),
            option: "mandatory-locking",
        }),
    }
}

/// Translators of the clients' graph that may change what a file's bytes mean.
pub(super) fn unknown_to_clients(graph: &Graph) -> BTreeSet<String> {
    unknown(graph, &HARMLESS_TO_CLIENTS)
}

fn unknown(graph: &Graph, known: &[&str]) -> BTreeSet<String> {
    let kinds = graph.translators().map(|found| found.kind.as_str());
    let unknown = kinds.filter(|kind| !known.contains(kind));
    unknown.map(str::to_owned).collect()
}
