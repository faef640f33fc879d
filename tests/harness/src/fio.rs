//! fio jobs and fio's JSON report: the command line of one, the numbers of the
//! other. Runs nothing itself.

use std::time::Duration;

use serde::Deserialize;

use crate::{Error, Result};

/// The order of a job's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Sequential reads.
    Read,
    /// Sequential writes.
    Write,
    /// Random reads.
    RandRead,
    /// Random writes.
    RandWrite,
    /// Half random reads, half random writes.
    RandRw,
}

impl Pattern {
    /// fio's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Read => "read",
            Pattern::Write => "write",
            Pattern::RandRead => "randread",
            Pattern::RandWrite => "randwrite",
            Pattern::RandRw => "randrw",
        }
    }
}

/// Whether blocks carry checksums that are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Plain data.
    No,
    /// Write every block with a checksum, then read all of them back.
    AfterWrite,
    /// Only read back what the same job wrote before.
    Only,
}

/// One fio job on one device or file of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FioJob {
    /// A name for reports.
    pub name: String,
    /// The device in the guest, such as `/dev/vda`.
    pub target: String,
    /// The order of the I/O.
    pub pattern: Pattern,
    /// Bytes per request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
    /// First byte of the area used.
    pub offset: u64,
    /// Bytes of the area used; `None` is the rest of the device.
    pub bytes: Option<u64>,
    /// Go round the area for so long; `None` is once over the area.
    pub runtime: Option<Duration>,
    /// Checksums.
    pub verify: Verify,
    /// An fsync after so many writes; 0 is none.
    pub fsync_every: u32,
}

impl FioJob {
    /// A 4 KiB job of depth 1 over the whole of `target`, once, unverified.
    pub fn new(name: &str, target: &str, pattern: Pattern) -> FioJob {
        FioJob {
            name: name.to_owned(),
            target: target.to_owned(),
            pattern,
            block_bytes: 4096,
            depth: 1,
            offset: 0,
            bytes: None,
            runtime: None,
            verify: Verify::No,
            fsync_every: 0,
        }
    }

    /// fio's arguments, for a shell (no value needs quoting).
    pub fn args(&self) -> String {
        let mut args = vec![
            format!("--name={}", self.name),
            format!("--filename={}", self.target),
            format!("--rw={}", self.pattern.name()),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.depth),
            format!("--offset={}", self.offset),
            format!("--fsync={}", self.fsync_every),
        ];
        // One thread and no thread pool in the kernel: the least work a
        // translated CPU can do per request.
        args.extend(
            [
                "--ioengine=libaio",
                "--direct=1",
                "--thread",
                "--output-format=json",
            ]
            .map(String::from),
        );
        args.extend(self.bytes.map(|bytes| format!("--size={bytes}")));
        if let Some(runtime) = self.runtime {
            args.push("--time_based".into());
            args.push(format!("--runtime={}ms", runtime.as_millis()));
        }
        match self.verify {
            Verify::No => {}
            Verify::AfterWrite => args.push("--do_verify=1".into()),
            Verify::Only => args.push("--verify_only=1".into()),
        }
        if self.verify != Verify::No {
            args.extend(["--verify=crc32c", "--verify_fatal=1"].map(String::from));
        }
        args.join(" ")
    }
}

/// One direction of a job's result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FioStats {
    /// Requests per second.
    pub iops: f64,
    /// Mean latency from submission to completion.
    pub mean: Duration,
    /// The latency that half of the requests did not exceed: from submission if fio was told
    /// `--lat_percentiles=1`, else in the kernel and below. So are the next two.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// 99.9th percentile, if fio was told to list it.
    pub p999: Duration,
    /// Requests done.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
}

impl FioStats {
    /// No request at all.
    pub(crate) const NOTHING: FioStats = FioStats {
        iops: 0.0,
        mean: Duration::ZERO,
        p50: Duration::ZERO,
        p99: Duration::ZERO,
        p999: Duration::ZERO,
        requests: 0,
        bytes: 0,
    };
}

/// A job's result; a direction that moved nothing is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct FioReport {
    /// The job's name.
    pub name: String,
    /// Reads, those of a verify pass included.
    pub read: Option<FioStats>,
    /// Writes.
    pub write: Option<FioStats>,
    /// Both, instead, of a job with `--unified_rw_reporting=mixed`.
    pub mixed: Option<FioStats>,
}

