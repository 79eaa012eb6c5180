//! Memory of MLX's allocator, in bytes.

use zmlx_sys::ffi;

use crate::Result;

/// Bytes in use by live arrays.
pub fn active_bytes() -> Result<usize> {
    Ok(ffi::memory_active()?)
}

/// Most bytes in use at once since the start or the last [`reset_peak`].
pub fn peak_bytes() -> Result<usize> {
    Ok(ffi::memory_peak()?)
}

/// Starts measuring the peak anew.
pub fn reset_peak() -> Result<()> {
    Ok(ffi::memory_reset_peak()?)
}

/// Bytes kept for reuse and not in use by arrays.
pub fn cache_bytes() -> Result<usize> {
    Ok(ffi::memory_cache()?)
}

/// Sets how many bytes may be kept for reuse; returns the former limit.
pub fn set_cache_limit(bytes: usize) -> Result<usize> {
    Ok(ffi::memory_set_cache_limit(bytes)?)
}

/// Sets the number of bytes that evaluation tries not to exceed; returns the former limit.
pub fn set_limit(bytes: usize) -> Result<usize> {
    Ok(ffi::memory_set_limit(bytes)?)
}

/// Gives the bytes kept for reuse back to the system.
pub fn clear_cache() -> Result<()> {
    Ok(ffi::memory_clear_cache()?)
}
