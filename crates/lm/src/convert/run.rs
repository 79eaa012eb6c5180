//! Making tensors piece by piece: of a tensor at most itself and a piece of what it becomes is in memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use mlx::quantization::{Quantization, QuantizedWeight};
use mlx::{Array, Dtype, memory, ops};

use super::plan::Work;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::rewrite::{Packed, Tensor};

/// Numbers that are worked on at once.
const PIECE_SIZE: usize = 4 << 20;

/// Receives the bytes of tensors: of which of an item's, and the next of its bytes.
pub(super) type Sink<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<()>;

/// Makes the tensors of one piece of work, each from its first byte to its last, one after the other.
///
/// # Errors
/// `Mlx`, and those of `sink`.
pub(super) fn run(work: &Work, reader: &Reader<'_>, sink: Sink<'_>) -> Result<()> {
    let result = match work {
        Work::Cast { tensor, dtype } => {
            reader.pieces(tensor, |piece| sink(0, &piece.astype(*dtype)?.to_bytes()?))
        }
        Work::Quantize { tensor, dtype, quantization } => {
            quantize(reader, tensor, *dtype, *quantization, sink)
        }
        Work::Dequantize { packed, dtype } => dequantize(reader, packed, *dtype, sink),
    };
    memory::clear_cache()?;
    result
}

fn quantize(
    reader: &Reader<'_>,
    tensor: &Rc<Tensor>,
    dtype: Dtype,
    quantization: Quantization,
    sink: Sink<'_>,
) -> Result<()> {
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    reader.pieces(tensor, |piece| {
        let packed = QuantizedWeight::quantize(&piece.astype(dtype)?, quantization)?;
        mlx::eval([&packed.w, &packed.scales].into_iter().chain(&packed.biases))?;
        scales.extend(packed.scales.to_bytes()?);
        if let Some(part) = &packed.biases {
            biases.extend(part.to_bytes()?);
        }
        sink(0, &packed.w.to_bytes()?)
    })?;
    sink(1, &scales)?;
    if biases.is_empty() { Ok(()) } else { sink(2, &biases) }
}

fn dequantize(reader: &Reader<'_>, packed: &Packed, dtype: Dtype, sink: Sink<'_>) -> Result<()> {
    let quantization = packed.quantization;
    let (weights, scales) = (packed.weight.parts(), packed.scales.parts());
    let biases = packed.biases.as_ref().map(Tensor::parts);
    for (i, (weight, scales)) in weights.iter().zip(&scales).enumerate() {
        let [w, scales] = [reader.read(weight)?, reader.read(scales)?];
        let biases = biases.as_ref().map(|biases| reader.read(&biases[i])).transpose()?;
        let mut dense = scales.shape().to_vec();
        if let Some(columns) = dense.last_mut() {
            *columns *= quantization.group_size;
        }
        for (start, stop) in boxes(&dense, PIECE_SIZE) {
            let rows = start.len().saturating_sub(1);
            let cut = |array: &Array| {
                let start = [&start[..rows], &[0]].concat();
                let stop = [&stop[..rows], &[array.dim(-1)]].concat();
                ops::slice(array, &start, &stop)
            };
            let float = |array: &Array| -> mlx::Result<Array> {
                if array.dtype().is_float() { cut(array)?.astype(dtype) } else { cut(array) }
            };
            let piece = QuantizedWeight {
                w: cut(&w)?,
                scales: float(&scales)?,
                biases: biases.as_ref().map(float).transpose()?,
                quantization,
            };
            sink(0, &piece.dequantize()?.to_bytes()?)?;
        }
    }
    Ok(())
}

