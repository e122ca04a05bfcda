//! Versions, as programs print them.

use std::fmt;

/// Major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first word of `text` that begins like `1.2.3`, as in `cargo-deny 0.20.2` or `rustc 1.97.0-nightly (…)`.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.splitn(3, '.').map(leading_number);
            Some(Self(numbers.next()??, numbers.next()??, numbers.next()??))
        })
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// LLVM's major version in the answer of `rustc -vV`.
pub(super) fn llvm_major_of_rustc(verbose_version: &str) -> Option<u32> {
    verbose_version.lines().find_map(|line| leading_number(line.strip_prefix("LLVM version: ")?))
}

/// The LLVM that a program is linked to, from the answer of `ldd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkedLlvm {
    /// `libLLVM.so.22.1 => /…`
    Dynamic(u32),
    /// `libLLVM.so.22.1 => not found`
    Gone(u32),
    /// Built in, or none: a prebuilt bpf-linker carries its own.
    Static,
}

impl LinkedLlvm {
    /// Reads the answer of `ldd`; knows both of LLVM's naming schemes, `libLLVM.so.22.1` and `libLLVM-22.so.1`.
    pub fn of_ldd(answer: &str) -> Self {
        for line in answer.lines() {
            let line = line.trim();
            let Some(rest) = line.strip_prefix("libLLVM.so.").or_else(|| line.strip_prefix("libLLVM-")) else {
                continue;
            };
            let Some(major) = leading_number(rest) else { continue };
            return if line.contains("not found") { Self::Gone(major) } else { Self::Dynamic(major) };
        }
        Self::Static
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        assert_eq!(Version::find("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)"), Some(Version(0, 9, 143)));
        assert_eq!(Version::find("rustc 1.97.0-nightly (abc 2026-04-14)"), Some(Version(1, 97, 0)));
        assert_eq!(Version::find("no version here, e.g. 1.2"), None);
    }

    #[test]
    fn newer_is_greater_even_with_more_digits() {
        assert!(Version(0, 9, 143) > Version(0, 9, 100));
        assert!(Version(0, 10, 0) > Version(0, 9, 143));
    }

    #[test]
    fn the_llvm_of_rustc_is_read_from_its_verbose_version() {
        let answer = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_major_of_rustc(answer), Some(22));
        assert_eq!(llvm_major_of_rustc("binary: rustc"), None);
    }

    #[test]
    fn the_llvm_of_a_program_is_read_from_ldd() {
        let dynamic = "\tlinux-vdso.so.1 (0x1)\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x2)\n";
        assert_eq!(LinkedLlvm::of_ldd(dynamic), LinkedLlvm::Dynamic(22));
        assert_eq!(
            LinkedLlvm::of_ldd("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x2)\n"),
            LinkedLlvm::Dynamic(17)
        );
        assert_eq!(LinkedLlvm::of_ldd("\tlibLLVM.so.21.1 => not found\n"), LinkedLlvm::Gone(21));
        assert_eq!(LinkedLlvm::of_ldd("\tstatically linked\n"), LinkedLlvm::Static);
    }
}
