//! `bypass-blk forget`: what this host remembers of an image is removed, so that its healer
//! does not try for ever to finish one that is gone.

use clap::Args;

use crate::control::socket;
use crate::daemon::failure::Failure;
use crate::daemon::logging;
use crate::daemon::target::Target;
use crate::image::state_dir::{Entry, StateDir};

use super::arguments::{LogArgs, RunDirArgs, StateDirArgs};

/// Arguments of `forget`.
#[derive(Args, Debug)]
#[command(
    after_help = "Nothing in the volume is changed. If the image is there after all and a copy is marked, that copy is \
compared as a whole the next time the image is served or healed."
)]
pub struct ForgetArgs {
    /// The image that is gone
    #[arg(value_name = "VOLUME/IMAGE")]
    target: Target,

    /// Also the record of a promotion: if the lost copy comes back, nobody knows any more
    /// that it is older
    #[arg(long)]
    promotion_too: bool,

    #[command(flatten)]
    state_dir: StateDirArgs,

    #[command(flatten)]
    run_dir: RunDirArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(super) fn run(args: ForgetArgs) -> Result<(), Failure> {
    logging::start(args.log.log_level);
    let Target { volume, image } = &args.target;
    let name = args.target.to_string();
    let state = StateDir::new(&args.state_dir.state_dir);
    let mut known = state.entries()?;
    // Several of one name were made one after the other.
    known.retain(|entry| entry.volume == *volume && entry.image == image.0);
    if known.is_empty() {
        let state = args.state_dir.state_dir.display();
        return Err(Failure::Usage(format!(
            "nothing is known of {name} in {state}: nothing to forget"
        )));
    }
    let sockets = socket::list(&args.run_dir.run_dir)?;
    for entry in &known {
        may_go(entry, &name, &sockets, args.promotion_too).map_err(Failure::Usage)?;
    }
    for entry in &known {
        state.forget(volume, entry.gfid)?;
        println!("{name} ({}) is forgotten", entry.gfid);
    }
    Ok(())
}

fn may_go(
    entry: &Entry,
    name: &str,
    sockets: &[std::path::PathBuf],
    promotion_too: bool,
) -> Result<(), String> {
    let at_work =
        |path: &&std::path::PathBuf| socket::is_of(path, entry.gfid) && !socket::is_dead(path);
    if let Some(path) = sockets.iter().find(at_work) {
        return Err(format!(
            "{name} is served or healed on this host now, by the process behind {}: nothing was forgotten",
            path.display()
        ));
    }
    if entry.promoted.is_some() && !entry.settled && !promotion_too {
        return Err(format!(
            "the copy of {name} here was promoted, and the lost one may still come back: nothing was forgotten. \
             If neither matters any more, add --promotion-too"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::replica::promotion::Promotion;

    #[test]
    fn an_image_in_use_and_an_open_promotion_are_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut entry = Entry::example("v", "/i", uuid::Uuid::from_u128(3));
        let path = directory.path().join(format!("v-{}-1.control", entry.gfid));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let sockets = [path];
        let why = may_go(&entry, "v/i", &sockets, true).unwrap_err();
        assert!(why.contains("is served"), "{why}");
        drop(listener);
        assert_eq!(may_go(&entry, "v/i", &sockets, false), Ok(()));
        entry.promoted = Some(Promotion {
            at: 0,
            lost: vec![1],
            stamps: vec![5],
        });
        let why = may_go(&entry, "v/i", &sockets, false).unwrap_err();
        assert!(why.contains("--promotion-too"), "{why}");
        assert_eq!(may_go(&entry, "v/i", &sockets, true), Ok(()));
        entry.settled = true;
        assert_eq!(may_go(&entry, "v/i", &sockets, false), Ok(()));
    }
}
