//! What is measured on: a replica-3 volume with its images, our daemons that hold theirs
//! all the time, our device without marks beside one of them, and how each way is begun and ended for a cell.
//!
//! fio and qemu-storage-daemon write to the brick's file behind Gluster's back, so the
//! copies differ afterwards. They are thrown away with the cluster.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bypass_harness::progress::Step;
use bypass_harness::{
    Background, Cluster, Fill, Mount, Volume, VolumeKind, run_command, wait_until,
};
use serde_json::Value;

use crate::bare::{self, Bare};
use crate::counters::Watched;
use crate::device::{Device, Kind};
use crate::figures::{Figures, of_load};
use crate::fio::{self, Target};
use crate::load::{self, Job};
use crate::program::{Daemon, Program, end};
use crate::qsd::{Disk, Qsd};
use crate::way::{Contender, State, Way};
use crate::{BRICK, MIB, QUEUES};

const NODES: usize = 3;
const VOLUME: &str = "vms";
/// Ours, which the peers on the brick's file share.
const IMAGE: &str = "/bench.img";
/// That of Gluster's own clients: nobody ever writes to it behind their back.
const ORDINARY: &str = "/ordinary.img";
/// Ours in shards, the only one that is.
const SHARDED: &str = "/sharded.img";
/// Where its pieces are, but the first.
const PIECES: &str = "/.shard";
const WARM_UP_DEADLINE: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume with its images, warm.
pub struct Volumes {
    volume: Volume,
    area: u64,
    /// Bytes of a shard.
    shard: u64,
    mount: Option<Mount>,
}

impl Volumes {
    /// Makes them, of `area` bytes; Gluster's own clients get an image if they are among
    /// `ways`, and so does the way of shards, of `shard` MiB each.
    pub fn set_up(area: u64, shard: u64, ways: &[Way]) -> Result<Volumes, Box<dyn Error>> {
        let step = Step::begin("a replica-3 volume on three nodes");
        let cluster = Cluster::start(NODES)?;
        let off = [("cluster.self-heal-daemon", "off")];
        let volume = cluster.create_volume(VOLUME, VolumeKind::Replica(NODES), &off)?;
        volume.start()?;
        step.done("");
        let step = Step::begin(&format!("images of {} MiB", area / MIB));
        let ordinary = [Way::Fuse, Way::Gfapi, Way::QsdGluster];
        let images: &[&str] = match ways.iter().any(|way| ordinary.contains(way)) {
            true => &[IMAGE, ORDINARY],
            false => &[IMAGE],
        };
        for image in images {
            volume.create_image(image, area, Fill::Noise)?;
            warm(&volume.brick_file(BRICK, image))?;
        }
        if ways.contains(&Way::Sharded) {
            volume.set("features.shard-block-size", &format!("{shard}MB"))?;
            volume.set("features.shard", "on")?;
            create_sharded(&volume, area)?;
            for file in sharded_files(&volume)? {
                warm(&volume.brick_file(BRICK, &file))?;
            }
        }
        let mount = ways.contains(&Way::Fuse).then(|| volume.mount(BRICK));
        step.done("");
        Ok(Volumes {
            mount: mount.transpose()?,
            volume,
            area,
            shard: shard * MIB,
        })
    }

    /// Starts our daemons if the program is given, which hold their images from now on. `bare` is the
    /// program that serves with our device alone: the same file from now on too, if that is
    /// among `ways`, so that both are as old in every cell.
    pub fn serve<'a>(
        &'a self,
        program: Option<&'a Program>,
        bare: &'a Path,
        ways: &[Way],
    ) -> Result<Rig<'a>, Box<dyn Error>> {
        let options = [format!("--num-queues={QUEUES}")];
        let serve = |program: &'a Program, image, piece| -> Result<Ours<'a>, Box<dyn Error>> {
            let daemon = program.serve_with(&self.volume, image, &options)?;
            Ok(Ours {
                program,
                daemon,
                image,
                area: self.area,
                piece,
            })
        };
        let ours = program.map(|program| serve(program, IMAGE, self.area));
        let ours = ours.transpose()?;
        let sharded = program.filter(|_| ways.contains(&Way::Sharded));
        let sharded = sharded.map(|program| serve(program, SHARDED, self.shard));
        let sharded = sharded.transpose()?;
        let unmarked = ways.contains(&Way::Unmarked).then(|| {
            let path = self.volume.brick_file(BRICK, IMAGE);
            let place = self.volume.brick_node(BRICK).place();
            Bare::start(place, bare, &bare::Disk::File(&path))
        });
        Ok(Rig {
            volumes: self,
            bare,
            unmarked: unmarked.transpose()?,
            ours,
            sharded,
        })
    }

    fn gluster(&self) -> Result<Vec<u32>, Box<dyn Error>> {
        let mut pids = Vec::new();
        for brick in self.volume.bricks() {
            pids.extend(self.volume.brick_pid(brick.index)?);
            pids.extend(self.volume.brick_node(brick.index).glusterd_pid()?);
        }
        if let Some(mount) = &self.mount {
            pids.extend(mount.client_pid()?);
        }
        Ok(pids)
    }
}

