//! A text cut into segments, for the eye and for programs.

use std::fmt::Write;
use std::ops::Range;

use serde::Serialize;

use crate::equations::calibration::calibrated;

/// A response with what segmentation and reward model say of it.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentedText {
    pub prompt: String,
    pub tokens: Vec<Token>,
    /// Its segments, in order; tokens behind the last one (EOS) are in none.
    pub segments: Vec<Segment>,
    /// e_φ, if there is a reward model.
    pub sequence_score: Option<f64>,
    /// e_φ between 0 and 1, if it was calibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated_score: Option<f64>,
}

/// One token of a response.
#[derive(Clone, Debug, Serialize)]
pub struct Token {
    pub id: u32,
    pub text: String,
    /// Entropy of the reference model's distribution that it was drawn from, nats; NaN (in JSON null)
    /// without a reference model.
    pub entropy: f32,
}

/// One segment of a response.
#[derive(Clone, Debug, Serialize)]
pub struct Segment {
    pub start: usize,
    pub end: usize,
    pub text: String,
    /// The reward model's reward, if there is one.
    pub reward: Option<f64>,
    /// The normalized reward, if there is a normalizer.
    pub normalized: Option<f64>,
    /// The reward between 0 and 1, if it was calibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<f64>,
}

impl SegmentedText {
    /// Puts together what is known; `rewards` and `normalized` hold one number a segment, or none at all.
    pub fn new(
        prompt: String,
        ids: &[u32],
        pieces: Vec<String>,
        entropies: &[f32],
        segments: &[Range<usize>],
        rewards: &[f64],
        normalized: &[f64],
    ) -> Self {
        let text = |range: &Range<usize>| pieces[range.clone()].concat().trim().to_owned();
        let segment = |(t, range): (usize, &Range<usize>)| Segment {
            start: range.start,
            end: range.end,
            text: text(range),
            reward: rewards.get(t).copied(),
            normalized: normalized.get(t).copied(),
            calibrated: None,
        };
        let segments = segments.iter().enumerate().map(segment).collect();
        let tokens = ids
            .iter()
            .zip(&pieces)
            .zip(entropies)
            .map(|((&id, text), &entropy)| Token { id, text: text.clone(), entropy })
            .collect();
        Self { prompt, tokens, segments, sequence_score: None, calibrated_score: None }
    }

    /// Adds the sequence score and the rewards of segments between 0 and 1, at a temperature.
    pub fn calibrate(&mut self, temperature: f64) {
        let between = |score: f64| calibrated(score, temperature);
        self.calibrated_score = self.sequence_score.map(between);
        for segment in &mut self.segments {
            segment.calibrated = segment.reward.map(between);
        }
    }

    /// The response on one line, segments divided by bars, each shaded by its reward if `colour`.
    pub fn line(&self, colour: bool) -> String {
        let scale = self.scale();
        let mut line = String::new();
        for (t, segment) in self.segments.iter().enumerate() {
            let divider = if t == 0 { "" } else { "|" };
            let text = format!(" {} ", segment.text);
            let _ = write!(line, "{divider}{}", shade(&text, segment.value(), scale, colour));
        }
        let rest = self.segments.last().map_or(0, |last| last.end);
        for token in &self.tokens[rest..] {
            let _ = write!(line, "| {}", token.text.trim());
        }
        line.trim().to_owned()
    }

    /// One line a segment: its reward, its normalized reward, and each token with its entropy.
    pub fn table(&self, colour: bool) -> String {
        let scale = self.scale();
        let mut out = format!("prompt: {}\n\n", self.prompt.trim());
        let number = |value: Option<f64>| value.map_or("     –".into(), |v| format!("{v:+6.2}"));
        let entropies = self.tokens.iter().map(|token| f64::from(token.entropy));
        let most = entropies.filter(|entropy| entropy.is_finite()).fold(0.0, f64::max);
        let tokens = |range: Range<usize>| {
            let token = |token: &Token| {
                if token.entropy.is_nan() {
                    return token.text.trim().to_owned();
                }
                let entropy = format!("({:.2})", token.entropy);
                let strength = f64::from(token.entropy) / most.max(f64::MIN_POSITIVE);
                let shaded = if colour { shade_entropy(&entropy, strength) } else { entropy };
                format!("{}{shaded}", token.text.trim())
            };
            self.tokens[range].iter().map(token).collect::<Vec<_>>().join(" ")
        };
        let is_calibrated = self.calibrated_score.is_some();
        let column =
            |cell: &str| if is_calibrated { format!("{cell:>10}  ") } else { String::new() };
        let _ = writeln!(
            out,
            "segment  reward  normalized  {}text, with the entropy of each token in nats",
            column("calibrated")
        );
        for (t, segment) in self.segments.iter().enumerate() {
            let reward = shade(&number(segment.reward), segment.value(), scale, colour);
            let normalized = number(segment.normalized);
            let text = tokens(segment.start..segment.end);
            let calibrated = column(&segment.calibrated.map_or("–".into(), |c| format!("{c:.3}")));
            let _ = writeln!(out, "{:7}  {reward}      {normalized}  {calibrated}{text}", t + 1);
        }
        let rest = self.segments.last().map_or(0, |last| last.end);
        if rest < self.tokens.len() {
            let (none, rest) = (column(""), tokens(rest..self.tokens.len()));
            let _ = writeln!(out, "   none                      {none}{rest}");
        }
        if let Some(score) = self.sequence_score {
            let calibrated = self.calibrated_score.map(|of| format!(", calibrated {of:.3}"));
            let _ =
                writeln!(out, "\nsequence score: {score:+.3}{}", calibrated.unwrap_or_default());
        }
        out
    }

