//! Hashes of tokens and checkpoints.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use ring::digest::{Context, SHA256, digest};
use zmlx_lm::LoadedModel;

use crate::{Error, Result};

/// SHA-256 of token ids, each as four bytes, the lowest first; rows are set apart by four bytes of ones.
pub fn tokens(rows: &[Vec<u32>]) -> String {
    let rows =
        rows.iter().map(|row| row.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
    hex(digest(&SHA256, &rows.collect::<Vec<_>>().join(&u32::MAX.to_le_bytes()[..])).as_ref())
}

/// SHA-256 of a text.
pub fn text(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

/// A hash that two people can compare by eye: `6f1e 0a44 91c3 77d0`.
pub fn short(sha256: &str) -> String {
    let groups = sha256.as_bytes().chunks(4).take(4).map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(" ")
}

/// SHA-256 of what tells one checkpoint from another without reading all of it: `config.json`, and of each weight file
/// its length, header, and the first and last of its tensors' bytes.
///
/// # Errors
/// `Io`.
pub fn checkpoint(loaded: &LoadedModel) -> Result<String> {
    let mut context = Context::new(&SHA256);
    let config = loaded.checkpoint.dir().join("config.json");
    context.update(&std::fs::read(&config).map_err(|source| unreadable(&config, source))?);
    for path in loaded.checkpoint.files() {
        sample(path, &mut context).map_err(|source| unreadable(path, source))?;
    }
    Ok(hex(context.finish().as_ref()))
}

fn unreadable(path: &Path, source: std::io::Error) -> Error {
    Error::Io { verb: "read", path: path.display().to_string(), source }
}

fn sample(path: &Path, context: &mut Context) -> std::io::Result<()> {
    const PIECE: u64 = 1 << 16;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    context.update(&length.to_le_bytes());
    let mut size = [0; 8];
    file.read_exact(&mut size)?;
    let header = u64::from_le_bytes(size).min(length);
    for (from, count) in [(8, header + PIECE), (length.saturating_sub(PIECE), PIECE)] {
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&mut file).take(count).read_to_end(&mut bytes)?;
        context.update(&bytes);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_not_the_same_tokens_joined() {
        let (apart, joined) = (tokens(&[vec![1], vec![2]]), tokens(&[vec![1, 2]]));
        assert_ne!(apart, joined);
        // printf '\1\0\0\0\2\0\0\0' | sha256sum
        assert_eq!(joined, "34fb5c825de7ca4aea6e712f19d439c1da0c92c37b423936c5f618545ca4fa1f");
        assert_eq!(short(&joined), "34fb 5c82 5de7 ca4a");
    }
}
