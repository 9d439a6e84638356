//! Keys and values of the tokens already seen, so that generation reads each token once.

use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};

use super::config::ModelConfig;
#[cfg(feature = "flex")]
use crate::model::kernels::attention::CachedRow;
use crate::model::kernels::packs;

/// The cache of every layer.
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
}

/// The cache of one layer, allocated once.
#[derive(Clone, Debug)]
pub struct LayerCache {
    memory: Memory,
    filled: usize,
}

#[derive(Clone, Debug)]
enum Memory {
    /// On the CPU each row has its own, which tokens are written into.
    #[cfg(feature = "flex")]
    Rows(Vec<CachedRow>),
    /// Elsewhere keys and values on a rectangle, `[B, KV heads, columns, head]`.
    Rectangle(Box<[Tensor<4>; 2]>),
}

impl KvCache {
    /// An empty cache for `batch` rows of up to `columns` tokens, on a device and in a type.
    pub fn new(
        config: &ModelConfig,
        batch: usize,
        columns: usize,
        options: impl Into<TensorCreationOptions>,
    ) -> Self {
        let (kv_heads, head_dim, options) = (config.kv_heads, config.head_dim, options.into());
        let shape = [batch, kv_heads, columns, head_dim];
        let memory = || {
            #[cfg(feature = "flex")]
            if packs(&options.device, options.dtype.unwrap_or(DType::F32)) {
                let row = || CachedRow::new(columns, kv_heads, head_dim);
                return Memory::Rows((0..batch).map(|_| row()).collect());
            }
            let zeros = || Tensor::zeros(shape, options.clone());
            Memory::Rectangle(Box::new([zeros(), zeros()]))
        };
        let layer = || LayerCache { memory: memory(), filled: 0 };
        Self { layers: (0..config.layers).map(|_| layer()).collect() }
    }

    /// How many columns have been seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.filled)
    }

    /// Whether rows leave without a copy of the others.
    pub fn drops_rows_freely(&self) -> bool {
        self.layers.iter().all(|layer| !matches!(layer.memory, Memory::Rectangle(_)))
    }

    /// Keeps the given rows of the batch, in order; one that comes several times is copied.
    pub fn select(&mut self, rows: &[usize], device: &Device) {
        let ids: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let ids =
            || Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [rows.len()]), device);
        for layer in &mut self.layers {
            match &mut layer.memory {
                #[cfg(feature = "flex")]
                Memory::Rows(all) => {
                    let mut next = rows.iter().skip(1);
                    let keep = |&row: &usize| match next.next() == Some(&row) {
                        true => all[row].clone(),
                        false => std::mem::take(&mut all[row]),
                    };
                    *all = rows.iter().map(keep).collect();
                }
                Memory::Rectangle(both) => {
                    let [keys, values] = &mut **both;
                    keys.inplace(|keys| keys.select(0, ids()));
                    values.inplace(|values| values.select(0, ids()));
                }
            }
        }
    }

    /// Notes that the columns up to `end` have been seen.
    pub(super) fn advance(&mut self, end: usize) {
        self.layers.iter_mut().for_each(|layer| layer.filled = end);
    }

    /// Forgets the columns from `columns` on; they can be seen anew.
    pub(super) fn truncate(&mut self, columns: usize) {
        self.layers.iter_mut().for_each(|layer| layer.filled = layer.filled.min(columns));
    }

    /// Whether nothing has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LayerCache {
    /// The rows, on the CPU.
    #[cfg(feature = "flex")]
    pub(super) fn rows(&mut self) -> &mut [CachedRow] {
        match &mut self.memory {
            Memory::Rows(rows) => rows,
            Memory::Rectangle(_) => unreachable!("a cache of another device"),
        }
    }

    /// Writes the new columns behind those seen so far and returns all.
    pub(super) fn extend(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [b, h, s, d] = k.dims();
        let end = self.filled + s;
        let (old, new) = ([0..b, 0..h, self.filled..end, 0..d], [0..b, 0..h, 0..end, 0..d]);
        match &mut self.memory {
            Memory::Rectangle(both) => {
                let [keys, values] = &mut **both;
                keys.inplace(|keys| keys.slice_assign(old.clone(), k));
                values.inplace(|values| values.slice_assign(old, v));
                (keys.clone().slice(new.clone()), values.clone().slice(new))
            }
            #[cfg(feature = "flex")]
            Memory::Rows(_) => unreachable!("a cache of another device"),
        }
    }
}
