//! For which machine a program is built.

/// The kind of processor of an ELF file (System V ABI, "ELF Header").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    number: u16,
    is_64_bit: bool,
}

/// Numbers of the ABI, with their width and the names that `uname -m` has for them.
const KNOWN: [(u16, bool, &[&str]); 7] = [
    (62, true, &["x86_64", "amd64"]),
    (183, true, &["aarch64", "arm64"]),
    (3, false, &["i386", "i486", "i586", "i686"]),
    (40, false, &["armv6l", "armv7l", "armv8l"]),
    (243, true, &["riscv64"]),
    (21, true, &["ppc64le", "ppc64"]),
    (258, true, &["loongarch64"]),
];

impl Machine {
    /// Reads a file's header; `None` if it is no ELF file.
    pub(super) fn of(file: &[u8]) -> Option<Self> {
        let header = file.get(..20)?;
        if !header.starts_with(b"\x7fELF") {
            return None;
        }
        let number = [header[18], header[19]];
        Some(Machine {
            number: match header[5] {
                2 => u16::from_be_bytes(number),
                _ => u16::from_le_bytes(number),
            },
            is_64_bit: header[4] == 2,
        })
    }

    fn names(self) -> Option<&'static [&'static str]> {
        let is_this = |(number, is_64_bit, _): &&(u16, bool, _)| {
            *number == self.number && *is_64_bit == self.is_64_bit
        };
        KNOWN.iter().find(is_this).map(|(_, _, names)| *names)
    }

    /// The name that `uname -m` has for it.
    pub(super) fn name(self) -> String {
        match self.names() {
            Some(names) => names[0].to_owned(),
            None => format!("(ELF machine {})", self.number),
        }
    }

    /// Whether it runs on what `uname -sm` says.
    pub(super) fn runs_on(self, system: &str) -> bool {
        let Some(("Linux", machine)) = system.split_once(' ') else {
            return false;
        };
        // One that is not known here may well run there.
        self.names().is_none_or(|names| names.contains(&machine))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(class: u8, order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut header = b"\x7fELF".to_vec();
        header.extend([class, order]);
        header.resize(18, 0);
        header.extend(machine);
        header
    }

    #[test]
    fn a_program_is_compared_with_the_machine() {
        let x86 = Machine::of(&header(2, 1, [62, 0])).expect("an ELF file");
        assert_eq!(x86.name(), "x86_64");
        assert!(x86.runs_on("Linux x86_64"));
        assert!(!x86.runs_on("Linux aarch64"));
        assert!(!x86.runs_on("Darwin x86_64"));
        let arm = Machine::of(&header(2, 1, [183, 0])).expect("an ELF file");
        assert!(arm.runs_on("Linux aarch64"));
        assert_eq!(Machine::of(b"#!/bin/sh\n"), None);
        let big = Machine::of(&header(2, 2, [0, 21])).expect("an ELF file");
        assert_eq!(big.name(), "ppc64le");
    }
}
