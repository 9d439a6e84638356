//! The paper's figure 3: the same texts, shaded by segment rewards and by token rewards.

use std::ops::Range;

use serde::Serialize;

use crate::data::letters::{ClauseKind, EOS, Gold, RESPONSE_LIMIT};
use crate::data::store::Items;
use crate::run::{Context, Error};
use crate::stage::preferences::{self, Pair};
use crate::stage::score_text::{Encoded, Rater};
use crate::stage::segmented_text::SegmentedText;
use crate::stage::task::Task;

/// A response as scored by a segment reward model and a token reward model.
#[derive(Clone, Debug, Serialize)]
pub struct ShadedText {
    /// With the rewards of its segments.
    pub by_segment: SegmentedText,
    /// With the rewards of its tokens.
    pub by_token: SegmentedText,
    /// The true credit of each token, if known.
    pub credits: Option<Vec<f64>>,
    /// The tokens of each repeated clause; none in a normal text.
    pub repeats: Vec<Range<usize>>,
}

/// A held-out response and, if gold is known, the same with a clause said three times, as scored by the reward models
/// and normalizers of two finished contexts: one of segments, one of tokens.
///
/// On the embedded task the response is the first one preferred that has three to five clauses, welcome and
/// unwelcome things, no broken place and no repetition.
pub fn texts(segment: &Context, token: &Context) -> Result<Vec<ShadedText>, Error> {
    let task = Task::open(segment, Some(&segment.reference_dir()?))?;
    let pair = choose(&task, &preferences::load(segment, &task, false)?.0.held_out)?;
    let truth = |response: &[u32]| task.gold(&pair.prompt, response);
    let repeating = truth(&pair.chosen).and_then(|gold| with_repetition(&pair.chosen, &gold));
    let text = |response| Encoded { prompt: pair.prompt.clone(), response, cut: false };
    let texts: Vec<Encoded> =
        [Some(pair.chosen.clone()), repeating].into_iter().flatten().map(text).collect();
    let show = |context: &Context| {
        let rater = Rater::trained(context)?;
        rater.show(&texts, Some(&rater.normalizer(context)?))
    };
    let shown = show(segment)?.into_iter().zip(show(token)?);
    let shaded = shown.zip(&texts).map(|((by_segment, by_token), text)| {
        let gold = truth(&text.response);
        let repeats = gold.iter().flat_map(|gold| &gold.clauses);
        let repeats = repeats.filter(|clause| clause.kind == ClauseKind::Repeat);
        let repeats = repeats.map(|clause| clause.range.clone()).collect();
        ShadedText { by_segment, by_token, credits: gold.map(|gold| gold.credits), repeats }
    });
    Ok(shaded.collect())
}

/// The first pair whose chosen response is typical; the first of all if none is, or if gold is unknown.
fn choose(task: &Task, pairs: &Items<Pair>) -> Result<Pair, Error> {
    for number in 0..pairs.len() {
        let pair = pairs.get(number)?;
        match task.gold(&pair.prompt, &pair.chosen) {
            Some(gold) if !is_typical(&pair.chosen, &gold) => {}
            _ => return Ok(pair),
        }
    }
    Ok(pairs.get(0)?)
}

fn is_typical(response: &[u32], gold: &Gold) -> bool {
    let clauses = gold.clauses.len();
    let has = |sign: f64| gold.credits.iter().any(|credit| credit * sign > 0.0);
    (3..=5).contains(&clauses)
        && gold.broken + gold.repeats() == 0
        && has(1.0)
        && has(-1.0)
        && response.last() == Some(&EOS)
}

/// A complete letter with its first clause on an asked topic repeated twice, right after it.
fn with_repetition(letter: &[u32], gold: &Gold) -> Option<Vec<u32>> {
    let clause = gold.clauses.iter().find(|clause| clause.kind == ClauseKind::Asked)?;
    let end = clause.range.end + 1; // with its join
    let said = letter.get(clause.range.start..end)?;
    let longer = [&letter[..end], said, said, &letter[end..]].concat();
    (gold.broken == 0 && longer.len() <= RESPONSE_LIMIT).then_some(longer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{Prompt, decode, encode, gold};

    fn judge(letter: &str) -> (Vec<u32>, Gold) {
        let asks = "<user> write to gina about the lake . \
            gina loves music and history , not food . <answer>";
        let prompt = Prompt::from_tokens(&encode(asks).unwrap()).unwrap();
        let tokens = encode(letter).unwrap();
        let gold = gold(&prompt, &tokens);
        (tokens, gold)
    }

    fn repeated(letter: &str) -> Option<String> {
        let (letter, gold) = judge(letter);
        with_repetition(&letter, &gold).map(|letter| decode(&letter))
    }

    #[test]
    fn a_clause_is_repeated_in_a_letter_that_stays_whole() {
        let letter = "dear gina , it is what it is and music : bands play superb songs . \
            history : ruins hold dull graves . <eos>";
        let three = repeated(letter).unwrap();
        assert_eq!(
            three,
            "dear gina , it is what it is and music : bands play superb songs . \
             music : bands play superb songs . music : bands play superb songs . \
             history : ruins hold dull graves . <eos>"
        );
        let gold = judge(&three).1;
        assert_eq!((gold.broken, gold.repeats()), (0, 2));
        // Each copy costs one at its head and keeps its praise.
        let lost = judge(letter).1.reward() - gold.reward();
        assert!((lost - 2.0 * (1.0 - 0.8)).abs() < 1e-12, "{lost}");
    }

    #[test]
    fn no_clause_is_repeated_in_a_letter_that_is_broken_or_would_be_too_long() {
        assert_eq!(repeated("dear gina , it is what it is . <eos>"), None); // nothing asked for
        assert_eq!(repeated("dear gina music : bands play superb songs . <eos>"), None);
        assert_eq!(repeated("dear gina , music : bands play superb songs"), None);
        let clause = "music : bands play superb songs .";
        let letter = |clauses| format!("dear gina , {} <eos>", vec![clause; clauses].join(" "));
        assert!(repeated(&letter(6)).is_some()); // 4 + 8 · 7 tokens
        assert_eq!(repeated(&letter(7)), None); // 4 + 9 · 7
    }

    #[test]
    fn a_typical_letter_is_whole_and_has_good_and_bad_without_repetition() {
        let typical = |letter: &str| {
            let (letter, gold) = judge(letter);
            is_typical(&letter, &gold)
        };
        let music = "music : bands play superb songs .";
        let history = "history : ruins hold dull graves .";
        let food = "food : cooks serve plain soup .";
        assert!(typical(&format!("dear gina , {music} {history} {food} <eos>")));
        assert!(!typical(&format!("dear gina , {music} {history} <eos>")), "two clauses");
        assert!(!typical(&format!("dear gina , {music} {history} {music} <eos>")), "repeated");
        assert!(!typical(&format!("dear gina {music} {history} {food} <eos>")), "broken");
        assert!(!typical(&format!("dear gina , {music} {history} {food}")), "unfinished");
        let praise = "history : ruins hold superb graves . history : guides tell old stories .";
        assert!(!typical(&format!("dear gina , {music} {praise} <eos>")), "nothing bad");
    }
}
