//! A profile made by hand, small enough to check by eye and with everything in it that an output
//! could get wrong: two processes, threads, markers, recursion, native code, names that need escaping.

use std::time::{Duration, UNIX_EPOCH};

use pyebpf::profile::{
    FrameId, Function, Meta, Module, Process, ProcessId, Profile, Shape, StackId,
};

/// Nanoseconds that every sample of [`profile`] stands for.
pub const WEIGHT: u64 = 10_000_000;

/// Samples of [`profile`].
pub const SAMPLES: u64 = 27;

/// A profile without samples, but with a process that was looked at.
pub fn empty(shape: Shape) -> Profile {
    let mut profile = Profile::new(meta(), shape, true);
    let process = add_process(&mut profile, 40, "python3 idle.py");
    profile.add_thread(process, 40, "python3".to_owned());
    let marker = profile.marker("[unknown: never recorded]");
    profile.stack([marker]);
    profile
}

/// The example. Its stacks, with their samples, are those of the golden collapsed stacks.
pub fn profile(shape: Shape) -> Profile {
    let mut profile = empty(shape);
    let shop = add_process(&mut profile, 41, "python3 shop.py --sort 'a;b'\n");
    let container = "0123456789abcdef".repeat(4);
    let other = profile.add_process(Process {
        pid: 77,
        command_line: "/usr/bin/python3 -m größe <x & y>".to_owned(),
        cgroup: format!("/system.slice/docker;größe-{container}.scope"),
        container,
    });
    let main = profile.add_thread(shop, 41, "python3".to_owned());
    profile.set_thread_name(main, "MainThread".to_owned());
    let worker = profile.add_thread(shop, 42, "pool-1".to_owned());
    profile.set_thread_name(worker, "worker;1 #2".to_owned());
    let lone = profile.add_thread(other, 77, "python3".to_owned());

    let app = ("/srv/shop/shop.py", "shop.py");
    let json = ("/usr/lib/python3.11/json/decoder.py", "json/decoder.py");
    let numpy = (
        "/venv/lib/python3.11/site-packages/numpy/core.py",
        "numpy/core.py",
    );
    let odd = ("/srv/größe;/数.py", "数.py");
    let truncated = [("[truncated: depth]", ("", ""), 0, 0)];
    let module = ("<module>", app, 1, 90);
    let sell = ("Shop.sell", app, 10, 14);

    let mut time = 0;
    let mut record = |profile: &mut Profile, thread, stack, times| {
        for _ in 0..times {
            time += WEIGHT + 1_000;
            profile.record(time, thread, stack, WEIGHT);
        }
    };
    let stack = add_stack(
        &mut profile,
        &[module, sell, ("JSON.decode", json, 330, 337)],
    );
    record(&mut profile, main, stack, 4);
    let stack = add_stack(
        &mut profile,
        &[module, sell, ("Shop.sell.<locals>.<lambda>", app, 12, 12)],
    );
    record(&mut profile, main, stack, 2);
    let stack = add_stack(&mut profile, &[module, ("Shop.sell", app, 10, 15)]);
    record(&mut profile, main, stack, 1);
    let deep = ("walk", app, 40, 44);
    let stack = add_stack(
        &mut profile,
        &[truncated[0], deep, deep, deep, ("walk", app, 40, 41)],
    );
    record(&mut profile, worker, stack, 3);
    let stack = add_stack(&mut profile, &[("dot", numpy, 100, 120)]);
    record(&mut profile, worker, stack, 3);
    let stack = add_stack(
        &mut profile,
        &[("größe.数", odd, 3, 4), ("weird;name\nwith\\", odd, 7, 0)],
    );
    record(&mut profile, lone, stack, 5);
    let stack = add_stack(
        &mut profile,
        &[("[unreadable: thread state]", ("", ""), 0, 0)],
    );
    record(&mut profile, lone, stack, 1);
    let stack = add_stack(
        &mut profile,
        &[module, sell, ("JSON.decode", json, 330, 337)],
    );
    record(&mut profile, main, stack, 1);
    let native = profile.add_thread(shop, 43, "pool-2".to_owned());
    for (stack, times) in native_stacks(&mut profile, app) {
        record(&mut profile, native, stack, times);
    }
    profile
}

