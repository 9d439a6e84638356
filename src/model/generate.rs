//! Generating responses, and reading a model's view of given ones.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::cache::KvCache;
use super::config::ModelConfig;
use super::decoder::{CausalLm, ScalarModel};
use super::grid::Grid;
use super::kernels::is_cpu;
use super::sampling::Sampling;
use super::shards::{even, over_ranks, shards};
use crate::rng::Stream;
use crate::stop::{Interrupted, Stop};

/// Columns of a prompt that are read in one forward pass.
pub(crate) const PREFILL: usize = 128;
/// What a row of a generated batch counts when the batch is cut into shards, in tokens.
const ROW_TOKENS: usize = 32;
/// Parameters of a model whose weights are larger than a CPU's caches: 128 MB of them.
const LARGE: usize = 1 << 25;

/// When generation stops, and how it draws.
#[derive(Clone, Copy, Debug)]
pub struct Generation<'a> {
    /// How a token is drawn.
    pub sampling: Sampling,
    /// Longest response in tokens, its stop token included.
    pub max_new_tokens: usize,
    /// Prompts in one batch.
    pub rows_at_once: usize,
    /// The tokens that end a response.
    pub stops: &'a [u32],
}

/// A response to each prompt; it ends with a stop token unless it reached `max_new_tokens`, or with its prompt the
/// longest sequence that the model was made for.
///
/// Each row draws from its own stream, so that a response depends on neither the other rows nor their
/// number. The model must be on a device without autodiff. A long prompt is read in pieces, so that no forward pass
/// is a long one.
///
/// # Errors
///
/// [`Interrupted`] when `stop` is asked for.
///
/// # Panics
///
/// If a prompt is empty or leaves no room for a token, or there is not one stream a prompt.
pub fn generate(
    model: &CausalLm,
    config: &ModelConfig,
    prompts: &[&[u32]],
    generation: Generation<'_>,
    streams: Vec<Stream>,
    stop: &Stop,
) -> Result<Vec<Vec<u32>>, Interrupted> {
    let limits = vec![generation.max_new_tokens; prompts.len()];
    generate_up_to(model, config, prompts, &limits, generation, streams, stop)
}

/// As [`generate`], with a longest response for each prompt, in tokens, which counts beside `max_new_tokens`.
///
/// # Errors
///
/// As [`generate`].
///
/// # Panics
///
/// As [`generate`], or if there is not one limit a prompt.
pub fn generate_up_to(
    model: &CausalLm,
    config: &ModelConfig,
    prompts: &[&[u32]],
    limits: &[usize],
    generation: Generation<'_>,
    streams: Vec<Stream>,
    stop: &Stop,
) -> Result<Vec<Vec<u32>>, Interrupted> {
    assert_eq!(streams.len(), prompts.len(), "one stream a prompt");
    assert_eq!(limits.len(), prompts.len(), "one limit a prompt");
    let cores = Cores::of(model);
    let model = &model.for_generation(cores == Cores::ShareProducts);
    stop.check()?;
    let mut rows: Vec<Row<'_>> = prompts
        .iter()
        .zip(limits)
        .zip(streams)
        .map(|((&prompt, &limit), stream)| Row {
            prompt,
            limit: limit.min(generation.max_new_tokens),
            stream,
        })
        .collect();
    let mut parts = Vec::new();
    for batch in rows.chunks_mut(generation.rows_at_once.max(1)) {
        let mut left = batch;
        let of_batch = cores.shards(left.len(), &model.device()).into_iter().map(|shard| {
            let (part, rest) = std::mem::take(&mut left).split_at_mut(shard.len());
            left = rest;
            part
        });
        parts.push(of_batch.collect());
    }
    over_ranks(parts, |rows| generate_batch(model, config, rows, generation, stop))
}

/// What the cores share while responses are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    /// The rows.
    ShareRows,
    /// Each product, one row after the other.
    ShareProducts,
}

impl Cores {
    /// What they share with this model.
    pub(super) fn of(model: &CausalLm) -> Self {
        // Every core would read all weights, and no cache holds them: then the cores share the products, not the rows.
        match is_cpu(&model.device()) && model.num_params() >= LARGE {
            true => Self::ShareProducts,
            false => Self::ShareRows,
        }
    }

    /// The rows that are written by themselves.
    pub(super) fn shards(self, rows: usize, device: &Device) -> Vec<Range<usize>> {
        match self {
            Self::ShareProducts => even(rows),
            // A shard reads all weights for each token, however few its rows: so here rows count, not tokens.
            Self::ShareRows => shards(&vec![ROW_TOKENS; rows], device),
        }
    }
}

/// A response to write.
struct Row<'a> {
    prompt: &'a [u32],
    /// Its longest length, in tokens.
    limit: usize,
    stream: Stream,
}

