//! Volumes whose bricks, and pools whose glusterds, speak TLS: served, healed and verified as any
//! other, and what is wrong with certificates is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use bypass_harness::{Cluster, Volume, VolumeKind};
use support::certificates::Certificates;
use support::daemon::{Daemon, heal, run_dir, run_on, state_dir};
use support::front_end::{FrontEnd, assert_reads, write};
use support::{IMAGE, PATIENCE, volume_with_image};

/// `client.ssl` and `server.ssl`, as the documents tell.
const TLS: [(&str, &str); 3] = [
    ("client.ssl", "on"),
    ("server.ssl", "on"),
    ("auth.ssl-allow", "*"),
];
/// Exit code of everything that is wrong with certificates.
const NO_TLS: Option<i32> = Some(19);

/// `bypass-blk verify` on a brick's node.
fn verify(volume: &Volume, brick: usize) -> (Option<i32>, String) {
    let node = volume.brick_node(brick);
    let target = format!("{}{IMAGE}", volume.name());
    let (run_dir, state_dir) = (run_dir(node), state_dir(node));
    let mut args = vec!["verify", &target, "--server", node.address()];
    args.extend(["--run-dir", run_dir.to_str().unwrap()]);
    args.extend(["--state-dir", state_dir.to_str().unwrap()]);
    run_on(node, &args)
}

/// A guest writes, with a brick away for a while; the copies are healed, and compared.
fn serve_heal_and_verify(volume: &Volume) {
    let daemon = Daemon::serve(volume, 0, &[]);
    let mut disk = FrontEnd::connect(daemon.socket());
    write(&mut disk, 1, 3);
    disk.flush(PATIENCE).unwrap();
    volume.kill_brick(2).unwrap();
    write(&mut disk, 2, 5);
    disk.flush(PATIENCE).unwrap();
    volume.start_force().unwrap();
    let (code, said) = heal(volume, 0, &["--wait"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = verify(volume, 0);
    assert_eq!(code, Some(0), "{said}");
    assert_reads(&mut disk, 1, 3);
    assert_reads(&mut disk, 2, 5);
    drop(disk);
    assert!(daemon.stop().success());
    let (code, said) = verify(volume, 0);
    assert_eq!(code, Some(0), "{said}");
}

/// Nothing is served, for this reason.
fn assert_refused(volume: &Volume, wanted: &[&str]) {
    let refused = Daemon::try_serve(volume, 0, &[]);
    let refused = refused.err().expect("nothing to be served");
    assert_eq!(refused.code, NO_TLS, "{wanted:?}: {}", refused.log);
    for wanted in wanted {
        assert!(
            refused.log.contains(wanted),
            "{wanted:?} in {}",
            refused.log
        );
    }
}

#[test]
fn a_volume_with_tls_is_served_healed_and_verified_and_faults_of_certificates_are_named() {
    let certificates = Certificates::in_own_folders();
    let ours = certificates.make("host");
    certificates.show(&ours);
    certificates.believe(&[&ours]);
    certificates.leave_elsewhere(&certificates.make_expired("late"));
    let cluster = Cluster::start(3).unwrap();
    let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &TLS);
    serve_heal_and_verify(&volume);

    let stranger = certificates.make("stranger");
    certificates.on_another_host(|| {
        certificates.show(&ours);
        certificates.believe(&[&ours]);
        fs::remove_file(certificates.file("glusterfs.key")).unwrap();
        let [shown, key, list] =
            ["pem", "key", "ca"].map(|end| certificates.path(&format!("glusterfs.{end}")));
        assert_refused(&volume, &[&key, "is missing"]);
        certificates.show(&certificates.make_expired("late"));
        assert_refused(&volume, &[&shown, "expired at 2020-02-01"]);
        certificates.show(&Certificates::v1());
        assert_refused(&volume, &[&shown, "version 1"]);
        certificates.show(&stranger);
        let not_accepted = ["does not accept this host's certificate", "stranger"];
        assert_refused(&volume, &not_accepted);
        certificates.show(&ours);
        certificates.believe(&[&stranger]);
        let unknown = format!("is not in {list}");
        assert_refused(&volume, &[&unknown, "\"host\""]);
    });
    volume.set("auth.ssl-allow", "another").unwrap();
    assert_refused(&volume, &["auth.ssl-allow", "\"host\""]);
    volume
        .set("auth.ssl-allow", "another,host,stranger")
        .unwrap();
    // Bricks read their files for each connection.
    certificates.believe(&[&ours, &stranger]);
    certificates.on_another_host(|| {
        certificates.show(&stranger);
        certificates.believe(&[&ours]);
        let daemon = Daemon::serve(&volume, 0, &[]);
        // The keys of a connection are its process's alone.
        daemon.ask_to_upgrade();
        daemon.wait_log("a connection with TLS cannot go from one process to another");
        assert!(daemon.stop().success());
    });
}

#[test]
fn a_pool_whose_glusterds_speak_tls_and_a_volume_with_files_of_its_own() {
    let certificates = Certificates::in_own_folders();
    let authority = certificates.make("authority");
    let own = certificates.make("guests");
    // Gluster's own clients use the volume's files to ask glusterd for ports, too.
    certificates.believe(&[&authority, &own]);
    let listed = certificates.make_list(&[&authority, &own]);
    certificates.show(&certificates.make_signed("host", &authority));
    certificates.secure_glusterd();
    let cluster = Cluster::start(3).unwrap();
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let [certificate, key, listed] = [&own.certificate, &own.key, &listed].map(path);
    let mut options = TLS.to_vec();
    options.extend([
        // Who shows the host's own certificate to a brick is not let in.
        ("auth.ssl-allow", "guests"),
        ("ssl.own-cert", &*certificate),
        ("ssl.private-key", &*key),
        ("ssl.ca-list", &*listed),
    ]);
    let volume = volume_with_image(&cluster, VolumeKind::Replica(3), &options);
    serve_heal_and_verify(&volume);

    let shown = certificates.path("glusterfs.pem");
    fs::remove_file(&shown).unwrap();
    let missing = format!("{shown} is missing");
    assert_refused(&volume, &["glusterd at", &missing]);
    certificates.on_another_host(|| {
        let refused = Daemon::try_serve(&volume, 0, &[]).err().unwrap();
        assert_eq!(refused.code, Some(10), "{}", refused.log);
        assert!(refused.log.contains("secure-access"), "{}", refused.log);
    });
}
