//! What the crate framehop finds on the same stack. It follows the frame pointer where a file says
//! nothing, and knows of three registers.

use std::collections::HashMap;
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, Module, Unwinder as _};
use object::elf::{PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Object as _, ObjectSection as _};
use profiler_ebpf::python::Memory;
use profiler_ebpf::{Cfa, MAX_NATIVE, RBP, RSP, Rule};
use pyebpf::memory::read_u64;

use super::stop::Registers;
use super::tables::{Code, bytes};

type Data = Arc<[u8]>;

/// What it is told of a file.
#[derive(Default)]
struct Elf {
    sections: HashMap<&'static str, (std::ops::Range<u64>, Data)>,
    /// Of what is mapped as code: offset in the file, address, length.
    segments: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
pub(crate) struct Framehop {
    unwinder: UnwinderX86_64<Data>,
    cache: CacheX86_64,
    files: HashMap<(String, u64), Elf>,
}

impl Framehop {
    /// Tells it what a process has mapped.
    pub(crate) fn look(&mut self, pid: u32, code: &[Code]) {
        self.unwinder = UnwinderX86_64::new();
        for (device, mapping) in code {
            let key = (device.clone(), mapping.inode);
            let elf = self.files.entry(key).or_insert_with(|| {
                bytes(pid, mapping)
                    .and_then(|it| read(&it))
                    .unwrap_or_default()
            });
            let segment = elf.segments.iter().find(|(offset, _, length)| {
                (*offset & !4095..*offset + *length).contains(&mapping.offset)
            });
            let Some((offset, address, _)) = segment else {
                continue;
            };
            // Where the file's address 0 is.
            let base = mapping
                .start
                .wrapping_sub(address.wrapping_add(mapping.offset).wrapping_sub(*offset));
            let range = |name| elf.sections.get(name).map(|it| it.0.clone());
            let data = |name| elf.sections.get(name).map(|it| Arc::clone(&it.1));
            let sections = ExplicitModuleSectionInfo {
                text_svma: range(".text"),
                got_svma: range(".got"),
                eh_frame_svma: range(".eh_frame"),
                eh_frame: data(".eh_frame"),
                eh_frame_hdr_svma: range(".eh_frame_hdr"),
                eh_frame_hdr: data(".eh_frame_hdr"),
                ..ExplicitModuleSectionInfo::default()
            };
            let module = Module::new(String::new(), mapping.start..mapping.end, base, sections);
            self.unwinder.add_module(module);
        }
    }

    /// Walks: the addresses, newest first.
    pub(crate) fn walk(&mut self, memory: &impl Memory, registers: &Registers) -> Vec<u64> {
        let [sp, bp] = [RSP, RBP].map(|number| registers.others[number as usize]);
        let first = UnwindRegsX86_64::new(registers.ip, sp, bp);
        let mut read = |address| read_u64(memory, address).ok_or(());
        let mut frames = self
            .unwinder
            .iter_frames(registers.ip, first, &mut self.cache, &mut read);
        let mut found = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            if found.len() >= MAX_NATIVE {
                break;
            }
            found.push(frame.address());
        }
        found
    }
}

/// Whether there is a rule that it can't follow: it has three registers, and computes no frame address
/// out of memory.
pub(crate) fn is_beyond(rule: &Rule) -> bool {
    [Cfa::Memory as u8, Cfa::Indexed as u8, Cfa::Signal as u8].contains(&rule.cfa)
        || rule.cfa == Cfa::Register as u8 && ![RSP, RBP].contains(&rule.register)
}

fn read(bytes: &[u8]) -> Option<Elf> {
    let file = ElfFile64::<object::LittleEndian>::parse(bytes).ok()?;
    let endian = object::LittleEndian;
    let mut elf = Elf::default();
    for name in [".text", ".got", ".eh_frame", ".eh_frame_hdr"] {
        let Some(section) = file.section_by_name(name) else {
            continue;
        };
        let range = section.address()..section.address() + section.size();
        let data = match name.starts_with(".eh") {
            true => section.data().ok()?,
            false => &[],
        };
        elf.sections.insert(name, (range, data.into()));
    }
    let headers = file.elf_program_headers().iter();
    let loaded = headers
        .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian) & PF_X != 0);
    elf.segments = loaded
        .map(|it| (it.p_offset(endian), it.p_vaddr(endian), it.p_filesz(endian)))
        .collect();
    Some(elf)
}
