//! The segments of many responses, remembered in one bit a token.

use std::ops::Range;

/// Lists of segments that follow each other without a gap.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    /// For each response, bit t says that a segment starts or ends before token t.
    bits: Vec<u8>,
    /// Where the bits of each response start, in bytes.
    starts: Vec<usize>,
}

impl Cuts {
    /// Remembers the segments of the next response, which holds `tokens` tokens.
    pub fn push(&mut self, segments: &[Range<usize>], tokens: usize) {
        let start = self.bits.len();
        self.starts.push(start);
        self.bits.resize(start + tokens / 8 + 1, 0);
        let edges = segments.iter().flat_map(|segment| [segment.start, segment.end]);
        edges.for_each(|edge| self.bits[start + edge / 8] |= 1 << (edge % 8));
    }

    /// The segments of the response `i`, from 0.
    ///
    /// # Panics
    ///
    /// If there is no such response.
    pub fn segments(&self, i: usize) -> Vec<Range<usize>> {
        let end = self.starts.get(i + 1).map_or(self.bits.len(), |&end| end);
        let bits = &self.bits[self.starts[i]..end];
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
            responses in prop::collection::vec(
                (prop::collection::vec(1..20usize, 1..10), 0..2usize), 1..8,
            ),
        ) {
            let mut cuts = Cuts::default();
            let mut expected = Vec::new();
            for (lengths, outside) in responses {
                let mut end = 0;
                let segments: Vec<_> = lengths
                    .iter()
                    .map(|length| {
                        end += length;
                        end - length..end
                    })
                    .collect();
                cuts.push(&segments, end + outside); // an EOS may stand outside
                expected.push(segments);
            }
            for (i, segments) in expected.iter().enumerate() {
                prop_assert_eq!(&cuts.segments(i), segments);
            }
        }
    }
}