/// Reads all of a file past the page cache: the first reader pays for the host's cache.
fn warm(file: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new("dd");
    command.arg(format!("if={}", file.display()));
    command.args(["of=/dev/null", "bs=1M", "iflag=direct"]);
    run_command(&mut command, WARM_UP_DEADLINE)?;
    Ok(())
}

/// Everything, ready for cells.
pub struct Rig<'a> {
    volumes: &'a Volumes,
    bare: &'a Path,
    unmarked: Option<Bare>,
    ours: Option<Ours<'a>>,
    sharded: Option<Ours<'a>>,
}

struct Ours<'a> {
    program: &'a Program,
    daemon: Daemon<'a>,
    image: &'static str,
    /// Bytes of the image.
    area: u64,
    /// Bytes of it in each of its files.
    piece: u64,
}

impl Rig<'_> {
    /// Bytes of the image.
    pub fn area(&self) -> u64 {
        self.volumes.area
    }

    /// Our daemon.
    ///
    /// # Errors
    /// When it was not started.
    pub fn daemon(&self) -> Result<&Daemon<'_>, Box<dyn Error>> {
        Ok(&self.ours.as_ref().ok_or("no daemon of ours")?.daemon)
    }

    fn of(&self, way: Way) -> Result<&Ours<'_>, Box<dyn Error>> {
        let ours = match way {
            Way::Sharded => &self.sharded,
            _ => &self.ours,
        };
        Ok(ours.as_ref().ok_or("no daemon of ours")?)
    }

    /// Makes one of our images clean and then marked, so that a load measures no marks. Returns
    /// its socket.
    ///
    /// # Errors
    /// When its daemon was not started, or cannot.
    pub fn begin_dirty(&self, way: Way) -> Result<PathBuf, Box<dyn Error>> {
        let ours = self.of(way)?;
        ours.make_clean(&self.volumes.volume)?;
        ours.make_dirty(&self.volumes.volume)?;
        Ok(ours.daemon.socket.clone())
    }

    /// Bytes that all peers together miss of one of our images.
    ///
    /// # Errors
    /// As above.
    pub fn behind(&self, way: Way) -> Result<u64, Box<dyn Error>> {
        let status = self.of(way)?.daemon.status()?;
        let copies = status["copies"].as_array().map(Vec::as_slice);
        let of_copy = |copy: &Value| copy["behind"]["bytes"].as_u64();
        Ok(copies.unwrap_or_default().iter().filter_map(of_copy).sum())
    }

    /// Heals one of our images; returns the bytes that were sent.
    ///
    /// # Errors
    /// As above, and when it is not healed.
    pub fn heal(&self, way: Way) -> Result<u64, Box<dyn Error>> {
        let ours = self.of(way)?;
        ours.program.heal(&self.volumes.volume, ours.image)?;
        ours.daemon.sent()
    }

    /// The state folder of our daemon, with its map.
    pub fn state_dir(&self) -> PathBuf {
        let node = self.volumes.volume.brick_node(BRICK);
        node.place().dir().join("blk-state")
    }

    /// One cell.
    pub fn measure(&self, contender: Contender, job: Job) -> Result<Figures, Box<dyn Error>> {
        let volume = &self.volumes.volume;
        let node = volume.brick_node(BRICK);
        let path = volume.brick_file(BRICK, IMAGE);
        let file = |aio, iothread| self.qsd(&Disk::File { path: &path, aio }, iothread, job);
        match contender.way {
            way @ (Way::Bypass | Way::Sharded) => {
                self.ours(self.of(way)?, contender.state.unwrap_or(State::Clean), job)
            }
            Way::QsdUring => file("io_uring", false),
            Way::QsdUringIothread => file("io_uring", true),
            Way::QsdNative => file("native", false),
            Way::QsdNativeIothread => file("native", true),
            Way::Fio => fio::run(volume, &Target::File(&path), job, self.gluster(None)?),
            Way::Fuse => {
                let mount = self.volumes.mount.as_ref().ok_or("no mount")?;
                let path = mount.path().join(ORDINARY.trim_start_matches('/'));
                fio::run(volume, &Target::File(&path), job, self.gluster(None)?)
            }
            Way::Gfapi => fio::run(volume, &Target::Gfapi(ORDINARY), job, self.gluster(None)?),
            Way::QsdGluster => {
                let (server, volume) = (node.address(), volume.name());
                let disk = Disk::Gluster {
                    server,
                    volume,
                    image: ORDINARY,
                };
                self.qsd(&disk, true, job)
            }
            Way::Unmarked => self.bare(self.unmarked.as_ref().ok_or("no bare device")?, job),
            Way::Null => self.qsd(&Disk::Null(self.area()), false, job),
            Way::BareNull => {
                let null = bare::Disk::Null(self.area());
                self.bare(&Bare::start(node.place(), self.bare, &null)?, job)
            }
        }
    }

    fn gluster(&self, healer: Option<&Background>) -> Result<Vec<u32>, Box<dyn Error>> {
        let mut pids = self.volumes.gluster()?;
        pids.extend(healer.map(Background::pid));
        Ok(pids)
    }

    fn qsd(&self, disk: &Disk<'_>, iothread: bool, job: Job) -> Result<Figures, Box<dyn Error>> {
        let node = self.volumes.volume.brick_node(BRICK);
        let qsd = Qsd::start(node, disk, iothread)?;
        let (serving, gluster) = (qsd.pid(), self.gluster(None)?);
        front_end(&qsd.socket, &Watched { serving, gluster }, job)
    }

    fn bare(&self, bare: &Bare, job: Job) -> Result<Figures, Box<dyn Error>> {
        let (serving, gluster) = (bare.pid(), self.gluster(None)?);
        front_end(&bare.socket, &Watched { serving, gluster }, job)
    }

    fn ours(&self, ours: &Ours<'_>, state: State, job: Job) -> Result<Figures, Box<dyn Error>> {
        let volume = &self.volumes.volume;
        match state {
            State::Clean => ours.make_clean(volume)?,
            State::Dirty => ours.make_dirty(volume)?,
            State::Healing => {}
        }
        let daemon = &ours.daemon;
        let healing = state == State::Healing;
        let healer = healing.then(|| daemon.start_healer()).transpose()?;
        let watched = Watched {
            serving: daemon.pid(),
            gluster: self.gluster(healer.as_ref())?,
        };
        let figures = front_end(&daemon.socket, &watched, job);
        healer.map(end).transpose()?;
        figures
    }
}

