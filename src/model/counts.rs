//! What the hot path costs, in counts that a slow machine does not change: forward passes, operations of the matrix
//! products, and allocations.

/// Notes a product of `m` × `k` by `k` × `n`, in tests.
#[inline(always)]
pub(super) fn product(m: usize, n: usize, k: usize) {
    #[cfg(test)]
    tests::OPERATIONS.set(tests::OPERATIONS.get() + 2 * (m * n * k) as u64);
    #[cfg(not(test))]
    let _ = (m, n, k);
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::cell::Cell;

    use burn::module::Module;
    use burn::tensor::Device;
    use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

    use crate::model::decoder::passes;
    use crate::model::generate::{Generation, Rows, generate, response_log_probs};
    use crate::model::optim::Trainer;
    use crate::model::sampling::Sampling;
    use crate::model::shards::shards;
    use crate::model::{CausalLm, Grid, ModelConfig};
    use crate::rng::streams;
    use crate::settings::Settings;
    use crate::stop::Stop;

    #[global_allocator]
    static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    thread_local! {
        pub(super) static OPERATIONS: Cell<u64> = const { Cell::new(0) };
    }

    /// Passes, operations of products, and what `run` gives.
    fn counted<T>(run: impl FnOnce() -> T) -> (usize, u64, T) {
        OPERATIONS.set(0);
        let (passes, result) = passes::count(0, &Stop::default(), run);
        (passes, OPERATIONS.get(), result)
    }

    /// The default model, and 8 rows of 18 tokens of prompt and 34 of response: one shard, on this thread.
    fn work() -> (ModelConfig, Vec<u32>) {
        let row = (0..52).map(|i| (i * 7) % 100 + 2).collect();
        (Settings::defaults().model.config(109, 82), row)
    }

    const ROWS: usize = 8;

    /// Operations of a token in the linear maps of all layers.
    fn layers(config: &ModelConfig) -> u64 {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        2 * (config.layers * (d * (2 * q + 2 * kv) + 3 * d * f)) as u64
    }

    /// The part of `operations` that is beyond `expected`: attention's products.
    #[track_caller]
    fn attention(operations: u64, expected: u64) -> f64 {
        assert!(operations >= expected, "{operations} of at least {expected}");
        (operations - expected) as f64 / expected as f64
    }

    #[test]
    fn a_training_step_reads_each_token_once_and_the_padding_never() {
        let (config, row) = work();
        let device = Device::flex().autodiff();
        let model = CausalLm::fresh(&config, 0, &device);
        let settings = Settings::defaults().sft.optimizer;
        let mut trainer = Trainer::new("policy", model, &settings, 100);
        // Rows of 52 down to 24 tokens: a rectangle would hold 416.
        let rows: Vec<(&[u32], &[u32])> =
            (0..ROWS).map(|i| row[..52 - 4 * i].split_at(18)).collect();
        let lengths: Vec<usize> = rows.iter().map(|(p, r)| p.len() + r.len()).collect();
        let tokens: usize = lengths.iter().sum();
        assert_eq!(shards(&lengths, &device).len(), 1);
        let mut step = || {
            trainer.accumulate(vec![0..ROWS], |model, _| {
                let (grid, first) = Grid::aligned(rows.iter().copied());
                (response_log_probs(model, &grid, first).0.sum().neg(), [])
            });
            trainer.update().unwrap()
        };
        step();
        let (passes, operations, _) = counted(&mut step);
        assert_eq!(passes, 1);
        // Forward once and backward twice; the last token of a row predicts nothing and is not read. The head's logits
        // are made again in the backward pass.
        let (read, predicted) = ((tokens - ROWS) as u64, (tokens - 18 * ROWS) as u64);
        let head = 2 * (config.hidden_size * config.vocab_size) as u64;
        let expected = 3 * read * layers(&config) + 4 * predicted * head;
        let attention = attention(operations, expected);
        assert!(attention < 0.15, "attention's products are {attention} of the others' {expected}");
    }

    #[test]
    fn reading_takes_one_pass_for_log_probabilities_and_entropies() {
        let (config, row) = work();
        let model = CausalLm::fresh(&config, 0, &Device::flex());
        let rows = vec![row.split_at(18); ROWS];
        let view = || Rows::new(&rows, ROWS).view(&model, &Stop::default()).unwrap();
        let (passes, operations, _) = counted(view);
        assert_eq!(passes, 1);
        let head = 2 * (config.hidden_size * config.vocab_size) as u64;
        let expected = ROWS as u64 * (51 * layers(&config) + 34 * head);
        let attention = attention(operations, expected);
        assert!(attention < 0.12, "attention's products are {attention} of the others' {expected}");
    }

    #[test]
    fn generation_reads_each_prompt_once_equal_ones_together_and_each_token_once() {
        let (config, row) = work();
        let model = CausalLm::fresh(&config, 0, &Device::flex());
        let prompt = |first: usize| [&[first as u32 + 1], &row[..17]].concat();
        let sampling = Sampling::GREEDY;
        let plain = Generation { sampling, max_new_tokens: 34, rows_at_once: ROWS, stops: &[] };
        for (distinct, prompts) in
            [(ROWS, (0..ROWS).map(prompt).collect::<Vec<_>>()), (1, vec![prompt(0); ROWS])]
        {
            let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
            let draws = streams(0, "counts", 0..ROWS);
            let write = || generate(&model, &config, &prompts, plain, draws, &Stop::default());
            let (passes, operations, written) = counted(write);
            assert_eq!((passes, written.unwrap().len()), (34, ROWS));
            let head = 2 * (config.hidden_size * config.vocab_size) as u64;
            let read = (distinct * 18 + ROWS * 33) as u64;
            let expected = read * layers(&config) + (distinct + ROWS * 33) as u64 * head;
            assert!(attention(operations, expected) < 0.12);
        }
    }

    /// Alone in its process: other tests would count too.
    #[test]
    #[ignore = "counts the allocations of the whole process: run alone, with --exact and --ignored"]
    fn a_training_step_allocates_so_often_and_no_more_than_so_much() {
        let (config, row) = work();
        let model = CausalLm::fresh(&config, 0, &Device::flex().autodiff());
        let settings = Settings::defaults().sft.optimizer;
        let mut trainer = Trainer::new("policy", model, &settings, 100);
        let rows = vec![row.split_at(18); ROWS];
        let mut step = || {
            trainer.accumulate(vec![()], |model, ()| {
                let (grid, first) = Grid::aligned(rows.iter().copied());
                (response_log_probs(model, &grid, first).0.sum().neg(), [])
            });
            trainer.update().unwrap()
        };
        step();
        let region = Region::new(ALLOCATOR);
        step();
        let change = region.change();
        let parameters = CausalLm::fresh(&config, 0, &Device::flex()).num_params();
        println!("{change:?}, {parameters} parameters");
        assert!(change.allocations < 6000, "{change:?}");
        assert!(change.bytes_allocated < 16_000_000, "{change:?}");
    }
}
