//! A front-end that is paused and goes on with another server, as at an upgrade: it does
//! not notice.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bypass_blk::device::gate::Admission;
use bypass_blk::device::{Config, EndReason, FrontEnd as Paused, Patience, Served, Server};
use device_support::front_end::log::Log;
use device_support::front_end::{DATA, FrontEnd, MEMORY_SIZE};
use device_support::{Image, TestGate, pattern, wait_for};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_bindings::virtio_blk::*;

/// Offset of the cache mode in the config space.
const WRITEBACK: u32 = 32;
const OK: u8 = VIRTIO_BLK_S_OK as u8;

/// One server after the other over the same image.
struct Servers {
    image: Image,
    gate: Arc<TestGate>,
    server: Arc<Server<TestGate>>,
    serving: Option<JoinHandle<Served>>,
    /// The servers' end of the connection.
    far: UnixStream,
}

fn server(image: &Image) -> (Arc<TestGate>, Arc<Server<TestGate>>) {
    let gate = Arc::new(TestGate::default());
    let config = Config {
        num_queues: 2,
        ..Config::default()
    };
    let server = Server::new(image.disk(true), Arc::clone(&gate), config).unwrap();
    (gate, Arc::new(server))
}

impl Servers {
    fn start() -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let image = Image::new(0);
        let (gate, server) = server(&image);
        let mut this = Self {
            image,
            gate,
            server,
            serving: None,
            far: theirs.try_clone().unwrap(),
        };
        this.serve(theirs.into());
        (ours, this)
    }

    fn serve(&mut self, front_end: Paused) {
        let server = Arc::clone(&self.server);
        self.serving = Some(std::thread::spawn(move || {
            server.serve_on(front_end).unwrap()
        }));
    }

    fn pause(&mut self) -> Paused {
        self.server.pause_handle().pause();
        match self.serving.take().unwrap().join().unwrap() {
            Served::Paused(front_end) => front_end,
            Served::Ended(reason) => panic!("{reason:?}"),
        }
    }

    /// The next server takes over.
    fn exchange(&mut self) {
        let front_end = self.pause();
        (self.gate, self.server) = server(&self.image);
        self.serve(front_end);
    }

    fn wait_refused(&self) {
        wait_for("the wish to be forgotten", || {
            let pause = self.server.pause_handle();
            let mut fds = [PollFd::from_borrowed_fd(pause.readable(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).unwrap() == 0
        });
    }

    fn end(mut self) -> EndReason {
        self.server.stop_handle().stop();
        match self.serving.take().unwrap().join().unwrap() {
            Served::Ended(reason) => reason,
            Served::Paused(_) => panic!("nobody asked for it"),
        }
    }
}

fn write(driver: &mut FrontEnd, queue: usize, sector: u64, seed: u8) -> u64 {
    let at = DATA + 4096 * (sector / 8 % 64);
    driver.write(at, &pattern(4096, seed));
    driver.submit(queue, VIRTIO_BLK_T_OUT, sector, &[(at, 4096)])
}

#[test]
fn requests_go_on_with_one_server_after_the_other_and_none_is_lost_or_repeated() {
    let (stream, mut servers) = Servers::start();
    let mut driver = FrontEnd::start(stream, 2);
    for round in 0..20u8 {
        let mut asked = Vec::new();
        for nth in 0..8 {
            let sector = u64::from(round) * 64 + 8 * nth;
            asked.push((
                sector,
                write(&mut driver, nth as usize % 2, sector, round ^ nth as u8),
            ));
        }
        servers.exchange();
        for nth in 0..8 {
            driver.wait_used(nth % 2);
        }
        for (sector, status) in asked {
            let nth = (sector / 8 % 8) as u8;
            assert_eq!(driver.byte(status), OK);
            assert_eq!(
                servers.image.read(sector * 512, 4096),
                pattern(4096, round ^ nth)
            );
        }
        assert_eq!(
            (driver.used_index(0), driver.used_index(1)),
            (4 * (u16::from(round) + 1), 4 * (u16::from(round) + 1))
        );
    }
    assert_eq!(servers.end(), EndReason::Stopped);
}

#[test]
fn a_write_that_waits_at_the_gate_is_done_by_the_next_server_with_and_without_a_record() {
    for record in [false, true] {
        let (stream, mut servers) = Servers::start();
        let mut driver = FrontEnd::connect(stream, 2, device_support::front_end::ORDINARY);
        // Asked for, and never given back: it is in use nevertheless.
        let inflight = record.then(|| driver.get_inflight());
        driver.share_memory();
        (0..2).for_each(|queue| driver.start_queue(queue, 0));
        servers.gate.set(Admission::Wait);
        let status = write(&mut driver, 0, 8, 1);
        wait_for("the write to wait", || {
            servers.server.stats().snapshot().total().parked == 1
        });
        servers.exchange();
        driver.wait_used(0);
        assert_eq!(driver.byte(status), OK);
        assert_eq!(servers.image.read(4096, 4096), pattern(4096, 1));
        assert_eq!(driver.used_index(0), 1);
        drop(inflight);
        servers.end();
    }
}

#[test]
fn what_was_said_before_holds_and_more_can_be_said_after() {
    let (stream, mut servers) = Servers::start();
    let mut driver = FrontEnd::start(stream, 2);
    // The driver wants durable writes, and does not say so again.
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
    driver.vhost.set_config(WRITEBACK, flags, &[0]).unwrap();
    driver.remove_memory();
    driver.add_memory();
    servers.exchange();
    assert_eq!(driver.config(WRITEBACK, 1), [0]);
    // The messages of front-end and server are still in step.
    let call = vmm_sys_util::eventfd::EventFd::new(0x800).unwrap();
    driver.set_call(0, call);
    assert_eq!(
        driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]),
        VIRTIO_BLK_S_OK
    );
    driver.wait_call(0);
    // A ring that was stopped stays so, and starts where the driver says.
    assert_eq!(driver.vhost.get_vring_base(1).unwrap(), 0);
    servers.exchange();
    write(&mut driver, 1, 0, 1);
    assert_eq!(
        driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]),
        VIRTIO_BLK_S_OK
    );
    assert_eq!(driver.used_index(1), 0);
    driver.start_queue(1, 0);
    driver.kick(1);
    driver.wait_used(1);
    servers.end();
}

