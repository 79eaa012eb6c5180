//! Devices and streams.

use zmlx_sys::ffi;

use crate::Result;

/// Where ops run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// The host's processor.
    Cpu,
    /// The GPU of the compiled backend (Metal or CUDA).
    Gpu,
}

impl Device {
    /// Whether this build and this machine have the device.
    pub fn is_available(self) -> bool {
        match self {
            Device::Cpu => true,
            Device::Gpu => ffi::gpu_available(),
        }
    }

    /// The vendor's name of the device.
    pub fn hardware_name(self) -> Result<String> {
        Ok(ffi::device_name(self.is_gpu())?)
    }

    pub(crate) fn is_gpu(self) -> bool {
        self == Device::Gpu
    }

    fn from_gpu(gpu: bool) -> Self {
        if gpu { Device::Gpu } else { Device::Cpu }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_gpu() { "gpu" } else { "cpu" })
    }
}

/// The device that ops run on unless a stream says otherwise; one for the whole process.
pub fn default_device() -> Device {
    Device::from_gpu(ffi::default_device_is_gpu())
}

/// Sets the default device of the whole process.
///
/// # Errors
/// When this build has no such device.
pub fn set_default_device(device: Device) -> Result<()> {
    Ok(ffi::set_default_device(device.is_gpu())?)
}

/// Waits for all work on the default device's default stream.
pub fn synchronize() -> Result<()> {
    Ok(ffi::synchronize()?)
}

/// A queue of work on a device. A stream belongs to the thread that made it, hence not `Send`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    index: i32,
    device: Device,
    not_send: std::marker::PhantomData<*const ()>,
}

impl Stream {
    /// A new stream of the current thread on `device`.
    pub fn new(device: Device) -> Result<Self> {
        Ok(Self::from_id(ffi::new_stream(device.is_gpu())?))
    }

    /// The current thread's default stream of `device`.
    pub fn default_of(device: Device) -> Result<Self> {
        Ok(Self::from_id(ffi::default_stream(device.is_gpu())?))
    }

    /// The device this stream runs on.
    pub fn device(self) -> Device {
        self.device
    }

    /// Waits for all work on this stream.
    pub fn synchronize(self) -> Result<()> {
        Ok(ffi::synchronize_stream(self.id())?)
    }

    fn id(self) -> ffi::StreamId {
        ffi::StreamId { index: self.index, gpu: self.device.is_gpu() }
    }

    fn from_id(id: ffi::StreamId) -> Self {
        Self {
            index: id.index,
            device: Device::from_gpu(id.gpu),
            not_send: std::marker::PhantomData,
        }
    }
}

/// Runs `f` with `stream` as the current thread's default stream of its device, and puts the
/// former one back, also when `f` panics.
pub fn with_default_stream<R>(stream: Stream, f: impl FnOnce() -> R) -> Result<R> {
    struct Restore(Stream);
    impl Drop for Restore {
        fn drop(&mut self) {
            // The stream was the default a moment ago; setting it again cannot fail.
            let _ = ffi::set_default_stream(self.0.id());
        }
    }
    let restore = Restore(Stream::default_of(stream.device)?);
    ffi::set_default_stream(stream.id())?;
    let out = f();
    drop(restore);
    Ok(out)
}

/// Ends the process at once, as a program with MLX on CUDA should at the end of `main`: MLX's own objects end when the driver
/// may have shut down already, which aborts the process now and then ("driver shutting down").
///
/// What was written to the standard output and by C is flushed; destructors and handlers of the end of a process do not run.
pub fn exit(code: u8) -> ! {
    use std::io::Write;
    // whoever reads may be gone
    _ = std::io::stdout().flush();
    ffi::end_process(code.into());
    unreachable!("the process has ended")
}
