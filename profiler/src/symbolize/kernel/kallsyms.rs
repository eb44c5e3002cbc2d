//! Functions of the running kernel, from `/proc/kallsyms`: lines of `ADDRESS TYPE name [module]`
//! (`s_show`, kernel/kallsyms.c). There are no sizes in it: a function ends at the latest where the
//! next symbol of any kind begins, and the last one of a module with its page.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};

/// Most symbols that are read: a kernel with all its modules has a tenth of that.
const SYMBOLS_MAX: usize = 1 << 21;
/// Most bytes of their names.
const NAMES_MAX: usize = 64 << 20;
/// Most bytes of a line: two names of `KSYM_NAME_LEN`, include/linux/kallsyms.h, fit.
const LINE_MAX: u64 = 2048;
/// Code of a module, and what the kernel makes at run time, begins and ends with a page.
const PAGE: u64 = 4096;

/// Why there are no functions.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// All addresses are zero.
    #[error("the kernel does not tell where its functions are")]
    Hidden,
    #[error("/proc/kallsyms lists no functions")]
    Empty,
    #[error("/proc/kallsyms lists too much")]
    TooMuch,
    #[error("cannot read /proc/kallsyms: {0}")]
    Unreadable(#[from] io::Error),
}

/// The functions of a kernel and its modules.
#[derive(Debug, Default)]
pub struct Kallsyms {
    /// By their start; none lies in another.
    functions: Vec<Function>,
    names: String,
    /// Names of modules, by [`Function::module`]; the first is empty, the kernel's own.
    modules: Vec<String>,
    /// Where the kernel's own code begins.
    text: Option<u64>,
}

#[derive(Debug)]
struct Function {
    start: u64,
    end: u64,
    /// Where in the names.
    name: u32,
    name_length: u16,
    module: u16,
}

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub name: &'a str,
    /// Without its brackets; empty for the kernel itself.
    pub module: &'a str,
}

/// What a line says.
struct Symbol {
    address: u64,
    kind: Kind,
    /// How many its name begins with: of several at one address the plainest is shown.
    underscores: u16,
    name: u32,
    name_length: u16,
    module: u16,
}

/// The first is the best of several symbols at one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Function,
    Weak,
    /// It ends the function before it. Its name is not kept.
    Other,
}

impl Kallsyms {
    /// Reads the functions of the running kernel.
    ///
    /// # Errors
    /// When it hides them, or lists none or too much.
    pub fn read() -> Result<Kallsyms, Fault> {
        let file = File::open("/proc/kallsyms")?;
        Kallsyms::parse(BufReader::with_capacity(1 << 16, file))
    }

    /// The same from any text.
    ///
    /// # Errors
    /// Likewise.
    pub(super) fn parse(mut text: impl BufRead) -> Result<Kallsyms, Fault> {
        let mut kernel = Kallsyms::default();
        kernel.modules.push(String::new());
        let mut symbols = Vec::new();
        let mut hidden = false;
        let mut line = Vec::new();
        while read_line(&mut text, &mut line)? {
            let Some((address, kind, name, module)) = parse_line(&line) else {
                continue;
            };
            if address == 0 {
                hidden = true;
                continue;
            }
            symbols.push(kernel.symbol(address, kind, name, module)?);
            if symbols.len() > SYMBOLS_MAX || kernel.names.len() > NAMES_MAX {
                return Err(Fault::TooMuch);
            }
        }
        if symbols.is_empty() && hidden {
            return Err(Fault::Hidden);
        }
        kernel.take(symbols);
        match kernel.functions.is_empty() {
            true => Err(Fault::Empty),
            false => Ok(kernel),
        }
    }

