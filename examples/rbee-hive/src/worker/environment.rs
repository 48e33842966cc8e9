//! What an engine sees of the hive's environment: what it needs to run, and no secrets.

use std::env;
use std::ffi::OsString;

/// Passed to every engine.
const NAMES: [&str; 17] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "TEMP",
    "TMP",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
];

/// What begins like this is passed too: locale, folders, drivers and the engines' own settings.
const PREFIXES: [&str; 21] = [
    "RBEE_",
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "HIP_",
    "HSA_",
    "ROCR_",
    "ROCM_",
    "GPU_",
    "VK_",
    "ONEAPI_",
    "SYCL_",
    "ZE_",
    "GGML_",
    "LLAMA_",
    "OMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
];

/// Ends of names of secrets, which no prefix lets through.
const SECRETS: [&str; 5] = ["TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIALS"];

/// The part of the hive's environment that engines get, with the names that the administrator adds.
pub(super) fn for_engine(more: &[String]) -> Vec<(OsString, OsString)> {
    let passes = |name: &str| more.iter().any(|wanted| wanted == name) || is_harmless(name);
    env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(passes))
        .collect()
}

fn is_harmless(name: &str) -> bool {
    let prefixed = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let secret = SECRETS.iter().any(|end| name.ends_with(end));
    NAMES.contains(&name) || (prefixed && !secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_gets_its_drivers_settings_and_no_secrets() {
        for name in [
            "PATH",
            "LC_ALL",
            "CUDA_VISIBLE_DEVICES",
            "LLAMA_ARG_THREADS",
        ] {
            assert!(is_harmless(name), "{name}");
        }
        for name in [
            "QUEEN_TOKEN",
            "HF_TOKEN",
            "RBEE_API_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "SSH_AUTH_SOCK",
            "LLAMA_ARG_HF_TOKEN",
            "NVIDIA_API_KEY",
            "path",
        ] {
            assert!(!is_harmless(name), "{name}");
        }
    }
}
