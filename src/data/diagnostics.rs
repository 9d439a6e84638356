//! How well segments and their rewards match a truth that is known for every token.
//!
//! Only the embedded task ([`letters`](super::letters)) has such a truth.

use std::ops::Range;

use super::letters::Gold;
use crate::statistics::mean;

/// Pearson's correlation of `x` and `y`, in [-1, 1].
///
/// `None` if it is not defined: fewer than two points, a side on which all values are equal, or one that
/// is not finite.
///
/// # Formula
///
/// ρ = Σ (xᵢ - x̄)(yᵢ - ȳ) / √(Σ (xᵢ - x̄)² · Σ (yᵢ - ȳ)²).
///
/// # Panics
///
/// If `x` and `y` differ in length.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::diagnostics::pearson;
/// // Deviations -3, 0, 3 and -1, 2, -1: they share no direction.
/// assert_eq!(pearson(&[0.0, 3.0, 6.0], &[1.0, 4.0, 1.0]), Some(0.0));
/// assert_eq!(pearson(&[0.0, 3.0], &[7.0, 6.0]), Some(-1.0));
/// ```
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "each point needs both coordinates");
    let varies = |values: &[f64]| values.iter().any(|value| *value != values[0]);
    if !varies(x) || !varies(y) {
        return None;
    }
    let (x_mean, y_mean) = (mean(x.iter().copied()), mean(y.iter().copied()));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - x_mean, y - y_mean);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    let variances = xx * yy;
    (variances > 0.0).then(|| xy / variances.sqrt())
}

/// Spearman's rank correlation of `x` and `y`, in [-1, 1]; equal values share the mean of their ranks.
///
/// `None` if it is not defined: fewer than two points, a side on which all values are equal, or a NaN.
///
/// # Formula
///
/// [Pearson's correlation](pearson) of the ranks.
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
    let unordered = x.iter().chain(y).any(|value| value.is_nan());
    if unordered { None } else { pearson(&ranks(x), &ranks(y)) }
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
    /// The share of segment starts that are phrase starts; 0 if there is no segment start.
    pub precision: f64,
    /// The share of phrase starts that are segment starts; 0 if there is no phrase start.
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

/// Learned rewards beside the true credits, gathered over responses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedCredits {
    /// Of each segment: its reward, and the sum of the credits of its tokens.
    pub segments: Vec<(f64, f64)>,
    /// Of each clause: the sum of the rewards of the segments that start in it, and its credit.
    ///
    /// A clause in which no segment starts belongs to the one before, whose last segment reaches over it: a
    /// sentence's reward stands beside the credits of all its clauses. Clauses before the first such start are
    /// left out: their reward is the greeting's, too. So the bandit has none. The join behind a clause is in
    /// no clause: where it is an action of its own, as for tokens, its reward is left out.
    pub clauses: Vec<(f64, f64)>,
    /// Of each topic word at which a segment starts that holds no other phrase: the segment's reward, and
    /// its credit. Longer segments, such as sentences, say nothing of a single word.
    pub topics: Vec<(f64, f64)>,
    /// As `topics`, of each quality word.
    pub qualities: Vec<(f64, f64)>,
}

impl LearnedCredits {
    /// Adds a response: its segments, the reward of each, and the truth.
    pub fn add(&mut self, segments: &[Range<usize>], rewards: &[f64], gold: &Gold) {
        let credits = segment_credits(segments, &gold.credits);
        self.segments.extend(rewards.iter().copied().zip(credits.iter().copied()));

        let mut clauses: Vec<(f64, f64)> = Vec::new();
        for clause in &gold.clauses {
            let mut inside = (segments.iter().zip(rewards))
                .filter(|(segment, _)| clause.range.contains(&segment.start))
                .map(|(_, reward)| reward)
                .peekable();
            if inside.peek().is_some() {
                clauses.push((inside.sum(), clause.credit));
            } else if let Some((_, credit)) = clauses.last_mut() {
                *credit += clause.credit;
            }
        }
        self.clauses.extend(clauses);

        let alone = |word: Option<usize>| {
            let t = segments.binary_search_by_key(&word?, |segment| segment.start).ok()?;
            let rest = segments[t].start + 1..segments[t].end;
            (!gold.phrase_starts[rest].contains(&true)).then(|| (rewards[t], credits[t]))
        };
        self.topics.extend(gold.clauses.iter().filter_map(|clause| alone(clause.topic_word)));
        self.qualities.extend(gold.clauses.iter().filter_map(|clause| alone(clause.quality)));
    }
}

/// [Spearman's rank correlation](spearman) of points.
pub fn rank_correlation(points: &[(f64, f64)]) -> Option<f64> {
    let (x, y): (Vec<f64>, Vec<f64>) = points.iter().copied().unzip();
    spearman(&x, &y)
}

/// How much of the advantage lies on the tokens that caused the reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CreditAssignment {
    /// Σ |A| over tokens with a credit other than 0, as a share of Σ |A| over all; `None` if that is 0.
    pub advantage_share: Option<f64>,
    /// The share of tokens with a credit other than 0: the share above if all |A| were equal; `None` without
    /// a token.
    pub token_share: Option<f64>,
    /// [Pearson's correlation](pearson) of advantage and credit.
    pub correlation: Option<f64>,
}

