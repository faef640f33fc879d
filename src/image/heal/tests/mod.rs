//! The healer against a simulated brick.

mod brick;
mod cut;
mod disk;
mod follow;
mod race;
mod rest;
mod session;
mod single;
mod world;

/// The owner of an ordinary client's locks.
const CLIENT: u64 = 2;
/// What a killed healer says.
const KILLED: &str = "the healer is killed";

/// A small generator (splitmix64): the same seed, the same round.
#[derive(Clone, Debug, Default)]
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// One in `n`.
    fn chance(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length as usize + 8);
        while bytes.len() < length as usize {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length as usize);
        bytes
    }
}
