//! Reads JSON that others wrote: null is absent, a number may be text.

use serde_json::Value;

/// Leaves out what makes no sense, and says so to who debugs a hive. An engine's key is not shown.
pub(super) fn logged<T>(
    what: &str,
    value: &Value,
    read: impl Fn(&Value) -> Option<T>,
) -> Option<T> {
    let found = read(value);
    if found.is_none() {
        let value = without_key(value);
        tracing::debug!(what, %value, "a hive reported something that is left out");
    }
    found
}

fn without_key(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(key) = value.get_mut("api_key") {
        *key = "…".into();
    }
    value
}

pub(super) fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The first of these fields that is text (or a number, as text).
pub(super) fn text(of: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| match of.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// The first of these fields that is a whole number, also as text or with a fraction of zero.
pub(super) fn number(of: &Value, names: &[&str]) -> Option<u64> {
    names.iter().find_map(|name| match of.get(name)? {
        Value::Number(number) => number.as_u64().or_else(|| {
            let float = number.as_f64().filter(|f| *f >= 0.0 && f.fract() == 0.0)?;
            Some(float as u64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    })
}

pub(super) fn small(of: &Value, names: &[&str]) -> Option<u32> {
    number(of, names).and_then(|n| u32::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_engines_key_is_left_out_of_what_is_logged() {
        let shown = without_key(&json!({"id": "w", "api_key": "k3y"}));
        assert_eq!(shown, json!({"id": "w", "api_key": "…"}));
        assert_eq!(without_key(&json!([1])), json!([1]));
    }
}
