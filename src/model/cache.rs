//! Keys and values of the tokens already seen, so that generation reads each token once.

use burn::tensor::{Device, Int, Tensor, TensorCreationOptions, TensorData};

use super::config::ModelConfig;

/// The cache of every layer.
#[derive(Clone, Debug)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
}

/// The cache of one layer: `[B, KV heads, columns, head]`, allocated once.
#[derive(Clone, Debug)]
pub struct LayerCache {
    keys: Tensor<4>,
    values: Tensor<4>,
    filled: usize,
}

impl KvCache {
    /// An empty cache for `batch` rows of up to `columns` tokens, on a device and in a type.
    pub fn new(
        config: &ModelConfig,
        batch: usize,
        columns: usize,
        options: impl Into<TensorCreationOptions>,
    ) -> Self {
        let (shape, options) = ([batch, config.kv_heads, columns, config.head_dim], options.into());
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, options.clone()),
            values: Tensor::zeros(shape, options.clone()),
            filled: 0,
        };
        Self { layers: (0..config.layers).map(|_| layer()).collect() }
    }

    /// How many columns have been seen.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.filled)
    }

    /// Keeps the given rows of the batch, in that order.
    pub fn select(&mut self, rows: &[usize], device: &Device) {
        let ids: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [rows.len()]), device);
        for layer in &mut self.layers {
            layer.keys.inplace(|keys| keys.select(0, ids.clone()));
            layer.values.inplace(|values| values.select(0, ids.clone()));
        }
    }

    /// Whether nothing has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LayerCache {
    /// Appends the new columns and returns all columns seen so far.
    pub(super) fn extend(&mut self, k: Tensor<4>, v: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [b, h, s, d] = k.dims();
        let end = self.filled + s;
        let (old, new) = ([0..b, 0..h, self.filled..end, 0..d], [0..b, 0..h, 0..end, 0..d]);
        self.keys.inplace(|keys| keys.slice_assign(old.clone(), k));
        self.values.inplace(|values| values.slice_assign(old, v));
        self.filled = end;
        (self.keys.clone().slice(new.clone()), self.values.clone().slice(new))
    }
}
