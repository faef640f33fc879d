//! Every refusal: its exit code, what it names, and that it leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use bypass_harness::{Cluster, Fill, Node, Volume, VolumeKind, run_command};
use support::daemon::{Daemon, run_on};
use support::locker::hold_heal_lock;
use support::{IMAGE, PATIENCE, replica_3};

const MIB: u64 = 1 << 20;

/// `serve` on a node, expected to be refused with this code and these words.
fn refused(node: &Node, code: i32, words: &[&str], args: &[&str]) {
    let socket = node.place().dir().join("refused.sock");
    let run_dir = node.place().dir().join("refused.run");
    let mut all = vec!["serve", "--lock-timeout", "1s"];
    if !args.contains(&"--server") {
        all.extend(["--server", node.address()]);
    }
    all.extend([
        "--socket-path",
        socket.to_str().unwrap(),
        "--run-dir",
        run_dir.to_str().unwrap(),
    ]);
    all.extend(args);
    let (found, text) = run_on(node, &all);
    assert_eq!(found, Some(code), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert!(!socket.exists(), "{args:?} left its socket");
}

/// The arguments for an image of a volume, served from its brick 0.
fn image<'a>(volume: &'a Volume, image: &'a str, brick: &'a str) -> Vec<&'a str> {
    vec![
        "--volume",
        volume.name(),
        "--image",
        image,
        "--brick",
        brick,
    ]
}

#[test]
fn volumes_that_cannot_be_served_are_refused_by_name() {
    let cluster = Cluster::start(3).unwrap();
    let node = cluster.node(0);
    refused(node, 11, &["gone"], &["--volume", "gone", "--image", "x"]);
    refused(
        node,
        10,
        &["127.0.0.1:9", "running"],
        &["--volume", "gv0", "--image", "x", "--server", "127.0.0.1:9"],
    );
    refused(
        node,
        2,
        &["a volume's name"],
        &["--volume", "../x", "--image", "x"],
    );

    let create = |name, kind| cluster.create_volume(name, kind, &[]).unwrap();
    let distribute = create("dist", VolumeKind::Distribute);
    distribute.start().unwrap();
    refused(
        node,
        13,
        &["dist", "not replicated"],
        &["--volume", "dist", "--image", "x"],
    );

    let volume = create("gv0", VolumeKind::Replica(3));
    let brick = volume.brick_name(0);
    let args = image(&volume, IMAGE, &brick);
    refused(node, 12, &["gv0", "gluster volume start"], &args);
    volume.start().unwrap();
    volume.create_image(IMAGE, MIB, Fill::Noise).unwrap();

    volume.set("changelog.changelog", "on").unwrap();
    refused(node, 15, &["changelog", "--allow changelog"], &args);
    Daemon::serve(&volume, 0, &["--allow", "changelog"]).stop();
    volume.set("changelog.changelog", "off").unwrap();
    volume.set("features.worm", "on").unwrap();
    refused(node, 17, &["gv0", "--read-only"], &args);
    Daemon::serve(&volume, 0, &["--read-only"]).stop();
    volume.set("features.worm", "off").unwrap();
    volume.set("features.locks-revocation-secs", "5").unwrap();
    refused(node, 18, &["gv0", "features.locks-revocation-secs"], &args);
    volume.set("features.locks-revocation-secs", "0").unwrap();
    cluster
        .gluster(0, &["volume", "bitrot", "gv0", "enable"])
        .unwrap();
    refused(node, 15, &["bitrot", "--allow bitrot"], &args);
    cluster
        .gluster(0, &["volume", "bitrot", "gv0", "disable"])
        .unwrap();
    cluster
        .gluster(0, &["volume", "quota", "gv0", "enable"])
        .unwrap();
    refused(node, 15, &["quota", "--allow quota"], &args);
    cluster
        .gluster(0, &["volume", "quota", "gv0", "disable"])
        .unwrap();

    volume.set("debug.trace", "posix").unwrap();
    refused(node, 15, &["debug/trace", "--allow debug/trace"], &args);
    volume.set("debug.trace", "off").unwrap();

    volume.set("features.shard", "on").unwrap();
    Daemon::serve(&volume, 0, &[]).stop();
    let pieces = volume.mount(0).unwrap();
    fs::write(pieces.path().join("pieces.img"), vec![7; 5 << 20]).unwrap();
    drop(pieces);
    let mut in_pieces = image(&volume, "/pieces.img", &brick);
    in_pieces.extend(["--fence", "mandatory"]);
    refused(node, 46, &["/pieces.img", "--fence advisory"], &in_pieces);
    // For good, whatever the option says later.
    volume.set("features.shard", "off").unwrap();
    refused(node, 46, &["/pieces.img"], &in_pieces);
    volume.stop().unwrap();
    refused(node, 12, &["gv0"], &args);
}

