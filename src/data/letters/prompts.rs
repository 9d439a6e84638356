//! The requests for letters, and which of them training never sees.

use super::vocabulary::{NAMES, PLACES, Topic, decode, id};

/// A request for a letter: `<user> write to N about the P . N loves A and B , not C . <answer>`.
///
/// The prompts of the preference task ask for two topics; those of the verifiable task for one, two or three, which is
/// their grade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    name: usize,
    place: usize,
    /// The asked topics, the disliked one, and the neutral rest in the order of [`Topic::ALL`].
    topics: [Topic; 4],
    grade: usize,
}

impl Prompt {
    /// `None` if two of the topics are equal, or if not one, two or three are asked for.
    fn new(name: usize, place: usize, asked: &[Topic], disliked: Topic) -> Option<Prompt> {
        let mut topics = asked.to_vec();
        topics.push(disliked);
        topics.extend(Topic::ALL.into_iter().filter(|t| *t != disliked && !asked.contains(t)));
        let grade = asked.len();
        // Four, and those not named are distinct: then all are.
        let topics: [Topic; 4] = topics.try_into().ok()?;
        (1..=3).contains(&grade).then_some(Prompt { name, place, topics, grade })
    }

    /// Who the letter is for.
    pub fn name(&self) -> &'static str {
        NAMES[self.name]
    }

    /// The place the letter is about (no word of a letter depends on it).
    pub fn place(&self) -> &'static str {
        PLACES[self.place]
    }

    /// The topics that the reader loves, A first.
    pub fn asked(&self) -> &[Topic] {
        &self.topics[..self.grade]
    }

    /// The topic C that the reader does not love.
    pub fn disliked(&self) -> Topic {
        self.topics[self.grade]
    }

    /// The topics that the prompt does not mention: of two asked topics one, D.
    pub fn neutral(&self) -> &[Topic] {
        &self.topics[self.grade + 1..]
    }

    /// The tokens, from `<user>` to `<answer>`: 18 for two asked topics, two fewer or more for one or three.
    pub fn tokens(&self) -> Vec<u32> {
        let (name, place) = (self.name(), self.place());
        let asked: Vec<&str> = self.asked().iter().map(|topic| topic.word()).collect();
        let before = ["<user>", "write", "to", name, "about", "the", place, ".", name, "loves"];
        let between = asked.iter().enumerate().flat_map(|(i, &word)| match i {
            0 => vec![word],
            _ => vec!["and", word],
        });
        let after = [",", "not", self.disliked().word(), ".", "<answer>"];
        before.into_iter().chain(between).chain(after).map(id).collect()
    }

    /// The prompt of which these are the tokens, if there is one.
    pub fn from_tokens(tokens: &[u32]) -> Option<Prompt> {
        let index = |at: usize, words: &[&str]| {
            words.iter().position(|word| tokens.get(at) == Some(&id(word)))
        };
        let topic = |at| Some(Topic::ALL[index(at, &Topic::ALL.map(Topic::word))?]);
        let grade = (1..=3).find(|grade| tokens.len() == 14 + 2 * grade)?;
        let asked = (0..grade).map(|i| topic(10 + 2 * i)).collect::<Option<Vec<_>>>()?;
        let (name, place) = (index(3, &NAMES)?, index(6, &PLACES)?);
        Prompt::new(name, place, &asked, topic(11 + 2 * grade)?)
            .filter(|prompt| prompt.tokens() == tokens)
    }

    /// Whether the prompt is kept from training: `(7 A + 3 B + C + 5 N + P) mod 8 = 0` in the indices of
    /// its topics, name and place, and twice the third asked topic if there is one. It holds for exactly one place in
    /// eight.
    pub fn is_held_out(&self) -> bool {
        let asked = self.asked().iter().zip([7, 3, 2]);
        let topics: usize = asked.map(|(&topic, weight)| weight * topic as usize).sum();
        let sum = topics + self.disliked() as usize + 5 * self.name + self.place;
        sum.is_multiple_of(8)
    }
}

impl std::fmt::Display for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&decode(&self.tokens()))
    }
}

