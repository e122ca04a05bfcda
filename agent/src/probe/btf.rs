//! Offsets of structure members, from the kernel's own type information (BTF).
//!
//! aya reads BTF as well, but keeps members to itself. Only what offsets need is read here: every access is bounds-checked, so that
//! malformed data is an error and not a panic. Format: `Documentation/bpf/btf.rst` in the kernel's sources.

use std::collections::BTreeMap;
use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MEMBER_BYTES: usize = 12;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;

const ENUMERATOR_BYTES: usize = 8;

/// How deep anonymous structures and unions may nest: `task_struct` has one level, and a cycle must end somewhere.
const NESTING_MAX: u32 = 8;

/// Why an offset is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// Not BTF at all, or of the other byte order.
    #[error("no BTF header")]
    NotBtf,
    /// A header, type or name reaches beyond the data.
    #[error("truncated or inconsistent at byte {at}")]
    Truncated {
        /// Where, counted from the start of its section.
        at: usize,
    },
    /// A kind of type that this reader does not know the size of.
    #[error("type {id} is of unknown kind {kind}")]
    UnknownKind {
        /// Its number.
        id: usize,
        /// Its kind.
        kind: u32,
    },
    /// There is no such enumeration.
    #[error("no enumeration {0}")]
    NoEnum(&'static str),
    /// There is no such structure.
    #[error("no structure {0}")]
    NoStruct(&'static str),
    /// The structure has no such member.
    #[error("structure {of} has no member {member}")]
    NoMember {
        /// The structure.
        of: &'static str,
        /// The member.
        member: &'static str,
    },
}

/// The types of a kernel, indexed by number.
pub(super) struct Types<'a> {
    types: &'a [u8],
    names: &'a [u8],
    /// Where each type starts within `types`; type numbers start at 1, 0 is `void`.
    starts: Vec<usize>,
}

impl<'a> Types<'a> {
    /// Indexes a BTF blob in the machine's byte order.
    pub(super) fn parse(blob: &'a [u8]) -> Result<Self, BtfError> {
        let magic = blob.get(..2).ok_or(BtfError::NotBtf)?;
        if blob.len() < HEADER_BYTES || u16::from_ne_bytes([magic[0], magic[1]]) != MAGIC {
            return Err(BtfError::NotBtf);
        }
        let header_bytes = word(blob, 4)? as usize;
        let section = |offset_at: usize| -> Result<&'a [u8], BtfError> {
            let start = header_bytes.checked_add(word(blob, offset_at)? as usize);
            let end = start.and_then(|start| start.checked_add(word(blob, offset_at + 4).ok()? as usize));
            let range = Range { start: start.unwrap_or(usize::MAX), end: end.unwrap_or(usize::MAX) };
            blob.get(range).ok_or(BtfError::Truncated { at: offset_at })
        };
        let (types, names) = (section(8)?, section(16)?);
        let mut starts = vec![usize::MAX];
        let mut at = 0;
        while at < types.len() {
            let bytes = TYPE_BYTES + trailer_bytes(Info(word(types, at + 4)?), starts.len())?;
            starts.push(at);
            at += bytes;
            if at > types.len() {
                return Err(BtfError::Truncated { at });
            }
        }
        Ok(Self { types, names, starts })
    }

    /// Offset of `member` in bytes from the start of structure `of`; members of anonymous members count as its own.
    pub(super) fn member_offset(&self, of: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let mut found = Err(BtfError::NoStruct(of));
        for &start in &self.starts[1..] {
            // A structure of this name that lacks the member may be another one of the same name (of a driver, say).
            if Info(word(self.types, start + 4)?).kind() == KIND_STRUCT
                && self.name(word(self.types, start)?)? == of.as_bytes()
            {
                match self.find(start, member, NESTING_MAX)? {
                    Some(bits) if bits % 8 == 0 => return Ok(bits / 8),
                    _ => found = Err(BtfError::NoMember { of, member }),
                }
            }
        }
        found
    }

    /// The values of an enumeration and what they are called. One of more than 32 bits is none.
    pub(super) fn enumerators(&self, of: &'static str) -> Result<BTreeMap<u32, String>, BtfError> {
        for &start in &self.starts[1..] {
            let info = Info(word(self.types, start + 4)?);
            if info.kind() == KIND_ENUM && self.name(word(self.types, start)?)? == of.as_bytes() {
                let enumerator = |number: usize| {
                    let at = start + TYPE_BYTES + number * ENUMERATOR_BYTES;
                    let name = String::from_utf8_lossy(self.name(word(self.types, at)?)?).into_owned();
                    Ok((word(self.types, at + 4)?, name))
                };
                return (0..info.count()).map(enumerator).collect();
            }
        }
        Err(BtfError::NoEnum(of))
    }

    /// Offset in bits of `member` within the structure or union at `start`.
    fn find(&self, start: usize, member: &str, nesting: u32) -> Result<Option<u32>, BtfError> {
        let info = Info(word(self.types, start + 4)?);
        for number in 0..info.count() {
            let at = start + TYPE_BYTES + number * MEMBER_BYTES;
            let (name, number, offset) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            // With the flag set, the upper byte is the width of a bit-field.
            let bits = if info.flag() { offset & 0x00ff_ffff } else { offset };
            if self.name(name)? == member.as_bytes() {
                return Ok(Some(bits));
            }
            if name == 0 && nesting > 0 {
                let inner = *self.starts.get(number as usize).ok_or(BtfError::Truncated { at })?;
                if inner != usize::MAX
                    && matches!(Info(word(self.types, inner + 4)?).kind(), KIND_STRUCT | KIND_UNION)
                    && let Some(inner_bits) = self.find(inner, member, nesting - 1)?
                {
                    return Ok(Some(bits.checked_add(inner_bits).ok_or(BtfError::Truncated { at })?));
                }
            }
        }
        Ok(None)
    }

    fn name(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let at = offset as usize;
        let rest = self.names.get(at..).ok_or(BtfError::Truncated { at })?;
        let end = rest.iter().position(|&byte| byte == 0).ok_or(BtfError::Truncated { at })?;
        Ok(&rest[..end])
    }
}

