use super::*;
use crate::control::socket::{Answer, ControlSocket};
use crate::control::status::State;
use crate::control::{samples, severity};

/// A host with two folders and no healer.
struct Host {
    _folder: tempfile::TempDir,
    places: Places,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        std::fs::create_dir(&run_dir).unwrap();
        let state = StateDir::new(&folder.path().join("state"));
        state.create().unwrap();
        let healer = run_dir.join("heald.socket");
        let places = Places {
            run_dir,
            state,
            healer,
        };
        Self {
            _folder: folder,
            places,
        }
    }

    /// Keeps what a session on `/vm{number}.img` keeps.
    fn remember(&self, number: u128, settled: bool) {
        let gfid = Uuid::from_u128(number);
        let entry = Entry {
            brick: format!("node1:{}", self.brick().display()),
            settled,
            ..Entry::example("my-vms", &format!("/vm{number}.img"), gfid)
        };
        let kept = self.places.state.change("my-vms", gfid, |_| Some(entry));
        kept.unwrap();
    }

    fn brick(&self) -> PathBuf {
        self.places.run_dir.join("brick")
    }

    /// A socket that nobody listens on any more.
    fn killed(&self, number: u128, pid: u32) -> PathBuf {
        let name = format!("my-vms-{}-{pid}.control", Uuid::from_u128(number));
        let path = self.places.run_dir.join(name);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        path
    }

    fn survey(&self) -> Survey {
        survey(&self.places)
    }
}

fn detail(status: &Status) -> &str {
    status.detail.as_deref().unwrap()
}

#[test]
fn a_killed_daemon_s_image_is_told_by_name_and_with_what_is_known_of_its_copies() {
    let host = Host::new();
    host.remember(1, false);
    host.remember(2, true);
    let socket = host.killed(1, 7683);
    host.killed(2, 7684);
    host.killed(3, 7685);
    let found = host.survey();
    assert_eq!(found.unseen, Vec::<String>::new());
    let [first, second, third] = found.images.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(
        (first.volume.as_str(), first.image.as_str()),
        ("my-vms", "/vm1.img")
    );
    assert_eq!(first.state, State::Unknown);
    let unserved = first.unserved.as_ref().unwrap();
    assert_eq!(
        (unserved.daemon, unserved.pid, unserved.settled),
        (Fate::Killed, Some(7683), Some(false))
    );
    assert!(
        detail(first).contains(socket.to_str().unwrap()),
        "{first:?}"
    );
    assert!(detail(first).contains("NO healer"), "{first:?}");
    assert!(detail(second).contains("equal"), "{second:?}");
    // Nothing is remembered of it, as of one that only read.
    assert!(third.image.contains(&Uuid::from_u128(3).to_string()));
    assert_eq!(severity::judge(first).0, severity::Severity::GuestSuffers);
}

#[test]
fn an_image_that_nobody_serves_is_told_until_it_is_settled() {
    let host = Host::new();
    host.remember(1, false);
    host.remember(2, true);
    let found = host.survey();
    let [only] = found.images.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!(only.image, "/vm1.img");
    assert_eq!(only.unserved.as_ref().unwrap().daemon, Fate::Ended);
    assert_eq!(only.size, 0);
    host.places
        .state
        .settle("my-vms", Uuid::from_u128(1))
        .unwrap();
    assert!(host.survey().images.is_empty());
}

#[test]
fn an_image_whose_file_is_gone_is_told_as_that_and_not_as_one_to_heal() {
    let host = Host::new();
    host.remember(0xabcd, false);
    let gfid = Uuid::from_u128(0xabcd).to_string();
    let folder = host.brick().join(".glusterfs/00/00");
    std::fs::create_dir_all(&folder).unwrap();
    let gone = host.survey().images.remove(0);
    assert!(detail(&gone).contains("not on node1:"), "{gone:?}");
    std::fs::write(folder.join(gfid), [0; 4096]).unwrap();
    let there = host.survey().images.remove(0);
    assert_eq!(there.size, 4096);
    assert!(detail(&there).contains("may miss data"), "{there:?}");
}

