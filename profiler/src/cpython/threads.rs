//! The names that a program gave its threads: `threading._active` of the target, read from outside
//! (sys.modules → threading → `_active` → each `Thread`'s `_name`). Best effort: anything odd is an
//! absence, every count is bounded, and a name that changes while it is read may be missed.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;

use profiler_ebpf::python::Memory;
use profiler_ebpf::{Layout, layout_flags};

use super::rows::{self, Build, NamesRow};
use super::unicode::read_str;
use super::{Interpreter, dict};
use crate::memory::{ProcessMemory, read_u32, read_u64};

/// Most interpreters of one process that are asked.
const INTERPRETERS_MAX: usize = 8;
/// Most characters of a thread's name.
const NAME_MAX: usize = 256;

/// How much is read for all names of a process, in [`Budget`]'s unit: some thousand modules and
/// threads. What a process makes us follow could branch without end.
const BUDGET: usize = 300_000;

// Offsets in objects are from the type's pointer on, with which each build's header ends.
/// `PyModuleObject.md_dict` (`Include/internal/pycore_moduleobject.h`; before: `moduleobject.c`).
const MODULE_DICT: u64 = 8;
/// `PyTypeObject.tp_basicsize`, `tp_flags` and `tp_dictoffset` (`Include/cpython/object.h`), the
/// same on every version.
const TYPE_BASIC_SIZE: u64 = 24;
const TYPE_FLAGS: u64 = 160;
const TYPE_DICT_OFFSET: u64 = 280;
/// Bits of `tp_flags` (`Include/object.h`): attributes in an array behind the object (from 3.13),
/// and a dictionary that the interpreter keeps before the object (from 3.11).
const INLINE_VALUES: u64 = 1 << 2;
const MANAGED_DICT: u64 = 1 << 4;
/// Where an object's managed dictionary and, on 3.11, its array of values are pointed to, in bytes
/// before the object (`MANAGED_DICT_OFFSET` of `Include/internal/pycore_object.h`); a free-threaded
/// build has no collector's header between.
const DICT_BEFORE: u64 = 24;
const DICT_BEFORE_FREE_THREADED: u64 = 8;
const VALUES_BEFORE: u64 = 32;
/// The digits of an `int`, each of 30 bits, and the word with their number, which in Python 2 is the
/// number itself.
const INT_SIZE: u64 = 8;
const INT_DIGITS: u64 = 16;
/// `offsetof(struct pthread, tid)`; glibc nptl/descr.h, x86-64, the same since 2.4. What lies
/// elsewhere under another C library names no thread of the process, and is dropped.
const GLIBC_TID: u64 = 0x2d0;
/// The same of musl (src/internal/pthread_impl.h, 1.2.0 to 1.2.6).
const MUSL_TID: u64 = 0x30;

/// The names of the threads of process `pid`, by thread id as seen from our own PID namespace.
pub fn names(pid: u32, interpreter: &Interpreter) -> HashMap<u32, String> {
    let memory = ProcessMemory::new(pid);
    let tids = tids(pid);
    let tid_at = match interpreter.layout.flags & layout_flags::MUSL {
        0 => GLIBC_TID,
        _ => MUSL_TID,
    };
    named(&memory, interpreter)
        .into_iter()
        .filter_map(|(control_block, name)| {
            let tid = read_u32(&memory, control_block.wrapping_add(tid_at))?;
            Some((*tids.get(&tid)?, name))
        })
        .collect()
}

/// The threads of process `pid`: ids in the process's own PID namespace, and in ours.
fn tids(pid: u32) -> HashMap<u32, u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| {
            let ours = task.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            // All ids, from our namespace inwards.
            let ids = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            let inner = ids.split_whitespace().next_back()?.parse().ok()?;
            Some((inner, ours))
        })
        .collect()
}

