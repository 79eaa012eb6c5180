//! One launch of a kernel, and what came of it.

/// What a kernel may do with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it; writes are a fault.
    Read = 0,
    /// Read and write it.
    ReadWrite = 1,
    /// Write it; nothing is in it at first, and reading what has not been written is a fault.
    Write = 2,
}

/// In which order `simd_sum` and its like combine the lanes: hardware does not say, so what has to
/// be equal on a GPU has to be equal in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Lanes 16 apart first.
    Halves = 0,
    /// Neighbours first.
    Neighbours = 1,
    /// From lane 0 to lane 31.
    OneByOne = 2,
}

impl Order {
    /// All of them.
    pub const ALL: [Order; 3] = [Order::Halves, Order::Neighbours, Order::OneByOne];
}

#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    pub(crate) index: u32,
    pub(crate) access: Access,
    pub(crate) bytes: Vec<u8>,
}

/// A kernel with its arguments and its grid.
#[derive(Debug, Clone)]
pub struct Launch {
    pub(crate) kernel: String,
    pub(crate) grid_in_threads: bool,
    pub(crate) grid: [u32; 3],
    pub(crate) group: [u32; 3],
    pub(crate) order: Order,
    pub(crate) allow_equal_writes: bool,
    pub(crate) flush_denormals: bool,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) constants: Vec<(u32, Vec<u8>)>,
    pub(crate) threadgroup_lengths: Vec<u32>,
}

impl Launch {
    /// A launch of `kernel` on one thread; the rest follows.
    pub fn of(kernel: impl Into<String>) -> Launch {
        Launch {
            kernel: kernel.into(),
            grid_in_threads: false,
            grid: [1; 3],
            group: [1; 3],
            order: Order::Halves,
            allow_equal_writes: false,
            flush_denormals: false,
            buffers: Vec::new(),
            constants: Vec::new(),
            threadgroup_lengths: Vec::new(),
        }
    }

    /// As `dispatch_threadgroups`.
    #[must_use]
    pub fn threadgroups(self, grid: [u32; 3], group: [u32; 3]) -> Launch {
        Launch { grid, group, grid_in_threads: false, ..self }
    }

    /// As `dispatch_threads`: threadgroups at the edges have fewer threads.
    #[must_use]
    pub fn threads(self, grid: [u32; 3], group: [u32; 3]) -> Launch {
        Launch { grid, group, grid_in_threads: true, ..self }
    }

    /// Binds an input.
    #[must_use]
    pub fn input(self, index: u32, bytes: impl Bytes) -> Launch {
        self.buffer(index, Access::Read, bytes.bytes())
    }

    /// Binds a buffer with content that the kernel may change.
    #[must_use]
    pub fn in_out(self, index: u32, bytes: impl Bytes) -> Launch {
        self.buffer(index, Access::ReadWrite, bytes.bytes())
    }

    /// Binds an output of that many bytes.
    #[must_use]
    pub fn output(self, index: u32, num_bytes: usize) -> Launch {
        self.buffer(index, Access::Write, vec![0; num_bytes])
    }

    fn buffer(mut self, index: u32, access: Access, bytes: Vec<u8>) -> Launch {
        self.buffers.push(Buffer { index, access, bytes });
        self
    }

    /// Sets a function constant.
    #[must_use]
    pub fn constant(mut self, index: u32, value: impl Bytes) -> Launch {
        self.constants.push((index, value.bytes()));
        self
    }

    /// Gives the next threadgroup buffer its length.
    #[must_use]
    pub fn threadgroup_memory(mut self, num_bytes: u32) -> Launch {
        self.threadgroup_lengths.push(num_bytes);
        self
    }

    /// Sets the order of reductions.
    #[must_use]
    pub fn order(self, order: Order) -> Launch {
        Launch { order, ..self }
    }

    /// Lets threads write the same bytes without a barrier, as long as the values are equal: stock's
    /// kernels for a last tile that is moved back do so.
    #[must_use]
    pub fn allow_equal_writes(self) -> Launch {
        Launch { allow_equal_writes: true, ..self }
    }

    /// Takes denormal floats for zero, as Apple's GPUs may.
    #[must_use]
    pub fn flush_denormals(self) -> Launch {
        Launch { flush_denormals: true, ..self }
    }
}

/// Something that can be put into a buffer.
pub trait Bytes {
    /// Its bytes, in the order of the machine.
    fn bytes(&self) -> Vec<u8>;
}

macro_rules! bytes_of {
    ($($t:ty),*) => {$(
        impl Bytes for $t {
            fn bytes(&self) -> Vec<u8> {
                self.to_ne_bytes().to_vec()
            }
        }
        impl Bytes for [$t] {
            fn bytes(&self) -> Vec<u8> {
                self.iter().flat_map(|x| x.to_ne_bytes()).collect()
            }
        }
        impl<const N: usize> Bytes for [$t; N] {
            fn bytes(&self) -> Vec<u8> {
                self.as_slice().bytes()
            }
        }
        impl Bytes for Vec<$t> {
            fn bytes(&self) -> Vec<u8> {
                self.as_slice().bytes()
            }
        }
    )*};
}
bytes_of!(u8, i32, u32, i64, u64, f32, half::f16, half::bf16);

impl<B: Bytes + ?Sized> Bytes for &B {
    fn bytes(&self) -> Vec<u8> {
        (**self).bytes()
    }
}

impl Bytes for bool {
    fn bytes(&self) -> Vec<u8> {
        vec![u8::from(*self)]
    }
}

/// What is in a buffer after a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The buffer's index.
    pub index: u32,
    /// Its content.
    pub bytes: Vec<u8>,
    /// The places of bytes that were never written.
    pub unwritten: Vec<u32>,
}

/// A launch that ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The buffers that the kernel could write, in the order in which they were bound.
    pub outputs: Vec<Output>,
    /// Reads and writes of buffers and threadgroup memory.
    pub num_accesses: u64,
    /// Calls of functions in which the lanes of a simdgroup meet.
    pub num_meetings: u64,
    /// Threadgroup barriers.
    pub num_barriers: u64,
    /// Writes that met another of the same value.
    pub num_equal_writes: u64,
}

impl Outcome {
    /// The content of the only output.
    ///
    /// # Panics
    /// If there is another number of outputs, or a byte of it was not written.
    #[track_caller]
    pub fn only(self) -> Vec<u8> {
        let [output]: [Output; 1] = self.outputs.try_into().expect("one output");
        output.whole()
    }
}

impl Output {
    /// The content.
    ///
    /// # Panics
    /// If a byte was not written.
    #[track_caller]
    pub fn whole(self) -> Vec<u8> {
        let (missing, all) = (self.unwritten.len(), self.bytes.len());
        let first = self.unwritten.first();
        assert_eq!(missing, 0, "of {all} bytes of buffer {}, first {first:?}", self.index);
        self.bytes
    }
}
