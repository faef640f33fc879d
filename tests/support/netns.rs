//! The library at work on a node: calls from this process that reach the network
//! of a cluster.

use std::fs::File;
use std::os::fd::AsFd;

use bypass_harness::Node;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `job` in the node's network namespace, on a thread of its own. Scheduler
/// that `job` starts stay there, and so do the sockets that any of them makes.
pub fn on_node<T: Send>(node: &Node, job: impl FnOnce() -> T + Send) -> T {
    let netns = File::open(format!("/run/netns/{}", node.netns())).unwrap();
    let enter_and_run = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        job()
    };
    std::thread::scope(|scope| scope.spawn(enter_and_run).join().unwrap())
}
