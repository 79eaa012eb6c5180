//! Safetensors files to be written: all sizes are known beforehand, so a header goes first and data can be streamed.

use std::ops::Range;

use mlx::Dtype;
use serde_json::{Map, Value, json};

/// The file that says which tensor is in which other one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// mlx-lm's limit per file.
pub(crate) const MAX_SHARD_BYTES: u64 = 5 << 30;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i32>,
}

impl Entry {
    /// Numbers in it.
    pub(crate) fn size(&self) -> u64 {
        self.shape.iter().map(|n| n.unsigned_abs() as u64).product()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.size() * self.dtype.size() as u64
    }
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) name: String,
    /// Which of the checkpoint's tensors it holds.
    pub(crate) entries: Range<usize>,
}

/// Cuts tensors into files of at most `max_bytes`, in order; a larger tensor has a file of its own.
///
/// # Source
/// mlx-lm `utils.py` (`make_shards`, `save_model`).
pub(crate) fn cut(entries: &[Entry], max_bytes: u64) -> Vec<Shard> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        if bytes + entry.bytes() > max_bytes && index > start {
            ranges.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += entry.bytes();
    }
    ranges.push(start..entries.len());
    let all = ranges.len();
    let name = |index| match all {
        1 => "model.safetensors".to_owned(),
        all => format!("model-{:05}-of-{all:05}.safetensors", index + 1),
    };
    ranges.into_iter().enumerate().map(|(i, entries)| Shard { name: name(i), entries }).collect()
}

/// What stands in a file before the data of `entries`.
pub(crate) fn header(entries: &[Entry]) -> Vec<u8> {
    let mut fields = Map::new();
    fields.insert("__metadata__".to_owned(), json!({ "format": "mlx" }));
    let mut offset = 0;
    for entry in entries {
        let end = offset + entry.bytes();
        let field = json!({
            "dtype": name_of(entry.dtype), "shape": entry.shape, "data_offsets": [offset, end],
        });
        fields.insert(entry.name.clone(), field);
        offset = end;
    }
    let mut text = Value::Object(fields).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The index of a checkpoint, tensors sorted.
pub(crate) fn index(entries: &[Entry], shards: &[Shard], num_parameters: u64) -> Value {
    let mut map = Map::new();
    for shard in shards {
        let names = entries[shard.entries.clone()].iter().map(|entry| entry.name.clone());
        map.extend(names.map(|name| (name, json!(shard.name))));
    }
    map.sort_keys();
    let total_size: u64 = entries.iter().map(Entry::bytes).sum();
    json!({
        "metadata": { "total_size": total_size, "total_parameters": num_parameters },
        "weight_map": map,
    })
}

/// The format's name of a type.
fn name_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "BOOL",
        Dtype::U8 => "U8",
        Dtype::U16 => "U16",
        Dtype::U32 => "U32",
        Dtype::U64 => "U64",
        Dtype::I8 => "I8",
        Dtype::I16 => "I16",
        Dtype::I32 => "I32",
        Dtype::I64 => "I64",
        Dtype::F16 => "F16",
        Dtype::F32 => "F32",
        Dtype::F64 => "F64",
        Dtype::Bf16 => "BF16",
        Dtype::C64 => "C64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, size: i32) -> Entry {
        Entry { name: name.to_owned(), dtype: Dtype::U8, shape: vec![size] }
    }

    #[test]
    fn files_are_cut_before_they_exceed_the_limit() {
        let names = |sizes: &[i32]| {
            let entries: Vec<_> = sizes.iter().map(|size| entry("x", *size)).collect();
            let shards = cut(&entries, 10);
            shards.into_iter().map(|shard| (shard.name, shard.entries)).collect::<Vec<_>>()
        };
        assert_eq!(names(&[4, 6]), [("model.safetensors".to_owned(), 0..2)]);
        let three = ["1", "2", "3"].map(|i| format!("model-0000{i}-of-00003.safetensors"));
        let [a, b, c] = three;
        assert_eq!(names(&[4, 7, 20]), [(a.clone(), 0..1), (b.clone(), 1..2), (c.clone(), 2..3)]);
        assert_eq!(names(&[20, 4, 6, 1]), [(a, 0..1), (b, 1..3), (c, 3..4)]);
    }

    #[test]
    fn header_is_what_the_format_wants() {
        let entries = [entry("b", 3), Entry { dtype: Dtype::Bf16, ..entry("a", 2) }];
        let bytes = header(&entries);
        assert_eq!(bytes.len() % 8, 0);
        let data = [bytes, vec![0; 7]].concat();
        let file = safetensors::SafeTensors::deserialize(&data).unwrap();
        assert_eq!(file.tensor("a").unwrap().shape(), [2]);
        assert_eq!(file.tensor("b").unwrap().data().len(), 3);
    }
}
