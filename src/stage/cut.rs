//! The segments of a response, in one bit a token.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Contiguous segments: bit t says that one starts or ends before token t.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut(Vec<u8>);

impl Cut {
    /// Packs the segments of a response of `tokens` tokens.
    pub fn new(segments: &[Range<usize>], tokens: usize) -> Self {
        let mut bits = vec![0; tokens / 8 + 1];
        let edges = segments.iter().flat_map(|segment| [segment.start, segment.end]);
        edges.for_each(|edge| bits[edge / 8] |= 1 << (edge % 8));
        Self(bits)
    }

    /// The segments.
    pub fn segments(&self) -> Vec<Range<usize>> {
        let Self(bits) = self;
        let is_edge = |&t: &usize| bits[t / 8] & (1 << (t % 8)) != 0;
        let edges: Vec<usize> = (0..8 * bits.len()).filter(is_edge).collect();
        edges.windows(2).map(|two| two[0]..two[1]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_segments_that_went_in_come_out(
            lengths in prop::collection::vec(1..20usize, 1..10), outside in 0..2usize,
        ) {
            let mut end = 0;
            let segments: Vec<_> = lengths
                .iter()
                .map(|length| {
                    end += length;
                    end - length..end
                })
                .collect();
            let cut = Cut::new(&segments, end + outside); // an EOS may follow the last segment
            prop_assert_eq!(cut.segments(), segments);
        }
    }
}
