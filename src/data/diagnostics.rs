//! How well segments and their rewards match a truth that is known for every token.
//!
//! Only the embedded task ([`letters`](super::letters)) has such a truth.

use std::ops::Range;

/// Spearman's rank correlation of `x` and `y`, in [-1, 1]; equal values share the mean of their ranks.
///
/// `None` where it is not defined: fewer than two points, a side on which all values are equal, or a NaN.
///
/// # Formula
///
/// Pearson's correlation of the ranks: ρ = Σ (rᵢ - r̄)(sᵢ - s̄) / √(Σ (rᵢ - r̄)² · Σ (sᵢ - s̄)²).
///
/// # Panics
///
/// If `x` and `y` differ in length.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::diagnostics::spearman;
/// assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 30.0, 20.0]), Some(0.5));
/// assert_eq!(spearman(&[1.0, 1.0], &[2.0, 3.0]), None);
/// ```
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "each point needs both coordinates");
    if x.iter().chain(y).any(|value| value.is_nan()) {
        return None;
    }
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let (r, s) = (ranks(x), ranks(y));
    let dot = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    let variances = dot(&r, &r) * dot(&s, &s);
    (variances > 0.0).then(|| dot(&r, &s) / variances.sqrt())
}

/// The rank of each value, from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for ties in order.chunk_by(|&i, &j| values[i] == values[j]) {
        for &index in ties {
            ranks[index] = before as f64 + (ties.len() as f64 + 1.0) / 2.0;
        }
        before += ties.len();
    }
    ranks
}

/// How well segment starts match phrase starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Boundaries {
    /// The share of segment starts that are phrase starts; 0 where there is no segment start.
    pub precision: f64,
    /// The share of phrase starts that are segment starts; 0 where there is no phrase start.
    pub recall: f64,
    /// The harmonic mean of the two, 2 · hits / (segment starts + phrase starts); 0 where both are 0.
    pub f1: f64,
}

/// Counts of segment starts and phrase starts, added up over responses.
///
/// The first and the last token of a response are not counted on either side: a segment always starts at
/// the first, and the last is `<eos>` (or where the response was cut off).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoundaryCounts {
    /// Segment starts.
    pub segments: usize,
    /// Phrase starts.
    pub phrases: usize,
    /// Tokens at which both start.
    pub hits: usize,
}

impl BoundaryCounts {
    /// Adds a response: its segments, and per token whether a phrase starts there.
    ///
    /// # Panics
    ///
    /// If a segment starts after the last token.
    pub fn add(&mut self, segments: &[Range<usize>], phrase_starts: &[bool]) {
        let counted = 1..phrase_starts.len().saturating_sub(1);
        for Range { start, .. } in segments {
            let phrase = phrase_starts[*start];
            if counted.contains(start) {
                self.segments += 1;
                self.hits += usize::from(phrase);
            }
        }
        self.phrases += counted.filter(|&at| phrase_starts[at]).count();
    }

    /// Precision, recall and F1 of all responses together.
    pub fn score(&self) -> Boundaries {
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        Boundaries {
            precision: share(self.hits, self.segments),
            recall: share(self.hits, self.phrases),
            f1: share(2 * self.hits, self.segments + self.phrases),
        }
    }
}

/// The true credit of each segment: the sum of the credits of its tokens.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::diagnostics::segment_credits;
/// assert_eq!(segment_credits(&[0..2, 2..3], &[1.0, 0.5, -1.0]), [1.5, -1.0]);
/// ```
pub fn segment_credits(segments: &[Range<usize>], credits: &[f64]) -> Vec<f64> {
    segments.iter().map(|segment| credits[segment.clone()].iter().sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_order_has_rank_correlation_one_and_the_reverse_minus_one() {
        let x = [0.1, 5.0, -3.0, 40.0];
        let cubes = x.map(|v: f64| v.powi(3));
        assert_eq!(spearman(&x, &cubes), Some(1.0));
        assert_eq!(spearman(&x, &cubes.map(|v| -v)), Some(-1.0));
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 3.0, 2.0]), [4.0, 1.0, 4.0, 4.0, 2.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
        // Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: Σ rs = 4.5 over √(4.5 · 5).
        let rho = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!((rho - 4.5 / 22.5f64.sqrt()).abs() < 1e-12);
        // Ranks 1.5, 1.5, 3.5, 3.5 and 1, 3, 2, 4: deviations give 2 over √(4 · 5).
        let rho = spearman(&[0.0, 0.0, 1.0, 1.0], &[1.0, 3.0, 2.0, 4.0]).unwrap();
        assert!((rho - 2.0 / 20.0f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_rank_correlation_needs_two_points_and_two_values_on_each_side() {
        assert_eq!(spearman(&[], &[]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[3.0, 3.0]), None);
        assert_eq!(spearman(&[1.0, f64::NAN], &[3.0, 4.0]), None);
        assert_eq!(spearman(&[1.0, f64::INFINITY], &[3.0, 4.0]), Some(1.0));
    }

    #[test]
    #[should_panic = "each point needs both coordinates"]
    fn points_without_a_partner_are_a_mistake() {
        spearman(&[1.0, 2.0], &[1.0]);
    }

    const NO: bool = false;
    const YES: bool = true;

    #[test]
    fn boundaries_are_counted_between_the_first_and_the_last_token() {
        let mut counts = BoundaryCounts::default();
        // Starts at 2, 4, 5 against 2, 3, 5; position 0 and the last one do not count.
        let segments = [0..2, 2..4, 4..5, 5..7, 7..8];
        counts.add(&segments, &[NO, NO, YES, YES, NO, YES, NO, YES]);
        assert_eq!(counts, BoundaryCounts { segments: 3, phrases: 3, hits: 2 });
        // One more response: a start at 1, where a phrase starts too.
        counts.add(&[0..1, 1..3], &[YES, YES, NO]);
        let Boundaries { precision, recall, f1 } = counts.score();
        assert_eq!((precision, recall, f1), (3.0 / 4.0, 3.0 / 4.0, 6.0 / 8.0));
    }

    #[test]
    fn precision_and_recall_see_different_mistakes() {
        let mut counts = BoundaryCounts::default();
        counts.add(&[0..1, 1..2, 2..3, 3..4, 4..6], &[NO, YES, NO, NO, NO, NO]);
        let expected = Boundaries { precision: 0.25, recall: 1.0, f1: 0.4 };
        assert_eq!(counts.score(), expected);
    }

    #[test]
    fn the_whole_response_as_one_segment_scores_zero() {
        let mut counts = BoundaryCounts::default();
        counts.add(std::slice::from_ref(&(0..4)), &[NO, YES, YES, NO]);
        counts.add(&[], &[]);
        assert_eq!(counts.score(), Boundaries { precision: 0.0, recall: 0.0, f1: 0.0 });
        assert_eq!(BoundaryCounts::default().score().f1, 0.0);
    }

    #[test]
    fn segment_credits_add_up_to_the_reward() {
        let credits = [0.0, 1.5, 0.0, -0.8, -1.0];
        let sums = segment_credits(&[0..2, 2..5], &credits);
        assert_eq!(sums, [1.5, -1.8]);
        assert!(segment_credits(&[], &credits).is_empty());
    }
}
