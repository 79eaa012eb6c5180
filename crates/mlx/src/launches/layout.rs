//! Where the elements of an array lie, as MLX keeps it: strides and what is known of them.
//!
//! Source: MLX 0.32.2, `mlx/array.h` (`Flags`), `mlx/backend/common/utils.{h,cpp}`, `mlx/backend/common/common.cpp`.

/// The layout of one array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Elements from one index to the next, by axis.
    pub(super) strides: Vec<i64>,
    /// Every element of the buffer belongs to the array.
    pub(super) contiguous: bool,
    /// In the order of its indices, the last fastest.
    pub(super) row: bool,
    /// The first fastest.
    pub(super) col: bool,
    /// Elements of the buffer that it spans.
    pub(super) data_size: u64,
}

impl Layout {
    /// Of an array that was allocated for itself.
    pub(super) fn row(shape: &[i64]) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let size: i64 = shape.iter().product();
        let col = size <= 1 || shape.contains(&size);
        Self { strides, contiguous: true, row: true, col, data_size: size as u64 }
    }

    /// The same elements at other strides, `data_size` of them in the buffer.
    pub(super) fn view(shape: &[i64], strides: Vec<i64>, data_size: u64) -> Self {
        let (dense, row, col) = contiguity(shape, &strides);
        Self { contiguous: dense == data_size, row, col, data_size, strides }
    }

    pub(super) fn last_stride(&self) -> i64 {
        self.strides.last().copied().unwrap_or(1)
    }

    pub(super) fn is_scalar(&self) -> bool {
        self.data_size == 1
    }
}

/// Elements that are not repeated, and whether they lie in row or in column order.
fn contiguity(shape: &[i64], strides: &[i64]) -> (u64, bool, bool) {
    let (mut dense, mut row, mut col) = (1, true, true);
    let (mut forward, mut backward) = (1, 1);
    for (n, stride) in shape.iter().zip(strides) {
        col &= *stride == forward || *n == 1;
        forward *= n;
        if *stride > 0 {
            dense *= *n as u64;
        }
    }
    for (n, stride) in shape.iter().zip(strides).rev() {
        row &= *stride == backward || *n == 1;
        backward *= n;
    }
    (dense, row, col)
}

/// The axes of `shape` that can be walked as one, taken together: MLX's `collapse_contiguous_dims`.
pub(super) fn collapse(shape: &[i64], strides: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (i, (n, stride)) in shape.iter().zip(strides).enumerate() {
        match merged.last_mut() {
            Some(_) if i > 0 && *n == 1 => {}
            Some((held, step)) if stride * n == *step => (*held, *step) = (*held * n, *stride),
            _ => merged.push((*n, *stride)),
        }
    }
    merged.into_iter().unzip()
}

/// The strides of `input` seen as `shape`; `None` where its elements have to be copied for that. MLX's
/// `prepare_reshape`.
pub(super) fn reshape(input: &Layout, from: &[i64], shape: &[i64]) -> Option<Vec<i64>> {
    if input.row || from.contains(&0) {
        return Some(Layout::row(shape).strides);
    }
    if from.is_empty() {
        return Some(vec![0; shape.len()]);
    }
    let (mut left, strides) = collapse(from, &input.strides);
    let mut out: Vec<i64> = Vec::with_capacity(shape.len());
    let mut j = 0;
    for n in shape {
        if j < left.len() && left[j] % n == 0 {
            left[j] /= n;
            out.push(left[j] * strides[j]);
            j += usize::from(left[j] == 1);
        } else if *n == 1 {
            out.push(out.last().copied().unwrap_or(1));
        } else {
            return None;
        }
    }
    Some(out)
}