    /// The largest |reward|, which gets the full shade.
    fn scale(&self) -> f64 {
        self.segments.iter().filter_map(Segment::value).fold(0.0, |max, value| max.max(value.abs()))
    }
}

impl Segment {
    fn value(&self) -> Option<f64> {
        self.normalized.or(self.reward)
    }
}

/// Green for rewards above 0, red for those below, the stronger the larger.
fn shade(text: &str, value: Option<f64>, scale: f64, colour: bool) -> String {
    let Some(value) = value.filter(|_| colour && scale > 0.0) else { return text.to_owned() };
    let strength = (value.abs() / scale).min(1.0);
    let level = |full: f64| (40.0 + (full - 40.0) * strength) as u8;
    let (r, g) =
        if value > 0.0 { (level(20.0), level(130.0)) } else { (level(160.0), level(20.0)) };
    format!("\x1b[48;2;{r};{g};40m\x1b[97m{text}\x1b[0m")
}

/// The brighter, the more of the largest entropy it is.
fn shade_entropy(text: &str, strength: f64) -> String {
    let level = (90.0 + 165.0 * strength.clamp(0.0, 1.0)) as u8;
    format!("\x1b[38;2;{level};{level};90m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SegmentedText {
        let pieces = ["dear", " gina", " music", " <eos>"].map(str::to_owned).to_vec();
        let entropies = [0.7, 0.0, 1.5, 0.1];
        SegmentedText::new(
            "p".into(),
            &[3, 4, 5, 1],
            pieces,
            &entropies,
            &[0..2, 2..3],
            &[0.5, -1.0],
            &[],
        )
    }

    #[test]
    fn a_line_divides_segments_by_bars_and_keeps_what_is_in_none() {
        assert_eq!(example().line(false), "dear gina | music | <eos>");
    }

    #[test]
    fn a_coloured_line_holds_the_same_text() {
        let line = example().line(true);
        let mut plain = String::new();
        let mut rest = line.as_str();
        while let Some(start) = rest.find('\x1b') {
            plain += &rest[..start];
            rest = &rest[start + rest[start..].find('m').unwrap() + 1..];
        }
        assert_eq!((plain + rest).trim(), "dear gina | music | <eos>");
    }

    #[test]
    fn a_calibrated_text_shows_scores_between_0_and_1() {
        let mut text = example();
        text.sequence_score = Some(0.0);
        text.calibrate(0.5);
        assert_eq!(text.calibrated_score, Some(0.5));
        let table = text.table(false);
        // σ(0.5 / 0.5) and σ(-1 / 0.5).
        assert!(table.contains("+0.50           –       0.731  dear(0.70) gina(0.00)"), "{table}");
        assert!(table.contains("-1.00           –       0.119  music(1.50)"), "{table}");
        assert!(table.contains("none                                  <eos>(0.10)"), "{table}");
        assert!(table.contains("sequence score: +0.000, calibrated 0.500"), "{table}");
    }

    #[test]
    fn a_coloured_table_shades_rewards_and_entropies() {
        let table = example().table(true);
        // Of 1.50, the largest: all of the brightness, and for 0.00 none.
        assert!(table.contains("music\x1b[38;2;255;255;90m(1.50)\x1b[0m"), "{table:?}");
        assert!(table.contains("gina\x1b[38;2;90;90;90m(0.00)\x1b[0m"), "{table:?}");
        assert!(table.contains("\x1b[97m -1.00\x1b[0m"), "{table:?}");
    }

    #[test]
    fn a_table_shows_rewards_and_entropies() {
        let table = example().table(false);
        assert!(table.contains("+0.50           –  dear(0.70) gina(0.00)"), "{table}");
        assert!(table.contains("-1.00           –  music(1.50)"), "{table}");
        assert!(table.contains("none                      <eos>(0.10)"), "{table}");
    }
}
