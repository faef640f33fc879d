//! Certificates for TLS as Gluster's documents tell to make them, in folders of the test's own: where
//! Gluster looks for them is compiled in, so the test has mounts of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_harness::run_command;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::PATIENCE;

/// Where Debian's Gluster may look: 10.3 in the first, 11.1 in the second.
const FOLDERS: [&str; 2] = ["/usr/lib/ssl", "/etc/ssl"];
const GLUSTERD: &str = "/var/lib/glusterd";
/// The days of a certificate whose time is over.
const LONG_AGO: [&str; 4] = [
    "-startdate",
    "20200101000000Z",
    "-enddate",
    "20200201000000Z",
];

/// The folders `/usr/lib/ssl`, `/etc/ssl` and `/var/lib/glusterd`, empty, as this thread and what
/// it starts from now on see them.
pub struct Certificates {
    made: tempfile::TempDir,
    /// The one of [`FOLDERS`] in which the installed Gluster looks, and the other.
    folder: &'static str,
    other: &'static str,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// To be called before a cluster is started, from the thread that starts it.
    pub fn in_own_folders() -> Certificates {
        let made = tempfile::tempdir().unwrap();
        let version = run_command(Command::new("gluster").arg("--version"), PATIENCE).unwrap();
        let [folder, other] = match version.starts_with("glusterfs 10.") {
            true => FOLDERS,
            false => [FOLDERS[1], FOLDERS[0]],
        };
        own_mounts();
        for place in [folder, other, GLUSTERD] {
            fs::create_dir_all(place).unwrap();
            hide(made.path(), place);
        }
        Certificates {
            made,
            folder,
            other,
        }
    }

