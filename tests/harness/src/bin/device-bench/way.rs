//! The ways to the image that are measured, and the states of ours. Pure.

use clap::ValueEnum;

use crate::workload::Workload;

/// How the I/O gets to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// bypass-blk serve
    Bypass,
    /// The same, of an image in shards on the same volume
    Sharded,
    /// qemu-storage-daemon on the brick's file, aio=io_uring
    QsdUring,
    /// The same with an iothread
    QsdUringIothread,
    /// qemu-storage-daemon on the brick's file, aio=native
    QsdNative,
    /// The same with an iothread
    QsdNativeIothread,
    /// The limit: fio on the brick's file, io_uring
    Fio,
    /// fio on the FUSE mount
    Fuse,
    /// fio's gfapi engine
    Gfapi,
    /// qemu-storage-daemon with QEMU's gluster driver
    QsdGluster,
    /// bypass-blk's device alone on the brick's file: no marks, no dirty map
    Unmarked,
    /// qemu-storage-daemon with no disk behind it (null-co)
    Null,
    /// bypass-blk's device alone with no disk behind it (/dev/zero)
    BareNull,
}

/// The state of our image when a cell begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// No marks: the first write makes them
    Clean,
    /// Marked, no healer
    Dirty,
    /// heald follows
    Healing,
}

impl Way {
    /// Whether it is bypass-blk serve.
    pub fn is_ours(self) -> bool {
        matches!(self, Way::Bypass | Way::Sharded)
    }
}

/// A way, with the state of the image where it is ours: a row of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// The way.
    pub way: Way,
    /// For ours alone.
    pub state: Option<State>,
}

impl Contender {
    /// The limit that all others are compared with.
    pub const LIMIT: Contender = Contender {
        way: Way::Fio,
        state: None,
    };

    /// All of these ways, ours once for each state.
    pub fn all(ways: &[Way], states: &[State]) -> Vec<Contender> {
        let of_way = |way: &Way| match way.is_ours() {
            true => states.iter().copied().map(Some).collect(),
            false => vec![None],
        };
        let all = ways.iter().flat_map(|way| {
            let way = *way;
            let states = of_way(&way).into_iter();
            states.map(move |state| Contender { way, state })
        });
        all.collect()
    }

    /// Whether this can be asked of it: /dev/zero has nothing to flush, and says so.
    pub fn can(&self, workload: &Workload) -> bool {
        self.way != Way::BareNull || workload.flush_every == 0
    }

    /// For reader, plots and JSON.
    pub fn name(&self) -> &'static str {
        match (self.way, self.state) {
            (Way::Bypass, Some(State::Dirty)) => "bypass-blk, dirty",
            (Way::Bypass, Some(State::Healing)) => "bypass-blk, healing",
            (Way::Bypass, _) => "bypass-blk, clean",
            (Way::Sharded, Some(State::Dirty)) => "bypass-blk, shards, dirty",
            (Way::Sharded, Some(State::Healing)) => "bypass-blk, shards, healing",
            (Way::Sharded, _) => "bypass-blk, shards, clean",
            (Way::QsdUring, _) => "qsd io_uring",
            (Way::QsdUringIothread, _) => "qsd io_uring, iothread",
            (Way::QsdNative, _) => "qsd native",
            (Way::QsdNativeIothread, _) => "qsd native, iothread",
            (Way::Fio, _) => "fio, brick file",
            (Way::Fuse, _) => "fio, FUSE mount",
            (Way::Gfapi, _) => "fio, gfapi",
            (Way::QsdGluster, _) => "qsd gluster",
            (Way::Unmarked, _) => "bare device, unmarked",
            (Way::Null, _) => "qsd null-co",
            (Way::BareNull, _) => "bare device, null",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_ways_have_states() {
        let ways = [Way::Bypass, Way::Sharded, Way::Fio];
        let all = Contender::all(&ways, &[State::Clean, State::Healing]);
        let names: Vec<&str> = all.iter().map(Contender::name).collect();
        assert_eq!(
            names,
            [
                "bypass-blk, clean",
                "bypass-blk, healing",
                "bypass-blk, shards, clean",
                "bypass-blk, shards, healing",
                "fio, brick file"
            ]
        );
        assert_eq!(all[4], Contender::LIMIT);
    }
}