    /// The function at an address.
    pub fn find(&self, address: u64) -> Option<Found<'_>> {
        let after = self
            .functions
            .partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let name = function.name as usize;
        (address < function.end).then(|| Found {
            name: &self.names[name..name + usize::from(function.name_length)],
            module: &self.modules[usize::from(function.module)],
        })
    }

    /// How far from the beginning of the kernel's code an address is; nothing of what lies before.
    pub fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.text?)
    }

    fn symbol(
        &mut self,
        address: u64,
        kind: u8,
        name: &[u8],
        module: &[u8],
    ) -> Result<Symbol, Fault> {
        // The two names are of what follows the code: include/asm-generic/sections.h. Code is `t`,
        // weak code `w`, in capitals where it is global: nm(1).
        let kind = match (kind.to_ascii_lowercase(), name) {
            (_, b"_etext" | b"_einittext") => Kind::Other,
            (b't', _) => Kind::Function,
            (b'w', _) => Kind::Weak,
            _ => Kind::Other,
        };
        if name == b"_text" && module.is_empty() {
            self.text = Some(address);
        }
        let start = self.names.len();
        if kind != Kind::Other {
            self.names.push_str(&String::from_utf8_lossy(name));
        }
        let underscores = name.iter().take_while(|&&byte| byte == b'_').count();
        // A line bounds these, and what has been read the whole.
        Ok(Symbol {
            address,
            kind,
            underscores: underscores as u16,
            name: start as u32,
            name_length: (self.names.len() - start) as u16,
            module: self.module(module)?,
        })
    }

    fn module(&mut self, name: &[u8]) -> Result<u16, Fault> {
        if name.is_empty() {
            return Ok(0);
        }
        let name = String::from_utf8_lossy(name);
        // The last one, most likely.
        let known = self.modules.iter().rposition(|known| *known == name);
        let index = known.unwrap_or_else(|| {
            self.modules.push(name.into_owned());
            self.modules.len() - 1
        });
        u16::try_from(index).map_err(|_| Fault::TooMuch)
    }

    fn take(&mut self, mut symbols: Vec<Symbol>) {
        symbols.sort_by_key(|symbol| {
            let plain = (symbol.kind, symbol.underscores, symbol.name_length);
            (symbol.address, plain)
        });
        symbols.dedup_by_key(|symbol| symbol.address);
        for (index, symbol) in symbols.iter().enumerate() {
            // The last byte of all has no end.
            if symbol.kind == Kind::Other || symbol.address == u64::MAX {
                continue;
            }
            let next = symbols.get(index + 1);
            let goes_on = next.is_some_and(|next| {
                let own = next.module == symbol.module;
                own && (symbol.module == 0 || next.kind != Kind::Other)
            });
            let next = next.map_or(u64::MAX, |next| next.address);
            let page_end = symbol.address | (PAGE - 1);
            self.functions.push(Function {
                start: symbol.address,
                end: match goes_on {
                    true => next,
                    false => next.min(page_end.saturating_add(1)),
                },
                name: symbol.name,
                name_length: symbol.name_length,
                module: symbol.module,
            });
        }
    }
}

/// Puts the next line into `line`, without its end. False when there is none. What is too long for a
/// line becomes several, which say nothing.
fn read_line(mut text: impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = text.by_ref().take(LINE_MAX).read_until(b'\n', line)?;
    line.pop_if(|last| *last == b'\n');
    Ok(read > 0)
}

/// Address, type, name, and module, which is empty for the kernel itself.
fn parse_line(line: &[u8]) -> Option<(u64, u8, &[u8], &[u8])> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    let address = std::str::from_utf8(fields.next()?).ok()?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let &[kind] = fields.next()? else {
        return None;
    };
    let name = fields.next()?;
    let module = fields.next().unwrap_or_default();
    let module = module.strip_prefix(b"[").unwrap_or(module);
    let module = module.strip_suffix(b"]").unwrap_or(module);
    Some((address, kind, name, module))
}

