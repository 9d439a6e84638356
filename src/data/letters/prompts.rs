//! The requests for letters, and which of them training never sees.

use super::vocabulary::{NAMES, PLACES, Topic, decode, id};

/// A request for a letter: `<user> write to N about the P . N loves A and B , not C . <answer>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    name: usize,
    place: usize,
    /// The asked topics A and B, the disliked C and the neutral rest D.
    topics: [Topic; 4],
}

impl Prompt {
    /// `None` if two of the topics are equal.
    fn new(name: usize, place: usize, [a, b, c]: [Topic; 3]) -> Option<Prompt> {
        let mut rest = Topic::ALL.into_iter().filter(|topic| ![a, b, c].contains(topic));
        let d = rest.next()?;
        rest.next().is_none().then_some(Prompt { name, place, topics: [a, b, c, d] })
    }

    /// Who the letter is for.
    pub fn name(&self) -> &'static str {
        NAMES[self.name]
    }

    /// The place the letter is about (no word of a letter depends on it).
    pub fn place(&self) -> &'static str {
        PLACES[self.place]
    }

    /// The topics A and B that the reader loves.
    pub fn asked(&self) -> [Topic; 2] {
        [self.topics[0], self.topics[1]]
    }

    /// The topic C that the reader does not love.
    pub fn disliked(&self) -> Topic {
        self.topics[2]
    }

    /// The topic D that the prompt does not mention.
    pub fn neutral(&self) -> Topic {
        self.topics[3]
    }

    /// The 18 tokens, from `<user>` to `<answer>`.
    pub fn tokens(&self) -> Vec<u32> {
        let (name, place) = (self.name(), self.place());
        let [a, b, c, _] = self.topics.map(Topic::word);
        [
            "<user>", "write", "to", name, "about", "the", place, ".", name, "loves", a, "and", b,
            ",", "not", c, ".", "<answer>",
        ]
        .map(id)
        .to_vec()
    }

    /// The prompt of which these are the tokens, if there is one.
    pub fn from_tokens(tokens: &[u32]) -> Option<Prompt> {
        let index = |at: usize, words: &[&str]| {
            words.iter().position(|word| tokens.get(at) == Some(&id(word)))
        };
        let topic = |at| Some(Topic::ALL[index(at, &Topic::ALL.map(Topic::word))?]);
        let topics = [topic(10)?, topic(12)?, topic(15)?];
        Prompt::new(index(3, &NAMES)?, index(6, &PLACES)?, topics)
            .filter(|prompt| prompt.tokens() == tokens)
    }

    /// Whether the prompt is kept from training: `(7 A + 3 B + C + 5 N + P) mod 8 = 0` in the indices of
    /// its topics, name and place, which holds for exactly one place in eight.
    pub fn is_held_out(&self) -> bool {
        let [a, b, c, _] = self.topics.map(|topic| topic as usize);
        (7 * a + 3 * b + c + 5 * self.name + self.place).is_multiple_of(8)
    }
}

impl std::fmt::Display for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&decode(&self.tokens()))
    }
}

/// All 1,536 prompts, ordered by name, place, A, B and C, the last varying fastest.
pub fn prompts() -> Vec<Prompt> {
    let mut prompts = Vec::with_capacity(1536);
    for name in 0..NAMES.len() {
        for place in 0..PLACES.len() {
            for a in Topic::ALL {
                for b in Topic::ALL {
                    let with = |c| Prompt::new(name, place, [a, b, c]);
                    prompts.extend(Topic::ALL.into_iter().filter_map(with));
                }
            }
        }
    }
    prompts
}

/// The 1,344 training prompts and the 192 held-out ones, each in the order of [`prompts`].
pub fn split() -> (Vec<Prompt>, Vec<Prompt>) {
    prompts().into_iter().partition(|prompt| !prompt.is_held_out())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn there_are_1536_distinct_prompts_of_18_tokens() {
        let prompts = prompts();
        let distinct: HashSet<_> = prompts.iter().map(Prompt::tokens).collect();
        assert_eq!((prompts.len(), distinct.len()), (1536, 1536));
        assert!(distinct.iter().all(|tokens| tokens.len() == 18));
    }

    #[test]
    fn prompts_are_ordered_by_name_then_place_then_topics() {
        let texts: Vec<_> = prompts().iter().map(Prompt::to_string).collect();
        let request = |name: &str, place: &str, [a, b, c]: [&str; 3]| {
            format!(
                "<user> write to {name} about the {place} . {name} loves {a} and {b} , not {c} . <answer>"
            )
        };
        assert_eq!(texts[0], request("ana", "harbor", ["food", "music", "nature"]));
        assert_eq!(texts[1], request("ana", "harbor", ["food", "music", "history"]));
        assert_eq!(texts[24], request("ana", "castle", ["food", "music", "nature"]));
        assert_eq!(texts[1535], request("hugo", "lake", ["history", "nature", "music"]));
    }

    #[test]
    fn every_prompt_is_read_back_from_its_tokens_and_anything_else_is_refused() {
        for prompt in prompts() {
            assert_eq!(Prompt::from_tokens(&prompt.tokens()), Some(prompt));
        }
        let tokens = prompts()[0].tokens();
        assert_eq!(Prompt::from_tokens(&[]), None);
        assert_eq!(Prompt::from_tokens(&tokens[..17]), None);
        assert_eq!(Prompt::from_tokens(&[&tokens[..], &[1]].concat()), None);
        for at in 0..tokens.len() {
            let mut changed = tokens.clone();
            changed[at] = u32::MAX;
            assert_eq!(Prompt::from_tokens(&changed), None);
        }
        let mut twice_the_same_topic = tokens.clone();
        twice_the_same_topic[12] = tokens[10];
        assert_eq!(Prompt::from_tokens(&twice_the_same_topic), None);
    }

    #[test]
    fn the_four_topics_of_a_prompt_are_distinct() {
        for prompt in prompts() {
            let [a, b] = prompt.asked();
            let topics = HashSet::from([a, b, prompt.disliked(), prompt.neutral()]);
            assert_eq!(topics.len(), 4);
        }
    }

    #[test]
    fn one_prompt_in_eight_is_held_out_and_no_prompt_is_on_both_sides() {
        let (training, held_out) = split();
        assert_eq!((training.len(), held_out.len()), (1344, 192));
        let all: HashSet<_> = training.iter().chain(&held_out).collect();
        assert_eq!(all.len(), 1536);
        assert!(held_out.iter().all(Prompt::is_held_out));
    }

    #[test]
    fn the_held_out_rule_agrees_with_a_sum_done_by_hand() {
        let prompt = |name, place| {
            let topics = [Topic::Music, Topic::History, Topic::Food];
            Prompt::new(name, place, topics).unwrap()
        };
        // 7·1 + 3·3 + 0 = 16, so name 0 and place 0 are held out, and so are 5·1 + 3 = 8.
        assert!(prompt(0, 0).is_held_out());
        assert!(prompt(1, 3).is_held_out());
        assert!(!prompt(1, 2).is_held_out());
    }
}
