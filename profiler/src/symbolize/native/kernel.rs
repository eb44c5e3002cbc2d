//! Names of kernel functions, from `/proc/kallsyms`: `ADDRESS TYPE name [module]`. There are no
//! sizes in it: a function reaches to the next symbol, and no further than a function can be long.

use std::fs::File;
use std::io::Read;

use super::Reason;

/// Most bytes of the file; a kernel with all its modules has 20 MB.
const FILE_MAX: u64 = 128 << 20;
/// Most bytes of a function: what lies further from its start is a hole between modules.
const REACH_MAX: u64 = 256 << 10;

/// The functions of the running kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Start, and where in `names` the name begins; ascending. Data ends what comes before it.
    starts: Box<[(u64, u32)]>,
    /// `name` or `name [module]`, each to the next line's end; an empty one is not shown.
    names: Box<str>,
}

impl Kernel {
    /// Reads the functions of the running kernel.
    ///
    /// # Errors
    /// When the kernel hides them (all addresses are zero), or there are too many.
    pub fn read() -> Result<Kernel, Reason> {
        let mut text = Vec::new();
        File::open("/proc/kallsyms")
            .and_then(|file| file.take(FILE_MAX).read_to_end(&mut text))
            .map_err(|error| Reason::unreadable(&error))?;
        if text.len() as u64 >= FILE_MAX {
            return Err(Reason::TooLarge("bytes of kallsyms", FILE_MAX));
        }
        Kernel::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<Kernel, Reason> {
        let lines = text.split(|&byte| byte == b'\n');
        let mut symbols: Vec<(u64, bool, &str, Option<&str>)> = lines
            .filter_map(|line| std::str::from_utf8(line).ok())
            .filter_map(parse_line)
            .collect();
        let shown = symbols.iter().any(|(address, ..)| *address != 0);
        if !shown && !symbols.is_empty() {
            let why = "/proc/kallsyms has no addresses; give CAP_SYSLOG, or \
                       `sysctl kernel.kptr_restrict=1`";
            return Err(Reason::Unreadable(why.to_owned()));
        }
        symbols.retain(|(address, ..)| *address != 0);
        // Of several at one address functions first, then few underscores, then the shortest.
        let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
        symbols.sort_by_key(|&(address, function, name, _)| {
            (address, !function, underscores(name), name.len(), name)
        });
        symbols.dedup_by_key(|(address, ..)| *address);
        let mut names = String::new();
        let mut starts = Vec::with_capacity(symbols.len());
        for (address, function, name, module) in symbols {
            let at = u32::try_from(names.len()).map_err(|_| Reason::Damaged("kallsyms"))?;
            starts.push((address, at));
            if function {
                names.push_str(name);
                if let Some(module) = module {
                    names.push(' ');
                    names.push_str(module);
                }
            }
            names.push('\n');
        }
        match starts.is_empty() {
            true => Err(Reason::NoSymbols),
            false => Ok(Kernel {
                starts: starts.into(),
                names: names.into(),
            }),
        }
    }

    /// The function at an address, `do_syscall_64` or `ext4_readdir [ext4]`, and how far from its
    /// start that is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.starts.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.starts.get(after.checked_sub(1)?)?;
        let offset = address - start;
        let name = self.names.get(*name as usize..)?.lines().next()?;
        (offset < REACH_MAX && !name.is_empty()).then_some((name, offset))
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.starts) + self.names.len()
    }
}

/// Address, whether it is a function, name, and module with its brackets.
fn parse_line(line: &str) -> Option<(u64, bool, &str, Option<&str>)> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    // `t` and `T` are code, `w` and `W` weak code (nm's manual).
    let function = matches!(fields.next()?, "t" | "T" | "w" | "W");
    let name = fields.next()?;
    Some((address, function, name, fields.next()))
}

/// For `crate::fuzz`: a file of any content.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(kernel) = Kernel::parse(bytes) {
        for &(start, _) in &kernel.starts {
            assert!(
                kernel
                    .find(start)
                    .is_none_or(|(name, offset)| offset == 0 && !name.is_empty())
            );
        }
        let _any = (kernel.find(0), kernel.find(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffffffff81000000 T _text\n\
         ffffffff81000000 T _stext\n\
         ffffffff81000000 T startup_64\n\
         ffffffff81000100 t do_one\n\
         ffffffff81000180 D a_table\n\
         ffffffffc0001000 t ext4_readdir\t[ext4]\n";

    #[test]
    fn functions_reach_to_the_next_symbol() {
        let kernel = Kernel::parse(TEXT.as_bytes()).expect("it has functions");
        let names = |address| kernel.find(address);
        assert_eq!(names(0xffff_ffff_8100_0000), Some(("startup_64", 0)));
        assert_eq!(names(0xffff_ffff_8100_00ff), Some(("startup_64", 255)));
        assert_eq!(names(0xffff_ffff_8100_017f), Some(("do_one", 127)));
        assert_eq!(names(0xffff_ffff_8100_0180), None);
        assert_eq!(names(0xffff_ffff_80ff_ffff), None);
        assert_eq!(
            names(0xffff_ffff_c000_1004),
            Some(("ext4_readdir [ext4]", 4))
        );
        assert_eq!(names(0xffff_ffff_c000_1000 + REACH_MAX), None);
    }

    #[test]
    fn hidden_addresses_are_refused_with_what_mends_it() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t do_one\n";
        let refused = Kernel::parse(hidden.as_bytes())
            .expect_err("all are zero")
            .to_string();
        assert!(refused.contains("CAP_SYSLOG"), "{refused}");
        assert_eq!(Kernel::parse(b""), Err(Reason::NoSymbols));
    }

    #[test]
    fn the_running_kernel_is_read_or_refused() {
        match Kernel::read() {
            Ok(kernel) => {
                let text = std::fs::read_to_string("/proc/kallsyms").expect("it was read");
                let line = text.lines().find(|line| line.ends_with(" T schedule"));
                let start = line.and_then(|line| u64::from_str_radix(&line[..16], 16).ok());
                let start = start.expect("every kernel has it");
                assert_eq!(kernel.find(start + 1), Some(("schedule", 1)));
            }
            Err(reason) => assert!(matches!(reason, Reason::Unreadable(_)), "{reason}"),
        }
    }
}