/// The source's tensors. None is kept.
pub(super) struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    /// Lazy arrays of the files that something was read from, without those that were handed out.
    opened: RefCell<HashMap<PathBuf, HashMap<String, Array>>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, opened: RefCell::default() }
    }

    /// Hands out a tensor's numbers in order, a piece at a time.
    fn pieces(
        &self,
        tensor: &Rc<Tensor>,
        mut each: impl FnMut(&Array) -> Result<()>,
    ) -> Result<()> {
        for part in tensor.parts() {
            let array = self.read(&part)?;
            for (start, stop) in boxes(array.shape(), PIECE_SIZE) {
                each(&ops::slice(&array, &start, &stop)?)?;
            }
        }
        Ok(())
    }

    /// A tensor in memory. What it is made of is gone when this returns.
    fn read(&self, tensor: &Rc<Tensor>) -> Result<Array> {
        let array = tensor.fresh().array(&|name| self.in_file(name))?;
        array.eval()?;
        Ok(array)
    }

    fn in_file(&self, name: &str) -> Result<Array> {
        let path = self.checkpoint.file_of(name);
        let mut opened = self.opened.borrow_mut();
        if let Some(array) = opened.get_mut(path).and_then(|arrays| arrays.remove(name)) {
            return Ok(array);
        }
        // not opened yet, or something else is made of the same tensor
        let mut arrays = mlx::io::load_safetensors(path)?.arrays;
        let array = arrays.remove(name);
        opened.insert(path.to_owned(), arrays);
        array.ok_or_else(|| Error::MissingWeight { name: name.to_owned(), path: path.to_owned() })
    }
}

/// Cuts an array into boxes of at most `max_size` numbers, whole along the last axis, in the order of its numbers:
/// where each starts and stops.
fn boxes(shape: &[i32], max_size: usize) -> Vec<(Vec<i32>, Vec<i32>)> {
    if shape.contains(&0) {
        return Vec::new();
    }
    let inner = |axis: usize| -> usize { shape[axis + 1..].iter().map(|n| *n as usize).product() };
    let last = shape.len().saturating_sub(2);
    let Some(axis) = (0..shape.len()).find(|axis| *axis == last || inner(*axis) <= max_size) else {
        return vec![(Vec::new(), Vec::new())];
    };
    let step = (max_size / inner(axis)).max(1) as i32;
    let mut boxes = Vec::new();
    let mut outer = vec![0; axis];
    loop {
        let mut at = 0;
        while at < shape[axis] {
            let end = at.saturating_add(step).min(shape[axis]);
            let start = [&outer[..], &[at], &vec![0; shape.len() - axis - 1]].concat();
            let ones = outer.iter().map(|n| n + 1);
            let stop = ones.chain([end]).chain(shape[axis + 1..].iter().copied()).collect();
            boxes.push((start, stop));
            at = end;
        }
        // the next index of the axes before
        let Some(next) = (0..axis).rev().find(|i| outer[*i] + 1 < shape[*i]) else { return boxes };
        outer[next] += 1;
        outer[next + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_follow_each_other_and_cover_everything() {
        for (shape, max_size) in [
            (vec![], 4),
            (vec![7], 3),
            (vec![5, 4], 8),
            (vec![5, 4], 1),
            (vec![3, 5, 4], 8),
            (vec![3, 5, 4], 40),
            (vec![2, 3, 5, 4], 4),
            (vec![2, 3, 5, 4], 1000),
        ] {
            let size: i32 = shape.iter().product();
            let values: Vec<i32> = (0..size).collect();
            let array = Array::from_slice(&values, &shape).unwrap();
            let mut got = Vec::new();
            for (start, stop) in boxes(&shape, max_size) {
                let piece = ops::slice(&array, &start, &stop).unwrap();
                let columns = shape.last().copied().unwrap_or(1) as usize;
                assert!(piece.size() <= max_size.max(columns), "{shape:?} {max_size}");
                got.extend(piece.to_vec::<i32>().unwrap());
            }
            assert_eq!(got, values, "{shape:?} {max_size}");
        }
        assert!(boxes(&[3, 0, 2], 4).is_empty());
    }
}