impl Ours<'_> {
    /// Where each of its files begins on the disk.
    fn files_begin(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.area).step_by(self.piece as usize)
    }

    fn is_clean(&self, volume: &Volume) -> Result<bool, Box<dyn Error>> {
        let files = match self.image {
            SHARDED => sharded_files(volume)?,
            image => vec![image.to_owned()],
        };
        for file in files {
            if !volume.marks(&file)?.is_clean() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn make_clean(&self, volume: &Volume) -> Result<(), Box<dyn Error>> {
        if !self.is_clean(volume)? {
            self.daemon.wait_no_healer()?;
            self.program.heal(volume, self.image)?;
        }
        self.daemon.wait_no_healer()
    }

    /// One write does it; of an image in shards, one to each.
    fn make_dirty(&self, volume: &Volume) -> Result<(), Box<dyn Error>> {
        self.daemon.wait_no_healer()?;
        if self.is_clean(volume)? {
            let mut device = Device::connect(&self.daemon.socket, 1, 4096)?;
            for begin in self.files_begin() {
                device.submit(0, Kind::Write, begin, 4096);
                match device.answers(1, PATIENCE).first() {
                    Some((_, 0)) => {}
                    other => return Err(format!("the first write: {other:?}").into()),
                }
            }
        }
        Ok(())
    }
}

/// Through a mount that is there for this alone. (`Volume::create_image` looks at one file.)
fn create_sharded(volume: &Volume, area: u64) -> Result<(), Box<dyn Error>> {
    let mount = volume.mount(BRICK)?;
    let path = mount.path().join(SHARDED.trim_start_matches('/'));
    let mut command = Command::new("dd");
    command
        .arg("if=/dev/urandom")
        .arg(format!("of={}", path.display()));
    command
        .args(["bs=1M", "conv=fsync"])
        .arg(format!("count={}", area / MIB));
    run_command(&mut command, WARM_UP_DEADLINE)?;
    // The client removes its own "dirty" a moment after the last write, and nobody heals here.
    for file in sharded_files(volume)? {
        wait_until("the shards to be settled", PATIENCE, || {
            let marks = volume.marks(&file).map_err(|error| error.to_string())?;
            marks.is_clean().then_some(()).ok_or(marks.to_string())
        })?;
    }
    drop(mount);
    Ok(())
}

/// The files of the image in shards, as paths in the volume.
fn sharded_files(volume: &Volume) -> Result<Vec<String>, Box<dyn Error>> {
    let mut files = vec![SHARDED.to_owned()];
    for entry in std::fs::read_dir(volume.brick_file(BRICK, PIECES))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(format!("{PIECES}/{}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(files)
}

/// A cell by our own front-end, whatever serves.
fn front_end(socket: &Path, watched: &Watched, job: Job) -> Result<Figures, Box<dyn Error>> {
    let mut readings = Vec::with_capacity(2);
    let load = load::run(socket, job, || readings.push(watched.read()))?;
    let [before, after] = readings.as_slice() else {
        return Err("the window has no two ends".into());
    };
    Ok(of_load(&load, job.window.length, &(*after - *before)))
}
