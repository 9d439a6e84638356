//! E1 and E7: entropies and log-probabilities on the device against the same in f64 on the host.

use burn::tensor::{DType, Tensor, TensorData};
use rand::Rng;
use segment_rlhf::equations::segmentation::entropy;
use segment_rlhf::model::generate::response_log_probs;
use segment_rlhf::model::{CausalLm, Grid};
use segment_rlhf::rng::{Stream, stream};
use segment_rlhf::settings::Settings;

use super::standard_normal;
use crate::support::{assert_close, devices, host};

/// ln p_v of one row of logits.
fn log_probs(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
    logits.iter().map(|logit| logit - max - log_sum).collect()
}

/// -Σ_v p_v ln p_v, where 0 ln 0 is 0.
fn entropy_in_f64(logits: &[f64]) -> f64 {
    let possible = log_probs(logits).into_iter().filter(|log_p| log_p.exp() > 0.0);
    -possible.map(|log_p| log_p.exp() * log_p).sum::<f64>()
}

/// Normal logits of the given spread, each -∞ with the given chance, but for the first.
fn row(vocabulary: usize, spread: f64, impossible: f64, draws: &mut Stream) -> Vec<f32> {
    let mut row: Vec<f32> = (0..vocabulary)
        .map(|_| {
            let logit = spread * standard_normal(draws);
            if draws.random_bool(impossible) { f32::NEG_INFINITY } else { logit as f32 }
        })
        .collect();
    row[0] = spread as f32;
    row
}

/// From nearly uniform to nearly certain, and with most of the vocabulary ruled out.
#[test]
fn entropy_is_the_sum_in_f64_for_any_vocabulary_spread_and_mask() {
    for vocabulary in [2, 3, 100, 4_096, 50_000] {
        let mut draws = stream(5, "logits", vocabulary as u64);
        let rows: Vec<Vec<f32>> = [0.01, 1.0, 5.0, 30.0, 1_000.0]
            .into_iter()
            .flat_map(|spread| [0.0, 0.3, 0.99].map(|impossible| (spread, impossible)))
            .map(|(spread, impossible)| row(vocabulary, spread, impossible, &mut draws))
            .collect();
        let expected: Vec<f64> = rows
            .iter()
            .map(|row| entropy_in_f64(&row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()))
            .collect();
        for (device, tolerance) in devices() {
            let data = TensorData::new(rows.concat(), [3, rows.len() / 3, vocabulary]);
            let logits = Tensor::from_data(data, (&device, DType::F32));
            assert_close(&host(entropy(logits)), &expected, tolerance);
        }
    }
}

#[test]
fn a_response_s_log_probs_are_those_of_its_logits_in_f64() {
    let (prompt, response) = ([1, 2], [7, 0, 49_999, 300]);
    let config = Settings::defaults().model.config(50_000, 8);
    for (device, tolerance) in devices() {
        let model = CausalLm::fresh(&config, 5, &device);
        let (grid, first) = Grid::aligned([(&prompt[..], &response[..])]);
        let (actual, entropies) = response_log_probs(&model, &grid, first);
        let logits = host(model.logits(&grid, first - 1..grid.width() - 1));
        let logits = logits.chunks(config.vocab_size);
        let expected: Vec<f64> = (logits.clone().zip(&response))
            .map(|(logits, &token)| log_probs(logits)[token as usize])
            .collect();
        assert_close(&host(actual), &expected, tolerance);
        let expected: Vec<f64> = logits.map(entropy_in_f64).collect();
        assert_close(&host(entropies), &expected, tolerance);
    }
}
