//! How much memory a model takes once it is loaded.

use super::gguf::Header;

/// Compute buffers and what the engine itself needs. A 135M model takes some 100 MiB beside its
/// weights and cache in llama-server.
const FIXED: u64 = 128 << 20;
/// Keys and values are kept as 16-bit floats.
const BYTES_PER_VALUE: u64 = 2;

/// The weights, the cache for all the context, a tenth, and a fixed part. Without a header that
/// can be read, a fifth more than the file.
pub(crate) fn estimate(file_bytes: u64, header: Option<&Header>, context_total: u64) -> u64 {
    let Some(header) = header else {
        return file_bytes.saturating_add(file_bytes / 5);
    };
    let cache = header
        .cache_values_per_token
        .saturating_mul(context_total)
        .saturating_mul(BYTES_PER_VALUE);
    let loaded = file_bytes.saturating_add(cache);
    loaded.saturating_add(loaded / 10).saturating_add(FIXED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_costs_memory() {
        let header = Header {
            cache_values_per_token: 30 * 3 * 128,
            context_length: None,
        };
        let need = |context| estimate(100, Some(&header), context);
        assert_eq!(need(0), 110 + FIXED);
        assert_eq!(need(1000), 110 + FIXED + 30 * 3 * 128 * 2000 / 10 * 11);
        assert_eq!(estimate(100, None, 1000), 120);
    }
}
