//! How many files this process may have open: an image in shards takes several for each.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as the host allows this process; by default it is a thousand of them.
pub fn allow_all() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}