/// The second word of a type: flag, kind and number of trailing records.
#[derive(Clone, Copy)]
struct Info(u32);

impl Info {
    fn kind(self) -> u32 {
        (self.0 >> 24) & 0x1f
    }

    fn count(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    fn flag(self) -> bool {
        self.0 >> 31 != 0
    }
}

/// How many bytes follow a type's three words.
fn trailer_bytes(info: Info, id: usize) -> Result<usize, BtfError> {
    Ok(match info.kind() {
        // Int, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Array.
        3 => 12,
        KIND_STRUCT | KIND_UNION => MEMBER_BYTES * info.count(),
        // Enumeration, function prototype.
        KIND_ENUM | 13 => ENUMERATOR_BYTES * info.count(),
        // Section, 64-bit enumeration.
        15 | 19 => 12 * info.count(),
        kind => return Err(BtfError::UnknownKind { id, kind }),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let word = at.checked_add(4).and_then(|end| bytes.get(at..end)).ok_or(BtfError::Truncated { at })?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct task { int pid; struct { int pad; int state; }; }`, preceded by a pointer and `enum task { int = 7 }`.
    fn sample() -> Vec<u8> {
        let names = b"\0int\0task\0pid\0pad\0state\0";
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            &[1, info(1, 0), 4, 32][..],
            &[0, info(2, 0), 1],
            &[5, info(KIND_ENUM, 1), 4, 1, 7],
            &[0, info(KIND_STRUCT, 2), 8, 14, 1, 0, 18, 1, 32],
            &[5, info(KIND_STRUCT, 2), 12, 10, 1, 0, 0, 4, 32],
        ]
        .concat();
        let type_bytes = (types.len() * 4) as u32;
        let words = [HEADER_BYTES as u32, 0, type_bytes, type_bytes, names.len() as u32];
        let mut blob = MAGIC.to_ne_bytes().to_vec();
        blob.extend([1, 0]);
        blob.extend(words.iter().chain(&types).flat_map(|word| word.to_ne_bytes()));
        blob.extend(names);
        blob
    }

    #[test]
    fn members_are_found_in_anonymous_structures_too() {
        let blob = sample();
        let types = Types::parse(&blob).unwrap();
        assert_eq!(types.member_offset("task", "pid"), Ok(0));
        assert_eq!(types.member_offset("task", "state"), Ok(8));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let blob = sample();
        let types = Types::parse(&blob).unwrap();
        assert_eq!(types.member_offset("task", "colour"), Err(BtfError::NoMember { of: "task", member: "colour" }));
        assert_eq!(types.member_offset("job", "pid"), Err(BtfError::NoStruct("job")));
    }

    #[test]
    fn an_enumerations_values_have_names() {
        let blob = sample();
        let types = Types::parse(&blob).unwrap();
        assert_eq!(types.enumerators("task"), Ok([(7, "int".to_owned())].into()));
        assert_eq!(types.enumerators("pad"), Err(BtfError::NoEnum("pad")));
    }

    #[test]
    fn an_endless_nesting_ends() {
        let mut blob = sample();
        // The second member of `task` becomes an anonymous `task`.
        let at = HEADER_BYTES + 4 * (4 + 3 + 5 + 9 + 3 + 3 + 1);
        assert_eq!(blob[at], 4, "this is the type of the anonymous member");
        blob[at] = 5;
        let types = Types::parse(&blob).unwrap();
        assert_eq!(types.member_offset("task", "state"), Err(BtfError::NoMember { of: "task", member: "state" }));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let blob = sample();
        for bytes in 0..blob.len() {
            assert!(Types::parse(&blob[..bytes]).is_err(), "{bytes} of {} bytes were accepted", blob.len());
        }
    }

    proptest! {
        #[test]
        fn damaged_data_never_panics(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
            let mut blob = sample();
            for (at, byte) in damage {
                let at = at.index(blob.len());
                blob[at] = byte;
            }
            if let Ok(types) = Types::parse(&blob) {
                let _ = types.member_offset("task", "state");
                let _ = types.enumerators("task");
            }
        }
    }

    #[test]
    fn the_running_kernel_is_understood() {
        let Ok(blob) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("skipped: this kernel publishes no BTF");
            return;
        };
        let types = Types::parse(&blob).unwrap();
        let pid = types.member_offset("task_struct", "pid").unwrap();
        assert_eq!(types.member_offset("task_struct", "tgid"), Ok(pid + 4));
    }
}
