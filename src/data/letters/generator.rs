//! The writer of the letters that supervised fine-tuning learns from.
//!
//! Over a million letters the gold reward has mean 1.635 (standard error 0.003) and standard deviation
//! 3.381, and a letter has 34.07 tokens. The prototype of this task reported 1.52, 3.35 and 34 for a
//! sample of unrecorded size; a mean that far off is 1.5 standard errors for 2,000 letters.

use std::ops::Range;

use rand::Rng;

use super::gold::gold;
use super::prompts::Prompt;
use super::vocabulary::{EOS, GREETINGS, JOINS, QUALITY_WORDS, Topic, forms, id, quality_word};
use crate::rng::Stream;

/// The chance of 2, 3, .. 7 clauses.
const CLAUSES: [f64; 6] = [0.15, 0.20, 0.20, 0.15, 0.15, 0.15];
/// The chance that a careful writer's next clause is on an asked, the disliked, no, the neutral topic.
const CAREFUL: [f64; 4] = [0.95, 0.0, 0.05, 0.0];
/// A careless writer; half of the letters are by each.
const CARELESS: [f64; 4] = [0.30, 0.25, 0.20, 0.25];
/// The chance that a clause which is not the first copies an earlier one.
const COPY: f64 = 0.12;
/// The chance of each join after a clause that is not the last.
const JOIN: [f64; 3] = [0.5, 0.3, 0.2];

/// A letter for `prompt`, from its greeting to `<eos>`: `{dear|hello} N ,`, then two to seven clauses,
/// each followed by a join, the last by `.`.
///
/// A clause that is not copied is drawn again, its kind included, until it is a new one. A copy draws
/// its own quality word, and every earlier clause is as likely to be copied.
pub fn write_letter(prompt: &Prompt, rng: &mut Stream) -> Vec<u32> {
    let greeting = GREETINGS[rng.random_range(0..GREETINGS.len())];
    let mut letter = [greeting, prompt.name(), ","].map(id).to_vec();
    let kinds = if rng.random_bool(0.5) { CAREFUL } else { CARELESS };
    let clauses = 2 + weighted(&CLAUSES, rng);
    let mut used: Vec<usize> = Vec::new();
    for clause in 1..=clauses {
        let form = if !used.is_empty() && rng.random_bool(COPY) {
            used[rng.random_range(0..used.len())]
        } else {
            let new = loop {
                let drawn = draw_clause(prompt, &kinds, rng);
                if !used.contains(&drawn) {
                    break drawn;
                }
            };
            used.push(new);
            new
        };
        push_clause(&mut letter, form, rng);
        let join = if clause < clauses { JOINS[weighted(&JOIN, rng)] } else { "." };
        letter.push(id(join));
    }
    letter.push(EOS);
    letter
}

/// Two letters for `prompt` on one scaffold: greeting, joins and the number of clauses are those of a letter of
/// [`write_letter`]. Each of its clauses is kept, or with the chance `share` written anew in both, each for itself; the two
/// letters differ.
pub fn write_aligned(prompt: &Prompt, share: f64, rng: &mut Stream) -> [Vec<u32>; 2] {
    let letter = write_letter(prompt, rng);
    let clauses: Vec<Range<usize>> =
        gold(prompt, &letter).clauses.into_iter().map(|clause| clause.range).collect();
    loop {
        let anew: Vec<bool> = clauses.iter().map(|_| rng.random_bool(share)).collect();
        let mut write = || {
            let kinds = if rng.random_bool(0.5) { CAREFUL } else { CARELESS };
            let mut variant = letter[..clauses[0].start].to_vec();
            for (clause, &anew) in clauses.iter().zip(&anew) {
                match anew {
                    true => push_clause(&mut variant, draw_clause(prompt, &kinds, rng), rng),
                    false => variant.extend(&letter[clause.clone()]),
                }
                variant.push(letter[clause.end]);
            }
            variant.push(EOS);
            variant
        };
        let both = [write(), write()];
        if both[0] != both[1] {
            return both;
        }
    }
}

/// Adds a clause with a quality word.
fn push_clause(letter: &mut Vec<u32>, form: usize, rng: &mut Stream) {
    let quality = quality_word(rng.random_range(0..QUALITY_WORDS));
    letter.extend(forms()[form].words.iter().map(|word| word.unwrap_or(quality)));
}

/// The index of a clause whose kind has the chances `kinds`.
fn draw_clause(prompt: &Prompt, kinds: &[f64; 4], rng: &mut Stream) -> usize {
    let fillers = Topic::ALL.len();
    let group = match weighted(kinds, rng) {
        0 => any(prompt.asked(), rng).map_or(fillers, |topic| topic as usize),
        1 => prompt.disliked() as usize,
        2 => fillers,
        // Where every topic is asked for or disliked, a filler.
        _ => any(prompt.neutral(), rng).map_or(fillers, |topic| topic as usize),
    };
    4 * group + rng.random_range(0..4)
}

/// One of `topics`, all with the same chance; drawn only where there are several.
fn any(topics: &[Topic], rng: &mut Stream) -> Option<Topic> {
    match topics {
        [] => None,
        [only] => Some(*only),
        several => Some(several[rng.random_range(0..several.len())]),
    }
}