    /// Runs `job` as on another host: what it starts has empty folders of its own, which `job`
    /// fills; those who run already do not see them.
    pub fn on_another_host<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let enter_and_run = || {
            own_mounts();
            for place in [self.folder, self.other, GLUSTERD] {
                hide(self.made.path(), place);
            }
            job()
        };
        std::thread::scope(|scope| scope.spawn(enter_and_run).join().unwrap())
    }

    /// A certificate that signs itself, as `openssl req -x509` makes it.
    pub fn make(&self, name: &str) -> Pair {
        let pair = self.pair(name);
        self.openssl(
            &[
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ],
            |command| {
                command.arg("-subj").arg(format!("/CN={name}"));
                command
                    .arg("-keyout")
                    .arg(&pair.key)
                    .arg("-out")
                    .arg(&pair.certificate);
            },
        );
        pair
    }

    /// Of X.509's version 1, as `openssl x509 -req` makes it before OpenSSL 3.2.
    pub fn v1() -> Pair {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gluster/testdata/tls/old");
        Pair {
            certificate: made.with_extension("pem"),
            key: made.with_extension("key"),
        }
    }

    /// One whose time is over.
    pub fn make_expired(&self, name: &str) -> Pair {
        let (pair, request) = self.request(name);
        self.sign(&request, &pair, &pair.key, &["-selfsign"], &LONG_AGO);
        pair
    }

    /// One that is signed by another.
    pub fn make_signed(&self, name: &str, by: &Pair) -> Pair {
        let (pair, request) = self.request(name);
        self.openssl(
            &["x509", "-req", "-days", "2", "-CAcreateserial"],
            |command| {
                let extensions = self.made.path().join(format!("{name}.ext"));
                fs::write(&extensions, "basicConstraints=CA:FALSE\n").unwrap();
                command
                    .arg("-extfile")
                    .arg(extensions)
                    .arg("-in")
                    .arg(&request);
                command
                    .arg("-CA")
                    .arg(&by.certificate)
                    .arg("-CAkey")
                    .arg(&by.key);
                command.arg("-out").arg(&pair.certificate);
            },
        );
        pair
    }

    /// What this host shows from now on.
    pub fn show(&self, pair: &Pair) {
        fs::copy(&pair.certificate, self.file("glusterfs.pem")).unwrap();
        fs::copy(&pair.key, self.file("glusterfs.key")).unwrap();
    }

    /// Whom this host believes from now on.
    pub fn believe(&self, pairs: &[&Pair]) {
        list(pairs, &self.file("glusterfs.ca"));
    }

    /// A list of whom to believe, for a volume.
    pub fn make_list(&self, pairs: &[&Pair]) -> PathBuf {
        let path = self.made.path().join("volume.ca");
        list(pairs, &path);
        path
    }

    /// A pair where this host's Gluster does not look: it, and we, should not mind.
    pub fn leave_elsewhere(&self, pair: &Pair) {
        let file = |name: &str| Path::new(self.other).join(name);
        fs::copy(&pair.certificate, file("glusterfs.pem")).unwrap();
        fs::copy(&pair.key, file("glusterfs.key")).unwrap();
        list(&[pair], &file("glusterfs.ca"));
    }

    /// A file where this host's Gluster looks for it.
    pub fn file(&self, name: &str) -> PathBuf {
        Path::new(self.folder).join(name)
    }

    /// Its path, as messages tell it.
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// glusterd, and who asks it, speak TLS.
    pub fn secure_glusterd(&self) {
        fs::write(Path::new(GLUSTERD).join("secure-access"), "").unwrap();
    }

    fn pair(&self, name: &str) -> Pair {
        Pair {
            certificate: self.made.path().join(format!("{name}.pem")),
            key: self.made.path().join(format!("{name}.key")),
        }
    }

    fn request(&self, name: &str) -> (Pair, PathBuf) {
        let (pair, request) = (
            self.pair(name),
            self.made.path().join(format!("{name}.req")),
        );
        self.openssl(
            &["req", "-new", "-newkey", "rsa:2048", "-nodes"],
            |command| {
                command.arg("-subj").arg(format!("/CN={name}"));
                command
                    .arg("-keyout")
                    .arg(&pair.key)
                    .arg("-out")
                    .arg(&request);
            },
        );
        (pair, request)
    }

    /// With dates of one's own, which needs OpenSSL's small authority.
    fn sign(&self, request: &Path, pair: &Pair, key: &Path, how: &[&str], dates: &[&str]) {
        let folder = tempfile::tempdir_in(self.made.path()).unwrap();
        let config = folder.path().join("ca.cnf");
        fs::write(folder.path().join("index"), "").unwrap();
        fs::write(folder.path().join("serial"), "01\n").unwrap();
        let text = format!(
            "[ca]\ndefault_ca=c\n[c]\ndir={0}\ndatabase={0}/index\nserial={0}/serial\nnew_certs_dir={0}\n\
             default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nbasicConstraints=CA:TRUE\n",
            folder.path().display()
        );
        fs::write(&config, text).unwrap();
        self.openssl(&["ca", "-batch", "-notext", "-config"], |command| {
            command.arg(&config).args(how).args(dates);
            command.arg("-keyfile").arg(key).arg("-in").arg(request);
            command.arg("-out").arg(&pair.certificate);
        });
    }

    fn openssl(&self, args: &[&str], more: impl FnOnce(&mut Command)) {
        let mut command = Command::new("openssl");
        // Its own configuration is in the folder that is hidden.
        let config = self.made.path().join("openssl.cnf");
        let text =
            "[req]\ndistinguished_name=n\nx509_extensions=e\n[n]\n[e]\nbasicConstraints=CA:TRUE\n";
        fs::write(&config, text).unwrap();
        command.env("OPENSSL_CONF", config).args(args);
        more(&mut command);
        run_command(&mut command, PATIENCE).unwrap();
    }
}

fn list(pairs: &[&Pair], path: &Path) {
    let texts = pairs
        .iter()
        .map(|pair| fs::read(&pair.certificate).unwrap());
    fs::write(path, texts.collect::<Vec<_>>().concat()).unwrap();
}

/// What this thread, and what it starts, mounts from now on is seen by nobody else.
fn own_mounts() {
    // SAFETY: file descriptors stay shared; only the mounts are this thread's own.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let mut alone = Command::new("mount");
    run_command(alone.args(["--make-rprivate", "/"]), PATIENCE).unwrap();
}

/// Puts a new empty folder over `place`.
fn hide(made: &Path, place: &str) {
    let empty = tempfile::tempdir_in(made).unwrap().keep();
    let mut bind = Command::new("mount");
    bind.arg("--bind").arg(empty).arg(place);
    run_command(&mut bind, PATIENCE).unwrap();
}
