//! A policy and a task small enough to enumerate: the value of every prefix is known exactly.
//!
//! Every prefix has next-token probabilities of its own, and every response a verdict of 0 or 1, both drawn once. Token
//! 0 ends a response, and so does the last place. An estimator of advantages can then be compared with the truth.

use std::collections::HashMap;

use rand::Rng;

use crate::rng::{Stream, stream};

/// The token that ends a response.
pub const END: u32 = 0;
/// The largest vocabulary, and the longest response.
pub const LARGEST: usize = 6;

/// The policy and the verdicts.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::tabular::Tabular;
/// let table = Tabular::random(3, 2, 1.0, 0.5, 0);
/// let root: f64 = table.responses().iter().map(|r| table.probability(r) * table.verdict(r)).sum();
/// assert!((table.value(&[]) - root).abs() < 1e-12);
/// ```
#[derive(Clone, Debug)]
pub struct Tabular {
    length: usize,
    states: HashMap<Vec<u32>, State>,
    verdicts: HashMap<Vec<u32>, f64>,
}

/// A prefix that has not ended.
#[derive(Clone, Debug)]
struct State {
    probabilities: Vec<f64>,
    value: f64,
}

impl Tabular {
    /// A policy over `vocabulary` tokens and responses of at most `length`. Logits are uniform in ±`spread`; a response
    /// passes with the chance `pass`.
    ///
    /// # Panics
    ///
    /// For a vocabulary below 2 or above 6, or a length below 1 or above 6.
    pub fn random(vocabulary: usize, length: usize, spread: f64, pass: f64, seed: u64) -> Self {
        assert!((2..=LARGEST).contains(&vocabulary), "a vocabulary of 2 to {LARGEST} tokens");
        assert!((1..=LARGEST).contains(&length), "responses of 1 to {LARGEST} tokens");
        let mut table = Self { length, states: HashMap::new(), verdicts: HashMap::new() };
        let mut draws = stream(seed, "tabular policy", 0);
        table.fill(&mut Vec::new(), vocabulary, spread, pass, &mut draws);
        table
    }

    /// Draws what follows `prefix`; gives its value.
    fn fill(
        &mut self,
        prefix: &mut Vec<u32>,
        vocabulary: usize,
        spread: f64,
        pass: f64,
        draws: &mut Stream,
    ) -> f64 {
        if self.is_finished(prefix) {
            let verdict = f64::from(draws.random::<f64>() < pass);
            self.verdicts.insert(prefix.clone(), verdict);
            return verdict;
        }
        let mut logit = || (spread * (2.0 * draws.random::<f64>() - 1.0)).exp();
        let weights: Vec<f64> = (0..vocabulary).map(|_| logit()).collect();
        let sum: f64 = weights.iter().sum();
        let probabilities: Vec<f64> = weights.into_iter().map(|weight| weight / sum).collect();
        let mut value = 0.0;
        for (token, probability) in (0..).zip(&probabilities) {
            prefix.push(token);
            value += probability * self.fill(prefix, vocabulary, spread, pass, draws);
            prefix.pop();
        }
        self.states.insert(prefix.clone(), State { probabilities, value });
        value
    }

    /// Whether nothing can follow.
    fn is_finished(&self, prefix: &[u32]) -> bool {
        prefix.last() == Some(&END) || prefix.len() == self.length
    }

    /// All responses, in the order of their tokens.
    pub fn responses(&self) -> Vec<Vec<u32>> {
        let mut all: Vec<Vec<u32>> = self.verdicts.keys().cloned().collect();
        all.sort();
        all
    }

    /// The verdict on a response, 0 or 1.
    ///
    /// # Panics
    ///
    /// For a prefix that is no whole response.
    pub fn verdict(&self, response: &[u32]) -> f64 {
        self.verdicts[response]
    }

    /// V of a prefix, or the verdict on a whole response: what the policy earns from here on average.
    ///
    /// # Panics
    ///
    /// For a prefix that cannot occur.
    pub fn value(&self, prefix: &[u32]) -> f64 {
        self.states.get(prefix).map_or_else(|| self.verdict(prefix), |state| state.value)
    }

    /// ln π of each token of a response or a prefix, nats.
    pub fn log_probs(&self, response: &[u32]) -> Vec<f64> {
        let at = |(i, &token): (usize, &u32)| {
            self.states[&response[..i]].probabilities[token as usize].ln()
        };
        response.iter().enumerate().map(at).collect()
    }

    /// π of a response or a prefix.
    pub fn probability(&self, response: &[u32]) -> f64 {
        self.log_probs(response).iter().sum::<f64>().exp()
    }

    /// The exact advantage of each token of a response: `V(s_{t+1}) - V(s_t)`.
    pub fn advantages(&self, response: &[u32]) -> Vec<f64> {
        let gain = |i: usize| self.value(&response[..=i]) - self.value(&response[..i]);
        (0..response.len()).map(gain).collect()
    }

    /// A whole response that begins with `prefix`, drawn from the policy.
    pub fn draw(&self, prefix: &[u32], draws: &mut Stream) -> Vec<u32> {
        let mut response = prefix.to_vec();
        while !self.is_finished(&response) {
            let mut left: f64 = draws.random();
            let probabilities = &self.states[&response].probabilities;
            let chosen = probabilities.iter().position(|probability| {
                left -= probability;
                left < 0.0
            });
            // A sum just below 1 leaves a sliver, which belongs to the last token.
            response.push(chosen.unwrap_or(probabilities.len() - 1) as u32);
        }
        response
    }
}