/// An index with the chances `weights`, which sum to 1.
fn weighted(weights: &[f64], rng: &mut Stream) -> usize {
    let mut left: f64 = rng.random();
    let chosen = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // A sum just below 1 leaves a sliver: it belongs to the last index that can be drawn.
    chosen.or(weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{Clause, ClauseKind, RESPONSE_LIMIT, decode, gold, prompts};
    use crate::rng::stream;

    const LETTERS: usize = 20_000;

    #[test]
    fn aligned_letters_share_their_scaffold_and_differ_in_about_the_share_of_clauses() {
        let prompts = prompts();
        let mut rng = stream(0, "aligned letters", 0);
        let (mut clauses, mut kept) = (0, 0);
        for _ in 0..2_000 {
            let prompt = prompts[rng.random_range(0..prompts.len())];
            let letters = write_aligned(&prompt, 0.5, &mut rng);
            assert_ne!(letters[0], letters[1]);
            let [first, second] = letters.each_ref().map(|letter| gold(&prompt, letter).clauses);
            assert_eq!(first.len(), second.len());
            assert_eq!(letters[0][..3], letters[1][..3]);
            for (a, b) in first.iter().zip(&second) {
                assert_eq!(letters[0][a.range.end], letters[1][b.range.end], "the join");
                clauses += 1;
                kept += usize::from(letters[0][a.range.clone()] == letters[1][b.range.clone()]);
            }
        }
        // A little more than a half is written anew, as letters that come out the same are drawn again; some clauses come
        // out the same by chance.
        let share = kept as f64 / clauses as f64;
        assert!((0.44..0.52).contains(&share), "{share}");
    }

    fn letters() -> impl Iterator<Item = (Prompt, Vec<u32>)> {
        let prompts = prompts();
        let mut rng = stream(0, "generator statistics", 0);
        (0..LETTERS).map(move |_| {
            let prompt = prompts[rng.random_range(0..prompts.len())];
            (prompt, write_letter(&prompt, &mut rng))
        })
    }

    /// Mean and standard deviation.
    fn moments(values: &[f64]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
    }

    #[test]
    fn a_letter_is_a_function_of_its_prompt_and_stream() {
        let prompt = prompts()[10];
        let write = |index| write_letter(&prompt, &mut stream(3, "letter", index));
        assert_eq!(write(0), write(0));
        assert_ne!(write(0), write(1));
    }

    #[test]
    fn letters_have_the_documented_mean_spread_and_length() {
        let (mut rewards, mut lengths) = (Vec::new(), Vec::new());
        for (prompt, letter) in letters() {
            rewards.push(gold(&prompt, &letter).reward());
            lengths.push(letter.len() as f64);
        }
        let (mean, sd) = moments(&rewards);
        let (length, length_sd) = moments(&lengths);
        let root = (LETTERS as f64).sqrt();
        assert!((mean - 1.635).abs() < 4.0 * sd / root, "mean {mean}");
        // The error of a standard deviation is about σ / √(2n).
        assert!((sd - 3.381).abs() < 4.0 * sd / (2.0f64.sqrt() * root), "sd {sd}");
        assert!((length - 34.07).abs() < 4.0 * length_sd / root, "length {length}");
    }

    #[test]
    fn letters_are_never_broken_and_fit_the_limit() {
        for (prompt, letter) in letters() {
            let gold = gold(&prompt, &letter);
            assert_eq!(gold.broken, 0, "{}", decode(&letter));
            assert!((2..=7).contains(&gold.clauses.len()));
            assert!(letter.len() <= RESPONSE_LIMIT);
        }
    }

    #[test]
    fn clauses_joins_and_quality_words_have_their_chances() {
        let mut clauses = [0usize; 8];
        let (mut later, mut repeats) = (0usize, 0usize);
        let (mut joins, mut joined) = ([0usize; 3], 0usize);
        let (mut qualities, mut slots) = ([0usize; QUALITY_WORDS], 0usize);
        for (prompt, letter) in letters() {
            let gold = gold(&prompt, &letter);
            clauses[gold.clauses.len()] += 1;
            later += gold.clauses.len() - 1;
            repeats += gold.repeats();
            let (_, but_last) = gold.clauses.split_last().unwrap();
            for Clause { range, .. } in but_last {
                joins[JOINS.iter().position(|join| id(join) == letter[range.end]).unwrap()] += 1;
                joined += 1;
            }
            for at in gold.clauses.iter().filter_map(|clause| clause.quality) {
                qualities[(0..QUALITY_WORDS).find(|&q| quality_word(q) == letter[at]).unwrap()] +=
                    1;
                slots += 1;
            }
        }
        let near = |count: usize, of: usize, chance: f64| {
            let share = count as f64 / of as f64;
            let error = (chance * (1.0 - chance) / of as f64).sqrt();
            assert!((share - chance).abs() < 4.5 * error, "{share} is not {chance}");
        };
        (2..8).for_each(|k| near(clauses[k], LETTERS, CLAUSES[k - 2]));
        near(repeats, later, COPY);
        (0..3).for_each(|join| near(joins[join], joined, JOIN[join]));
        qualities.iter().for_each(|&count| near(count, slots, 1.0 / 11.0));
    }

    #[test]
    fn the_first_clause_has_the_chances_of_the_two_writers() {
        use ClauseKind::{Asked, Disliked, Filler, Neutral};
        let mut firsts = Vec::new();
        for (prompt, letter) in letters() {
            firsts.push(gold(&prompt, &letter).clauses[0].kind);
        }
        for (index, kind) in [Asked, Disliked, Filler, Neutral].into_iter().enumerate() {
            let chance = (CAREFUL[index] + CARELESS[index]) / 2.0;
            let share = firsts.iter().filter(|&&k| k == kind).count() as f64 / LETTERS as f64;
            let error = (chance * (1.0 - chance) / LETTERS as f64).sqrt();
            assert!((share - chance).abs() < 4.5 * error, "{kind:?}: {share} is not {chance}");
        }
    }
}