fn generate_batch(
    model: &CausalLm,
    config: &ModelConfig,
    asked: &mut [Row<'_>],
    generation: Generation<'_>,
    stop: &Stop,
) -> Result<Vec<Vec<u32>>, Interrupted> {
    let prompts: Vec<&[u32]> = asked.iter().map(|row| row.prompt).collect();
    let steps = asked.iter().map(|row| row.limit).max().unwrap_or(0);
    let longest = config.length_limit().tokens;
    assert!(
        prompts.iter().all(|prompt| prompt.len() < longest),
        "a prompt leaves room for a token"
    );
    let is_full = |(_, row): &(usize, Vec<u32>)| row.len() == longest;
    let mut responses = vec![Vec::new(); prompts.len()];
    let mut ended = vec![false; prompts.len()];
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let device = model.device();
    let empty: &[u32] = &[];
    // Equal prompts side by side, of a group or of continuations from one state, are read once.
    let groups: Vec<&[&[u32]]> = prompts.chunk_by(|a, b| a == b).collect();
    let (grid, start) = Grid::aligned(groups.iter().map(|same| (same[0], empty)));
    let mut rows: Vec<(usize, Vec<u32>)> =
        prompts.iter().map(|prompt| (start - prompt.len(), prompt.to_vec())).collect();
    let columns = start + steps;
    let mut cache = KvCache::new(config, groups.len(), columns, (&device, model.dtype()));
    let mut logits = read_on(model, &grid, start, &mut cache, stop)?;
    if groups.len() < prompts.len() {
        let copies: Vec<usize> =
            groups.iter().enumerate().flat_map(|(row, same)| vec![row; same.len()]).collect();
        cache.select(&copies, &device);
        let ids = copies.iter().map(|&row| row as i64).collect::<Vec<_>>();
        let ids = TensorData::new(ids, [copies.len()]);
        logits = logits.select(0, Tensor::<1, Int>::from_data(ids, &device));
    }
    for step in 0..steps {
        let [batch, _, vocabulary] = logits.dims();
        let host = to_vec(logits.reshape([batch, vocabulary]));
        for (row, logits) in host.chunks(vocabulary).enumerate() {
            let index = active[row];
            let token = generation.sampling.draw(logits, &mut asked[index].stream);
            rows[row].1.push(token);
            if !ended[index] {
                responses[index].push(token);
                ended[index] = generation.stops.contains(&token)
                    || is_full(&rows[row])
                    || responses[index].len() == asked[index].limit;
            }
        }
        let kept: Vec<usize> = (0..active.len()).filter(|&row| !ended[active[row]]).collect();
        if kept.is_empty() {
            break;
        }
        // Where that takes a copy of the cache, finished rows leave the batch once they are a quarter of it. One that is
        // as long as the model reads leaves at once.
        let leave = match cache.drops_rows_freely() {
            true => kept.len() < active.len(),
            false => kept.len() * 4 <= active.len() * 3 || rows.iter().any(is_full),
        };
        if leave {
            cache.select(&kept, &device);
            rows = kept.iter().map(|&row| std::mem::take(&mut rows[row])).collect();
            active = kept.iter().map(|&row| active[row]).collect();
        }
        stop.check()?;
        logits = next(model, &rows, start + step, &mut cache);
    }
    Ok(responses)
}

/// The logits after the last of `columns` columns, which the cache then holds; it reads those that it lacks.
pub(super) fn read_on(
    model: &CausalLm,
    grid: &Grid,
    columns: usize,
    cache: &mut KvCache,
    stop: &Stop,
) -> Result<Tensor<3>, Interrupted> {
    let mut start = cache.len();
    loop {
        let end = columns.min(start + PREFILL);
        stop.check()?;
        let logits = model.next_logits(grid, start..end, cache);
        if end == columns {
            return Ok(logits);
        }
        start = end;
    }
}

/// The logits after the token in `column`, the newest of each row.
fn next(
    model: &CausalLm,
    rows: &[(usize, Vec<u32>)],
    column: usize,
    cache: &mut KvCache,
) -> Tensor<3> {
    let grid = Grid::new(rows.iter().cloned(), column + 1);
    model.next_logits(&grid, column..column + 1, cache)
}

/// What a language model says of each token of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenView {
    /// ln π(y_i | x, y_<i), nats.
    pub log_probs: Vec<f32>,
    /// Entropy of the distribution that token i was drawn from, nats.
    pub entropies: Vec<f32>,
}

/// The log-probabilities of the response tokens of a grid, `[B, R]`, and the entropies of the distributions they come
/// from, `[B, R]`, both in nats and 0 in the padding; `first` is the column of the first response token.
///
/// # Panics
///
/// If `first` is 0: the first response token is predicted from the prompt's last.
pub fn response_log_probs(model: &CausalLm, grid: &Grid, first: usize) -> (Tensor<2>, Tensor<2>) {
    assert!(first > 0, "a response follows a prompt");
    let [log_probs, entropies] = model.token_views(grid, first..grid.width());
    (log_probs, entropies)
}

/// Where a scalar model is read, relative to each response token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAt {
    /// At the token itself: the reward of what has been written up to it (E2).
    Token,
    /// Before the token: the value of the state in which it is chosen (E8).
    State,
}

impl ReadAt {
    /// The columns of a grid that hold the readings; `first` is the column of the first response token, at
    /// least 1.
    pub fn columns(self, grid: &Grid, first: usize) -> std::ops::Range<usize> {
        match self {
            Self::Token => first..grid.width(),
            Self::State => first - 1..grid.width() - 1,
        }
    }
}

