//! The programs whose stacks are compared: of the system, compilers, and Pythons with wheels of C, C++,
//! Rust and Fortran. Each works until it is killed, or as long as its work lasts.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// A name and a command for bash. `$WHEELS` is a Python that has the wheels, `$C` and `$RUST` are files
/// with a thousand functions, `$HERE` is a repository of git.
pub(crate) type Program = (&'static str, &'static str);

/// What every machine has that builds Rust and has Python.
pub(crate) const SMALL: &[Program] = &[
    (
        "bash",
        "f() { (( $1 > 0 )) && f $(( $1 - 1 )); :; }; while :; do f 5; done",
    ),
    (
        "grep",
        "exec grep -cE '(a|.b)*c[0-9]{3,9}(.x|yz)+(.)\\2' <(while :; do cat $C; done)",
    ),
    (
        "perl",
        r#"exec perl -e 'while (1) { my %h; $h{$_ % 97} .= join ",", map { $_ * 2 } 1..9 for 1..99; @x = sort { $h{$a} cmp $h{$b} } keys %h }'"#,
    ),
    ("xz", "exec xz -9e -T2 -c /dev/zero"),
    (
        "python3",
        "exec python3 -c 'import json, re\nwhile True: json.loads(json.dumps(list(range(99)))); sorted(range(99), key=lambda x: re.sub(\"1\", \"2\", str(x)))'",
    ),
];

/// What most machines have.
pub(crate) const SYSTEM: &[Program] = &[
    (
        "git",
        "exec git -C $HERE pack-objects --all --stdout --no-reuse-delta --window=300 -q </dev/null",
    ),
    ("tar", "exec tar cf - /usr/lib > >(cat >/dev/null)"),
    ("sort", "exec sort -R <(while :; do cat $C; done)"),
    (
        "awk",
        r#"exec awk 'BEGIN { while (1) { x = x + sin(x); s = sprintf("%s", x) } }'"#,
    ),
    (
        "openssl speed",
        "exec openssl speed -seconds 3 sha256 sha512 ecdsap256 rsa2048",
    ),
    (
        "openssl enc",
        "exec openssl enc -aes-256-cbc -pass pass:x -pbkdf2 -in /dev/zero",
    ),
    (
        "bc",
        "exec bc -l <<< 'for (i = 1; 1; i++) s += e(l(i)) * a(i)'",
    ),
    (
        "find",
        "exec find / /usr / -xdev -regex '.*/[a-m]*/.*[0-9]+\\.none'",
    ),
    (
        "cc1",
        "exec $(gcc -print-prog-name=cc1) -quiet -O2 -o /dev/null $C",
    ),
    (
        "rustc",
        "exec $(rustup which rustc) -O --crate-type lib --emit obj -o /dev/null $RUST 2>/dev/null",
    ),
    (
        "gdb",
        "exec gdb -nx -batch -ex 'python\nwhile True: gdb.execute(\"info line main\", to_string=True)' /bin/bash",
    ),
];

