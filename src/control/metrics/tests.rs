//! The text in two situations, as kept in `snapshots/`, and the ways to it over real
//! sockets and files.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use insta::assert_snapshot;

use super::http::{MAX_HEAD, Wanted, judge};
use super::*;
use crate::control::samples::{self, MIB, copying, healer, healing, report, waiting};
use crate::control::status::FilesStatus;

const PATIENCE: Duration = Duration::from_secs(20);

fn healed() -> Status {
    let mut snapshot = samples::dirty(32 * MIB, 96 * MIB);
    snapshot.copies[2].locked = false;
    let mut at_work = healer([copying(8 * MIB), waiting("no answer")]);
    at_work.bandwidth = 100 * MIB;
    healing(&mut snapshot).healer = Some(at_work);
    report(&snapshot)
}

#[test]
fn openmetrics_of_an_image_that_is_healed() {
    assert_snapshot!(openmetrics(&[healed()]));
}

#[test]
fn textfile_of_a_clean_image() {
    assert_snapshot!(textfile(&[report(&samples::clean())]));
}

#[test]
fn of_an_image_in_shards_it_says_how_many_are_marked() {
    let mut image = report(&samples::clean());
    let of_files = |image: &Status| {
        let text = textfile(std::slice::from_ref(image));
        let samples = text.lines().filter(|line| line.contains("_image_files"));
        samples.filter(|line| !line.starts_with('#')).count()
    };
    assert_eq!(of_files(&image), 0, "it is one file");
    image.files = Some(FilesStatus {
        count: 16,
        piece_bytes: 64 * MIB,
        marked: vec![0, 3],
    });
    let text = textfile(&[image]);
    let labels = r#"{volume="vms",image="/vm1.img"}"#;
    for (name, value) in [("image_files", "16.0"), ("image_files_marked", "2.0")] {
        let sample = format!("bypass_blk_{name}{labels} {value}\n");
        assert!(text.contains(&sample), "{text}");
    }
}

#[test]
fn no_image_is_a_complete_document() {
    assert_eq!(openmetrics(&[]), "# EOF\n");
    assert_eq!(textfile(&[]), "");
}

#[test]
fn every_sample_belongs_to_the_family_named_before_it() {
    for (text, total) in [
        (openmetrics(&[healed()]), "_total"),
        (textfile(&[healed()]), ""),
    ] {
        let mut family = (String::new(), String::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["#", "TYPE", name, kind] => family = (name.to_owned(), kind.to_owned()),
                ["#", ..] => {}
                _ => {
                    let name = line.split('{').next().unwrap();
                    let suffix = if family.1 == "counter" { total } else { "" };
                    assert_eq!(name, format!("{}{suffix}", family.0), "{text}");
                }
            }
        }
    }
}

#[test]
fn an_image_s_name_cannot_forge_lines_or_labels() {
    let mut image = report(&samples::clean());
    image.image = "/a\"b\\c\nd 1".to_owned();
    let text = openmetrics(&[image]);
    assert!(text.contains("image=\"/a\\\"b\\\\c\\nd 1\""), "{text}");
    assert!(
        text.lines()
            .all(|line| line.starts_with('#') || line.starts_with("bypass_blk_"))
    );
}

#[test]
fn an_image_that_is_served_twice_counts_once_and_as_the_writable_disk() {
    let mut reader = report(&samples::clean());
    reader.serving.as_mut().unwrap().read_only = true;
    reader.size = 1;
    let writer = report(&samples::clean());
    for images in [[reader.clone(), writer.clone()], [writer.clone(), reader]] {
        assert!(openmetrics(&images) == openmetrics(std::slice::from_ref(&writer)));
    }
}

#[test]
fn every_state_has_the_name_that_the_document_gives_it() {
    for state in crate::control::status::State::ALL {
        let document = serde_json::to_value(state).unwrap();
        assert_eq!(document, state.name());
    }
}

