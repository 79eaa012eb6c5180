//! Memory bandwidth of the CPU.

use std::time::Instant;

use zmlx_capsule::{Bandwidth, rounded};

/// The machine's memory bandwidth, to be measured in turns with the work: it is shared with whatever
/// else runs on the machine, and changes from minute to minute.
pub struct Memory {
    buffers: Vec<(Vec<u64>, Vec<u64>)>,
}

impl Memory {
    /// Buffers for as many threads as the primitives use, far larger than any cache.
    pub fn new() -> Self {
        const TOTAL: usize = 512 << 20;
        let threads = mlx::num_threads().max(1) as usize;
        let len = TOTAL / threads / size_of::<u64>() / 2;
        Self { buffers: (0..threads).map(|i| (vec![i as u64 + 1; len], vec![1; len])).collect() }
    }

    /// The better of two passes of each kind: the first one wakes the machine.
    pub fn measure(&mut self) -> Bandwidth {
        let (first, second) = (self.pass(), self.pass());
        Bandwidth {
            copy_bytes_per_s: rounded(first.copy_bytes_per_s.max(second.copy_bytes_per_s)),
            read_bytes_per_s: rounded(first.read_bytes_per_s.max(second.read_bytes_per_s)),
        }
    }

    fn pass(&mut self) -> Bandwidth {
        let bytes = |b: &(Vec<u64>, Vec<u64>)| size_of_val(b.0.as_slice());
        let total: usize = self.buffers.iter().map(bytes).sum();
        let copy = Self::time(&mut self.buffers, |(from, to)| {
            std::hint::black_box(&mut *to).copy_from_slice(from);
        });
        let read = Self::time(&mut self.buffers, |(from, _)| {
            std::hint::black_box(from.iter().fold(0u64, |x, y| x ^ y));
        });
        Bandwidth {
            copy_bytes_per_s: (2 * total) as f64 / copy,
            read_bytes_per_s: total as f64 / read,
        }
    }

    fn time<B: Send>(buffers: &mut [B], work: impl Fn(&mut B) + Sync) -> f64 {
        let start = Instant::now();
        std::thread::scope(|s| {
            for b in buffers {
                s.spawn(|| work(b));
            }
        });
        start.elapsed().as_secs_f64()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}
