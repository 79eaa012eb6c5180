//! What belongs beside every figure: the machine, the programs, the moment.

use std::fs;
use std::path::Path;

use mlx::{Device, build_info, default_device};
use zmlx_capsule::{Hints, Machine, MlxBuild, stats};

/// The machine, and what this process has of it.
pub fn machine() -> Machine {
    let device = default_device();
    Machine {
        cpu: cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_bytes: memory_bytes(),
        os: os_name(),
        arch: std::env::consts::ARCH.to_owned(),
        device: device.to_string(),
        device_name: match device {
            Device::Gpu => device.hardware_name().ok(),
            Device::Cpu => None,
        },
        isa: mlx::cpu_isa(),
        threads: mlx::num_threads(),
        hints: Vec::new(),
    }
}

/// The MLX that is linked.
pub fn mlx_build() -> MlxBuild {
    let info = build_info();
    let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
    MlxBuild {
        version: info.mlx_version,
        mode: info.mode.to_owned(),
        pin: info.pin.to_owned(),
        patches: owned(info.patches),
        backends: owned(info.backends),
    }
}

/// Now: RFC 3339, UTC, seconds.
pub fn now() -> String {
    let now = jiff::Timestamp::now().to_string();
    let seconds = now.split('.').next().unwrap_or_default().trim_end_matches('Z');
    format!("{seconds}Z")
}

/// What the system says of clock, heat and load at this moment.
pub fn hints(when: &str) -> Hints {
    Hints {
        when: when.to_owned(),
        load_average: load_average(),
        cpu_mhz: cpu_mhz().map(f64::round),
        temperature_c: temperature(),
        governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Values of a key in a file of `key : value` lines.
fn values(path: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().filter_map(value).collect()
}

fn cpu_name() -> String {
    let named = values("/proc/cpuinfo", "model name").into_iter().next();
    named
        .or_else(|| sysctl("machdep.cpu.brand_string"))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// A fact that a Mac tells by a program.
fn sysctl(key: &str) -> Option<String> {
    if !cfg!(target_os = "macos") {
        return None;
    }
    let output = std::process::Command::new("sysctl").args(["-n", key]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}

fn memory_bytes() -> Option<u64> {
    let total = values("/proc/meminfo", "MemTotal").into_iter().next();
    let kilobytes = total.and_then(|text| text.trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.map(|kb| kb * 1024).or_else(|| sysctl("hw.memsize")?.parse().ok())
}

fn os_name() -> String {
    let release = line("/proc/sys/kernel/osrelease").or_else(|| sysctl("kern.osproductversion"));
    let name = match std::env::consts::OS {
        "linux" => "Linux",
        "macos" => "macOS",
        other => other,
    };
    release.map_or_else(|| name.to_owned(), |release| format!("{name} {release}"))
}

fn load_average() -> Option<f64> {
    let text = line("/proc/loadavg").or_else(|| sysctl("vm.loadavg"))?;
    text.trim_start_matches('{').split_whitespace().next()?.parse().ok()
}

fn cpu_mhz() -> Option<f64> {
    let clocks: Vec<f64> =
        values("/proc/cpuinfo", "cpu MHz").iter().filter_map(|text| text.parse().ok()).collect();
    stats::median(&clocks)
}

/// The hottest of the sensors.
fn temperature() -> Option<f64> {
    let zones = fs::read_dir(Path::new("/sys/class/thermal")).ok()?;
    let zone = |entry: fs::DirEntry| {
        let millidegrees: f64 = line(entry.path().join("temp").to_str()?)?.parse().ok()?;
        (millidegrees > 0.0).then_some(millidegrees / 1e3)
    };
    zones.flatten().filter_map(zone).reduce(f64::max)
}
