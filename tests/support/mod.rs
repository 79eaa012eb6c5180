//! What the tests share: devices, seeded data, comparison of bits.

pub(crate) mod alone;
pub(crate) mod bits;
pub(crate) mod data;
pub(crate) mod device;
pub(crate) mod route;

pub(crate) use device::on_each_device;
