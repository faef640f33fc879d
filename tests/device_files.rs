//! A disk over several files: every request does the same as on one whole file, whichever files it
//! touches and however short they are.

#![allow(clippy::unwrap_used)]

mod device_support;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bypass_blk::device::gate::AlwaysOpen;
use bypass_blk::device::{Config, DeviceError, Disk, EndReason, Server};
use device_support::front_end::{DATA, FrontEnd};
use device_support::pattern;
use device_support::pieces::Pieces;
use proptest::prelude::*;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use virtio_bindings::virtio_blk::*;

const OK: u32 = VIRTIO_BLK_S_OK;
const IO_ERROR: u32 = VIRTIO_BLK_S_IOERR;
/// Offset of `writeback` in the config space.
const WRITEBACK: u32 = 32;
/// What the file systems of the tests take for a block; sectors are a divisor.
const BLOCK: u64 = 4096;

/// A server on a thread, and a driver with so many queues.
struct Device {
    server: Arc<Server<AlwaysOpen>>,
    guest: FrontEnd,
    _serving: std::thread::JoinHandle<Result<EndReason, DeviceError>>,
}

impl Device {
    fn new(disk: Disk, num_queues: u16) -> Self {
        let config = Config {
            num_queues,
            ..Config::default()
        };
        let server = Arc::new(Server::new(disk, Arc::new(AlwaysOpen), config).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn({
            let server = Arc::clone(&server);
            move || server.serve(theirs)
        });
        Self {
            server,
            guest: FrontEnd::start(ours, num_queues.into()),
            _serving: serving,
        }
    }

    /// The device's memory for data, cut into descriptors of about `cut` bytes, from an address
    /// that is `skew` off the alignment of direct I/O.
    fn segments(len: u64, cut: u64, skew: u64) -> Vec<(u64, u32)> {
        let starts = (0..len).step_by(cut.max(len.div_ceil(50)) as usize);
        let cut = cut.max(len.div_ceil(50));
        let segment = |at| (DATA + skew + at, cut.min(len - at) as u32);
        starts.map(segment).collect()
    }

    fn write(&mut self, at: u64, bytes: &[u8], cut: u64, skew: u64) -> u32 {
        self.guest.write(DATA + skew, bytes);
        let segments = Self::segments(bytes.len() as u64, cut, skew);
        self.guest.request(0, VIRTIO_BLK_T_OUT, at / 512, &segments)
    }

    /// What the guest finds in memory that had other contents before, and that nothing beside it
    /// was touched.
    fn read(&mut self, at: u64, len: u64, cut: u64, skew: u64) -> Vec<u8> {
        const STALE: u8 = 0xaa;
        self.guest.write(DATA, &vec![STALE; len as usize + 8192]);
        let segments = Self::segments(len, cut, skew);
        let status = self.guest.request(0, VIRTIO_BLK_T_IN, at / 512, &segments);
        assert_eq!(status, OK);
        let all = self.guest.read(DATA, len as usize + 8192);
        let (before, rest) = all.split_at(skew as usize);
        let (bytes, after) = rest.split_at(len as usize);
        let untouched = |part: &[u8]| part.iter().all(|&byte| byte == STALE);
        assert!(untouched(before) && untouched(after));
        bytes.to_vec()
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u64)], unmap: bool) -> u32 {
        let flags = u32::from(unmap && kind == VIRTIO_BLK_T_WRITE_ZEROES);
        let mut raw = Vec::new();
        for (at, len) in ranges {
            raw.extend((at / 512).to_le_bytes());
            raw.extend(((len / 512) as u32).to_le_bytes());
            raw.extend(flags.to_le_bytes());
        }
        let page = self.guest.page();
        self.guest.write(page, &raw);
        self.guest.request(0, kind, 0, &[(page, raw.len() as u32)])
    }

    fn flush(&mut self) -> u32 {
        self.guest.request(0, VIRTIO_BLK_T_FLUSH, 0, &[])
    }

    fn set_writeback(&mut self, on: bool) {
        let none = VhostUserConfigFlags::empty();
        let set = self.guest.vhost.set_config(WRITEBACK, none, &[on.into()]);
        set.unwrap();
    }
}

/// A request; places in sixteenths of a percent, lengths in blocks.
#[derive(Clone, Debug)]
enum Ask {
    Read(Place),
    Write(Place, u8),
    Ranges(u32, Vec<Place>, bool),
    Flush,
    WriteThrough(bool),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    len: u64,
    cut: u64,
    skew: u64,
}

impl Place {
    /// Whole blocks on a disk of `size` bytes.
    fn on(self, size: u64) -> (u64, u64) {
        let blocks = size / BLOCK;
        let at = self.at % blocks;
        (at * BLOCK, self.len.min(blocks - at) * BLOCK)
    }
}

