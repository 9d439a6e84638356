//! A batch of token rows of different lengths on one rectangle.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::rope::{Rope, Rotation};
use crate::model::kernels::attention::Span;

/// Rows of tokens placed on a rectangle of `width` columns; the rest is padding.
///
/// Prompts are padded on the left and responses on the right, so that the first response token of every
/// row is in the same column. Padding never changes what a model computes for a row's own tokens.
#[derive(Clone, Debug)]
pub struct Grid {
    rows: Vec<Row>,
    width: usize,
}

#[derive(Clone, Debug)]
struct Row {
    start: usize,
    tokens: Vec<u32>,
}

impl Grid {
    /// Places each row's tokens from its start column on.
    ///
    /// # Panics
    ///
    /// If a row is empty or reaches beyond `width`.
    pub fn new(rows: impl IntoIterator<Item = (usize, Vec<u32>)>, width: usize) -> Self {
        let rows: Vec<Row> =
            rows.into_iter().map(|(start, tokens)| Row { start, tokens }).collect();
        for row in &rows {
            assert!(!row.tokens.is_empty(), "a row needs a token");
            assert!(row.start + row.tokens.len() <= width, "a row fits the grid");
        }
        Self { rows, width }
    }

    /// Prompts padded on the left, responses on the right; and the column of the first response token.
    pub fn aligned<'a>(
        rows: impl IntoIterator<Item = (&'a [u32], &'a [u32])> + Clone,
    ) -> (Self, usize) {
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
        let prompt = longest(&mut rows.clone().into_iter().map(|(prompt, _)| prompt.len()));
        let response = longest(&mut rows.clone().into_iter().map(|(_, response)| response.len()));
        let placed =
            rows.into_iter().map(|(head, tail)| (prompt - head.len(), [head, tail].concat()));
        (Self::new(placed, prompt + response), prompt)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of columns that hold a token, over all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }

    /// The token ids of `columns`, 0 if there is no token, `[B, S]`.
    pub fn token_ids(&self, columns: Range<usize>, device: &Device) -> Tensor<2, Int> {
        let ids: Vec<i64> = self.cells(&columns).map(|(row, c)| i64::from(row.at(c))).collect();
        Tensor::from_data(TensorData::new(ids, [self.rows(), columns.len()]), device)
    }

    /// True where `columns` hold a token, `[B, S]`.
    pub fn mask(&self, columns: Range<usize>, device: &Device) -> Tensor<2, Bool> {
        let mask: Vec<bool> = self.cells(&columns).map(|(row, c)| row.holds(c)).collect();
        Tensor::from_data(TensorData::new(mask, [self.rows(), columns.len()]), device)
    }

    /// Whether the token of a row is in a column.
    pub(super) fn holds(&self, row: usize, column: usize) -> bool {
        self.rows[row].holds(column)
    }

    /// The token in a column of a row, 0 if there is none.
    pub(super) fn at(&self, row: usize, column: usize) -> u32 {
        self.rows[row].at(column)
    }

    /// The column of a row's first token.
    pub(super) fn start(&self, row: usize) -> usize {
        self.rows[row].start
    }

    /// The tokens of `columns`, row behind row.
    pub(super) fn tokens_in(&self, columns: &Range<usize>) -> Vec<i64> {
        let own = |row: &Row| {
            let part = row.part(columns);
            row.tokens[part.start - row.start..part.end - row.start].to_vec()
        };
        self.rows.iter().flat_map(own).map(i64::from).collect()
    }

    /// Where the tokens of `columns` stand when they are row behind row.
    pub(super) fn spans(&self, columns: &Range<usize>) -> Vec<Span> {
        let mut start = 0;
        let span = |row: &Row| {
            let part = row.part(columns);
            let span = Span { start, tokens: part.len(), seen: part.start - row.start };
            start += part.len();
            span
        };
        self.rows.iter().map(span).collect()
    }

    /// # Panics
    ///
    /// If a row has more tokens than the model was made for.
    pub(super) fn assert_served(&self, rope: &Rope) {
        for row in &self.rows {
            let (tokens, longest) = (row.tokens.len(), rope.longest());
            assert!(tokens <= longest, "a row of {tokens} tokens, but the model serves {longest}");
        }
    }

    /// The rotary positions of `columns`, counted from each row's first token.
    pub(super) fn rotation(
        &self,
        rope: &Rope,
        columns: Range<usize>,
        device: &Device,
        dtype: DType,
    ) -> Rotation {
        let positions: Vec<usize> =
            self.cells(&columns).map(|(row, c)| c.saturating_sub(row.start)).collect();
        rope.rotation(&positions, [self.rows(), columns.len()], device, dtype)
    }

    /// True where the query in one of `columns` must not see the key in a column before their end:
    /// `[B, 1, S, K]`. A query sees the tokens of its row before it, as far back as `window` reaches, and
    /// itself, in the padding too, so that its softmax stays finite.
    pub(super) fn hidden(
        &self,
        columns: Range<usize>,
        window: Option<usize>,
        device: &Device,
    ) -> Tensor<4, Bool> {
        let keys = columns.end;
        let mut hidden = vec![true; self.rows() * columns.len() * keys];
        for (cell, (row, query)) in hidden.chunks_mut(keys).zip(self.cells(&columns)) {
            let end = query.min(row.start + row.tokens.len());
            let farthest = window.map_or(0, |tokens| (query + 1).saturating_sub(tokens));
            cell[row.start.max(farthest).min(end)..end].fill(false);
            cell[query] = false;
        }
        Tensor::from_data(TensorData::new(hidden, [self.rows(), 1, columns.len(), keys]), device)
    }

    fn cells<'a>(&'a self, columns: &Range<usize>) -> impl Iterator<Item = (&'a Row, usize)> {
        let columns = columns.clone();
        self.rows.iter().flat_map(move |row| columns.clone().map(move |c| (row, c)))
    }
}

impl Row {
    /// The columns among `columns` that hold a token.
    fn part(&self, columns: &Range<usize>) -> Range<usize> {
        let end = self.start + self.tokens.len();
        let start = columns.start.clamp(self.start, end);
        start..columns.end.clamp(start, end)
    }

    fn holds(&self, column: usize) -> bool {
        (self.start..self.start + self.tokens.len()).contains(&column)
    }

    fn at(&self, column: usize) -> u32 {
        if self.holds(column) { self.tokens[column - self.start] } else { 0 }
    }
}