#[test]
fn an_endpoint_is_a_socket_or_a_file_that_node_exporter_reads() {
    let endpoint = |text: &str| text.parse::<Endpoint>();
    assert_eq!(endpoint("unix:/a:b"), Ok(Endpoint::Unix("/a:b".into())));
    let file = Endpoint::Textfile("/x/y.prom".into());
    assert_eq!(endpoint("textfile:/x/y.prom"), Ok(file));
    for bad in ["", "unix", "unix:", "/a", "tcp:1", "textfile:/x/y.txt"] {
        assert!(endpoint(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_request_is_judged_when_its_head_is_there_and_refused_when_it_is_none() {
    use Wanted::{HeadOnly, Metrics, Refusal};
    let head = |text: &str| judge(text.as_bytes());
    assert_eq!(
        head("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
        Some(Metrics)
    );
    assert_eq!(head("GET /metrics?x=y HTTP/1.0\n\n"), Some(Metrics));
    assert_eq!(head("HEAD / HTTP/1.0\r\n\r\n"), Some(HeadOnly));
    assert_eq!(head("GET /metrics HTTP/1.0\r\nHost: x\r\n"), None);
    let code = |text: &str| match head(text) {
        Some(Refusal(line)) => line[..3].to_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(code("GET /other HTTP/1.0\r\n\r\n"), "404");
    assert_eq!(code("POST /metrics HTTP/1.0\r\n\r\n"), "405");
    assert_eq!(code("GET /metrics\r\n\r\n"), "400");
    assert_eq!(code("GET /metrics HTTP/2\r\n\r\n"), "400");
    assert_eq!(code("\r\n\r\n"), "400");
    assert_eq!(code(&"x".repeat(MAX_HEAD + 1)), "431");
    assert!(judge(b"\xff\xfe / HTTP/1.0\r\n\r\n").is_some());
}

/// A socket that gives one image out.
fn served() -> (tempfile::TempDir, PathBuf, Metrics) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let endpoint = Endpoint::Unix(path.clone());
    let metrics = Metrics::start(&endpoint, || vec![healed()]).unwrap();
    (directory, path, metrics)
}

fn ask(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn a_scrape_gets_the_whole_text_and_its_type_and_length() {
    let (_directory, path, _metrics) = served();
    let reply = ask(&path, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(head.lines().any(|line| line == kind), "{head}");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    assert!(body == openmetrics(&[healed()]));
    let reply = ask(&path, b"HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(
        reply.contains(&length) && reply.ends_with("\r\n\r\n"),
        "{reply}"
    );
}

#[test]
fn a_request_that_is_none_gets_a_refusal_and_the_next_one_an_answer() {
    let (_directory, path, _metrics) = served();
    let long = vec![b'x'; 2 * MAX_HEAD];
    assert!(ask(&path, &long[..MAX_HEAD + 1]).starts_with("HTTP/1.0 431 "));
    let refused = ask(&path, b"PUT /metrics HTTP/1.0\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.0 405 "), "{refused}");
    assert!(refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
    assert!(ask(&path, b"GET /x HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404 "));
    assert!(ask(&path, b"GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
}

#[test]
fn a_client_that_is_silent_or_goes_away_holds_nobody_up_for_good() {
    let (_directory, path, _metrics) = served();
    let _silent = UnixStream::connect(&path).unwrap();
    let mut cut_off = UnixStream::connect(&path).unwrap();
    cut_off.write_all(b"GET /met").unwrap();
    cut_off.shutdown(Shutdown::Write).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    assert!(ask(&path, b"GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 "));
    let mut reply = String::new();
    cut_off.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.0 400 "), "{reply}");
}

#[test]
fn only_a_dead_process_s_socket_is_replaced() {
    let (directory, path, metrics) = served();
    let endpoint = Endpoint::Unix(path.clone());
    let again = Metrics::start(&endpoint, Vec::new);
    assert!(matches!(again, Err(MetricsError::InUse(_))), "{again:?}");
    drop(metrics);
    assert!(!path.exists(), "the socket is left behind");

    drop(UnixListener::bind(&path).unwrap());
    let over_dead = Metrics::start(&endpoint, Vec::new).unwrap();
    assert!(ask(&path, b"GET / HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n# EOF\n"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(over_dead);

    let file = directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let over_file = Metrics::start(&Endpoint::Unix(file.clone()), Vec::new);
    assert!(matches!(over_file, Err(MetricsError::Bind { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn a_file_is_there_at_once_is_kept_up_to_date_and_goes_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bypass.prom");
    let size = Arc::new(AtomicU64::new(4711));
    let now = size.clone();
    let source = move || {
        let mut image = healed();
        image.size = now.load(Ordering::SeqCst);
        vec![image]
    };
    let metrics = Metrics::start(&Endpoint::Textfile(path.clone()), source).unwrap();
    let has = |text: &str| std::fs::read_to_string(&path).unwrap().contains(text);
    assert!(has("} 4711.0\n"));
    size.store(4712, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while !has("} 4712.0\n") {
        assert!(Instant::now() < deadline, "not written anew");
        // The period is over.
        metrics.thread.as_ref().unwrap().thread().unpark();
        std::thread::yield_now();
    }
    drop(metrics);
    let left = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 0, "a file is left behind");
}

#[test]
fn a_file_that_cannot_be_written_is_told_at_the_start() {
    let endpoint = Endpoint::Textfile("/nonexistent/x.prom".into());
    let refused = Metrics::start(&endpoint, Vec::new);
    assert!(matches!(refused, Err(MetricsError::Write { .. })));
}
