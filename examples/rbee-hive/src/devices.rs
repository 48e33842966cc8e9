//! What this machine can run a model on, and how much memory is free there.

use std::path::Path;

use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) backend: String,
    pub(crate) name: String,
    pub(crate) vram_total_bytes: u64,
    pub(crate) vram_free_bytes: u64,
}

/// GPUs first, then the processor with its RAM. Reads the system: call it where blocking is
/// allowed.
pub(crate) fn devices() -> Vec<Device> {
    let mut devices = gpus();
    match processor(devices.len() as u32) {
        Ok(processor) => devices.push(processor),
        Err(error) => tracing::error!(%error, "can't read the memory of this machine"),
    }
    devices
}

/// Free space where models are kept; `None` when it can't be told.
pub(crate) fn disk_free_bytes(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn processor(index: u32) -> Result<Device, sysinfo::Error> {
    let what = RefreshKind::nothing()
        .with_memory(MemoryRefreshKind::nothing().with_ram())
        .with_cpu(CpuRefreshKind::nothing());
    let system = System::new_with_specifics(what)?;
    let mut total = system.total_memory();
    let mut free = system.available_memory();
    if let Some(limits) = system.cgroup_limits() {
        total = total.min(limits.total_memory);
        // Its free_memory counts cached files as used, and with them every model ever read.
        free = free.min(total.saturating_sub(limits.rss));
    }
    let cpus = system.cpus();
    let brand = cpus.first().map_or("", |cpu| cpu.brand().trim());
    Ok(Device {
        index,
        backend: "cpu".into(),
        name: match brand {
            "" => format!("CPU, {} threads", cpus.len()),
            brand => format!("{brand}, {} threads", cpus.len()),
        },
        vram_total_bytes: total,
        vram_free_bytes: free,
    })
}

#[cfg(not(feature = "nvml"))]
fn gpus() -> Vec<Device> {
    Vec::new()
}

/// No driver, or one that does not answer, is no GPU.
#[cfg(feature = "nvml")]
fn gpus() -> Vec<Device> {
    use std::sync::OnceLock;

    use nvml_wrapper::Nvml;

    static NVML: OnceLock<Option<Nvml>> = OnceLock::new();
    let Some(nvml) = NVML.get_or_init(|| Nvml::init().ok()) else {
        return Vec::new();
    };
    let gpu = |index| {
        let gpu = nvml.device_by_index(index).ok()?;
        let memory = gpu.memory_info().ok()?;
        Some(Device {
            index,
            backend: "cuda".into(),
            name: gpu.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
            vram_total_bytes: memory.total,
            vram_free_bytes: memory.free,
        })
    };
    (0..nvml.device_count().unwrap_or(0))
        .filter_map(gpu)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_the_last_device_and_has_memory() {
        let devices = devices();
        let cpu = devices.last().unwrap();
        assert_eq!(cpu.index as usize, devices.len() - 1);
        assert!(cpu.vram_free_bytes > 0 && cpu.vram_free_bytes <= cpu.vram_total_bytes);
    }
}