#[test]
fn a_served_image_is_its_daemon_s_alone_and_one_that_is_stuck_is_told() {
    let host = Host::new();
    host.remember(1, false);
    let run_dir = &host.places.run_dir;
    let served = ControlSocket::bind(run_dir, "my-vms", Uuid::from_u128(1)).unwrap();
    let mut status = samples::report(&samples::clean());
    (status.volume, status.gfid) = ("my-vms".to_owned(), Uuid::from_u128(1).to_string());
    let answer = move |_| Answer::Status(Box::new(status.clone()));
    served.answer(answer).unwrap();
    let refuses = ControlSocket::bind(run_dir, "my-vms", Uuid::from_u128(2)).unwrap();
    let refusal = |_| Answer::Refused {
        why: "not today".to_owned(),
    };
    refuses.answer(refusal).unwrap();
    let images = host.survey().images;
    assert_eq!(images.len(), 2, "{images:?}");
    let silent = images.iter().find(|image| image.unserved.is_some());
    let silent = silent.unwrap();
    assert_eq!(silent.unserved.as_ref().unwrap().daemon, Fate::Silent);
    assert!(detail(silent).contains("not today"), "{silent:?}");
}

#[test]
fn a_daemon_that_takes_too_long_is_silent_and_one_that_is_gone_was_killed() {
    let heard = |kind: io::ErrorKind| {
        without_answer(ControlError::Ask {
            path: "s".into(),
            source: kind.into(),
        })
    };
    for kind in [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock] {
        assert!(matches!(heard(kind), Heard::Silent(why) if why.contains("takes too long")));
    }
    let other = heard(io::ErrorKind::PermissionDenied);
    assert!(matches!(other, Heard::Silent(_)));
    assert!(matches!(
        heard(io::ErrorKind::ConnectionRefused),
        Heard::Killed
    ));
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let host = Host::new();
    let state = host.places.state.map("v", Uuid::nil());
    let document = state.with_extension("json");
    std::fs::write(&document, b"{ half").unwrap();
    let found = host.survey();
    let [unseen] = found.unseen.as_slice() else {
        panic!("{found:?}");
    };
    assert!(unseen.contains(document.to_str().unwrap()), "{unseen}");
    // Files where folders should be.
    let file = tempfile::NamedTempFile::new().unwrap();
    let places = Places {
        run_dir: file.path().to_owned(),
        state: StateDir::new(file.path()),
        healer: file.path().join("heald.socket"),
    };
    assert_eq!(survey(&places).unseen.len(), 2);
}

#[test]
fn a_socket_s_name_says_whose_it_is() {
    let gfid = Uuid::from_u128(7);
    let name = |text: String| Name::of(Path::new(&text));
    let found = name(format!("/run/x/a-b-{gfid}-12.control")).unwrap();
    assert_eq!(
        (found.volume.as_str(), found.gfid, found.pid),
        ("a-b", gfid, 12)
    );
    for bad in [
        "/run/x.control".to_owned(),
        format!("/run/{gfid}-1.control"),
        format!("/run/a-{gfid}.control"),
        format!("/run/a-{gfid}-x.control"),
        format!("/run/é{gfid}-1.control"),
    ] {
        assert_eq!(name(bad.clone()), None, "{bad}");
    }
}

#[test]
fn an_image_that_waits_for_its_turn_is_told_with_its_place_in_the_queue() {
    let host = Host::new();
    for number in 1..=3 {
        host.remember(number, false);
    }
    let healer = ControlSocket::bind_at(&host.places.healer).unwrap();
    let queue = HealQueue {
        healing: vec!["my-vms/vm1.img".to_owned()],
        queued: vec!["my-vms/vm3.img".to_owned(), "my-vms/vm2.img".to_owned()],
    };
    let answer = move |request| match request {
        Request::Queue => Answer::Queue(queue.clone()),
        _ => panic!("{request:?}"),
    };
    healer.answer(answer).unwrap();
    let found = host.survey().images;
    let told: Vec<_> = found.iter().map(detail).collect();
    assert!(told[0].contains("its log says"), "{told:?}");
    assert!(told[1].contains("as number 2 of 2"), "{told:?}");
    assert!(told[2].contains("as number 1 of 2"), "{told:?}");
}