fn place() -> impl Strategy<Value = Place> {
    let cut = prop_oneof![Just(1u64 << 20), Just(BLOCK), Just(5000), 512u64..20_000];
    let skew = prop_oneof![3 => Just(0u64), 1 => 1u64..4096];
    (any::<u32>(), prop_oneof![1u64..6, 1u64..80], cut, skew).prop_map(|(at, len, cut, skew)| {
        Place {
            at: at.into(),
            len,
            cut,
            skew,
        }
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    let ranges = || prop::collection::vec(place(), 1..4);
    prop_oneof![
        4 => place().prop_map(Ask::Read),
        4 => (place(), any::<u8>()).prop_map(|(place, seed)| Ask::Write(place, seed)),
        2 => (ranges(), any::<bool>())
            .prop_map(|(ranges, unmap)| Ask::Ranges(VIRTIO_BLK_T_WRITE_ZEROES, ranges, unmap)),
        1 => ranges().prop_map(|ranges| Ask::Ranges(VIRTIO_BLK_T_DISCARD, ranges, false)),
        1 => Just(Ask::Flush),
        1 => any::<bool>().prop_map(Ask::WriteThrough),
    ]
}

/// Bytes of a piece, of the disk, and the files' contents, of any length up to their piece.
fn disk() -> impl Strategy<Value = (u64, u64, Vec<Vec<u8>>)> {
    (prop_oneof![1u64..4, 1u64..40], 1u64..200).prop_flat_map(|(piece, blocks)| {
        let (piece, size) = (piece * BLOCK, blocks * BLOCK);
        let len = prop_oneof![Just(0), Just(1), Just(4), 0u64..=4];
        let file = (len, any::<u64>(), any::<u8>());
        let files = prop::collection::vec(file, size.div_ceil(piece) as usize);
        files.prop_map(move |files| {
            let contents = |(index, (quarters, odd, seed)): (usize, (u64, u64, u8))| {
                let most = piece.min(size - index as u64 * piece);
                let len = (most * quarters / 4).saturating_sub(odd % 1500).min(most);
                pattern(len as usize, seed)
            };
            let contents = files.into_iter().enumerate().map(contents).collect();
            (piece, size, contents)
        })
    })
}

fn run((piece, size, contents): (u64, u64, Vec<Vec<u8>>), asks: Vec<Ask>) {
    let pieces = Pieces::new(piece, size, &contents);
    let mut whole = pieces.contents();
    let mut device = Device::new(pieces.disk(), 1);
    for ask in asks {
        match ask {
            Ask::Read(place) => {
                let (at, len) = place.on(size);
                let read = device.read(at, len, place.cut, place.skew);
                assert!(read == whole[at as usize..(at + len) as usize], "{place:?}");
            }
            Ask::Write(place, seed) => {
                let (at, len) = place.on(size);
                let bytes = pattern(len as usize, seed);
                assert_eq!(device.write(at, &bytes, place.cut, place.skew), OK);
                whole[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            Ask::Ranges(kind, places, unmap) => {
                let ranges: Vec<_> = places.iter().map(|place| place.on(size)).collect();
                assert_eq!(device.ranges(kind, &ranges, unmap), OK);
                for (at, len) in ranges {
                    whole[at as usize..(at + len) as usize].fill(0);
                }
            }
            Ask::Flush => assert_eq!(device.flush(), OK),
            Ask::WriteThrough(on) => device.set_writeback(!on),
        }
    }
    let all = (0..size).step_by(1 << 20).map(|at| {
        let len = (size - at).min(1 << 20);
        device.read(at, len, 1 << 20, 0)
    });
    assert!(all.collect::<Vec<_>>().concat() == whole);
    assert!(pieces.contents() == whole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_request_does_the_same_as_on_one_whole_file(
        disk in disk(),
        asks in prop::collection::vec(ask(), 1..40),
    ) {
        run(disk, asks);
    }
}

#[test]
fn what_is_behind_the_end_of_a_file_is_zeros_and_never_what_the_memory_had() {
    // A file of an odd length, an empty one, one that ends within a block of another.
    let lens = [4096 + 1000, 0, 513, 65536];
    let contents: Vec<_> = lens.iter().map(|&len| pattern(len, 9)).collect();
    let pieces = Pieces::new(65536, 4 * 65536, &contents);
    let whole = pieces.contents();
    let mut device = Device::new(pieces.disk(), 1);
    for skew in [0, 3] {
        for at in (0..4 * 65536).step_by(BLOCK as usize) {
            for len in [BLOCK, 65536, 3 * 65536] {
                let len = len.min(4 * 65536 - at);
                let read = device.read(at, len, 1 << 20, skew);
                assert!(
                    read == whole[at as usize..(at + len) as usize],
                    "{at} {len} {skew}"
                );
            }
        }
    }
    let lens_after: Vec<_> = (0..4).map(|index| pieces.len(index) as usize).collect();
    assert_eq!(lens_after, lens, "reading makes nothing longer");
}

#[test]
fn a_write_makes_its_file_longer_and_a_discard_none() {
    let pieces = Pieces::empty(65536, 3 * 65536);
    let mut device = Device::new(pieces.disk(), 1);
    assert_eq!(
        device.ranges(VIRTIO_BLK_T_DISCARD, &[(0, 3 * 65536)], false),
        OK
    );
    assert_eq!((0..3).map(|index| pieces.len(index)).sum::<u64>(), 0);
    assert_eq!(device.write(65536 + 8192, &pattern(4096, 1), 4096, 0), OK);
    assert_eq!([pieces.len(0), pieces.len(1)], [0, 8192 + 4096]);
    // Over two borders.
    assert_eq!(
        device.write(65536 - 4096, &pattern(65536 + 8192, 2), 1 << 20, 0),
        OK
    );
    let lens: Vec<_> = (0..3).map(|index| pieces.len(index)).collect();
    assert_eq!(lens, [65536, 65536, 4096]);
}

#[test]
fn an_absent_file_of_a_read_only_disk_is_dev_null() {
    let pieces = Pieces::new(
        65536,
        3 * 65536,
        &[pattern(65536, 1), vec![], pattern(100, 2)],
    );
    let whole = pieces.contents();
    let null = || File::open("/dev/null").unwrap();
    let with_null = |write| {
        let mut files = pieces.files(write);
        files[1] = null();
        files
    };
    assert!(
        pieces.try_disk(with_null(true)).is_err(),
        "a disk to be written"
    );
    let mut first = pieces.files(false);
    first[0] = null();
    assert!(matches!(
        pieces.try_disk(first),
        Err(DeviceError::NotRegular)
    ));
    let mut device = Device::new(pieces.try_disk(with_null(false)).unwrap(), 1);
    assert!(device.read(0, 3 * 65536, 1 << 20, 0) == whole);
    assert!(device.read(65536 + 4096, 8192, 1 << 20, 1) == [0; 8192]);
    assert_eq!(device.write(65536, &[1; 4096], 4096, 0), IO_ERROR);
    assert_eq!(device.flush(), OK);
}

#[test]
fn files_that_make_no_disk_are_refused() {
    let mut pieces = Pieces::empty(65536, 3 * 65536);
    let refused = |pieces: &Pieces, files| pieces.try_disk(files).unwrap_err();
    let few = pieces.files(true).split_off(1);
    assert!(matches!(
        refused(&pieces, few),
        DeviceError::Files {
            files: 2,
            wanted: 3
        }
    ));
    assert!(matches!(
        refused(&pieces, vec![]),
        DeviceError::Files {
            files: 0,
            wanted: 3
        }
    ));
    let mut mixed = pieces.files(true);
    mixed[2] = pieces.open(2, false);
    assert!(matches!(
        refused(&pieces, mixed),
        DeviceError::Unlike { index: 2 }
    ));
    let mut elsewhere = pieces.files(true);
    elsewhere[1] = tempfile::tempfile_in("/dev/shm").unwrap();
    assert!(matches!(
        refused(&pieces, elsewhere),
        DeviceError::Unlike { index: 1 }
    ));
    let mut folder = pieces.files(true);
    folder[1] = File::open("/var/tmp").unwrap();
    assert!(matches!(refused(&pieces, folder), DeviceError::NotRegular));
    pieces.size = 3 * 65536 - 1;
    assert!(matches!(
        refused(&pieces, pieces.files(true)),
        DeviceError::Size { .. }
    ));
    (pieces.size, pieces.piece) = (3 * 65536, 65537);
    assert!(matches!(
        refused(&pieces, pieces.files(true)),
        DeviceError::Piece { .. }
    ));
}

#[test]
fn a_disk_grows_within_its_last_file_and_over_a_border_while_it_is_used() {
    let mut pieces = Pieces::empty(65536, 65536 + 4096);
    let mut device = Device::new(pieces.disk(), 1);
    let grow = device.server.growth_by_files();
    let mut whole = vec![0; pieces.size as usize];
    for (round, size) in [(1, 2 * 65536), (2, 5 * 65536), (3, 5 * 65536 + 8192)] {
        let end = pieces.size;
        assert_eq!(
            device.write(end, &[1; 4096], 4096, 0),
            IO_ERROR,
            "behind the end"
        );
        assert!(grow(vec![], size + 65536).is_err(), "too few files");
        let files = pieces.grow(size);
        grow(files, size).unwrap();
        whole.resize(size as usize, 0);
        // From before the old end, over every border, to the new one.
        let at = end - 4096;
        let bytes = pattern((size - at) as usize, round);
        assert_eq!(device.write(at, &bytes, 1 << 20, 0), OK);
        assert_eq!(device.flush(), OK);
        whole[at as usize..].copy_from_slice(&bytes);
        assert!(device.read(0, size, 1 << 20, 0) == whole);
        assert!(pieces.contents() == whole);
    }
    let sectors = device.guest.config(0, 8);
    assert_eq!(
        u64::from_le_bytes(sectors.try_into().unwrap()) * 512,
        pieces.size
    );
}
