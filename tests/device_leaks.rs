//! Alone in its process: what a connection leaves behind.
#![allow(clippy::unwrap_used)]

mod device_support;

use device_support::front_end::{DATA, FrontEnd};
use device_support::{Device, wait_for};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

fn entries(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn connections_leave_no_file_descriptors_threads_or_mappings_behind() {
    let device = Device::new();
    let tasks = entries("/proc/self/task");
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
        // The kernel shows a thread for some moments after it has been waited for.
        wait_for("all threads but the tests' to be gone", || {
            entries("/proc/self/task") <= tasks
        });
        (entries("/proc/self/fd"), guest_memory)
    };
    let (fds, _) = usage();
    for _ in 0..20 {
        let (fds_now, guest_memory) = usage();
        assert!(fds_now <= fds, "{fds_now} file descriptors, {fds} at first");
        assert_eq!(guest_memory, 0);
    }
}