/// Compares the advantages of tokens with their true credits.
///
/// # Panics
///
/// If the two differ in length.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::diagnostics::credit_assignment;
/// // Tokens 1 and 3 caused the reward: they bear 2 + 1 of a Σ |A| of 4.
/// let credit = credit_assignment(&[0.0, 2.0, -1.0, -1.0], &[0.0, 1.5, 0.0, -1.5]);
/// assert_eq!(credit.advantage_share, Some(0.75));
/// assert_eq!(credit.token_share, Some(0.5));
/// // (2 · 1.5 + 1 · 1.5) / √(6 · 4.5)
/// assert!((credit.correlation.unwrap() - 4.5 / 27f64.sqrt()).abs() < 1e-12);
/// ```
pub fn credit_assignment(advantages: &[f64], credits: &[f64]) -> CreditAssignment {
    let correlation = pearson(advantages, credits);
    let causes = || advantages.iter().zip(credits).filter(|(_, credit)| **credit != 0.0);
    let on_causes: f64 = causes().map(|(advantage, _)| advantage.abs()).sum();
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
    CreditAssignment {
        advantage_share: share(on_causes, advantages.iter().map(|a| a.abs()).sum()),
        token_share: share(causes().count() as f64, credits.len() as f64),
        correlation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{Prompt, encode, gold};

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

    #[test]
    fn a_line_has_correlation_one_and_a_falling_one_minus_one() {
        let x = [0.1, 5.0, -3.0, 40.0];
        let rising = pearson(&x, &x.map(|v| 2.0 * v + 7.0)).unwrap();
        let falling = pearson(&x, &x.map(|v| -0.5 * v)).unwrap();
        assert!((rising - 1.0).abs() < 1e-12 && (falling + 1.0).abs() < 1e-12);
        // Unlike the ranks', it sees how far apart points are.
        assert!(pearson(&x, &x.map(|v: f64| v.powi(3))).unwrap() < 0.99);
    }

    #[test]
    fn a_correlation_needs_two_finite_values_on_each_side() {
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(pearson(&[1.0], &[1.0]), None);
        assert_eq!(pearson(&[1.0, f64::NAN], &[3.0, 4.0]), None);
        assert_eq!(pearson(&[1.0, f64::INFINITY], &[3.0, 4.0]), None);
        // Equal values whose mean is not quite theirs.
        assert_eq!(pearson(&[0.1; 3], &[1.0, 2.0, 3.0]), None);
    }

    #[test]
    fn a_share_of_no_advantage_is_not_defined() {
        let flat = credit_assignment(&[0.0, 0.0], &[1.0, 0.0]);
        assert_eq!((flat.advantage_share, flat.token_share), (None, Some(0.5)));
        assert_eq!(flat.correlation, None);
        assert_eq!(credit_assignment(&[], &[]).token_share, None);
    }

    #[test]
    fn equal_advantages_put_on_the_causes_what_is_their_share_of_tokens() {
        let credit = credit_assignment(&[0.5, -0.5, 0.5, 0.5], &[0.0, -1.0, 0.0, 0.0]);
        assert_eq!(credit.advantage_share, credit.token_share);
        let all_on_causes = credit_assignment(&[0.0, -4.0, 0.0, 0.0], &[0.0, -1.0, 0.0, 0.0]);
        assert_eq!(all_on_causes.advantage_share, Some(1.0));
        assert_eq!(all_on_causes.correlation, Some(1.0));
    }

    /// A letter to Ana, who loves food and music, with its truth: credits 1.5 at `food`, 0.8 at `superb`,
    /// -0.5 at `people`, 1.5 at `music`, -0.8 at `dull`.
    fn letter() -> Gold {
        let asks = "<user> write to ana about the harbor . \
            ana loves food and music , not nature . <answer>";
        let prompt = Prompt::from_tokens(&encode(asks).unwrap()).unwrap();
        let letter = "dear ana , food : cooks serve superb soup and people say many things . \
            music : bands play dull songs . <eos>";
        gold(&prompt, &encode(letter).unwrap())
    }

    #[test]
    fn segments_of_the_phrases_stand_beside_clauses_topic_words_and_quality_words() {
        // dear ana , | food : | cooks serve | superb soup and | people say many things . | music : | …
        let segments = [0..3, 3..5, 5..7, 7..10, 10..15, 15..17, 17..19, 19..22];
        let mut learned = LearnedCredits::default();
        learned.add(&segments, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &letter());
        let credits = [0.0, 1.5, 0.0, 0.8, -0.5, 1.5, 0.0, -0.8];
        let rewards = (0..8).map(f64::from);
        assert_eq!(learned.segments, rewards.zip(credits).collect::<Vec<_>>());
        assert_eq!(learned.clauses, [(6.0, 2.3), (4.0, -0.5), (18.0, 0.7)]);
        assert_eq!(learned.topics, [(1.0, 1.5), (5.0, 1.5)]);
        assert_eq!(learned.qualities, [(3.0, 0.8), (7.0, -0.8)]);
    }

    #[test]
    fn a_sentence_stands_beside_its_clauses_and_no_single_word() {
        let mut learned = LearnedCredits::default();
        // Three sentences, the first with the greeting; the second begins at `people`, as after a full stop.
        learned.add(&[0..10, 10..15, 15..22], &[1.0, 2.0, 3.0], &letter());
        assert_eq!(learned.clauses, [(2.0, -0.5), (3.0, 0.7)]);
        assert!(learned.topics.is_empty() && learned.qualities.is_empty());
        // One segment over the last two clauses: their credits together.
        let mut learned = LearnedCredits::default();
        learned.add(&[0..10, 10..22], &[1.0, 2.0], &letter());
        assert_eq!(learned.clauses, [(2.0, -0.5 + 0.7)]);
    }

    #[test]
    fn the_whole_response_as_one_segment_has_no_clause_and_no_word() {
        let mut learned = LearnedCredits::default();
        learned.add(std::slice::from_ref(&(0..23)), &[1.0], &letter());
        assert_eq!(learned.segments, [(1.0, letter().reward())]);
        assert!(learned.clauses.is_empty() && learned.topics.is_empty());
        assert_eq!(rank_correlation(&learned.clauses), None);
    }
}