impl FioReport {
    /// Reads fio's JSON, whatever notes are printed before it. A job that ended
    /// with an error (I/O or checksum) is an error here.
    pub fn parse(text: &str) -> Result<FioReport> {
        let bad = |text: String| Error::Parse {
            what: "fio's report",
            text,
        };
        let start = text
            .find("{\n")
            .ok_or_else(|| bad(text.trim().to_owned()))?;
        let mut reports =
            serde_json::Deserializer::from_str(&text[start..]).into_iter::<RawReport>();
        let report = match reports.next() {
            Some(Ok(report)) => report,
            Some(Err(error)) => return Err(bad(error.to_string())),
            None => return Err(bad("it is empty".into())),
        };
        let Some(job) = report.jobs.into_iter().next() else {
            return Err(bad("it has no job".into()));
        };
        if job.error != 0 {
            return Err(Error::Guest {
                channel: "fio",
                text: format!("job {} failed with errno {}", job.jobname, job.error),
            });
        }
        Ok(FioReport {
            name: job.jobname,
            read: job.read.and_then(|read| read.stats()),
            write: job.write.and_then(|write| write.stats()),
            mixed: job.mixed.and_then(|mixed| mixed.stats()),
        })
    }
}

/// The parts of fio's JSON that are read here (fio's HOWTO, "json output").
#[derive(Deserialize)]
struct RawReport {
    jobs: Vec<RawJob>,
}

#[derive(Deserialize)]
struct RawJob {
    jobname: String,
    #[serde(default)]
    error: i64,
    read: Option<RawDirection>,
    write: Option<RawDirection>,
    mixed: Option<RawDirection>,
}

#[derive(Deserialize)]
struct RawDirection {
    io_bytes: u64,
    total_ios: u64,
    iops: f64,
    lat_ns: RawLatency,
    clat_ns: RawLatency,
}

#[derive(Deserialize)]
struct RawLatency {
    mean: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, u64>,
}

impl RawDirection {
    fn stats(&self) -> Option<FioStats> {
        let percentile = |name: &str| {
            let latencies = [&self.lat_ns, &self.clat_ns].into_iter();
            let listed = latencies.filter_map(|latency| latency.percentile.get(name));
            Duration::from_nanos(listed.copied().next().unwrap_or_default())
        };
        (self.total_ios > 0).then(|| FioStats {
            iops: self.iops,
            mean: Duration::from_nanos(self.lat_ns.mean as u64),
            p50: percentile("50.000000"),
            p99: percentile("99.000000"),
            p999: percentile("99.900000"),
            requests: self.total_ios,
            bytes: self.io_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str =
        r#"{"io_bytes":0,"total_ios":0,"iops":0.0,"lat_ns":{"mean":0.0},"clat_ns":{"mean":0.0}}"#;
    const READ: &str = r#"{"io_bytes":8192,"total_ios":2,"iops":123.5,"lat_ns":{"mean":2500.5},
        "clat_ns":{"mean":2000.0,"percentile":{"50.000000":1000,"99.000000":9000}}}"#;

    fn report(error: i32) -> String {
        format!(
            "note: both iodepth >= 1 and synchronous\n{{\n\"jobs\":[{{\"jobname\":\"j\",\"error\":{error},\"read\":{READ},\"write\":{EMPTY}}}]}}\n"
        )
    }

    #[test]
    fn the_numbers_of_a_job_are_read_past_fios_notes() {
        let report = FioReport::parse(&report(0)).unwrap();
        let read = report.read.unwrap();
        assert_eq!(
            (report.name.as_str(), read.requests, read.bytes),
            ("j", 2, 8192)
        );
        assert_eq!(read.iops, 123.5);
        assert_eq!((read.mean.as_nanos(), read.p99.as_nanos()), (2500, 9000));
        assert_eq!(report.write, None);
    }

    #[test]
    fn a_failed_job_and_a_torn_report_are_errors() {
        assert!(FioReport::parse(&report(84)).is_err());
        assert!(FioReport::parse(&report(0)[..120]).is_err());
        assert!(FioReport::parse("fio: cannot open /dev/vdz\n").is_err());
        assert!(FioReport::parse("").is_err());
    }

    #[test]
    fn a_verify_job_checks_what_it_wrote() {
        let mut job = FioJob::new("v", "/dev/vda", Pattern::RandWrite);
        assert!(!job.args().contains("verify"));
        job.verify = Verify::AfterWrite;
        assert!(job.args().contains("--do_verify=1") && job.args().contains("--verify=crc32c"));
        job.verify = Verify::Only;
        assert!(job.args().contains("--verify_only=1") && job.args().contains("--verify=crc32c"));
    }
}
