//! Causal attention over rows of different lengths that stand one behind the other, with rotary positions and grouped heads.
//!
//! softmax(q kᵀ / √head) v, where token i of a row sees its tokens up to i, as far back as a window reaches, and q and k
//! are turned by their positions before. Padding is never computed, and no more than [`BLOCK`] queries of a head are held
//! against the keys at a time, forward and backward: memory grows with the length of a row, not with its square.

use std::sync::Arc;

use burn::tensor::Tensor;

/// Scaled sines and cosines of all positions from 0 on, as many as there are pairs of channels a position.
#[derive(Debug, Default)]
pub struct Angles {
    /// Pairs of channels that turn: channel i with channel i + pairs.
    pub pairs: usize,
    /// Position by position.
    pub sin: Vec<f32>,
    /// Position by position.
    pub cos: Vec<f32>,
}

/// Tokens of one row that follow each other in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The place of the first in the batch.
    pub start: usize,
    /// How many there are.
    pub tokens: usize,
    /// How many tokens of the row come before.
    pub seen: usize,
}

/// What attention needs to know beside queries, keys and values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The rows; tokens of the batch that belong to none get zeros.
    pub spans: Arc<[Span]>,
    /// The rotation.
    pub angles: Arc<Angles>,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves as many query heads, side by side.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// How many tokens a query sees, itself included, if not all.
    pub window: Option<usize>,
}

/// Attention of whole rows: `q` is `[N, heads * head_dim]`, `k` and `v` `[N, kv_heads * head_dim]`, before the rotation;
/// the result has the shape of `q`. On the CPU in f32 alone.
///
/// # Panics
///
/// For a span whose row was seen in part: its keys are in a cache.
#[cfg(feature = "flex")]
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, plan: &Plan) -> Tensor<2> {
    use burn::backend::Dispatch;
    use served::Attention;
    assert!(plan.spans.iter().all(|span| span.seen == 0), "whole rows");
    let [q, k, v] = [q, k, v].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attend(q, k, v, plan.clone()))
}

/// Attention of new tokens over a cache of their rows, which they join. On the CPU in f32 alone.
#[cfg(feature = "flex")]
pub fn cached_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    plan: &Plan,
    rows: &mut [CachedRow],
) -> Tensor<2> {
    let [q, k, v] = [q, k, v].map(Tensor::into_data);
    let [q, k, v] = [&q, &k, &v].map(|data| data.as_slice::<f32>().expect("f32"));
    let shape = [q.len() / (plan.heads * plan.head_dim), plan.heads * plan.head_dim];
    let mut out = vec![0.0; q.len()];
    let mut scratch = served::Scratch::default();
    for (span, row) in plan.spans.iter().zip(rows) {
        row.append(k, v, *span, plan);
        scratch.attend_cached(q, row, *span, plan, &mut out);
    }
    let data = burn::tensor::TensorData::new(out, shape);
    Tensor::from_data(data, &burn::tensor::Device::flex())
}

/// The keys, turned, and values of a row's tokens.
#[derive(Clone, Debug, Default)]
pub struct CachedRow {
    /// Head by head, channel by channel, `capacity` tokens each.
    keys: Vec<f32>,
    /// Head by head, token by token.
    values: Vec<f32>,
    capacity: usize,
}

#[cfg(feature = "flex")]
pub use served::BLOCK;