/// The 1,536 prompts that ask for two topics, ordered by name, place, A, B and C, the last varying fastest.
pub fn prompts() -> Vec<Prompt> {
    of_grades(&[2])
}

/// The 3,840 prompts that ask for one, two or three topics, ordered by name, place, grade, then as [`prompts`].
pub fn graded_prompts() -> Vec<Prompt> {
    of_grades(&[1, 2, 3])
}

fn of_grades(grades: &[usize]) -> Vec<Prompt> {
    let mut prompts = Vec::new();
    for name in 0..NAMES.len() {
        for place in 0..PLACES.len() {
            for &grade in grades {
                // The digits of a number to base 4 are the topics: those asked for, then the disliked one.
                for number in 0..4usize.pow(grade as u32 + 1) {
                    let digit = |at: u32| Topic::ALL[number / 4usize.pow(at) % 4];
                    let asked: Vec<Topic> = (1..=grade as u32).rev().map(digit).collect();
                    prompts.extend(Prompt::new(name, place, &asked, digit(0)));
                }
            }
        }
    }
    prompts
}

/// The training prompts and the held-out ones, each in their order: of [`prompts`] 1,344 and 192, of [`graded_prompts`]
/// 3,360 and 480.
pub fn split(prompts: Vec<Prompt>) -> (Vec<Prompt>, Vec<Prompt>) {
    prompts.into_iter().partition(|prompt| !prompt.is_held_out())
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
        for prompt in graded_prompts() {
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
            let [a, b] = *prompt.asked() else { panic!("{prompt}") };
            let [neutral] = *prompt.neutral() else { panic!("{prompt}") };
            let topics = HashSet::from([a, b, prompt.disliked(), neutral]);
            assert_eq!(topics.len(), 4);
        }
    }

    #[test]
    fn one_prompt_in_eight_is_held_out_and_no_prompt_is_on_both_sides() {
        let (training, held_out) = split(prompts());
        assert_eq!((training.len(), held_out.len()), (1344, 192));
        let all: HashSet<_> = training.iter().chain(&held_out).collect();
        assert_eq!(all.len(), 1536);
        assert!(held_out.iter().all(Prompt::is_held_out));
    }

    #[test]
    fn the_held_out_rule_agrees_with_a_sum_done_by_hand() {
        let prompt = |name, place| {
            Prompt::new(name, place, &[Topic::Music, Topic::History], Topic::Food).unwrap()
        };
        // 7·1 + 3·3 + 0 = 16, so name 0 and place 0 are held out, and so are 5·1 + 3 = 8.
        assert!(prompt(0, 0).is_held_out());
        assert!(prompt(1, 3).is_held_out());
        assert!(!prompt(1, 2).is_held_out());
    }

    #[test]
    fn a_graded_prompt_asks_for_one_two_or_three_topics() {
        let prompts = graded_prompts();
        let count = |grade| prompts.iter().filter(|p| p.asked().len() == grade).count();
        // 64 names and places, 4 · 3, 4 · 3 · 2 and 4 · 3 · 2 · 1 choices of topics.
        assert_eq!([1, 2, 3].map(count), [64 * 12, 64 * 24, 64 * 24]);
        let distinct: HashSet<_> = prompts.iter().map(Prompt::tokens).collect();
        assert_eq!(distinct.len(), 3840);
        for prompt in &prompts {
            let mentioned = prompt.asked().iter().copied().chain([prompt.disliked()]);
            let all: HashSet<_> = mentioned.chain(prompt.neutral().iter().copied()).collect();
            assert_eq!(all.len(), 4, "{prompt}");
        }
        assert_eq!(
            [0, 12, 36].map(|i| prompts[i].to_string()),
            [
                "<user> write to ana about the harbor . ana loves food , not music . <answer>",
                "<user> write to ana about the harbor . ana loves food and music , not nature . <answer>",
                "<user> write to ana about the harbor . ana loves food and music and nature , not history . <answer>",
            ]
        );
        let (training, held_out) = split(prompts);
        assert_eq!((training.len(), held_out.len()), (3360, 480));
    }
}
