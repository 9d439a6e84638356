//! The gold reward: a sum of credits, each at the token that earns it.
//!
//! | where | credit |
//! | --- | --- |
//! | first token of a clause on an asked topic | +1.0, and +0.5 more for the first one on that topic |
//! | first token of a clause on the neutral topic, the disliked one, a filler | -0.3, -1.5, -0.5 |
//! | first token of a clause from the eighth on | -1.0 instead |
//! | head word of a clause that was there before | -1.0 instead of all of these |
//! | good, bad quality word of a clause | +0.8, -0.8 |
//! | each broken place | -1.0 |
//! | last token, where no `<eos>` comes within 64 tokens | -2.0 |
//!
//! What the table leaves open is read as follows.
//!
//! - **Clauses.** Two clauses are the same when their head words are, whatever their quality words; the
//!   head word of a filler is its first. A repeated clause counts towards the eight, broken text does
//!   not. A repeat keeps the credit of its quality word.
//! - **Greeting.** The first three tokens are the greeting, the name and the comma; each that is wrong is
//!   a broken place, and one that is missing breaks the place where the letter ends.
//! - **No clause.** Where a clause should begin and none of the twenty does, the first token is the
//!   broken place, and reading goes on after the next join. A join that follows a join (or the greeting)
//!   is such a text of one token.
//! - **Missing join.** The broken place is the token found where a join should be, and the next
//!   clause begins there. Nothing is missing where the letter ends: then `<eos>` must follow a `.`, or is
//!   itself the broken place.
//! - **Length.** What follows the first `<eos>`, or the first 64 tokens, has no credit. An empty response
//!   has no token that could bear one, and scores 0.

use std::ops::Range;

use rand::Rng;

use super::RESPONSE_LIMIT;
use super::prompts::Prompt;
use super::vocabulary::{EOS, Form, GREETINGS, JOINS, forms, id, is_one_of, quality};
use crate::rng::Stream;

/// What a clause is to the reader of the letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClauseKind {
    /// On a topic that the prompt asks for.
    Asked,
    /// On the topic that the prompt does not mention.
    Neutral,
    /// On the topic that the prompt warns of.
    Disliked,
    /// On nothing.
    Filler,
    /// Any of these, said before in the same letter.
    Repeat,
    /// Text that is no clause.
    Broken,
}

/// A clause of a response, without the join that follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause {
    /// Its tokens in the response.
    pub range: Range<usize>,
    /// What it is to the reader.
    pub kind: ClauseKind,
    /// The position of the topic word, if the clause is on a topic.
    pub topic_word: Option<usize>,
    /// The position of the head word: of a filler its first token, of broken text none.
    pub head: Option<usize>,
    /// The position of the quality word, if the clause is on a topic.
    pub quality: Option<usize>,
    /// The sum of the credits of its tokens.
    pub credit: f64,
}

/// The truth about a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Gold {
    /// The credit of each token of the response.
    pub credits: Vec<f64>,
    /// The clauses and the broken text, in order.
    pub clauses: Vec<Clause>,
    /// Per token, whether a phrase begins there: at the first token of a clause (its topic word, or the
    /// first word of a filler), at its head word and at its quality word. Greeting, joins, broken text
    /// and `<eos>` begin none.
    pub phrase_starts: Vec<bool>,
    /// The number of broken places; a missing `<eos>` is none.
    pub broken: usize,
    /// Whether `<eos>` comes within the limit.
    pub ended: bool,
}

impl Gold {
    /// The gold reward: the sum of the credits, at most 13.6.
    pub fn reward(&self) -> f64 {
        self.credits.iter().sum()
    }

    /// The number of clauses of one kind.
    pub fn count(&self, kind: ClauseKind) -> usize {
        self.clauses.iter().filter(|clause| clause.kind == kind).count()
    }

    /// The number of clauses that were there before.
    pub fn repeats(&self) -> usize {
        self.count(ClauseKind::Repeat)
    }

    fn break_at(&mut self, position: usize) {
        self.credits[position] -= 1.0;
        self.broken += 1;
    }

