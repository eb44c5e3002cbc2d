//! Offsets of kernel structures, from the running kernel's own type information (BTF).
//!
//! Only what the kernel program needs: the byte offset of a member, through anonymous structs and
//! unions, and a struct's size. The format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the kernel.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

/// Where the kernel shows its types.
pub const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// How deep anonymous members may nest before the file is called broken.
const NESTING_MAX: u32 = 8;

/// Parsed type information: where each type begins.
pub(super) struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    types: Vec<u32>,
}

impl Btf {
    /// Reads the running kernel's types.
    ///
    /// # Errors
    /// When the kernel shows none, or they can't be parsed.
    pub(super) fn of_kernel() -> Result<Btf> {
        Self::read(Path::new(KERNEL))
    }

    fn read(path: &Path) -> Result<Btf> {
        let bytes = std::fs::read(path).with_context(|| {
            format!(
                "cannot read the kernel's type information at {}; `ls -l {0}` shows what is there",
                path.display()
            )
        })?;
        Self::parse(bytes).with_context(|| format!("in {}", path.display()))
    }

    fn parse(bytes: Vec<u8>) -> Result<Btf> {
        let magic = u32_at(&bytes, 0)? as u16;
        ensure!(magic == MAGIC, "not BTF: it begins with {magic:#06x}");
        let header = u32_at(&bytes, 4)? as usize;
        ensure!(header >= HEADER, "a header of {header} bytes is too short");
        let first = header + u32_at(&bytes, 8)? as usize;
        let end = first + u32_at(&bytes, 12)? as usize;
        let strings = header + u32_at(&bytes, 16)? as usize;
        ensure!(
            end <= bytes.len(),
            "types end at {end}, past the file's end"
        );
        // Type ids begin with 1; 0 is void.
        let mut types = vec![0];
        let mut at = first;
        while at < end {
            types.push(u32::try_from(at)?);
            let info = u32_at(&bytes, at + 4)?;
            at += 12 + body_length(info >> 24 & 0x1f, info as usize & 0xffff)?;
        }
        Ok(Btf {
            bytes,
            strings,
            types,
        })
    }

    /// Byte offset of `member` in `struct name`.
    ///
    /// # Errors
    /// When the kernel has no such struct or member, or the member is a bit field.
    pub(super) fn offset(&self, name: &str, member: &str) -> Result<u32> {
        self.member(self.of_struct(name)?, member, 0)?
            .ok_or_else(|| anyhow!("the kernel's struct {name} has no member {member}"))
    }

    /// How many bytes a `struct name` has.
    ///
    /// # Errors
    /// When the kernel has no such struct.
    pub(super) fn size(&self, name: &str) -> Result<u32> {
        u32_at(&self.bytes, self.of_struct(name)? + 8)
    }

    /// Where the type `struct name` begins.
    fn of_struct(&self, name: &str) -> Result<usize> {
        for &at in &self.types[1..] {
            let at = at as usize;
            let info = u32_at(&self.bytes, at + 4)?;
            if info >> 24 & 0x1f == STRUCT
                && info & 0xffff != 0
                && self.string(u32_at(&self.bytes, at)?) == name.as_bytes()
            {
                return Ok(at);
            }
        }
        bail!("the kernel has no struct {name}")
    }

    fn member(&self, at: usize, wanted: &str, depth: u32) -> Result<Option<u32>> {
        ensure!(depth < NESTING_MAX, "anonymous members nest too deep");
        let info = u32_at(&self.bytes, at + 4)?;
        for index in 0..info as usize & 0xffff {
            let member = at + 12 + 12 * index;
            let name = self.string(u32_at(&self.bytes, member)?);
            let offset = u32_at(&self.bytes, member + 8)?;
            // With kind_flag the upper 8 bits are a bit field's size.
            let bits = if info >> 31 != 0 {
                offset & 0xff_ffff
            } else {
                offset
            };
            if name == wanted.as_bytes() {
                ensure!(bits % 8 == 0, "{wanted} is a bit field");
                return Ok(Some(bits / 8));
            }
            if name.is_empty() {
                let id = u32_at(&self.bytes, member + 4)? as usize;
                let inner = *self.types.get(id).context("a type id out of range")? as usize;
                let kind = u32_at(&self.bytes, inner + 4)? >> 24 & 0x1f;
                if (kind == STRUCT || kind == UNION)
                    && let Some(offset) = self.member(inner, wanted, depth + 1)?
                {
                    return Ok(Some(bits / 8 + offset));
                }
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> &[u8] {
        let rest = self
            .bytes
            .get(self.strings + offset as usize..)
            .unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// How many bytes follow the 12 that every type has.
fn body_length(kind: u32, count: usize) -> Result<usize> {
    Ok(match kind {
        // ptr, fwd, typedef, volatile, const, restrict, func, float, type_tag
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0,
        // int, var, decl_tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        STRUCT | UNION => 12 * count,
        // enum, func_proto
        6 | 13 => 8 * count,
        // datasec, enum64
        15 | 19 => 12 * count,
        _ => bail!("unknown kind of type {kind}"),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let end = at.checked_add(4).context("an offset overflows")?;
    let bytes = bytes.get(at..end).context("the data ends too early")?;
    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; struct { int b; }; } with `b` at byte 8.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0";
        let types: [u32; 3 + 1 + 3 + 3 + 3 + 6] = [
            // 1: int a, 4 bytes
            7,
            1 << 24,
            4,
            32, //
            // 2: anonymous struct with `b` at bit 0
            0,
            4 << 24 | 1,
            4,
            9,
            1,
            0, //
            // 3: struct outer
            1,
            4 << 24 | 2,
            12,
            7,
            1,
            0,
            0,
            2,
            64,
        ];
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [24, 0, 4 * types.len() as u32, 4 * types.len() as u32, 11] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        for word in types {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn finds_members_through_anonymous_structs() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.offset("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset("outer", "b").unwrap(), 8);
        assert_eq!(btf.size("outer").unwrap(), 12);
        let error = btf.offset("outer", "c").unwrap_err().to_string();
        assert_eq!(error, "the kernel's struct outer has no member c");
        let error = btf.offset("inner", "c").unwrap_err().to_string();
        assert_eq!(error, "the kernel has no struct inner");
    }

    #[test]
    fn refuses_what_is_cut_or_absurd() {
        let whole = sample();
        for length in 0..whole.len() - 11 {
            if let Ok(btf) = Btf::parse(whole[..length].to_vec()) {
                assert!(btf.offset("outer", "b").is_err(), "at length {length}");
            }
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = Btf::parse(bytes).map(|btf| btf.offset("outer", "b"));
            }
        }
    }
}
