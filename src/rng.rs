//! Random numbers: one seeded host generator, in named streams.
//!
//! Every draw of a run (initial weights, batch order, sampled tokens, labels) comes from a stream that
//! is a pure function of the run's seed, a purpose and an index. So draws depend neither on the device
//! nor on the order in which threads run, and a resumed run needs no generator state: its step says it.

use std::io::{self, Read};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The generator of every stream.
pub type Stream = ChaCha8Rng;

/// The stream of random numbers for `purpose` (such as `"rollout"`) and `index` (such as an iteration).
///
/// # Examples
///
/// ```
/// use rand::Rng;
/// use segment_rlhf::rng::stream;
/// let (a, b, c) = (stream(7, "rollout", 0), stream(7, "rollout", 0), stream(7, "rollout", 1));
/// let draw = |mut s: segment_rlhf::rng::Stream| s.random::<u64>();
/// assert_eq!(draw(a.clone()), draw(b));
/// assert_ne!(draw(a), draw(c));
/// ```
pub fn stream(seed: u64, purpose: &str, index: u64) -> Stream {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&fnv1a(purpose.as_bytes()).to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// The streams of `purpose` with the given indices: one for each row of a batch.
///
/// # Examples
///
/// ```
/// use rand::Rng;
/// use segment_rlhf::rng::{stream, streams};
/// let mut rows = streams(7, "rollout", 4..6);
/// assert_eq!(rows[1].random::<u64>(), stream(7, "rollout", 5).random::<u64>());
/// ```
pub fn streams(seed: u64, purpose: &str, indices: std::ops::Range<usize>) -> Vec<Stream> {
    indices.map(|index| stream(seed, purpose, index as u64)).collect()
}

/// The 64-bit FNV-1a hash of `bytes`: short, and the same on every platform and in every version.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::rng::fnv1a(b""), 0xcbf2_9ce4_8422_2325);
/// assert_eq!(segment_rlhf::rng::fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
/// ```
pub fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = Fnv1a::default();
    hash.write(bytes);
    hash.finish()
}

/// The same hash of bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Takes in the next bytes, as if they followed those before.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Takes in all that `reader` gives, and returns how many bytes that was.
    pub fn read(&mut self, mut reader: impl Read) -> io::Result<u64> {
        let (mut piece, mut bytes) = (vec![0; 1 << 20], 0);
        loop {
            match reader.read(&mut piece)? {
                0 => return Ok(bytes),
                n => {
                    self.write(&piece[..n]);
                    bytes += n as u64;
                }
            }
        }
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// A 64-bit hash of bytes that come in pieces, as fast as they are read: eight lanes of FNV-1a over words of
/// eight bytes.
#[derive(Clone, Debug)]
pub struct Lanes {
    lanes: [u64; 8],
    /// Bytes that do not fill all lanes yet.
    rest: Vec<u8>,
    bytes: u64,
}

impl Default for Lanes {
    fn default() -> Self {
        let lanes = [0, 1, 2, 3, 4, 5, 6, 7].map(|lane: u64| fnv1a(&lane.to_le_bytes()));
        Self { lanes, rest: Vec::new(), bytes: 0 }
    }
}

impl Lanes {
    const BLOCK: usize = 64;

    /// Takes in the next bytes, as if they followed those before.
    pub fn write(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let missing = (Self::BLOCK - self.rest.len()).min(bytes.len());
        let (first, bytes) = match self.rest.is_empty() {
            true => bytes.split_at(0),
            false => bytes.split_at(missing),
        };
        self.rest.extend(first);
        if self.rest.len() == Self::BLOCK {
            let block = std::mem::take(&mut self.rest);
            self.block(&block);
        }
        let blocks = bytes.chunks_exact(Self::BLOCK);
        self.rest.extend(blocks.remainder());
        blocks.for_each(|block| self.block(block));
    }

    fn block(&mut self, block: &[u8]) {
        for (lane, word) in self.lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            *lane = (*lane ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn finish(mut self) -> u64 {
        let mut rest = std::mem::take(&mut self.rest);
        rest.resize(Self::BLOCK, 0);
        self.block(&rest);
        let mut hash = Fnv1a::default();
        self.lanes.iter().chain([&self.bytes]).for_each(|lane| hash.write(&lane.to_le_bytes()));
        hash.finish()
    }

    /// The hash of all that `reader` gives.
    pub fn of(mut reader: impl Read) -> io::Result<u64> {
        let (mut piece, mut lanes) = (vec![0; 1 << 20], Self::default());
        loop {
            match reader.read(&mut piece)? {
                0 => return Ok(lanes.finish()),
                n => lanes.write(&piece[..n]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lanes_do_not_depend_on_the_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort();
            let mut pieces = Lanes::default();
            cuts.windows(2).for_each(|cut| pieces.write(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(pieces.finish(), Lanes::of(&bytes[..]).unwrap());
        }

        #[test]
        fn lanes_see_every_change(
            bytes in prop::collection::vec(any::<u8>(), 1..400),
            place in any::<prop::sample::Index>(), fault in 1..=255u8,
        ) {
            let hash = |bytes: &[u8]| Lanes::of(bytes).unwrap();
            let mut changed = bytes.clone();
            changed[place.index(bytes.len())] ^= fault;
            prop_assert_ne!(hash(&changed), hash(&bytes));
            prop_assert_ne!(hash(&bytes[1..]), hash(&bytes));
            prop_assert_ne!(hash(&[&bytes[..], &[0]].concat()), hash(&bytes));
        }
    }
}