#[test]
fn images_that_cannot_be_served_are_refused_with_what_is_wrong() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = cluster.node(0);
    let brick = volume.brick_name(0);
    let refuse = |path: &str, code, words: &[&str], extra: &[&str]| {
        let mut args = image(&volume, path, &brick);
        args.extend(extra);
        refused(node, code, words, &args);
    };
    let mount = volume.mount(0).unwrap();
    let make = |name: &str, bytes: u64| {
        fs::File::create(mount.path().join(name))
            .unwrap()
            .set_len(bytes)
            .unwrap()
    };
    fs::create_dir(mount.path().join("folder")).unwrap();
    make("empty.img", 0);
    make("odd.img", 1000);
    make("disk.qcow2", MIB);
    fs::write(
        mount.path().join("disk.qcow2"),
        [b"QFI\xfb".as_slice(), &[0; 8188]].concat(),
    )
    .unwrap();

    refuse("/gone.img", 20, &["gone.img"], &[]);
    refuse("/gone/one.img", 20, &["\"gone\""], &[]);
    refuse("/folder", 21, &["directory"], &[]);
    refuse("/empty.img", 23, &["empty"], &[]);
    refuse("/odd.img", 24, &["1000", "512"], &[]);
    refuse("/disk.qcow2", 25, &["qcow2", "--force-raw"], &[]);
    Daemon::start(&volume, 0, "/disk.qcow2", &["--force-raw"])
        .wait_listening()
        .unwrap()
        .stop();
    refuse("/../etc", 2, &[".."], &[]);
    refuse(IMAGE, 2, &["--socket-path"], &["--fd", "7"]);
    drop(mount);

    // Sockets.
    let live = node.place().dir().join("live.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
    let serve_at = |path: &Path| {
        let mut args = vec![
            "serve",
            "--server",
            node.address(),
            "--socket-path",
            path.to_str().unwrap(),
        ];
        args.extend(image(&volume, IMAGE, &brick));
        run_on(node, &args)
    };
    let (code, text) = serve_at(&live);
    assert_eq!(
        (code, text.contains("live.sock")),
        (Some(50), true),
        "{text}"
    );
    let file = node.place().dir().join("precious");
    fs::write(&file, "data").unwrap();
    let (code, text) = serve_at(&file);
    assert_eq!(
        (code, text.contains("not a socket")),
        (Some(51), true),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");

    // Which brick.
    let all = ["--volume", volume.name(), "--image", IMAGE];
    refused(node, 31, &["--brick", &volume.brick_name(1)], &all);
    refused(
        node,
        30,
        &["nowhere:/x", &volume.brick_name(2)],
        &image(&volume, IMAGE, "nowhere:/x"),
    );

    // Marks that leave no fresh copy, and a heal at work.
    let held = hold_heal_lock(&volume, 1, IMAGE);
    refuse(
        IMAGE,
        45,
        &["heal in progress", &volume.brick_name(1), "--lock-timeout"],
        &[],
    );
    drop(held);
    let accuse = |on: usize, about: usize| {
        let mark = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr::set(
            volume.brick_file(on, IMAGE),
            format!("trusted.afr.gv0-client-{about}"),
            &mark,
        )
        .unwrap();
    };
    accuse(0, 1);
    accuse(1, 0);
    accuse(1, 2);
    refuse(IMAGE, 43, &["split-brain", &volume.brick_name(1)], &[]);
}

/// Runs `serve` where this host's files look different, as `script` makes them.
fn refused_where(node: &Node, script: &str, code: i32, words: &[&str], args: &[&str]) {
    let mut command = node.command("unshare");
    command.args([
        "--mount",
        "sh",
        "-ec",
        &format!("{script}\nexec \"$@\""),
        "sh",
    ]);
    command.args([
        env!("CARGO_BIN_EXE_bypass-blk"),
        "serve",
        "--server",
        node.address(),
    ]);
    command
        .arg("--socket-path")
        .arg(node.place().dir().join("where.sock"))
        .args(args);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{script}: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn a_host_without_the_right_brick_or_privilege_is_told_so() {
    let cluster = Cluster::start(3).unwrap();
    let volume = replica_3(&cluster);
    let node = cluster.node(0);
    let all = ["--volume", volume.name(), "--image", IMAGE];
    let hide = |brick: usize| format!("mount -t tmpfs none {}", volume.brick_dir(brick).display());

    // Only one brick of this host: found without --brick.
    let only_0 = format!("{}\n{}", hide(1), hide(2));
    refused_where(
        node,
        &format!("{only_0}\n{}", hide(0)),
        30,
        &[&volume.brick_name(0)],
        &all,
    );
    let brick_0 = volume.brick_name(0);
    refused_where(
        node,
        &hide(0),
        30,
        &["not on this host"],
        &image(&volume, IMAGE, &brick_0),
    );
    let no_admin = "set -- setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\"";
    refused_where(node, no_admin, 34, &["CAP_SYS_ADMIN"], &all);

    // The bricks have one path on every host: what stands there is this host's.
    let (dir_0, dir_1) = (volume.brick_dir(0).display(), volume.brick_dir(1).display());
    let same_path = format!("mount --bind {dir_0} {dir_1}\n{}", hide(2));
    let brick_1 = volume.brick_name(1);
    let words = ["not on this host", &brick_1];
    refused_where(
        node,
        &same_path,
        30,
        &words,
        &image(&volume, IMAGE, &brick_1),
    );
    let hidden_0 = format!("{same_path}\n{}", hide(0));
    refused_where(node, &hidden_0, 30, &[&brick_0], &all);
    for brick in 0..3 {
        let names = xattr::list(volume.brick_file(brick, IMAGE)).unwrap();
        let left = names.filter(|name| name.to_string_lossy().contains("bypass"));
        assert_eq!(left.count(), 0, "a proof was left on brick {brick}");
    }

    // A folder that claims to be the brick, with another file under the name.
    let copy = node.place().dir().join("copy");
    let dir = volume.brick_dir(0).display().to_string();
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("vm1.img"), [0; 4096]).unwrap();
    let id = xattr::get(&dir, "trusted.glusterfs.volume-id")
        .unwrap()
        .unwrap();
    xattr::set(&copy, "trusted.glusterfs.volume-id", &id).unwrap();
    xattr::set(copy.join("vm1.img"), "trusted.gfid", &[7; 16]).unwrap();
    let bind = format!("mount --bind {} {dir}", copy.display());
    refused_where(
        node,
        &bind,
        33,
        &["07070707-0707", "--brick"],
        &image(&volume, IMAGE, &brick_0),
    );
    Daemon::serve(&volume, 0, &[]).stop();
}

#[test]
fn an_arbiter_is_not_served() {
    let cluster = Cluster::start(3).unwrap();
    let volume = support::volume_with_image(&cluster, VolumeKind::Arbiter, &[]);
    let brick = volume.brick_name(2);
    let words = ["arbiter", &volume.brick_name(0)];
    refused(cluster.node(2), 32, &words, &image(&volume, IMAGE, &brick));
}

#[test]
fn an_image_is_found_through_a_dht_link_file_unless_its_bricks_are_away() {
    let cluster = Cluster::start(3).unwrap();
    let kind = VolumeKind::DistributedReplicate {
        sets: 2,
        replica: 3,
    };
    let volume = cluster.create_volume("gv0", kind, &[]).unwrap();
    volume.start().unwrap();
    volume.create_image("/0.img", MIB, Fill::Noise).unwrap();
    let mount = volume.mount(0).unwrap();
    let is_link = |brick: usize, image: &str| {
        fs::metadata(volume.brick_file(brick, image))
            .is_ok_and(|meta| meta.permissions().mode() & 0o1777 == 0o1000)
    };
    // Renamed until its name belongs to the other replica set.
    let name = (1..64)
        .map(|number| {
            let from = mount.path().join(format!("{}.img", number - 1));
            fs::rename(from, mount.path().join(format!("{number}.img"))).unwrap();
            format!("/{number}.img")
        })
        .find(|name| is_link(0, name) || is_link(3, name))
        .expect("a link file");
    drop(mount);
    let (link, data) = if is_link(0, &name) { (0, 3) } else { (3, 0) };
    let (link_brick, data_brick) = (volume.brick_name(link), volume.brick_name(data));
    let node = volume.brick_node(data);
    refused(
        node,
        30,
        &[&data_brick],
        &image(&volume, &name, &link_brick),
    );
    Daemon::start(&volume, data, &name, &[])
        .wait_listening()
        .unwrap()
        .stop();
    (data..data + 3).for_each(|brick| volume.kill_brick(brick).unwrap());
    refused(
        node,
        22,
        &["link file"],
        &image(&volume, &name, &data_brick),
    );
}

#[test]
fn help_and_capabilities_need_no_cluster() {
    let program = env!("CARGO_BIN_EXE_bypass-blk");
    let run = |args: &[&str]| run_command(Command::new(program).args(args), PATIENCE).unwrap();
    for args in [
        &["--print-capabilities"][..],
        &["serve", "--print-capabilities"],
    ] {
        let capabilities: serde_json::Value = serde_json::from_str(&run(args)).unwrap();
        assert_eq!(capabilities["type"], "block");
    }
    assert!(run(&["--help"]).contains("Exit codes"));
    let nowhere = ["--run-dir", "/nonexistent", "--state-dir", "/nonexistent"];
    assert!(run(&[&["status"], &nowhere[..]].concat()).contains("no image is served"));
}
