//! Real guests on each kind of disk. Needs root and Debian's packages
//! (`tests/run`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bypass_harness::{
    Background, Cluster, Disk, Fill, FioJob, Guest, GuestConfig, GuestImage, Pattern, Place, Qmp,
    Verify, VolumeKind, run_command, wait_until,
};

const FIO_DEADLINE: Duration = Duration::from_secs(120);
const SCRIPT_DEADLINE: Duration = Duration::from_secs(30);
const IMAGE: &str = "/vm1.img";
const IMAGE_BYTES: u64 = 32 << 20;

fn verify_job() -> FioJob {
    FioJob {
        bytes: Some(4 << 20),
        depth: 8,
        verify: Verify::AfterWrite,
        ..FioJob::new("verify", "/dev/vda", Pattern::RandWrite)
    }
}

#[test]
fn a_guest_runs_scripts_side_by_side_and_fio_on_a_raw_file() {
    let image = GuestImage::prepare().unwrap();
    let place = Place::host().unwrap();
    let path = place.dir().join("disk.img");
    File::create(&path).unwrap().set_len(IMAGE_BYTES).unwrap();
    let config = GuestConfig::new(vec![Disk::File { path, queues: 1 }]);
    let guest = Guest::boot(&image, &place, &config).unwrap();

    let size = guest
        .run("blockdev --getsize64 /dev/vda\n", SCRIPT_DEADLINE)
        .unwrap();
    assert_eq!(size.trim(), IMAGE_BYTES.to_string());
    let reply = guest
        .start("printf 'a\\tb\\n'; echo bad >&2; exit 3")
        .unwrap();
    let reply = reply.wait(SCRIPT_DEADLINE).unwrap();
    assert_eq!(
        (reply.status, reply.stdout.as_str(), reply.stderr.as_str()),
        (3, "a\tb\n", "bad\n")
    );
    assert!(guest.run("exit 1", SCRIPT_DEADLINE).is_err());

    let load = guest.start_fio(&verify_job()).unwrap();
    guest.run("true", SCRIPT_DEADLINE).unwrap();
    let report = guest.finish_fio(load, FIO_DEADLINE).unwrap();
    assert_eq!(report.write.unwrap().bytes, 4 << 20);
    assert_eq!(report.read.unwrap().bytes, 4 << 20);
    assert!(guest.console().unwrap().contains("Linux version"));
    guest.pause().unwrap();
    guest.resume().unwrap();
    guest.power_off().unwrap();
}

#[test]
fn fio_notices_a_block_that_is_not_what_it_wrote() {
    let image = GuestImage::prepare().unwrap();
    let place = Place::host().unwrap();
    let path = place.dir().join("disk.img");
    File::create(&path).unwrap().set_len(IMAGE_BYTES).unwrap();
    let config = GuestConfig::new(vec![Disk::File { path, queues: 1 }]);
    let guest = Guest::boot(&image, &place, &config).unwrap();
    guest.fio(&verify_job(), FIO_DEADLINE).unwrap();
    let only = FioJob {
        verify: Verify::Only,
        ..verify_job()
    };
    guest.fio(&only, FIO_DEADLINE).unwrap();
    let spoil = "dd if=/dev/zero of=/dev/vda bs=512 seek=100 count=1 conv=fsync";
    guest.run(spoil, SCRIPT_DEADLINE).unwrap();
    assert!(guest.fio(&only, FIO_DEADLINE).is_err());
    guest.quit().unwrap();
}

