//! The healer of a host.
//!
//! * [`host_healer`] looks for sessions and for what ended ones left;
//! * [`following`] follows one session, on a thread of its own;
//! * [`queue`]: images without a session, so many at one time; [`finish_image`] heals one;
//! * [`folder_watch`]: when it is looked again which sessions and images there are;
//! * [`rate`]: how fast, as people write it.

pub mod finish_image;
pub mod folder_watch;
pub mod following;
pub mod host_healer;
pub mod queue;
pub mod rate;

use std::path::{Path, PathBuf};

/// The healer's own socket in the run directory.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("heald.socket")
}