/// For `crate::fuzz`: a file of any content.
pub(crate) fn fuzz(text: &[u8]) {
    let Ok(kernel) = Kallsyms::parse(text) else {
        return;
    };
    let functions = &kernel.functions;
    assert!(functions.iter().all(|one| one.start < one.end));
    assert!(functions.is_sorted_by(|one, next| one.end <= next.start));
    for function in functions.iter().take(64) {
        let found = kernel.find(function.start).expect("it begins there");
        assert!(!found.name.is_empty());
        assert_eq!(kernel.find(function.end - 1), Some(found));
    }
    let _any = (kernel.find(0), kernel.find(u64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
0000000000012345 D a_variable_of_each_cpu
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t do_one
ffffffff81000180 r a_table
ffffffff81000200 W __weak
ffffffff81000200 T ___strong
ffffffff81002280 T the_last
ffffffff81005000 T _etext
ffffffffc0001ff0 t ext4_readdir\t[ext4]
ffffffffc0000010 t ext4_open\t[ext4]
ffffffffc0006000 d ext4_data\t[ext4]
ffffffffc0004ffe t bpf_prog_6deef7357e7b4530_sd\t[bpf]
";

    fn kernel() -> Kallsyms {
        Kallsyms::parse(TEXT.as_bytes()).expect("it has functions")
    }

    fn name(address: u64) -> String {
        let kernel = kernel();
        kernel.find(address).map_or("-".to_owned(), |found| {
            let Found { name, module } = found;
            format!("{name}[{module}]")
        })
    }

    #[test]
    fn functions_reach_to_the_next_symbol() {
        for (address, expected) in [
            (0xffff_ffff_80ff_ffff, "-"),
            (0xffff_ffff_8100_0000, "startup_64[]"),
            (0xffff_ffff_8100_00ff, "startup_64[]"),
            (0xffff_ffff_8100_017f, "do_one[]"),
            (0xffff_ffff_8100_0180, "-"),
            (0xffff_ffff_8100_0200, "___strong[]"),
            (0xffff_ffff_8100_227f, "___strong[]"),
            (0xffff_ffff_8100_4fff, "the_last[]"),
            (0xffff_ffff_8100_5000, "-"),
            (0x12345, "-"),
            (u64::MAX, "-"),
        ] {
            assert_eq!(name(address), expected, "{address:#x}");
        }
        assert_eq!(kernel().offset(0xffff_ffff_8100_5001), Some(0x5001));
        assert_eq!(kernel().offset(0xffff_8881_0000_0000), None);
    }

    #[test]
    fn the_last_function_of_a_module_ends_with_its_page() {
        for (address, expected) in [
            (0xffff_ffff_c000_0010, "ext4_open[ext4]"),
            (0xffff_ffff_c000_1fef, "ext4_open[ext4]"),
            (0xffff_ffff_c000_1fff, "ext4_readdir[ext4]"),
            (0xffff_ffff_c000_2000, "-"),
            (0xffff_ffff_c000_4fff, "bpf_prog_6deef7357e7b4530_sd[bpf]"),
            (0xffff_ffff_c000_5000, "-"),
        ] {
            assert_eq!(name(address), expected, "{address:#x}");
        }
    }

    #[test]
    fn what_hides_its_addresses_or_has_no_functions_is_refused() {
        let hidden = "0000000000000000 T _text\n0000000000000000 t do_one\n";
        let fault = |text: &str| Kallsyms::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(fault(hidden), Fault::Hidden));
        assert!(matches!(fault(""), Fault::Empty));
        assert!(matches!(fault("ffffffff81000000 D data\n"), Fault::Empty));
    }

    #[test]
    fn the_running_kernel_is_read_or_hides_its_functions() {
        match Kallsyms::read() {
            Ok(kernel) => {
                let text = std::fs::read_to_string("/proc/kallsyms").expect("it was read");
                let line = text.lines().find(|line| line.ends_with(" T schedule"));
                let line = line.expect("every kernel has it");
                let (start, ..) = parse_line(line.as_bytes()).expect("it is a line");
                let found = kernel.find(start + 1).expect("it is a function");
                assert_eq!((found.name, found.module), ("schedule", ""));
            }
            Err(fault) => assert!(matches!(fault, Fault::Hidden), "{fault}"),
        }
    }
}