#[test]
fn a_guest_writes_to_a_volume_through_qemus_driver_and_through_fuse() {
    let image = GuestImage::prepare().unwrap();
    let cluster = Cluster::start(3).unwrap();
    let volume = cluster
        .create_volume("gv0", VolumeKind::Replica(3), &[])
        .unwrap();
    volume.start().unwrap();
    volume
        .create_image(IMAGE, IMAGE_BYTES, Fill::Sparse)
        .unwrap();
    let mount = volume.mount(0).unwrap();
    let node = cluster.node(0);
    let disks = [
        Disk::Gluster {
            server: node.address().into(),
            volume: "gv0".into(),
            image: IMAGE.into(),
            queues: 1,
        },
        Disk::File {
            path: mount.path().join("vm1.img"),
            queues: 1,
        },
    ];
    for disk in disks {
        let guest = Guest::boot(&image, node.place(), &GuestConfig::new(vec![disk])).unwrap();
        guest.fio(&verify_job(), FIO_DEADLINE).unwrap();
        guest.power_off().unwrap();
        assert!(volume.copies_equal(IMAGE).unwrap().are_equal());
        let first = std::fs::read(volume.brick_file(1, IMAGE)).unwrap();
        assert!(
            first.iter().any(|byte| *byte != 0),
            "the guest's bytes are not on brick 1"
        );
    }
}

/// QEMU's own vhost-user-blk device on a new file.
fn vhost_user_device(place: &Place) -> (Background, PathBuf) {
    let (path, socket) = (
        place.dir().join("vhost.img"),
        place.dir().join("vhost.sock"),
    );
    File::create(&path).unwrap().set_len(IMAGE_BYTES).unwrap();
    let mut command = place.command("qemu-storage-daemon");
    command.arg("--blockdev");
    command.arg(format!(
        "driver=file,node-name=d,filename={}",
        path.display()
    ));
    command.arg("--export");
    command.arg(format!(
        "vhost-user-blk,id=e,node-name=d,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    ));
    // Written when it listens; the socket is there a moment before.
    let listens = place.dir().join("device.pid");
    command.arg("--pidfile").arg(&listens);
    let device = Background::start(&mut command).unwrap();
    wait_until("the device", SCRIPT_DEADLINE, || {
        listens.exists().then_some(()).ok_or("not yet".into())
    })
    .unwrap();
    (device, socket)
}

#[test]
fn a_guest_writes_to_a_vhost_user_device() {
    let image = GuestImage::prepare().unwrap();
    let place = Place::host().unwrap();
    let (_device, socket) = vhost_user_device(&place);
    let disk = Disk::VhostUser {
        socket,
        queues: 1,
        reconnect: false,
    };
    let guest = Guest::boot(&image, &place, &GuestConfig::new(vec![disk])).unwrap();
    guest.fio(&verify_job(), FIO_DEADLINE).unwrap();
    guest.power_off().unwrap();
}

#[test]
fn attach_gives_qemu_a_disk_and_prints_the_same_command_in_a_dry_run() {
    let place = Place::host().unwrap();
    let (_device, socket) = vhost_user_device(&place);
    let qmp_socket = place.dir().join("attach.qmp");
    let attach = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../qemu/attach");
    let arguments = |command: &mut Command, more: &[&str]| {
        command
            .arg("--socket")
            .arg(&socket)
            .args(["--accel", "tcg", "--memory", "256M"]);
        command
            .args(more)
            .args(["--", "-S", "-display", "none", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", qmp_socket.display()));
    };
    let mut dry = Command::new(&attach);
    arguments(&mut dry, &["--dry-run"]);
    let printed = run_command(&mut dry, SCRIPT_DEADLINE).unwrap();
    for option in [
        "memory-backend-memfd",
        "share=on",
        "reconnect",
        "num-queues=1",
        "-S",
    ] {
        assert!(printed.contains(option), "{option} is not in: {printed}");
    }

    let mut command = place.command(&attach.display().to_string());
    arguments(&mut command, &[]);
    let _qemu = Background::start(&mut command).unwrap();
    let qmp = wait_until("QEMU", SCRIPT_DEADLINE, || {
        Qmp::connect(&qmp_socket).map_err(|error| error.to_string())
    })
    .unwrap();
    let path = serde_json::json!({ "path": "/machine/peripheral" });
    let devices = qmp.execute("qom-list", path).unwrap();
    assert!(devices.to_string().contains("bypass-disk0"), "{devices}");
}
