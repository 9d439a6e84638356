//! What entropy cutoffs do to a user's texts, before anything is trained.

use std::fmt;

use serde::Serialize;

use super::score::segmenter;
use super::task::Task;
use crate::data::pairs::first_conversations;
use crate::equations::segmentation::Rule;
use crate::model::CausalLm;
use crate::model::generate::Rows;
use crate::run::{Context, Error};
use crate::statistics::mean;
use crate::table::{digits, markdown};

/// The cutoffs that are tried beside the one in force, nats, up to the last quantile of entropy.
const CUTOFFS: [f64; 13] = [0.25, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0];
/// The quantiles of entropy that are told.
const QUANTILES: [f64; 7] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99];

/// Segments of responses at several cutoffs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cutoffs {
    /// Responses that were cut.
    pub responses: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Quantiles of the reference model's entropy at a token, nats: each with its share.
    pub quantiles: Vec<(f64, f64)>,
    /// A line a cutoff, from the lowest.
    pub lines: Vec<CutoffLine>,
}

/// What one cutoff does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CutoffLine {
    /// Nats.
    pub cutoff: f64,
    /// Whether it is the settings'.
    pub in_force: bool,
    /// Mean tokens of a segment.
    pub tokens: f64,
    /// Mean segments of a response.
    pub segments: f64,
    /// Share of segments that are a single token.
    pub single: f64,
}

impl Cutoffs {
    /// Cuts the first `rows` responses of `--data`: of conversations, or the chosen ones of pairs.
    pub fn of(context: &Context, rows: usize) -> Result<Self, Error> {
        let Some(data) = &context.data else {
            return Err(Error::Usage(
                "segment: give --data FILE for a table of cutoffs, or --prompt TEXT".into(),
            ));
        };
        let dir = context.reference_dir()?;
        let task = Task::open(context, Some(&dir))?;
        let tokenizer = &task.tokenizer;
        let texts = first_conversations(context.file(data), tokenizer, task.limits, rows)?;
        let (model, _) = CausalLm::load(&dir, context.frozen())?;
        let rows: Vec<(&[u32], &[u32])> = texts.iter().map(|(p, r)| (&p[..], &r[..])).collect();
        let rows_at_once = context.settings.ppo.rows_at_once;
        let stage = context.progress.stage("entropies", rows.len().div_ceil(rows_at_once), 0);
        let mut entropies = Vec::new();
        for chunk in rows.chunks(rows_at_once) {
            let views = Rows::new(chunk, rows_at_once).view(&model, &context.stop)?;
            entropies.extend(views.into_iter().map(|view| view.entropies));
            stage.step("");
        }
        stage.finish(format!("of {} responses", rows.len()));
        let (stops, ends) = (tokenizer.stop_tokens(), tokenizer.sentence_ends());
        let own = context.settings.segmentation.entropy_cutoff;
        let mut sorted: Vec<f64> = entropies.concat().into_iter().map(f64::from).collect();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share: f64| sorted[(share * (sorted.len() - 1) as f64).round() as usize];
        let quantiles = QUANTILES.map(|share| (share, quantile(share)));
        let [.., (_, highest)] = quantiles;
        let tried = CUTOFFS.into_iter().filter(|cutoff| *cutoff <= highest);
        let mut cutoffs: Vec<f64> = tried.chain([own]).collect();
        cutoffs.sort_by(f64::total_cmp);
        cutoffs.dedup();
        let line = |cutoff: f64| {
            let cutter = segmenter(&context.settings, Rule::Entropy { cutoff }, ends, stops);
            let mut lengths = Vec::new();
            for ((_, response), entropies) in rows.iter().zip(&entropies) {
                lengths.extend(cutter.cut(response, entropies)?.iter().map(|cut| cut.len()));
            }
            Ok(CutoffLine {
                cutoff,
                in_force: cutoff == own,
                tokens: mean(lengths.iter().map(|&length| length as f64)),
                segments: lengths.len() as f64 / rows.len() as f64,
                single: mean(lengths.iter().map(|&length| f64::from(length == 1))),
            })
        };
        let lines = cutoffs.into_iter().map(line).collect::<Result<_, Error>>()?;
        let (responses, tokens) = (rows.len(), sorted.len());
        Ok(Self { responses, tokens, quantiles: quantiles.into(), lines })
    }
}

impl fmt::Display for Cutoffs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |line: &CutoffLine| {
            let cutoff = format!("{}{}", if line.in_force { "→ " } else { "" }, line.cutoff);
            vec![
                cutoff,
                digits(line.tokens, 2),
                digits(line.segments, 1),
                format!("{} %", digits(100.0 * line.single, 0)),
            ]
        };
        let rows: Vec<Vec<String>> = self.lines.iter().map(row).collect();
        let header = ["cutoff", "tokens a segment", "segments a response", "single-token segments"];
        let quantiles = self.quantiles.iter();
        let quantiles =
            quantiles.map(|(share, of)| format!("{} % below {}", 100.0 * share, digits(*of, 2)));
        let quantiles = quantiles.collect::<Vec<_>>().join(", ");
        write!(
            f,
            "{}{} responses, {} tokens. Entropy in nats: {quantiles}.\n→: segmentation.entropy_cutoff in force; the paper's \
             1.75 and 2.0 are for Phi-3-mini and Llama-3-8B.",
            markdown(&header, &rows),
            self.responses,
            self.tokens
        )
    }
}

/// What training tells of so many segments with so many tokens of so many responses, and a caution where they are hardly
/// segments.
pub(super) fn tell(cutoff: f64, responses: usize, segments: usize, tokens: usize) -> String {
    let each = tokens as f64 / segments.max(1) as f64;
    let a_response = segments as f64 / responses.max(1) as f64;
    let told = format!(
        "segments at cutoff {cutoff}: {} tokens each, {} a response",
        digits(each, 2),
        digits(a_response, 1)
    );
    let caution = match each {
        ..1.5 => "nearly every token is its own segment: raise",
        50.0.. => "nearly every response is one segment: lower",
        _ => return told,
    };
    format!(
        "{told}; caution: {caution} segmentation.entropy_cutoff (`segment --data` shows what each does)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_warns_of_segments_that_are_tokens_or_responses() {
        assert_eq!(
            tell(1.2, 10, 100, 300),
            "segments at cutoff 1.2: 3.00 tokens each, 10.0 a response"
        );
        assert!(tell(0.1, 10, 210, 300).contains("raise segmentation.entropy_cutoff"));
        assert!(!tell(0.1, 10, 200, 300).contains("caution"));
        assert!(tell(9.0, 10, 10, 500).contains("lower segmentation.entropy_cutoff"));
        assert!(!tell(9.0, 10, 10, 499).contains("caution"));
    }
}
