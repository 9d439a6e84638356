//! The layout of a grid's tokens in the batch `[N, D]` that the layers read, and attention over it.
//!
//! On the CPU the batch holds the tokens alone, row behind row, and padding costs nothing. Elsewhere it holds every cell
//! of the columns, padding too, so that attention is one large product.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::module::{attention, attention_fallback};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::cache::LayerCache;
use super::grid::Grid;
use super::precision::{cast, wide};
use super::rope::{Rope, Rotation};
#[cfg(feature = "flex")]
use crate::model::kernels::attention::{self, Plan};
use crate::model::kernels::attention::{Angles, Span};
use crate::model::kernels::packs;

/// How the channels of an attention block are split.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// The tokens of some columns of a grid in a batch.
pub struct Places {
    columns: Range<usize>,
    layout: Layout,
    device: Device,
}

enum Layout {
    /// The tokens alone.
    Tokens { spans: Arc<[Span]>, angles: Arc<Angles> },
    /// Every cell of the columns, row by row.
    Cells(Box<Cells>),
}

struct Cells {
    rows: usize,
    rotation: Rotation,
    /// True where a query must not see a key, `[B, 1, S, K]`.
    hidden: Tensor<4, Bool>,
    /// The same in layers with a sliding window, if it reaches less far back than the columns do.
    hidden_by_window: Option<Tensor<4, Bool>>,
}

impl Places {
    /// The `columns` of `grid`, for layers some of which may see no farther back than `window`.
    pub fn new(
        grid: &Grid,
        columns: Range<usize>,
        rope: &Rope,
        window: Option<usize>,
        device: &Device,
        dtype: DType,
    ) -> Self {
        grid.assert_served(rope);
        let layout = if packs(device, dtype) {
            let spans = grid.spans(&columns);
            let longest = spans.iter().map(|span| span.seen + span.tokens).max().unwrap_or(0);
            Layout::Tokens { angles: rope.angles(longest), spans: spans.into() }
        } else {
            let window = window.filter(|&tokens| tokens < columns.end);
            let hidden = |window| grid.hidden(columns.clone(), window, device);
            Layout::Cells(Box::new(Cells {
                rows: grid.rows(),
                rotation: grid.rotation(rope, columns.clone(), device, dtype),
                hidden: hidden(None),
                hidden_by_window: window.map(|tokens| hidden(Some(tokens))),
            }))
        };
        Self { columns, layout, device: device.clone() }
    }

    /// The token ids, `[N]`; 0 in the padding.
    pub fn token_ids(&self, grid: &Grid) -> Tensor<1, Int> {
        match &self.layout {
            Layout::Tokens { .. } => ints(grid.tokens_in(&self.columns), &self.device),
            Layout::Cells(_) => {
                let cells = self.columns.len() * grid.rows();
                grid.token_ids(self.columns.clone(), &self.device).reshape([cells])
            }
        }
    }

    /// The place in the batch of the token in `row` and `column` of `grid`.
    pub fn at(&self, grid: &Grid, row: usize, column: usize) -> usize {
        match &self.layout {
            Layout::Tokens { spans, .. } => {
                spans[row].start + column - self.columns.start.max(grid.start(row))
            }
            Layout::Cells(_) => row * self.columns.len() + column - self.columns.start,
        }
    }

    /// Causal attention of queries, keys and values, `[N, heads * head]`, which turns them by their positions before: a
    /// token sees those of its row before it, as far back as `window` reaches, and itself.
    pub fn attend(
        &self,
        qkv: [Tensor<2>; 3],
        shape: HeadShape,
        window: Option<usize>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        match &self.layout {
            #[cfg(feature = "flex")]
            Layout::Tokens { spans, angles } => {
                let HeadShape { heads, kv_heads, head_dim } = shape;
                let (spans, angles) = (spans.clone(), angles.clone());
                let plan = Plan { spans, angles, heads, kv_heads, head_dim, window };
                let dtype = qkv[0].dtype();
                let [q, k, v] = qkv.map(wide);
                let context = match cache {
                    Some(cache) => attention::cached_attention(q, k, v, &plan, cache.rows()),
                    None => attention::attention(q, k, v, &plan),
                };
                cast(context, dtype)
            }
            #[cfg(not(feature = "flex"))]
            Layout::Tokens { .. } => unreachable!("this build has no CPU backend"),
            Layout::Cells(cells) => {
                let Cells { rows, rotation, hidden, hidden_by_window } = &**cells;
                let windowed = hidden_by_window.as_ref().filter(|_| window.is_some());
                attend_cells(qkv, *rows, shape, rotation, windowed.unwrap_or(hidden), cache)
            }
        }
    }
}