/// Stacks of native code called by Python, and their samples: named with and without a line, inlined,
/// without a name, made at run time, of the kernel, and missing.
fn native_stacks(profile: &mut Profile, app: (&str, &str)) -> [(StackId, u32); 5] {
    let mut module = |path: &str, build_id: &[u8], kernel| {
        profile.module(Module {
            path: path.to_owned(),
            build_id: build_id.to_vec(),
            kernel,
        })
    };
    let zlib = module(
        "/usr/lib/x86_64-linux-gnu/libz.so.1.2.13",
        &[0xbe, 0x01, 0x0f],
        false,
    );
    let shop = module("/srv/größe;/libshop (1).so (deleted)", &[], false);
    let jit = module("[jit]", &[], false);
    let kernel = module("[kernel]", &[0x77; 20], true);
    let ext4 = module("[ext4]", &[], true);
    let mut native = |name: &str, source: (&str, &str, u32), module| {
        let function = profile.function(Function {
            name: name.to_owned(),
            file: source.0.to_owned(),
            short_file: source.1.to_owned(),
            first_line: 0,
            module: Some(module),
        });
        profile.frame(function, (source.2 > 0).then_some(source.2))
    };
    let none = ("", "", 0);
    let source = |line| ("/build/shop/sort.cpp", "sort.cpp", line);
    let header = ("/usr/include/c++/12/bits/stl_algo.h", "stl_algo.h", 1948);
    let compress = native("compress2", none, zlib);
    let adler32 = native("adler32_z", none, zlib);
    let sort = native(
        "shop::sort(std::vector<int, std::allocator<int> >&)",
        source(31),
        shop,
    );
    let inlined = native(
        "void std::sort<int*, shop::Less (*)(int)>(int*, int*)",
        header,
        shop,
    );
    let compare = native(
        "shop::{lambda(int, int)#1}::operator()(int, int) const",
        source(29),
        shop,
    );
    let unknown = native("[unknown in libshop (1).so+0x1a2b]", none, shop);
    let made = native("py::f;g:/srv/a b.py", none, jit);
    let read = native("vfs_read", none, kernel);
    let ext4 = native("ext4_file_read_iter", none, ext4);
    let missing = profile.marker("[unknown: native frames, code without unwind information]");
    let pack = python_frame(profile, ("Shop.pack", app, 60, 66));
    let order = python_frame(profile, ("Shop.order", app, 70, 71));
    [
        (profile.stack([pack, compress, adler32]), 2),
        (profile.stack([order, sort, inlined, compare]), 1),
        (profile.stack([order, unknown, order, made]), 1),
        (profile.stack([pack, read, ext4]), 2),
        (profile.stack([order, missing, adler32]), 1),
    ]
}

fn add_process(profile: &mut Profile, pid: u32, command_line: &str) -> ProcessId {
    profile.add_process(Process {
        pid,
        command_line: command_line.to_owned(),
        ..Process::default()
    })
}

/// Name, file with its short form, first line (of markers 0), running line (0 when unknown).
type Call<'a> = (&'a str, (&'a str, &'a str), u32, u32);

fn add_stack(profile: &mut Profile, calls: &[Call]) -> StackId {
    let frames: Vec<_> = calls
        .iter()
        .map(|&call| python_frame(profile, call))
        .collect();
    profile.stack(frames)
}

fn python_frame(
    profile: &mut Profile,
    (name, (file, short_file), first_line, line): Call,
) -> FrameId {
    if file.is_empty() {
        return profile.marker(name);
    }
    let function = profile.function(Function {
        name: name.to_owned(),
        file: file.to_owned(),
        short_file: short_file.to_owned(),
        first_line,
        module: None,
    });
    profile.frame(function, (line > 0).then_some(line))
}

fn meta() -> Meta {
    Meta {
        started: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        rate: 99,
        command: "pyebpf record -d 2 -o 'a;b.svg'".to_owned(),
        duration: Duration::from_millis(2000),
    }
}
