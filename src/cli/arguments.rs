//! Arguments that several commands have.

use clap::Args;

use crate::control::socket::RUN_DIR;
use crate::daemon::target::GlusterdAddress;
use crate::image::state_dir::STATE_DIR;

/// How much to log, to standard error.
#[derive(Args, Clone, Copy, Debug)]
pub struct LogArgs {
    /// How much to log: error = it does not work; warn = something is wrong and
    /// handled; info = state changes; debug = every step
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
}

/// Which glusterd to ask.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The glusterd to ask for the volume's layout. Only a glusterd of this host
    /// gives what is needed to log in to the bricks
    #[arg(long, value_name = "HOST[:PORT]", default_value = "localhost")]
    pub server: GlusterdAddress,
}

/// Where this host keeps what it knows of its images.
#[derive(Args, Clone, Debug)]
pub struct StateDirArgs {
    /// The folder of the dirty maps: which parts of an image the other copies miss.
    /// Best on a disk of its own speed; 2 bytes per extent
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: std::path::PathBuf,
}

/// Where daemons of this host put their control sockets.
#[derive(Args, Clone, Debug)]
pub struct RunDirArgs {
    /// The folder of the control sockets, by which `status` finds the daemons
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: std::path::PathBuf,
}
