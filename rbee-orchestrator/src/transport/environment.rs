//! What a hive on this machine sees of the queen's environment: what it and its engines need, and none
//! of her secrets.

use std::ffi::OsString;

use crate::config::OWN_VARIABLES;

/// Passed to every hive: what programs need to run, what downloads need – the hub's token, proxies,
/// certificates – and what is logged.
const NAMES: [&str; 31] = [
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
    "HF_TOKEN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
];

/// What begins like this is passed too: the hive's settings, the hub's, and what it passes on to its
/// engines in its turn.
const PREFIXES: [&str; 22] = [
    "RBEE_",
    "HF_",
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

/// The part of this process's environment that hives get, with the names that the administrator adds.
pub(super) fn for_hive(more: &[String]) -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|name| passes(name, more)))
        .collect()
}

fn passes(name: &str, more: &[String]) -> bool {
    let prefixed = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let secret = SECRETS.iter().any(|end| name.ends_with(end));
    let is_wanted = more.iter().any(|wanted| wanted == name);
    !name.starts_with(OWN_VARIABLES)
        && (is_wanted || NAMES.contains(&name) || (prefixed && !secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hive_gets_what_it_needs_and_none_of_the_queens_secrets() {
        for name in [
            "PATH",
            "HF_TOKEN",
            "HF_HOME",
            "https_proxy",
            "RBEE_HIVE_MODELS",
            "CUDA_VISIBLE_DEVICES",
        ] {
            assert!(passes(name, &[]), "{name}");
        }
        let more = ["QUEEN_TOKEN".to_owned(), "MY_ENGINES_KEY".to_owned()];
        for name in [
            "QUEEN_TOKEN",
            "QUEEN_DATABASE",
            "RBEE_API_TOKEN",
            "SSH_AUTH_SOCK",
            "CREDENTIALS_DIRECTORY",
            "DATABASE_URL",
            "AWS_SECRET_ACCESS_KEY",
            "LLAMA_API_KEY",
            "path",
        ] {
            assert!(!passes(name, &more), "{name}");
        }
        assert!(passes("MY_ENGINES_KEY", &more));
    }
}
