//! Values as words of a POSIX shell's script.

use crate::error::{Error, Result};

/// A value as one word, whatever is in it. A word that begins with a dash still looks like an
/// option to a program: paths are made absolute, other values stand behind `--`.
///
/// # Errors
/// `INVALID_REQUEST` for a NUL byte, which no argument can hold.
pub(super) fn word(value: &str) -> Result<String> {
    if value.contains('\0') {
        return Err(Error::invalid(format!(
            "{value:?} has a NUL byte, which no program can be given; leave it out"
        )));
    }
    // Within single quotes a shell reads everything as it stands, but for the quote itself.
    Ok(format!("'{}'", value.replace('\'', r"'\''")))
}

/// Several values as words with blanks between.
pub(super) fn words<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let words: Result<Vec<String>> = values.into_iter().map(word).collect();
    Ok(words?.join(" "))
}

/// A path on the hive's machine as one word: absolute ones as they are, `~/…` and relative ones
/// below the user's home. It never begins with a dash.
pub(super) fn path(value: &str) -> Result<String> {
    let below_home = match value {
        "~" => "",
        _ => value.strip_prefix("~/").unwrap_or(value),
    };
    match value.starts_with('/') {
        true => word(value),
        false => Ok(format!("\"$HOME\"/{}", word(below_home)?)),
    }
}

/// An assignment that a child of the shell inherits.
///
/// # Errors
/// `INVALID_REQUEST` for a name that is no variable's.
pub(super) fn export(name: &str, value: &str) -> Result<String> {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_name =
        name.starts_with(is_first) && name.chars().all(|c| is_first(c) || c.is_ascii_digit());
    if !is_name {
        return Err(Error::invalid(format!(
            "{name:?} can't be the name of a variable; use letters, digits and _"
        )));
    }
    // The value may be a secret: the error must not show it.
    if value.contains('\0') {
        return Err(Error::invalid(format!(
            "the value of {name} has a NUL byte; leave it out"
        )));
    }
    Ok(format!("{name}={}; export {name}", word(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const HOSTILE: [&str; 14] = [
        "",
        "plain",
        "two words",
        "it's",
        "''''",
        "$(touch pwned)",
        "`touch pwned`",
        "a; touch pwned #",
        "line\nbreak\r\n",
        "back\\slash\\",
        "\"double\" $HOME ${HOME} $$",
        "-rf",
        "*?[a-z]~!{a,b}<>|&",
        "ünïcödé \u{7f}\t",
    ];

    fn said_by_sh(script: &str) -> String {
        let folder = tempfile::tempdir().expect("temp dir is writable");
        let output = Command::new("sh")
            .arg("-c")
            .arg(script)
            .current_dir(&folder)
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{script}: {output:?}");
        let left = std::fs::read_dir(&folder).expect("it is there").count();
        assert_eq!(left, 0, "{script} ran what was meant as a value");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[test]
    fn no_value_is_ever_read_as_shell() {
        for value in HOSTILE {
            let script = format!("printf %s {}", word(value).expect("no NUL"));
            assert_eq!(said_by_sh(&script), value);
        }
        let script = format!("printf '%s|' {}", words(HOSTILE).expect("no NUL"));
        assert_eq!(said_by_sh(&script), HOSTILE.join("|") + "|");
        assert!(word("a\0b").is_err());
    }

    #[test]
    fn no_value_of_a_variable_is_read_as_shell_nor_shown() {
        for value in HOSTILE {
            let set = export("RBEE_X", value).expect("no NUL");
            let script = format!("{set}\nexec sh -c 'printf %s \"$RBEE_X\"'");
            assert_eq!(said_by_sh(&script), value);
        }
        for name in ["", "1A", "A B", "A=B", "A;x", "Ä", "$(x)"] {
            assert!(export(name, "v").is_err(), "{name:?}");
        }
        let error = export("TOKEN", "s3cret\0").expect_err("NUL");
        assert!(!error.message.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_path_is_absolute_or_below_the_home() {
        let home = std::env::var("HOME").expect("tests run with a home");
        for (value, meant) in [
            ("/opt/it's", "/opt/it's".to_owned()),
            ("~/bin", format!("{home}/bin")),
            ("-rf", format!("{home}/-rf")),
            ("$(touch pwned)/x", format!("{home}/$(touch pwned)/x")),
            ("~", format!("{home}/")),
            ("~root/x", format!("{home}/~root/x")),
        ] {
            let script = format!("printf %s {}", path(value).expect("no NUL"));
            assert_eq!(said_by_sh(&script), meant);
        }
    }
}
