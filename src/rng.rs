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
    ///
    /// # Errors
    ///
    /// Those of `reader`.
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
