//! Alone in its process: what a connection leaves behind.
#![allow(clippy::unwrap_used)]

mod device_support;

use device_support::Device;
use device_support::front_end::{DATA, FrontEnd};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn connections_leave_no_file_descriptors_threads_or_mappings_behind() {
    let device = Device::new();
    let usage = || {
        let (stream, serving) = device.serve();
        let mut guest = FrontEnd::start(stream, 2);
        assert_eq!(guest.request(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512)]), 0);
        drop(guest);
        serving.join().unwrap().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let guest_memory = maps
            .lines()
            .filter(|line| line.contains("/dev/shm"))
            .count();
        (
            entries("/proc/self/fd"),
            entries("/proc/self/task"),
            guest_memory,
        )
    };
    let (fds, tasks, _) = usage();
    for _ in 0..20 {
        let (fds_now, tasks_now, guest_memory) = usage();
        assert!(fds_now <= fds, "{fds_now} file descriptors, {fds} at first");
        assert!(tasks_now <= tasks, "{tasks_now} threads, {tasks} at first");
        assert_eq!(guest_memory, 0);
    }
}