/// The tokens in some columns of a grid, read where their distributions or their own states are.
pub(super) struct Reading {
    /// Where each is read in the batch.
    places: Vec<i64>,
    /// The tokens, `[M]`, row by row.
    pub(super) tokens: Vec<u32>,
    /// The index of each cell's token; in the padding, the number of tokens.
    cells: Vec<i64>,
    shape: [usize; 2],
}

impl Reading {
    /// The tokens in `columns`, each read `back` columns before its own.
    pub(super) fn of(grid: &Grid, columns: Range<usize>, back: usize, places: &Places) -> Self {
        let shape = [grid.rows(), columns.len()];
        let cells = (0..grid.rows()).flat_map(|row| columns.clone().map(move |c| (row, c)));
        let (mut read, mut tokens, mut which) = (Vec::new(), Vec::new(), Vec::new());
        for (row, column) in cells {
            which.push(if grid.holds(row, column) { tokens.len() as i64 } else { -1 });
            if grid.holds(row, column) {
                assert!(column - back >= grid.start(row), "nothing predicts a row's first token");
                read.push(places.at(grid, row, column - back) as i64);
                tokens.push(grid.at(row, column));
            }
        }
        let padding = tokens.len() as i64;
        which.iter_mut().filter(|at| **at < 0).for_each(|at| *at = padding);
        Self { places: read, tokens, cells: which, shape }
    }

    /// The rows of `hidden`, `[N, D]`, where the tokens are read: `[M, D]`.
    pub(super) fn pick(&self, hidden: Tensor<2>) -> Tensor<2> {
        let all = self.places.len() == hidden.dims()[0];
        if all && self.places.iter().copied().eq(0..self.places.len() as i64) {
            return hidden;
        }
        let places = ints(self.places.clone(), &hidden.device());
        hidden.select(0, places)
    }

    /// What was read, `[M, C]`, in the cells of the columns, `[B, S, C]`; 0 in the padding.
    pub(super) fn spread(&self, read: Tensor<2>) -> Tensor<3> {
        let ([tokens, channels], [b, s]) = (read.dims(), self.shape);
        if tokens == b * s {
            return read.reshape([b, s, channels]);
        }
        let device = read.device();
        let padding = Tensor::zeros([1, channels], (&device, read.dtype()));
        let all = Tensor::cat(vec![read, padding], 0);
        all.select(0, ints(self.cells.clone(), &device)).reshape([b, s, channels])
    }
}

