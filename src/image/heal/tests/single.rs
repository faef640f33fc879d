//! One behaviour of the healer at a time.

mod failing;
mod marks;
mod passes;
mod sending;

use super::world::SIZE;

/// No zero extent among them.
fn full_of(byte: u8) -> Vec<u8> {
    vec![byte; SIZE as usize]
}
