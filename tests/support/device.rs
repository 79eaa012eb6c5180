//! One test body per device.

use std::sync::{Condvar, Mutex, PoisonError};

use mlx::{Device, set_default_device};

/// Who runs on which device: the default device is one for the whole process, so tests of one
/// device run beside each other and those of another wait.
static GATE: Mutex<(usize, Device)> = Mutex::new((0, Device::Cpu));
static CHANGED: Condvar = Condvar::new();

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        GATE.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
        CHANGED.notify_all();
    }
}

/// Runs `body` with `device` as the default device; says so when it has to be skipped.
pub(crate) fn on_device(device: Device, body: fn()) {
    let wanted = std::env::var("ZMLX_TEST_DEVICES").ok();
    let name = device.to_string();
    let required = wanted.as_deref().is_some_and(|w| w.split(',').any(|d| d.trim() == name));
    if !device.is_available() || (wanted.is_some() && !required) {
        assert!(!required, "ZMLX_TEST_DEVICES names {name}, which is not available");
        println!("skipped: no {name}");
        return;
    }
    let mut gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
    while gate.0 > 0 && gate.1 != device {
        gate = CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner);
    }
    gate.0 += 1;
    gate.1 = device;
    set_default_device(device).unwrap();
    drop(gate);
    let _leave = Leave;
    body();
}

/// `on_each_device!(fn name() { .. })` makes one test per device out of the body.
macro_rules! on_each_device {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        mod $name {
            #[allow(unused_imports, reason = "a body may need nothing from around it")]
            use super::*;

            fn body() $body

            $(#[$meta])*
            #[test]
            fn cpu() {
                crate::support::device::on_device(mlx::Device::Cpu, body);
            }

            $(#[$meta])*
            #[test]
            fn gpu() {
                crate::support::device::on_device(mlx::Device::Gpu, body);
            }
        }
    };
}
pub(crate) use on_each_device;
