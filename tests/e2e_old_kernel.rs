//! How the device's queues wait on the kernel of the guests, Debian's, which lets an idle thread
//! sleep in epoll alone (before 6.15): the tests of `device_waiting`, which are in this
//! program too, run themselves in a guest.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bypass_harness::{Disk, Guest, GuestConfig, GuestImage, Place, pack_program};

#[path = "device_waiting.rs"]
mod device_waiting;

/// Guests are slow here: translated, two cores.
const PATIENCE: Duration = Duration::from_secs(420);
/// For the tests' files, in bytes.
const ROOM: u64 = 64 << 20;

#[test]
fn queues_wait_on_an_older_kernel_and_overlook_nothing() {
    let image = GuestImage::prepare().unwrap();
    let place = Place::host().unwrap();
    let this = std::env::current_exe().unwrap();
    let path = place.dir().join("tests.img");
    pack_program(&this, &place.dir().join("tests"), &path, ROOM).unwrap();
    let config = GuestConfig {
        cpus: 2,
        memory_mib: 1024,
        ..GuestConfig::new(vec![Disk::File { path, queues: 1 }])
    };
    let name = this.file_name().unwrap().to_str().unwrap();
    let script = format!(
        "mkdir /mnt /var /dev/shm && mount -t ext4 /dev/vda /mnt && mkdir /mnt/tmp && ln -s /mnt/tmp /var/tmp
        mount -t tmpfs shm /dev/shm
        cd /mnt && lib/ld-linux-x86-64.so.2 --library-path lib bin/{name} device_waiting:: --test-threads 2"
    );
    let lines = Guest::run_once(&image, &place, &config, &script, PATIENCE).unwrap();
    let passed = lines.iter().filter(|line| line.ends_with("... ok")).count();
    assert!(passed > 0, "no test was run: {lines:#?}");
}