#[cfg(feature = "flex")]
mod served {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};

    use super::{Angles, CachedRow, Plan, Span};
    use crate::model::kernels::product::{Product, padded};
    use crate::model::kernels::simd::{exp, max, sum, vectorized};
    use crate::model::kernels::slices::{contiguous, tensor, values};
    use crate::model::kernels::steps::pass_back;

    /// Queries of a head that are held against its keys at a time.
    pub const BLOCK: usize = 48;

    #[backend_extension(Flex, Autodiff)]
    pub trait Attention: Backend {
        fn attend(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            plan: Plan,
        ) -> FloatTensor<Self>;
    }

    /// The gradients of q, k and v.
    pub trait AttentionBackward: Backend {
        fn backward(
            qkv: [FloatTensor<Self>; 3],
            gradient: FloatTensor<Self>,
            plan: Plan,
        ) -> [FloatTensor<Self>; 3];
    }

    impl Attention for Flex {
        fn attend(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            plan: Plan,
        ) -> FloatTensor<Self> {
            let shape: [usize; 2] = q.shape().dims();
            let [q, k, v] = [q, k, v].map(contiguous);
            let mut out = vec![0.0; shape[0] * shape[1]];
            let mut scratch = Scratch::default();
            for span in plan.spans.iter() {
                scratch.attend(values(&q), values(&k), values(&v), *span, &plan, &mut out);
            }
            tensor(out, shape)
        }
    }

    impl AttentionBackward for Flex {
        fn backward(
            qkv: [FloatTensor<Self>; 3],
            gradient: FloatTensor<Self>,
            plan: Plan,
        ) -> [FloatTensor<Self>; 3] {
            let shapes = qkv.each_ref().map(|t| t.shape().dims::<2>());
            let (qkv, gradient) = (qkv.map(contiguous), contiguous(gradient));
            let mut found = shapes.map(|[rows, channels]| vec![0.0; rows * channels]);
            let mut scratch = Scratch::default();
            for span in plan.spans.iter() {
                let qkv = qkv.each_ref().map(values);
                scratch.backward(qkv, values(&gradient), *span, &plan, &mut found);
            }
            let mut shapes = shapes.into_iter();
            found.map(|values| tensor(values, shapes.next().expect("three")))
        }
    }

    #[derive(Debug)]
    struct Step;

    impl<B: AttentionBackward> Backward<B, 3> for Step {
        type State = ([FloatTensor<B>; 3], Plan);

        fn backward(
            self,
            ops: Ops<Self::State, 3>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            pass_back::<B, _, 3>(ops, grads, |(qkv, plan), gradient, _| {
                B::backward(qkv, gradient, plan).map(Some)
            });
        }
    }

    impl<B: Attention + AttentionBackward, C: CheckpointStrategy> Attention for Autodiff<B, C> {
        fn attend(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            plan: Plan,
        ) -> FloatTensor<Self> {
            let nodes = [q.node(), k.node(), v.node()];
            let [q, k, v] = [q, k, v].map(|t| t.into_primitive());
            let y = B::attend(q.clone(), k.clone(), v.clone(), plan.clone());
            match Step.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish(([q, k, v], plan), y),
                OpsKind::UnTracked(step) => step.finish(y),
            }
        }
    }

    /// Memory that the heads of all rows use one after the other. `T` says that channels, not tokens, are the rows.
    #[derive(Default)]
    pub(super) struct Scratch {
        q: Vec<f32>,
        k: Vec<f32>,
        k_t: Vec<f32>,
        v: Vec<f32>,
        v_t: Vec<f32>,
        gradient: Vec<f32>,
        /// The probabilities of a block of queries, `[BLOCK, keys]`.
        p: Vec<f32>,
        /// Their gradients.
        dp: Vec<f32>,
        out: Vec<f32>,
        dk: Vec<f32>,
        dv: Vec<f32>,
    }

    /// `buffer` with at least `count` numbers, all of the first `count` zero.
    fn zeros(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
        buffer.clear();
        buffer.resize(count, 0.0);
        buffer
    }

    /// `buffer` with at least `count` numbers, whatever they are.
    fn room(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
        if buffer.len() < count {
            buffer.resize(count, 0.0);
        }
        &mut buffer[..count]
    }

    /// The place of one head of a span in a batch with `channels` a token.
    #[derive(Clone, Copy)]
    struct Head {
        start: usize,
        channels: usize,
        tokens: usize,
        dim: usize,
        /// The position of the first token.
        position: usize,
    }

    impl Head {
        fn of(span: Span, heads: usize, head: usize, plan: &Plan) -> Self {
            let channels = heads * plan.head_dim;
            Self {
                start: span.start * channels + head * plan.head_dim,
                channels,
                tokens: span.tokens,
                dim: plan.head_dim,
                position: span.seen,
            }
        }

        /// The place of `token`'s first channel.
        fn at(self, token: usize) -> usize {
            self.start + token * self.channels
        }

        /// The tokens `from..`, `count` of them.
        fn part(self, from: usize, count: usize) -> Self {
            Self { start: self.at(from), tokens: count, position: self.position + from, ..self }
        }
    }

    /// Copies a head out of the batch `x`, rows of `padded(dim)`.
    fn gather(x: &[f32], head: Head, to: &mut Vec<f32>) {
        let width = padded(head.dim);
        let to = zeros(to, head.tokens * width);
        for (token, row) in to.chunks_exact_mut(width).enumerate() {
            row[..head.dim].copy_from_slice(&x[head.at(token)..][..head.dim]);
        }
    }

    /// Turns the pairs of `x`, `[tokens, width]`, by their angles times `direction`.
    fn turn(x: &mut [f32], width: usize, position: usize, angles: &Angles, direction: f32) {
        let from = position * angles.pairs;
        turn_pairs(x, width, angles.pairs, &angles.sin[from..], &angles.cos[from..], direction);
    }

    vectorized! {
        fn turn_pairs(
            x: &'a mut [f32],
            width: usize,
            pairs: usize,
            sin: &'a [f32],
            cos: &'a [f32],
            direction: f32,
        ) {
            if pairs == 0 {
                return;
            }
            let angles = sin.chunks_exact(pairs).zip(cos.chunks_exact(pairs));
            for (row, (sin, cos)) in x.chunks_exact_mut(width).zip(angles) {
                let (a, b) = row[..2 * pairs].split_at_mut(pairs);
                for (((a, b), sin), cos) in a.iter_mut().zip(b).zip(sin).zip(cos) {
                    let sin = sin * direction;
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// `x`, `[tokens, width]`, as `[dim, padded(tokens)]`.
    fn transpose(x: &[f32], width: usize, dim: usize, tokens: usize, to: &mut Vec<f32>) {
        let columns = padded(tokens);
        let to = zeros(to, dim * columns);
        for (token, row) in x.chunks_exact(width).enumerate() {
            for (channel, value) in row[..dim].iter().enumerate() {
                to[channel * columns + token] = *value;
            }
        }
    }

    /// Copies `x`, rows of `padded(dim)`, into the batch.
    fn scatter(x: &[f32], head: Head, to: &mut [f32]) {
        for (token, row) in x.chunks_exact(padded(head.dim)).take(head.tokens).enumerate() {
            to[head.at(token)..][..head.dim].copy_from_slice(&row[..head.dim]);
        }
    }

    /// The keys that a query at `position` sees.
    #[inline(always)]
    fn visible(position: usize, window: Option<usize>) -> std::ops::Range<usize> {
        window.map_or(0, |tokens| (position + 1).saturating_sub(tokens))..position + 1
    }

    vectorized! {
        /// Scores become probabilities, row by row; of the first `keys` those that a query does not see get 0.
        fn softmax(
            p: &'a mut [f32],
            columns: usize,
            keys: usize,
            position: usize,
            scale: f32,
            window: Option<usize>,
        ) {
            for (query, row) in p.chunks_exact_mut(columns).enumerate() {
                let seen = visible(position + query, window);
                row[..seen.start].fill(0.0);
                row[seen.end..keys].fill(0.0);
                let row = &mut row[seen];
                let largest = max(row) * scale;
                for p in row.iter_mut() {
                    *p = exp(*p * scale - largest);
                }
                let over = 1.0 / sum(row.len(), |i| row[i]);
                for p in row.iter_mut() {
                    *p *= over;
                }
            }
        }
    }

    vectorized! {
        /// The gradients of probabilities become those of scores: p (∂p - Σ p ∂p), times the scale.
        fn softmax_backward(p: &'a [f32], dp: &'a mut [f32], columns: usize, keys: usize, scale: f32) {
            for (p, dp) in p.chunks_exact(columns).zip(dp.chunks_exact_mut(columns)) {
                let (p, dp) = (&p[..keys], &mut dp[..keys]);
                let mean = sum(keys, |i| p[i] * dp[i]);
                for (p, dp) in p.iter().zip(dp) {
                    *dp = p * (*dp - mean) * scale;
                }
            }
        }
    }

    /// The blocks of queries of a span: the first, and how many.
    fn blocks(tokens: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..tokens).step_by(BLOCK).map(move |first| (first, BLOCK.min(tokens - first)))
    }

    /// C = A B, or C += A B: see [`Product`].
    #[allow(clippy::too_many_arguments)]
    fn multiply(
        [a, b]: [&[f32]; 2],
        a_strides: [usize; 2],
        b_rows: usize,
        c: &mut [f32],
        c_rows: usize,
        [m, n, k]: [usize; 3],
        adds: bool,
    ) {
        let [a_rows, a_columns] = a_strides;
        Product { a, a_rows, a_columns, b, b_rows, c, c_rows, m, n, k, adds }.run();
    }

    impl Scratch {
        /// Writes the attention of a whole row into `out`.
        pub(super) fn attend(
            &mut self,
            q: &[f32],
            k: &[f32],
            v: &[f32],
            span: Span,
            plan: &Plan,
            out: &mut [f32],
        ) {
            let (dim, width, columns) = (plan.head_dim, padded(plan.head_dim), padded(span.tokens));
            for kv in 0..plan.kv_heads {
                let kv_head = Head::of(span, plan.kv_heads, kv, plan);
                gather(k, kv_head, &mut self.k);
                turn(&mut self.k, width, 0, &plan.angles, 1.0);
                transpose(&self.k, width, dim, span.tokens, &mut self.k_t);
                gather(v, kv_head, &mut self.v);
                let [k_t, v] = [&mut self.k_t, &mut self.v].map(std::mem::take);
                self.attend_group(q, [&k_t, &v], columns, kv, span, plan, out);
                (self.k_t, self.v) = (k_t, v);
            }
        }

        /// Writes the attention of the query heads that share the keys `k_t` and values `v` into `out`.
        #[allow(clippy::too_many_arguments)]
        fn attend_group(
            &mut self,
            q: &[f32],
            [k_t, v]: [&[f32]; 2],
            columns: usize,
            kv: usize,
            span: Span,
            plan: &Plan,
            out: &mut [f32],
        ) {
            let width = padded(plan.head_dim);
            for head in group(kv, plan) {
                let head = Head::of(span, plan.heads, head, plan);
                for (first, count) in blocks(span.tokens) {
                    let block = head.part(first, count);
                    self.probabilities(q, k_t, block, columns, plan);
                    let c = room(&mut self.out, count * width);
                    let size = [count, width, block.position + count];
                    multiply([&self.p, v], [columns, 1], width, c, width, size, false);
                    scatter(&self.out, block, out);
                }
            }
        }

        /// Leaves the turned queries of `block` in `q`, and in `p` their probabilities of the keys in `k_t`.
        fn probabilities(
            &mut self,
            q: &[f32],
            k_t: &[f32],
            block: Head,
            columns: usize,
            plan: &Plan,
        ) {
            let width = padded(plan.head_dim);
            gather(q, block, &mut self.q);
            turn(&mut self.q, width, block.position, &plan.angles, 1.0);
            let keys = block.position + block.tokens;
            let p = room(&mut self.p, block.tokens * columns);
            let size = [block.tokens, padded(keys), plan.head_dim];
            multiply([&self.q, k_t], [width, 1], columns, p, columns, size, false);
            softmax(p, columns, keys, block.position, scale(plan), plan.window);
        }

        /// As [`Scratch::attend`], of tokens whose row is in the cache up to them.
        pub(super) fn attend_cached(
            &mut self,
            q: &[f32],
            row: &CachedRow,
            span: Span,
            plan: &Plan,
            out: &mut [f32],
        ) {
            let (dim, width, columns) = (plan.head_dim, padded(plan.head_dim), row.capacity);
            for kv in 0..plan.kv_heads {
                let k_t = &row.keys[kv * dim * columns..(kv + 1) * dim * columns];
                let v = &row.values[kv * columns * width..(kv + 1) * columns * width];
                self.attend_group(q, [k_t, v], columns, kv, span, plan, out);
            }
        }

        /// Adds the gradients of a row's q, k and v.
        pub(super) fn backward(
            &mut self,
            [q, k, v]: [&[f32]; 3],
            gradient: &[f32],
            span: Span,
            plan: &Plan,
            [dq, dk, dv]: &mut [Vec<f32>; 3],
        ) {
            let (dim, width, columns) = (plan.head_dim, padded(plan.head_dim), padded(span.tokens));
            for kv in 0..plan.kv_heads {
                let kv_head = Head::of(span, plan.kv_heads, kv, plan);
                gather(k, kv_head, &mut self.k);
                turn(&mut self.k, width, 0, &plan.angles, 1.0);
                transpose(&self.k, width, dim, span.tokens, &mut self.k_t);
                gather(v, kv_head, &mut self.v);
                transpose(&self.v, width, dim, span.tokens, &mut self.v_t);
                zeros(&mut self.dk, span.tokens * width);
                zeros(&mut self.dv, span.tokens * width);
                for head in group(kv, plan) {
                    let head = Head::of(span, plan.heads, head, plan);
                    for (first, count) in blocks(span.tokens) {
                        let block = head.part(first, count);
                        self.block_backward(q, gradient, block, columns, plan);
                        scatter(&self.out, block, dq);
                    }
                }
                turn(&mut self.dk, width, 0, &plan.angles, -1.0);
                scatter(&self.dk, kv_head, dk);
                scatter(&self.dv, kv_head, dv);
            }
        }

        /// Leaves the gradient of a block's queries in `out`, and adds to those of the keys and values that they see.
        fn block_backward(
            &mut self,
            q: &[f32],
            gradient: &[f32],
            block: Head,
            columns: usize,
            plan: &Plan,
        ) {
            let (dim, width, count) = (plan.head_dim, padded(plan.head_dim), block.tokens);
            let (keys, scale) = (block.position + count, scale(plan));
            let k_t = std::mem::take(&mut self.k_t);
            self.probabilities(q, &k_t, block, columns, plan);
            self.k_t = k_t;
            gather(gradient, block, &mut self.gradient);
            let dp = room(&mut self.dp, count * columns);
            let size = [count, padded(keys), dim];
            multiply([&self.gradient, &self.v_t], [width, 1], columns, dp, columns, size, false);
            let size = [keys, width, count];
            multiply(
                [&self.p, &self.gradient],
                [1, columns],
                width,
                &mut self.dv,
                width,
                size,
                true,
            );
            softmax_backward(&self.p, &mut self.dp[..count * columns], columns, keys, scale);
            let out = room(&mut self.out, count * width);
            let size = [count, width, keys];
            multiply([&self.dp, &self.k], [columns, 1], width, out, width, size, false);
            turn(out, width, block.position, &plan.angles, -1.0);
            let size = [keys, width, count];
            multiply([&self.dp, &self.q], [1, columns], width, &mut self.dk, width, size, true);
        }
    }

    /// The query heads that share a key-value head.
    fn group(kv: usize, plan: &Plan) -> std::ops::Range<usize> {
        let size = plan.heads / plan.kv_heads;
        kv * size..(kv + 1) * size
    }

    fn scale(plan: &Plan) -> f32 {
        1.0 / (plan.head_dim as f32).sqrt()
    }

    impl CachedRow {
        /// Room for `tokens` tokens.
        pub fn new(tokens: usize, kv_heads: usize, head_dim: usize) -> Self {
            let capacity = padded(tokens);
            Self {
                keys: vec![0.0; kv_heads * head_dim * capacity],
                values: vec![0.0; kv_heads * capacity * padded(head_dim)],
                capacity,
            }
        }

        /// Adds the tokens of a span.
        pub(super) fn append(&mut self, k: &[f32], v: &[f32], span: Span, plan: &Plan) {
            let (dim, width) = (plan.head_dim, padded(plan.head_dim));
            let mut turned = Vec::new();
            for kv in 0..plan.kv_heads {
                let head = Head::of(span, plan.kv_heads, kv, plan);
                gather(k, head, &mut turned);
                turn(&mut turned, width, span.seen, &plan.angles, 1.0);
                for (token, key) in turned.chunks_exact(width).enumerate() {
                    let at = span.seen + token;
                    for (channel, value) in key[..dim].iter().enumerate() {
                        self.keys[(kv * dim + channel) * self.capacity + at] = *value;
                    }
                    let to = (kv * self.capacity + at) * width;
                    self.values[to..to + dim].copy_from_slice(&v[head.at(token)..][..dim]);
                }
            }
        }
    }
}