#[test]
fn a_front_end_that_said_nothing_yet_goes_on_too() {
    let (stream, mut servers) = Servers::start();
    servers.exchange();
    let mut driver = FrontEnd::start(stream, 2);
    assert_eq!(
        driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]),
        VIRTIO_BLK_S_OK
    );
    servers.end();
}

#[test]
fn a_front_end_that_goes_on_with_another_server_has_nothing_to_say_to_it() {
    const SHORT: Duration = Duration::from_millis(20);
    let (stream, mut servers) = Servers::start();
    let mut driver = FrontEnd::start(stream, 2);
    let front_end = servers.pause();
    let (gate, server) = server(&servers.image);
    let impatient = Patience {
        first: Some(SHORT),
        message: SHORT,
    };
    servers.gate = gate;
    servers.server = Arc::new(Arc::into_inner(server).unwrap().with_patience(impatient));
    servers.serve(front_end);
    std::thread::sleep(10 * SHORT);
    let flush = driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert_eq!(flush, VIRTIO_BLK_S_OK);
    assert_eq!(servers.end(), EndReason::Stopped);
}

#[test]
fn a_front_end_in_the_middle_of_a_message_is_neither_paused_nor_held_up() {
    let (mut stream, mut servers) = Servers::start();
    let get_features = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
    stream.write_all(&get_features[..6]).unwrap();
    wait_for("the half message to be read", || {
        rustix::io::ioctl_fionread(&servers.far).unwrap() == 0
    });
    servers.server.pause_handle().pause();
    servers.wait_refused();
    stream.write_all(&get_features[6..]).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[0], 1);
    servers.exchange();
    stream.write_all(&get_features).unwrap();
    stream.read_exact(&mut reply).unwrap();
    servers.end();
}

#[test]
fn while_the_guest_is_being_migrated_nothing_is_paused() {
    let (stream, mut servers) = Servers::start();
    let mut driver = FrontEnd::start(stream, 2);
    let log = Log::new(MEMORY_SIZE / 4096);
    driver.set_log(&log).unwrap();
    driver.set_logging(true);
    servers.server.pause_handle().pause();
    for _ in 0..10 {
        assert_eq!(
            driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]),
            VIRTIO_BLK_S_OK
        );
    }
    servers.wait_refused();
    driver.set_logging(false);
    servers.exchange();
    assert_eq!(
        driver.request(0, VIRTIO_BLK_T_FLUSH, 0, &[]),
        VIRTIO_BLK_S_OK
    );
    servers.end();
}
