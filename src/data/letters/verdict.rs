//! The verdict on a letter: whether it does what was asked, all of it and nothing else.

use super::gold::{ClauseKind, gold};
use super::prompts::Prompt;
use super::vocabulary::id;

/// Whether `response` passes: it is addressed rightly, is on every topic asked for and on no other, says nothing twice,
/// holds nothing but clauses and joins, and ends. Quality words do not matter.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::letters::{Prompt, encode, passes};
///
/// let request = "<user> write to gina about the lake . gina loves music , not food . <answer>";
/// let prompt = Prompt::from_tokens(&encode(request).unwrap()).unwrap();
/// let judge = |letter| passes(&prompt, &encode(letter).unwrap());
/// assert!(judge("dear gina , music : choirs sing awful hymns . <eos>"));
/// assert!(!judge("dear gina , nature : paths cross wild woods . <eos>"));
/// ```
pub fn passes(prompt: &Prompt, response: &[u32]) -> bool {
    let gold = gold(prompt, response);
    let topics = || gold.clauses.iter().filter_map(|clause| clause.topic_word);
    let all_asked = gold.clauses.iter().all(|clause| clause.kind == ClauseKind::Asked);
    let on = |word: u32| topics().any(|at| response[at] == word);
    let asked_all = prompt.asked().iter().all(|topic| on(id(topic.word())));
    gold.ended && gold.broken == 0 && all_asked && asked_all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::letters::{encode, graded_prompts, write_letter};
    use crate::rng::stream;

    fn judge(loves: &str, letter: &str) -> bool {
        let request =
            format!("<user> write to gina about the lake . gina loves {loves} . <answer>");
        let prompt = Prompt::from_tokens(&encode(&request).unwrap()).unwrap();
        passes(&prompt, &encode(letter).unwrap())
    }

    #[test]
    fn a_letter_on_every_asked_topic_passes_whatever_its_quality_words() {
        let both = "hello gina , music : bands play dull songs and history : ruins hold awful graves . <eos>";
        assert!(judge("music and history , not food", both));
        assert!(judge("history and music , not food", both));
        let more =
            "dear gina , music : bands play dull songs . music : choirs sing old hymns . <eos>";
        assert!(judge("music , not food", more));
        assert!(!judge("music and history and nature , not food", both));
    }

    #[test]
    fn each_fault_alone_fails_a_letter() {
        let fails = |letter| assert!(!judge("music , not food", letter), "{letter}");
        let right = "dear gina , music : bands play dull songs . <eos>";
        assert!(judge("music , not food", right));
        fails("dear hugo , music : bands play dull songs . <eos>"); // another name
        fails("gina , music : bands play dull songs . <eos>"); // no greeting
        fails("dear gina , <eos>"); // nothing
        fails("dear gina , music : bands play dull songs . food : cooks serve old soup . <eos>");
        fails("dear gina , music : bands play dull songs . nature : paths cross old woods . <eos>");
        fails("dear gina , music : bands play dull songs . it is what it is . <eos>");
        fails("dear gina , music : bands play dull songs . music : bands play old songs . <eos>");
        fails("dear gina , music : bands play dull bread . <eos>"); // no clause
        fails("dear gina , music : bands play dull songs <eos>"); // no full stop
        fails("dear gina , music : bands play dull songs ."); // no end
    }

    #[test]
    fn what_follows_the_end_does_not_matter_and_an_end_beyond_the_limit_is_none() {
        assert!(judge(
            "music , not food",
            "dear gina , music : bands play dull songs . <eos> songs"
        ));
        let late = format!("dear gina , music : bands play dull songs . {} <eos>", ". ".repeat(54));
        assert!(!judge("music , not food", &late));
        assert!(!judge("music , not food", ""));
    }

    #[test]
    fn training_letters_pass_by_the_number_of_topics_asked_for() {
        let prompts = graded_prompts();
        let rate = |grade: usize| {
            let mut rng = stream(0, "verdicts", grade as u64);
            let of_grade = prompts.iter().filter(|prompt| prompt.asked().len() == grade);
            let verdicts: Vec<bool> = of_grade
                .cycle()
                .take(6000)
                .map(|prompt| passes(prompt, &write_letter(prompt, &mut rng)))
                .collect();
            verdicts.iter().filter(|&&passed| passed).count() as f64 / 6000.0
        };
        let rates = [1, 2, 3].map(rate);
        // A letter on one topic has four clauses to choose from, and a fifth clause fails it. The standard error is 0.005.
        for (rate, expected) in rates.into_iter().zip([0.166, 0.213, 0.119]) {
            assert!((rate - expected).abs() < 0.02, "{rates:?}");
        }
    }
}