/// The names by thread control block, which is what `threading.get_ident()` gives on Linux.
pub(super) fn named(memory: &impl Memory, interpreter: &Interpreter) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let layout = &interpreter.layout;
    let build = Build::new(
        interpreter.version.major,
        interpreter.version.minor,
        layout.flags & layout_flags::FREE_THREADED != 0,
    );
    let Some(row) = rows::names(build) else {
        return found;
    };
    let memory = &Budget {
        memory,
        left: Cell::new(BUDGET),
    };
    let reader = Reader {
        memory,
        layout,
        row,
    };
    let mut next = read_u64(memory, interpreter.target.interpreters);
    for _ in 0..INTERPRETERS_MAX {
        let Some(state) = next.filter(|state| *state != 0) else {
            break;
        };
        found.extend(reader.of_interpreter(state).unwrap_or_default());
        let link = interpreter.layout.interpreter_next;
        next = read_u64(memory, state.wrapping_add(link.into()));
    }
    found
}

/// Memory that ends once enough of it was read: a unit for each read and for each 64 bytes.
struct Budget<'a, M> {
    memory: &'a M,
    left: Cell<usize>,
}

impl<M: Memory> Memory for Budget<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let left = self.left.get().checked_sub(1 + into.len() / 64);
        self.left.set(left.unwrap_or(0));
        left.is_some() && self.memory.read(address, into)
    }
}

struct Reader<'a, M> {
    memory: &'a M,
    layout: &'a Layout,
    row: NamesRow,
}