    /// Adds the clause of `form` that begins at `start`.
    fn credit_clause(&mut self, prompt: &Prompt, response: &[u32], form: &Form, start: usize) {
        let about = |offset| form.topic.map(|_| start + offset);
        let (topic_word, quality_word) = (about(0), about(Form::QUALITY));
        let head = about(Form::HEAD).unwrap_or(start);

        let words_before = |position: fn(&Clause) -> Option<usize>| {
            self.clauses.iter().filter_map(position).map(|at| response[at])
        };
        let new_topic =
            words_before(|clause| clause.topic_word).all(|word| word != response[start]);
        let repeated = words_before(|clause| clause.head).any(|word| word == response[head]);
        let earlier = self.clauses.len() - self.count(ClauseKind::Broken);

        let (kind, relevance) = match form.topic {
            None => (ClauseKind::Filler, -0.5),
            Some(topic) if topic == prompt.disliked() => (ClauseKind::Disliked, -1.5),
            Some(topic) if prompt.neutral().contains(&topic) => (ClauseKind::Neutral, -0.3),
            Some(_) => (ClauseKind::Asked, if new_topic { 1.5 } else { 1.0 }),
        };
        let kind = if repeated { ClauseKind::Repeat } else { kind };
        match kind {
            ClauseKind::Repeat => self.credits[head] -= 1.0,
            _ if earlier >= 7 => self.credits[start] -= 1.0,
            _ => self.credits[start] += relevance,
        }
        if let (Some(topic), Some(at)) = (form.topic, quality_word) {
            self.credits[at] += 0.8 * f64::from(quality(response[at], topic).unwrap_or(0));
        }
        for at in [Some(start), Some(head), quality_word].into_iter().flatten() {
            self.phrase_starts[at] = true;
        }
        let range = start..start + form.words.len();
        self.clauses.push(Clause {
            range,
            kind,
            topic_word,
            head: Some(head),
            quality: quality_word,
            credit: 0.0,
        });
    }
}

/// The truth about `response`, any tokens whatever, as an answer to `prompt`.
pub fn gold(prompt: &Prompt, response: &[u32]) -> Gold {
    let mut gold = Gold {
        credits: vec![0.0; response.len()],
        clauses: Vec::new(),
        phrase_starts: vec![false; response.len()],
        broken: 0,
        ended: false,
    };
    let within = &response[..response.len().min(RESPONSE_LIMIT)];
    let Some(last) = within.len().checked_sub(1) else { return gold };
    let eos = within.iter().position(|&token| token == EOS);
    let text = &within[..eos.unwrap_or(within.len())];

    let greeting: [&[&str]; 3] = [&GREETINGS, &[prompt.name()], &[","]];
    for (at, words) in greeting.into_iter().enumerate() {
        if !text.get(at).is_some_and(|&token| is_one_of(token, words)) {
            gold.break_at(at.min(eos.unwrap_or(last)));
        }
    }

    let is_join = |&token: &u32| is_one_of(token, &JOINS);
    let mut at = greeting.len();
    while at < text.len() {
        let rest = &text[at..];
        if let Some(form) = forms().iter().find(|form| form.begins(rest)) {
            gold.credit_clause(prompt, response, form, at);
            at += form.words.len();
            match text.get(at) {
                Some(token) if is_join(token) => at += 1,
                Some(_) => gold.break_at(at),
                None => {}
            }
        } else {
            let length = rest.iter().position(is_join).unwrap_or(rest.len());
            gold.break_at(at);
            gold.clauses.push(Clause {
                range: at..at + length.max(1),
                kind: ClauseKind::Broken,
                topic_word: None,
                head: None,
                quality: None,
                credit: 0.0,
            });
            at += length + 1;
        }
    }

    gold.ended = eos.is_some();
    match eos {
        Some(eos) if text.last() != Some(&id(".")) => gold.break_at(eos),
        Some(_) => {}
        None => gold.credits[last] -= 2.0,
    }
    for clause in &mut gold.clauses {
        clause.credit = gold.credits[clause.range.clone()].iter().sum();
    }
    gold
}