/// A tensor of token ids or places, `[N]`.
pub(super) fn ints(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Attention on a rectangle of `rows` rows; `hidden` is `[B, 1, S, K]`, true where a query must not see a key.
fn attend_cells(
    qkv: [Tensor<2>; 3],
    rows: usize,
    shape: HeadShape,
    rotation: &Rotation,
    hidden: &Tensor<4, Bool>,
    cache: Option<&mut LayerCache>,
) -> Tensor<2> {
    let HeadShape { heads, kv_heads, head_dim } = shape;
    let columns = qkv[0].dims()[0] / rows;
    let split = |x: Tensor<2>, heads| {
        x.reshape([rows, columns, heads, head_dim]).swap_dims(1, 2) // [B, H, S, head]
    };
    let [q, k, v] = qkv;
    let (q, k) = (rotation.apply(split(q, heads)), rotation.apply(split(k, kv_heads)));
    let v = split(v, kv_heads);
    let is_cached = cache.is_some();
    let (k, v) = match cache {
        Some(cache) => cache.extend(k, v),
        None => (k, v),
    };
    let (k, v) = (repeat_heads(k, heads), repeat_heads(v, heads)); // [B, H, K, head]
    let keys = k.dims()[2];
    let mask = hidden.clone().expand([rows, heads, columns, keys]);
    let context = softmax_product([q, k, v], mask, is_cached);
    context.swap_dims(1, 2).reshape([rows * columns, heads * head_dim])
}

/// Gives each group of query heads its own copy of the shared key or value head.
fn repeat_heads(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [b, kv, t, d] = x.dims();
    if heads == kv {
        return x;
    }
    x.unsqueeze_dim::<5>(2).expand([b, kv, heads / kv, t, d]).reshape([b, heads, t, d])
}

/// softmax(q kᵀ / √head) v over the keys that `mask` does not hide, in the type of `q`.
///
/// In a half type, autodiff's single operations would round the sums of the softmax, and a backend's own kernel,
/// which sums in f32, would round at other places. So they are computed in f32, with autodiff and without it
/// by the same operations: a model under training then says bit for bit what its inference copy says. Generation
/// alone, which draws tokens and compares nothing, keeps the backend's kernel.
fn softmax_product(
    [q, k, v]: [Tensor<4>; 3],
    mask: Tensor<4, Bool>,
    is_generation: bool,
) -> Tensor<4> {
    let (dtype, options) = (q.dtype(), AttentionModuleOptions::default());
    match dtype {
        DType::F16 | DType::BF16 if !is_generation => {
            let context = attention_fallback(wide(q), wide(k), wide(v), Some(mask), None, options);
            cast(context, dtype)
        }
        _ => attention(q, k, v, Some(mask), None, options),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::model::config::RopeScaling;

    /// The numbers at the tokens of `rows`, of a tensor over all cells of a grid `width` wide.
    fn tokens_of(x: Tensor<2>, rows: &[(usize, usize)], width: usize) -> Tensor<2> {
        let places = rows.iter().enumerate().flat_map(|(row, &(start, tokens))| {
            (start..start + tokens).map(move |column| (row * width + column) as i64)
        });
        x.select(0, ints(places.collect(), &Device::flex()))
    }

    #[test]
    fn rows_behind_each_other_see_what_rows_on_a_rectangle_see_forward_and_backward() {
        let device = Device::flex();
        let width = 120;
        // Where a row starts and how long it is: two of them reach over several blocks of queries.
        let rows = [(3, 117), (0, 5), (20, 99), (119, 1)];
        for (heads, kv_heads, head_dim, pairs, window) in [
            (4, 4, 16, 8, None),
            (4, 2, 10, 3, None),
            (2, 1, 32, 16, Some(7)),
            (3, 3, 8, 4, Some(60)),
        ] {
            let shape = HeadShape { heads, kv_heads, head_dim };
            let rope = Rope::new(2 * pairs, 100.0).scaled(&RopeScaling::None, 200);
            let grid = Grid::new(rows.map(|(start, tokens)| (start, vec![0; tokens])), width);
            let cells = Places {
                columns: 0..width,
                device: device.clone(),
                layout: Layout::Cells(Box::new(Cells {
                    rows: rows.len(),
                    rotation: grid.rotation(&rope, 0..width, &device, DType::F32),
                    hidden: grid.hidden(0..width, window, &device),
                    hidden_by_window: None,
                })),
            };
            let places = Places::new(&grid, 0..width, &rope, window, &device, DType::F32);
            let normal = Distribution::Normal(0.0, 1.0);
            let random = |heads: usize| {
                Tensor::<2>::random([rows.len() * width, heads * head_dim], normal, &device)
            };
            let inputs = [random(heads), random(kv_heads), random(kv_heads)];
            let slope = random(heads);
            let run = |places: &Places, inputs: [Tensor<2>; 3], slope: Tensor<2>| {
                let inputs = inputs.map(|x| x.autodiff().require_grad());
                let y = places.attend(inputs.clone(), shape, window, None);
                let gradients = (y.clone() * slope.autodiff()).sum().backward();
                let [q, k, v] = inputs.map(|x| x.grad(&gradients).unwrap());
                [y.inner(), q, k, v]
            };
            let tokens = |x: Tensor<2>| tokens_of(x, &rows, width);
            let ours = run(&places, inputs.clone().map(tokens), tokens(slope.clone()));
            // The padding of a rectangle has gradients of its own; here its slope is 0.
            let full = tokens(slope);
            let ids = tokens_of(
                Tensor::<1, Int>::arange(0..(rows.len() * width) as i64, &device)
                    .float()
                    .unsqueeze_dim(1),
                &rows,
                width,
            );
            let masked = Tensor::zeros([rows.len() * width, heads * head_dim], &device);
            let masked = masked.select_assign(
                0,
                ids.squeeze_dim::<1>(1).int(),
                full,
                burn::tensor::IndexingUpdateOp::Add,
            );
            let plain = run(&cells, inputs, masked).map(tokens);
            for (ours, plain) in ours.into_iter().zip(plain) {
                let gap = (ours - plain).abs().max().into_scalar::<f32>();
                assert!(gap < 2e-5, "{heads} {kv_heads} {head_dim} {window:?}: {gap}");
            }
        }
    }
}