/// Pythons: the wheel's name, and what the loop of its program is preceded by, and does.
pub(crate) const WHEELS: &[(&str, &str, &str)] = &[
    (
        "hashlib, zlib",
        "import hashlib, zlib; b = bytes(1 << 18)",
        "hashlib.sha512(b).hexdigest(); zlib.compress(b); hashlib.pbkdf2_hmac('sha256', b'x', b'y', 99)",
    ),
    (
        "sqlite3",
        "import sqlite3; c = sqlite3.connect(':memory:'); c.create_function('f', 1, lambda x: sum(range(x % 99)))",
        "c.execute('with recursive n(x) as (select 1 union all select x + 1 from n limit 999) select sum(f(x)) from n').fetchall()",
    ),
    (
        "numpy",
        "import numpy as np; a = np.random.rand(200, 200)",
        "a @ a; np.linalg.svd(a[:60, :60]); np.linalg.eig(a[:40, :40]); np.fft.fft(a); np.sort(a); np.einsum('ij,jk', a, a)",
    ),
    (
        "numpy of Python",
        "import numpy as np; a = np.arange(999); f = np.vectorize(lambda x: x * 2)",
        "f(a); np.apply_along_axis(sum, 0, a.reshape(27, 37)); str(a)",
    ),
    (
        "scipy",
        "import scipy.integrate as i, scipy.optimize as o, scipy.interpolate as p, scipy.linalg as l, scipy.sparse.linalg as s, numpy as np; a = np.random.rand(60, 60)",
        "i.quad(lambda x: x ** 2, 0, 1); i.solve_ivp(lambda t, y: -y, (0, 1), [1.0], method='LSODA'); o.minimize(lambda x: (x ** 2).sum(), [1.0] * 5, method='SLSQP'); p.splrep(np.arange(50), np.random.rand(50)); l.schur(a); s.eigs(a, 3)",
    ),
    (
        "orjson",
        "import orjson; d = {str(i): [i, {'a': str(i)}] for i in range(999)}",
        "orjson.loads(orjson.dumps(d)); orjson.dumps([object()] * 9, default=lambda x: list(range(9)))",
    ),
    (
        "pydantic-core",
        "from pydantic_core import SchemaValidator as V; v = V({'type': 'list', 'items_schema': {'type': 'function-after', 'function': {'type': 'no-info', 'function': lambda x: x + 1}, 'schema': {'type': 'int'}}}); d = list(range(999))",
        "v.validate_python(d)",
    ),
    (
        "cryptography",
        "from cryptography.hazmat.primitives.asymmetric import ec, ed25519; from cryptography.hazmat.primitives import hashes; from cryptography import x509",
        "k = ec.generate_private_key(ec.SECP256R1()); k.sign(b'x' * 99, ec.ECDSA(hashes.SHA256())); ed25519.Ed25519PrivateKey.generate().sign(b'x')",
    ),
    (
        "polars",
        "import polars as pl; f = pl.DataFrame({'a': [i % 97 for i in range(99999)], 'b': [str(i) for i in range(99999)]})",
        "f.group_by('a').agg(pl.col('b').sort().first(), pl.len()); f.sort('b'); f.lazy().filter(pl.col('a') > 3).join(f.lazy().head(99), on='a').collect()",
    ),
    (
        "pyarrow",
        "import pyarrow as pa, pyarrow.compute as c, pyarrow.csv as v, io; a = pa.array([str(i % 999) for i in range(99999)]); t = pa.table({'a': a, 'b': a})",
        "c.sort_indices(a); c.unique(a); t.group_by('a').aggregate([('b', 'count')]); v.write_csv(t, io.BytesIO())",
    ),
    (
        "grpcio",
        "import grpc; from concurrent import futures; s = grpc.server(futures.ThreadPoolExecutor(2)); s.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('x', {'y': grpc.unary_unary_rpc_method_handler(lambda q, c: q)}),)); n = s.add_insecure_port('127.0.0.1:0'); s.start(); c = grpc.insecure_channel('127.0.0.1:%d' % n); m = c.unary_unary('/x/y')",
        "m(b'x' * 999)",
    ),
];

/// A program that runs; it and what it has started end when this is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a command for bash, with files to work on from `folder`.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn start(command: &str, python: &Path, folder: &Path) -> io::Result<Running> {
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(command).env("WHEELS", python);
        bash.env("HERE", env!("CARGO_MANIFEST_DIR"));
        bash.env("C", folder.join("large.c"));
        bash.env("RUST", folder.join("large.rs"));
        bash.stdin(Stdio::null()).stdout(Stdio::null());
        bash.stderr(fs::File::create(folder.join("stderr"))?);
        bash.process_group(0);
        Ok(Running(bash.spawn()?))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it is at its work: for that long, and on a machine at work until it has had some CPU
    /// time.
    pub(crate) fn warm_up(&mut self, time: Duration) {
        thread::sleep(time);
        for _ in 0..200 {
            if self.is_over() || cpu_time(self.pid()) >= time / 2 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: a signal to the group of a child of ours that has not been waited for before now.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _gone = self.0.wait();
    }
}

/// In user space, as far as `/proc/PID/stat` tells (proc_pid_stat(5)): in ticks of 10 ms.
fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields
        .split(' ')
        .nth(11)
        .and_then(|ticks| ticks.parse().ok());
    Duration::from_millis(10) * ticks.unwrap_or(0)
}

/// Writes the files that compilers and others work on.
///
/// # Errors
/// When they can't be written.
pub(crate) fn write_files(folder: &Path) -> io::Result<()> {
    let numbers = 0..3000;
    let c: String = numbers
        .clone()
        .map(|n| {
            format!(
                "int f{n}(int *a, int b) {{ int s = {n}; for (int i = 0; i < b; i++) {{ \
                 if (a[i] > {n}) s += a[i] * i; else s ^= a[b - i]; switch (s % 7) {{ \
                 case 1: s++; break; case 3: s -= i; break; default: s *= 3; }} }} return s; }}\n"
            )
        })
        .collect();
    fs::write(folder.join("large.c"), c)?;
    let rust: String = numbers
        .map(|n| {
            format!(
                "pub fn f{n}(a: &[u32]) -> Vec<String> {{ a.iter().filter(|&&x| x > {n}) \
                 .map(|x| format!(\"{{x}} {n}\")).collect() }}\n"
            )
        })
        .collect();
    fs::write(folder.join("large.rs"), rust)
}
