//! The files in `qemu/` that operators use as they are. Needs no root; QEMU's own
//! command line is tried in `e2e_guest.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn qemu_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../qemu")
}

#[test]
fn the_discovery_file_says_what_qemus_schema_asks_for() {
    let text = fs::read_to_string(qemu_dir().join("50-bypass-blk.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["type"], "block");
    assert!(value["binary"].as_str().unwrap().starts_with('/'));
    assert!(value["description"].is_string());
    let known = ["description", "type", "binary", "tags"];
    let keys = value.as_object().unwrap().keys();
    assert_eq!(keys.filter(|key| !known.contains(&key.as_str())).count(), 0);
}

#[test]
fn migrate_hands_its_words_to_the_program_that_is_named() {
    for program in [&["--program", "echo"][..], &["--program=echo"]] {
        let mut command = Command::new(qemu_dir().join("migrate"));
        let output = command.args(["--image", "v/i"]).args(program).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let words = program.join(" ");
        assert_eq!(said.trim(), format!("migrate --image v/i {words}"));
    }
}

#[test]
fn attach_refuses_what_cannot_work_and_says_why() {
    let attach = |args: &[&str]| {
        let output = Command::new(qemu_dir().join("attach"))
            .args(args)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(attach(&[]).contains("--socket is missing"));
    assert!(attach(&["--socket"]).contains("needs a value"));
    assert!(attach(&["--socket", "/s", "--num-queues", "x"]).contains("no number"));
    assert!(attach(&["--socket", "/no/such.sock"]).contains("no socket at /no/such.sock"));
    assert!(attach(&["-m", "1G"]).contains("after --"));
}

#[test]
fn the_units_try_again_what_may_go_well_next_time_and_only_that() {
    let never_again = |unit: &str| {
        let text = fs::read_to_string(qemu_dir().join(unit)).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
        assert!(text.contains("StartLimitIntervalSec=0"), "{unit}");
        let codes = line.unwrap().split(' ').map(|code| code.parse().unwrap());
        codes.collect::<Vec<u8>>()
    };
    let codes = never_again("bypass-blk@.service");
    // A wrong option, a volume and an image that cannot be served, a disk that has changed.
    for code in [2, 11, 14, 20, 24, 25, 52, 60] {
        assert!(codes.contains(&code), "{code}");
    }
    // Bricks, glusterd, locks, heals, a file of the same name: they come and go.
    for code in [1, 10, 12, 16, 30, 35, 36, 40, 41, 42, 43, 44, 45, 50, 51] {
        assert!(!codes.contains(&code), "{code}");
    }
    assert_eq!(never_again("bypass-blk-heald.service"), [2, 50]);
}