/// A preference label: true, for the first response, with probability σ(g₁ - g₂).
pub fn prefers_first(gold_first: f64, gold_second: f64, rng: &mut Stream) -> bool {
    rng.random::<f64>() < 1.0 / (1.0 + (gold_second - gold_first).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{decode, encode, prompts};
    use crate::rng::stream;
    use proptest::prelude::*;

    /// Gina loves music and history, not food; nature is neutral.
    fn gina() -> Prompt {
        let request = "<user> write to gina about the lake . \
            gina loves music and history , not food . <answer>";
        Prompt::from_tokens(&encode(request).unwrap()).unwrap()
    }

    fn judge(letter: &str) -> Gold {
        gold(&gina(), &encode(letter).unwrap())
    }

    /// Asserts the credits of the words that have one, and with them the reward.
    fn assert_credits(letter: &str, expected: &[(&str, f64)]) {
        let gold = judge(letter);
        let credited: Vec<(&str, f64)> = letter
            .split_whitespace()
            .zip(gold.credits)
            .filter(|(_, credit)| *credit != 0.0)
            .collect();
        assert_eq!(credited, expected, "{letter}");
    }

    fn assert_reward(letter: &str, expected: f64) {
        let reward = judge(letter).reward();
        assert!((reward - expected).abs() < 1e-12, "{reward} is not {expected}: {letter}");
    }

    #[test]
    fn the_published_letter_scores_5_6() {
        let letter = "dear gina , music : choirs sing charming hymns . history : ruins hold plain \
            graves while music : bands play superb songs . <eos>";
        // A first on music, a first on history and one more on music; charming and superb.
        assert_reward(letter, 1.5 + 0.8 + 1.5 + 1.0 + 0.8);
        let gold = judge(letter);
        assert_eq!(gold.clauses.len(), 3);
        assert_eq!(
            gold.clauses[1],
            Clause {
                range: 10..16,
                kind: ClauseKind::Asked,
                credit: 1.5,
                topic_word: Some(10),
                head: Some(12),
                quality: Some(14),
            }
        );
        let starts: Vec<usize> = (0..25).filter(|&at| gold.phrase_starts[at]).collect();
        assert_eq!(starts, [3, 5, 7, 10, 12, 14, 17, 19, 21]);
        assert_eq!((gold.phrase_starts.len(), gold.broken), (25, 0));
    }

    #[test]
    fn relevance_is_earned_at_the_first_word_of_a_clause() {
        assert_credits(
            "hello gina , nature : paths cross plain woods and food : cooks serve common soup while \
             it is what it is . music : bands play plain songs . <eos>",
            &[("nature", -0.3), ("food", -1.5), ("it", -0.5), ("music", 1.5)],
        );
    }

    #[test]
    fn only_the_first_clause_of_an_asked_topic_earns_the_bonus() {
        assert_credits(
            "dear gina , music : bands play plain songs . music : choirs sing plain hymns . \
             history : ruins hold plain graves . music : singers give plain concerts . <eos>",
            &[("music", 1.5), ("music", 1.0), ("history", 1.5), ("music", 1.0)],
        );
    }

    #[test]
    fn a_quality_word_counts_by_its_topic_also_where_the_clause_is_unwelcome() {
        assert_credits(
            "dear gina , history : ruins hold old graves . history : guides tell wild stories . \
             nature : paths cross wild woods . nature : cliffs give loud views . \
             food : cooks serve old soup . food : bakers sell superb bread . \
             music : bands play old songs . <eos>",
            &[
                ("history", 1.5),
                ("old", 0.8),
                ("history", 1.0),
                ("wild", -0.8),
                ("nature", -0.3),
                ("wild", 0.8),
                ("nature", -0.3),
                ("loud", -0.8),
                ("food", -1.5),
                ("old", -0.8),
                ("food", -1.5),
                ("superb", 0.8),
                ("music", 1.5),
            ],
        );
    }

    #[test]
    fn a_repeated_clause_costs_one_at_its_head_and_keeps_its_quality_word() {
        let letter = "dear gina , music : bands play plain songs . music : bands play superb songs . \
            time goes by as always . time goes by as always . <eos>";
        assert_credits(
            letter,
            &[("music", 1.5), ("bands", -1.0), ("superb", 0.8), ("time", -0.5), ("time", -1.0)],
        );
        use ClauseKind::{Asked, Filler, Repeat};
        let gold = judge(letter);
        let kinds: Vec<_> = gold.clauses.iter().map(|clause| clause.kind).collect();
        assert_eq!(kinds, [Asked, Repeat, Filler, Repeat]);
        assert_eq!(gold.repeats(), 2);
        assert_eq!(gold.clauses[1].credit, -1.0 + 0.8);
    }

    const SEVEN: &str = "dear gina , music : bands play superb songs . music : singers give superb \
        concerts . music : drummers lead superb dances . music : choirs sing superb hymns . \
        history : guides tell superb stories . history : museums keep superb swords . \
        history : ruins hold superb graves .";

    #[test]
    fn seven_praised_clauses_on_the_asked_topics_reach_the_maximum() {
        assert_reward(&format!("{SEVEN} <eos>"), 13.6);
        assert_reward(&format!("{SEVEN} <eos>"), 7.0 * 1.0 + 2.0 * 0.5 + 7.0 * 0.8);
    }

    #[test]
    fn from_the_eighth_clause_on_each_costs_one_whatever_it_says() {
        let eighth = "history : scholars read superb letters .";
        assert_reward(&format!("{SEVEN} {eighth} <eos>"), 13.6 - 1.0 + 0.8);
        let filler = "it is what it is .";
        assert_reward(&format!("{SEVEN} {filler} <eos>"), 13.6 - 1.0);
        let gold = judge(&format!("{SEVEN} music : bands play plain songs . <eos>"));
        let repeat = &gold.clauses[7];
        assert_eq!((repeat.kind, repeat.credit), (ClauseKind::Repeat, -1.0));
        assert_eq!(gold.credits[repeat.head.unwrap()], -1.0);
    }

    #[test]
    fn each_wrong_token_of_the_greeting_costs_one() {
        let rest = "music : bands play plain songs . <eos>";
        assert_credits(&format!("ana gina , {rest}"), &[("ana", -1.0), ("music", 1.5)]);
        assert_credits(&format!("dear ana , {rest}"), &[("ana", -1.0), ("music", 1.5)]);
        assert_credits(&format!("hello gina : {rest}"), &[(":", -1.0), ("music", 1.5)]);
    }

    #[test]
    fn a_letter_that_ends_within_its_greeting_is_charged_at_its_end() {
        // The comma and the full stop; name, comma and stop; all four.
        assert_credits("dear gina <eos>", &[("<eos>", -2.0)]);
        assert_credits("dear <eos>", &[("<eos>", -3.0)]);
        assert_credits("<eos>", &[("<eos>", -4.0)]);
        // Name and comma are missing, and so is the end.
        assert_credits("dear", &[("dear", -2.0 - 2.0)]);
    }

    #[test]
    fn text_that_is_no_clause_costs_one_and_is_skipped_to_the_next_join() {
        let letter = "dear gina , music : ruins play superb songs . history : ruins hold superb \
            graves . <eos>";
        assert_credits(letter, &[("music", -1.0), ("history", 1.5), ("superb", 0.8)]);
        let gold = judge(letter);
        let broken = &gold.clauses[0];
        assert_eq!((broken.kind, &broken.range), (ClauseKind::Broken, &(3..9)));
        assert_eq!((broken.credit, broken.topic_word, broken.head), (-1.0, None, None));
        assert!(!gold.phrase_starts[..10].contains(&true));
        assert_eq!(gold.broken, 1);
    }

    #[test]
    fn a_join_after_a_join_is_broken_text_of_one_token() {
        let letter = "dear gina , music : bands play plain songs . . history : ruins hold plain \
            graves . <eos>";
        assert_credits(letter, &[("music", 1.5), (".", -1.0), ("history", 1.5)]);
        assert_eq!(judge(letter).clauses[1].range, 10..11);
    }

    #[test]
    fn a_missing_join_costs_one_at_the_word_in_its_place() {
        assert_credits(
            "dear gina , music : bands play plain songs history : ruins hold plain graves . <eos>",
            &[("music", 1.5), ("history", 1.5 - 1.0)],
        );
    }

    #[test]
    fn a_letter_without_a_last_full_stop_pays_one_at_its_end() {
        let clause = "dear gina , music : bands play plain songs";
        assert_credits(&format!("{clause} <eos>"), &[("music", 1.5), ("<eos>", -1.0)]);
        assert_credits(&format!("{clause} while <eos>"), &[("music", 1.5), ("<eos>", -1.0)]);
    }

    #[test]
    fn a_letter_without_an_end_pays_two_at_its_last_token() {
        let clause = "dear gina , music : bands play plain songs .";
        assert_credits(clause, &[("music", 1.5), (".", -2.0)]);
        assert_eq!(judge(clause).broken, 0);
    }

    #[test]
    fn an_end_after_the_limit_is_none_and_nothing_after_an_end_counts() {
        let late = [encode(SEVEN).unwrap(), vec![id("."); 12], vec![EOS]].concat();
        assert_eq!(late.len(), 65);
        let gold = gold(&gina(), &late);
        assert!((gold.reward() - (13.6 - 12.0 - 2.0)).abs() < 1e-12);
        assert_eq!(gold.credits[63..], [-1.0 - 2.0, 0.0]);

        let padded = format!("{SEVEN} <eos> <pad> dear <pad> <eos>");
        assert_reward(&padded, 13.6);
        assert_eq!(judge(&padded).credits.len(), padded.split_whitespace().count());
    }

    #[test]
    fn an_empty_response_scores_nothing() {
        let gold = gold(&gina(), &[]);
        assert_eq!((gold.reward(), gold.clauses.len(), gold.broken), (0.0, 0, 0));
    }

    #[test]
    fn a_filler_starts_one_phrase_and_joins_start_none() {
        let gold =
            judge("dear gina , there is more to say and nature : paths cross old woods . <eos>");
        let starts: Vec<usize> = (0..17).filter(|&at| gold.phrase_starts[at]).collect();
        assert_eq!(starts, [3, 9, 11, 13]);
        let filler = &gold.clauses[0];
        assert_eq!((filler.topic_word, filler.head, filler.quality), (None, Some(3), None));
    }

    #[test]
    fn labels_prefer_the_first_response_as_often_as_the_logistic_function_says() {
        let draws = 20_000;
        let mut rng = stream(0, "labels", 0);
        for (first, second, chance) in [(1.5, 0.5, 0.731_058_578_630_005), (2.0, 2.0, 0.5)] {
            let firsts = (0..draws).filter(|_| prefers_first(first, second, &mut rng)).count();
            let share = firsts as f64 / f64::from(draws);
            let error = f64::sqrt(chance * (1.0 - chance) / f64::from(draws));
            assert!((share - chance).abs() < 4.0 * error, "{share} is not {chance}");
        }
        assert!(prefers_first(1e6, -1e6, &mut rng));
        assert!(!prefers_first(-1e6, 1e6, &mut rng));
    }

    /// Any tokens: some of the vocabulary, some beyond it, and pieces of real letters.
    fn responses() -> impl Strategy<Value = Vec<u32>> {
        let pieces = SEVEN.split(" . ").map(|piece| encode(piece).unwrap()).collect::<Vec<_>>();
        let piece = prop_oneof![
            4 => prop::sample::select(pieces),
            2 => (0..112u32).prop_map(|token| vec![token]),
            2 => prop::sample::select(vec!["dear", "gina", ",", ".", "and", "<eos>", "while"])
                .prop_map(|word| vec![id(word)]),
            1 => any::<u32>().prop_map(|token| vec![token]),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_response_has_a_truth_that_adds_up(index in 0usize..1536, response in responses()) {
            let gold = gold(&prompts()[index], &response);
            prop_assert_eq!(gold.credits.len(), response.len());
            prop_assert_eq!(gold.phrase_starts.len(), response.len());
            prop_assert!(gold.reward() <= 13.6 + 1e-9, "{}", decode(&response));
            let mut end = 0;
            for clause in &gold.clauses {
                prop_assert!(end <= clause.range.start && clause.range.start < clause.range.end);
                prop_assert!(clause.range.end <= response.len().min(RESPONSE_LIMIT));
                let sum: f64 = gold.credits[clause.range.clone()].iter().sum();
                prop_assert!((sum - clause.credit).abs() < 1e-12);
                end = clause.range.end;
            }
        }
    }
}