impl<M: Memory> Reader<'_, M> {
    fn of_interpreter(&self, state: u64) -> Option<Vec<(u64, String)>> {
        let modules = self.word(state.wrapping_add(self.row.modules.into()))?;
        let threading = self.item(modules, "threading")?;
        let globals = self.field(threading, MODULE_DICT)?;
        let active = self.item(globals, "_active")?;
        let entries = dict::entries(self.memory, self.layout, active)?;
        let names = entries.filter_map(|(ident, thread)| {
            let name = self.name(thread)?;
            let name = read_str(self.memory, self.layout, name, NAME_MAX).ok()?;
            Some((self.int(ident)?, name))
        });
        Some(names.collect())
    }

    /// The `str` that a `Thread` is named by.
    fn name(&self, thread: u64) -> Option<u64> {
        if self.layout.flags & layout_flags::BYTE_STRINGS == 0 {
            return self.attribute(thread, "_name");
        }
        let dict = self.instance_dict(thread)?;
        let mut entries = dict::entries(self.memory, self.layout, dict)?;
        let (key, value) = entries.find(|(key, _)| self.is(*key, "_Thread__name"))?;
        // The key is a `str`; the value may be a `unicode`, which is not read.
        (self.class(key)? == self.class(value)?).then_some(value)
    }

    /// The value of a `str` key of a dictionary.
    fn item(&self, dict: u64, key: &str) -> Option<u64> {
        let mut entries = dict::entries(self.memory, self.layout, dict)?;
        entries.find_map(|(name, value)| self.is(name, key).then_some(value))
    }

    fn is(&self, text: u64, expected: &str) -> bool {
        read_str(self.memory, self.layout, text, expected.len()).is_ok_and(|text| text == expected)
    }

    /// An instance's attribute, wherever the version keeps those.
    fn attribute(&self, object: u64, name: &str) -> Option<u64> {
        let class = self.class(object)?;
        let flags = self.field(class, TYPE_FLAGS)?;
        let minor = self.layout.version & 0xff;
        if minor < 11 || flags & MANAGED_DICT == 0 {
            return self.item(self.instance_dict(object)?, name);
        }
        let before = match self.layout.flags & layout_flags::FREE_THREADED {
            0 => DICT_BEFORE,
            _ => DICT_BEFORE_FREE_THREADED,
        };
        let dict = self.word(object.wrapping_sub(before))?;
        let values = match minor {
            11 => self.word(object.wrapping_sub(VALUES_BEFORE))?,
            // The lowest bit tells an array from a dictionary; the array begins at the next byte.
            12 if dict & 1 != 0 => dict.wrapping_add(1),
            13.. if dict == 0 && flags & INLINE_VALUES != 0 => {
                let size = self.field(class, TYPE_BASIC_SIZE)?;
                object.wrapping_add(size)
            }
            _ => 0,
        };
        if values == 0 {
            return self.item(dict, name);
        }
        let keys = self.word(class.wrapping_add(self.row.type_keys.into()))?;
        let mut entries = dict::split(self.memory, self.layout, keys, values)?;
        entries.find_map(|(key, value)| self.is(key, name).then_some(value))
    }

    /// The dictionary of an instance of a class that does not let the interpreter manage it.
    fn instance_dict(&self, object: u64) -> Option<u64> {
        let offset = self.field(self.class(object)?, TYPE_DICT_OFFSET)?;
        self.word(object.wrapping_add(offset))
    }

    fn class(&self, object: u64) -> Option<u64> {
        self.field(object, 0)
    }

    /// An `int` of at most 64 bits, not negative.
    fn int(&self, object: u64) -> Option<u64> {
        let size = self.field(object, INT_SIZE)?;
        if self.layout.version < 0x300 {
            return Some(size);
        }
        // From 3.12 on the three lowest bits are flags, of which the first two are the sign.
        let digits = match self.layout.version {
            ..0x30c => size,
            _ => size >> 3,
        };
        if !(1..=3).contains(&digits) {
            return None;
        }
        (0..digits).try_fold(0, |number, digit| {
            let at = u64::from(self.layout.object_type) + INT_DIGITS + 4 * digit;
            let value = u64::from(read_u32(self.memory, object.wrapping_add(at))?);
            // The third digit has room for four bits only.
            (value << (30 * digit) >> (30 * digit) == value)
                .then_some(number | value << (30 * digit))
        })
    }

    /// The word at `offset` of an object, from its type's pointer on.
    fn field(&self, object: u64, offset: u64) -> Option<u64> {
        self.word(object.wrapping_add(u64::from(self.layout.object_type) + offset))
    }

    fn word(&self, address: u64) -> Option<u64> {
        read_u64(self.memory, address)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Version;
    use super::super::recorded::{Recorded, Same};
    use super::*;

    fn interpreter(build: Build) -> Interpreter {
        Interpreter {
            checked: true,
            remarks: Vec::new(),
            eval_loop: Vec::new(),
            version: Version {
                major: build.major,
                minor: build.minor,
                micro: 0,
            },
            layout: rows::layout(build).unwrap(),
            target: profiler_ebpf::Target {
                interpreters: 64,
                ..Default::default()
            },
        }
    }

    #[test]
    fn memory_that_leads_back_to_itself_gives_no_name_and_ends() {
        for build in Build::ALL {
            for word in [0, 8, 255, 40_000, u64::MAX] {
                let found = named(&Same(word), &interpreter(build));
                assert_eq!(found, [], "{build} {word}");
            }
            assert_eq!(named(&Recorded::default(), &interpreter(build)), []);
        }
    }

    #[test]
    fn numbers_of_up_to_64_bits_are_read_and_longer_ones_are_not() {
        let int = |minor: u8, size: u64, digits: [u32; 4]| {
            let mut object = vec![0; 8 + INT_SIZE as usize];
            object.extend_from_slice(&size.to_le_bytes());
            object.extend(digits.iter().flat_map(|digit| digit.to_le_bytes()));
            let mut memory = Recorded::default();
            memory.put(4096, &object);
            let reader = Reader {
                memory: &memory,
                layout: &rows::layout(minor).unwrap(),
                row: rows::names(minor).unwrap(),
            };
            reader.int(4096)
        };
        assert_eq!(int(9, 2, [1, 2, 0, 0]), Some(1 + (2 << 30)));
        assert_eq!(
            int(9, 3, [u32::MAX >> 2, u32::MAX >> 2, 15, 0]),
            Some(u64::MAX)
        );
        assert_eq!(int(9, 3, [0, 0, 16, 0]), None);
        assert_eq!(int(9, 0, [0; 4]), None);
        assert_eq!(int(9, u64::MAX, [1, 2, 3, 0]), None, "negative");
        assert_eq!(int(12, 2 << 3, [1, 2, 0, 0]), Some(1 + (2 << 30)));
        assert_eq!(int(12, 4 << 3, [1, 2, 3, 0]), None);
    }
}
