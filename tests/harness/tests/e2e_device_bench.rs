//! The device benchmark measures and writes its report. Needs root and Debian's packages
//! (`tests/run`). Without bypass-blk itself, which is another package's program.

use std::fs;
use std::process::Command;
use std::time::Duration;

use bypass_harness::run_command;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn every_way_of_a_round_is_in_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_device-bench"));
    command.args(["--ways", "qsd-native,fio", "--workloads", "mix-32"]);
    command.args(["--rounds=1", "--seconds=1", "--image=16", "--output"]);
    let tables = run_command(command.arg(dir.path()), DEADLINE).unwrap();
    let json = fs::read_to_string(dir.path().join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&json).unwrap();
    for way in ["qsd native", "fio, brick file"] {
        assert!(tables.contains(&format!("| {way} | ")), "{tables}");
        let cells = report["cells"].as_array().unwrap();
        let cell = cells.iter().find(|cell| cell["way"] == way).unwrap();
        for figure in ["iops", "p50_us", "p99_us", "p999_us", "cpu_us", "switches"] {
            assert!(
                cell["figures"][figure].as_f64().unwrap() > 0.0,
                "{figure} of {cell}"
            );
        }
    }
    for plot in ["speed.svg", "p99.svg", "cpu.svg"] {
        let plot = fs::read_to_string(dir.path().join(plot)).unwrap();
        assert!(plot.contains("qsd native"), "{plot}");
    }
}