/// Prompts with their responses, read by any number of models.
pub struct Rows<'a> {
    rows: &'a [(&'a [u32], &'a [u32])],
    rows_at_once: usize,
}

impl<'a> Rows<'a> {
    /// Each prompt with its response, `rows_at_once` of them a forward pass. A prompt holds at least one token.
    pub fn new(rows: &'a [(&'a [u32], &'a [u32])], rows_at_once: usize) -> Self {
        Self { rows, rows_at_once: rows_at_once.max(1) }
    }

    /// The prompts and responses.
    pub fn rows(&self) -> &'a [(&'a [u32], &'a [u32])] {
        self.rows
    }

    /// The view of `model` on each response.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when `stop` is asked for.
    pub fn view(&self, model: &CausalLm, stop: &Stop) -> Result<Vec<TokenView>, Interrupted> {
        let read = |grid: &Grid, first| {
            let (log_probs, entropies) = response_log_probs(model, grid, first);
            [log_probs, entropies]
        };
        let views = self.read(&model.device(), read, stop)?.into_iter();
        Ok(views.map(|[log_probs, entropies]| TokenView { log_probs, entropies }).collect())
    }

    /// The scalar that `model` gives each response token.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when `stop` is asked for.
    pub fn scalars(
        &self,
        model: &ScalarModel,
        at: ReadAt,
        stop: &Stop,
    ) -> Result<Vec<Vec<f32>>, Interrupted> {
        let read = |grid: &Grid, first| [model.scores(grid, at.columns(grid, first))];
        let read = self.read(&model.device(), read, stop)?;
        Ok(read.into_iter().map(|[scalars]| scalars).collect())
    }

    /// What `read` says of each response token, for a grid and the column of its first response token: tensors `[B, R]`.
    fn read<const N: usize>(
        &self,
        device: &Device,
        read: impl Fn(&Grid, usize) -> [Tensor<2>; N] + Sync,
        stop: &Stop,
    ) -> Result<Vec<[Vec<f32>; N]>, Interrupted> {
        stop.check()?;
        let parts = self.rows.chunks(self.rows_at_once).map(|chunk| {
            let tokens: Vec<usize> = chunk.iter().map(|(p, r)| p.len() + r.len()).collect();
            shards(&tokens, device).into_iter().map(|rows| &chunk[rows]).collect()
        });
        let all = over_ranks(parts.collect(), |rows: &[(&[u32], &[u32])]| {
            stop.check()?;
            let (grid, first) = Grid::aligned(rows.iter().copied());
            let (values, width) = (read(&grid, first).map(to_vec), grid.width() - first);
            let lengths = rows.iter().map(|(_, response)| response.len()).enumerate();
            let own = |(i, length)| {
                values.each_ref().map(|of| of[i * width..i * width + length].to_vec()).to_vec()
            };
            Ok(lengths.map(own).collect::<Vec<Vec<Vec<f32>>>>())
        })?;
        let values = |row: Vec<Vec<f32>>| row.try_into().expect("as many as were read");
        Ok(all.into_iter().map(values).collect())
    }
}

/// A tensor's values on the host, row by row.
pub fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32")
}

/// Rows of different lengths as one `[B, width]` tensor, `fill` behind each row's end.
///
/// # Panics
///
/// If a row is longer than `width`.
pub fn pad_rows<'a>(
    rows: impl IntoIterator<Item = &'a [f32]>,
    width: usize,
    fill: f32,
    device: &burn::tensor::Device,
) -> Tensor<2> {
    let mut values = Vec::new();
    let mut count = 0;
    for row in rows {
        values.extend_from_slice(row);
        values.resize(values.len() + width - row.len(), fill);
        count += 1;
    }
    Tensor::from_data(TensorData::new(values, [count, width]), device)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::decoder::passes;
    use crate::rng::streams;
    use crate::settings::Settings;

    #[test]
    fn a_stop_ends_generation_with_the_pass_that_reads_a_piece_of_a_prompt_or_a_token() {
        let config = Settings::defaults().model.config(32, 400);
        let model = CausalLm::fresh(&config, 0, &Device::flex());
        let prompt = vec![5; 2 * PREFILL + 44];
        let passes_until = |at| {
            let stop = Stop::default();
            let (max_new_tokens, sampling) = (4, Sampling::GREEDY);
            let limit = Generation { sampling, max_new_tokens, rows_at_once: 1, stops: &[] };
            let draws = streams(0, "t", 0..1);
            let run = || generate(&model, &config, &[&prompt], limit, draws, &stop);
            let (passes, result) = passes::count(at, &stop, run);
            (passes, result.map(|responses| responses[0].len()))
        };
        // Three pieces of the prompt, and one token before each but the first.
        assert_eq!(passes_until(0), (6, Ok(4)));
        for at in 1..6 {
            let interrupted = Err(Interrupted { saved_in: None });
            assert_eq!(passes_until(at), (at, interrupted));
        }
    }
}
